"""The detectors of `label`: which they are, what they draw, and how their boxes are joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthdet.config import OWN_WEIGHTS, LabelConfig
from synthdet.core.fusion import (
    NUM_VIEWS,
    detector_source,
    fuse_boxes,
    name_detector,
    split_by_source,
    view_source,
)
from synthdet.core.labelling import MIN_CONFIDENCE, drop_twice_drawn, to_classes
from synthdet.core.records import DetectedBox, Detections
from synthdet.errors import SynthdetError
from synthdet.models.detector import has_weights
from synthdet.models.protocols import Detector
from synthdet.progress import Reporter
from synthdet.stages._detector import Opened, find_weights, hash_weights, open_once
from synthdet.workspace import (
    StageFolder,
    append_records,
    hash_json,
    read_json,
    read_records,
    write_json,
)

FAILED = "the detector failed on it"

DETECTION_BATCH = 32
"""Pictures whose boxes are written at once. Part of what is made, so it is no knob."""

_NAMED_BY = ("weights", "class_map", "queries")
"""The settings that say which detectors look, and for what."""


@dataclass(frozen=True, slots=True)
class Looking:
    """The detectors that look at every picture.

    Attributes:
        detectors: In the order of `label.weights`.
        views: Whether each looks at all eight views.
    """

    detectors: tuple[Opened, ...]
    views: bool

    def joined(self, found: Mapping[str, Detections]) -> dict[str, tuple[DetectedBox, ...]]:
        """The boxes to decide on by picture: those of all detectors and views, joined."""
        sources = [
            view_source(detector_source(number), view)
            for number in range(len(self.detectors))
            for view in range(NUM_VIEWS if self.views else 1)
        ]
        if len(sources) == 1:
            return {image_id: one.boxes for image_id, one in found.items()}
        return {
            image_id: drop_twice_drawn(fuse_boxes(split_by_source(one.boxes, sources)))
            for image_id, one in found.items()
        }


# --- which they are ----------------------------------------------------------------------------


def own_is_missing(folder: StageFolder, settings: LabelConfig) -> bool:
    """Whether the run's own detector is asked for and not trained."""
    return OWN_WEIGHTS in settings.weights_names() and not has_weights(folder.path / "weights")


def hash_named(settings: LabelConfig) -> dict[str, str]:
    """Fingerprint of the files of the detectors that were named, as an input of the stage.

    Raises:
        SynthdetError: There is no such file or folder.
    """
    named = [name for name in settings.weights_names() if name != OWN_WEIGHTS]
    found = [hash_weights(find_weights(name, "label.weights")) for name in named]
    if not found:
        return {}
    return {"label.weights": found[0] if len(found) == 1 else hash_json(found)}


def making_settings(settings: LabelConfig) -> dict[str, Any]:
    """What the lock compares. Runs that were labelled before `queries` was a setting go on."""
    making = settings.settings("making")
    return {name: value for name, value in making.items() if (name, value) != ("queries", None)}


def refuse_other_detectors(folder: StageFolder, settings: LabelConfig) -> None:
    """Refuse others than those whose boxes stand in the folder, before their files count as an input.

    Where nothing was drawn yet others are welcome.

    Raises:
        SynthdetError: They were changed; names the setting.
    """
    lock, drawn = folder.lock(), folder.path / "detections.jsonl"
    if lock is None or not drawn.exists() or not drawn.stat().st_size:
        return
    now = settings.settings("making")
    for key in _NAMED_BY:
        before = lock["settings"].get(key)
        if before != now[key]:
            raise SynthdetError(
                f"label.{key} was {before!r} and is now {now[key]!r}: set it back, or "
                f"`synthdet label {folder.workspace.root} --redo` keeps the old folder aside and makes it again"
            )


def open_all(
    folder: StageFolder,
    settings: LabelConfig,
    class_names: Sequence[str],
    open_detector: Callable[[Path], Detector],
) -> Looking:
    """All detectors, each to be opened when it is first needed."""
    opened = []
    for name in settings.weights_names():
        weights = (
            folder.path / "weights" if name == OWN_WEIGHTS else find_weights(name, "label.weights")
        )
        opened.append(open_once(weights, class_names, settings.class_map_of(name), open_detector))
    return Looking(tuple(opened), settings.views)


def describe(path: Path, settings: LabelConfig, looking: Looking) -> list[dict[str, Any]]:
    """Who draws, as ``detectors.json`` says; written before the first box.

    Returns:
        One for each detector that was named: ``source``, ``weights``, its class ``names``, and the
        ``queries`` it looks for, phrases by class, null if it has learned its classes.
    """
    if settings.weights is None:
        return []
    if not path.exists():
        described = []
        for number, (name, opened) in enumerate(
            zip(settings.weights_names(), looking.detectors, strict=True)
        ):
            detector, _to_run = opened()
            queries = detector.queries
            described.append(
                {
                    "source": detector_source(number),
                    "weights": name,
                    "names": list(detector.names),
                    "queries": None
                    if queries is None
                    else {key: list(said) for key, said in queries.items()},
                }
            )
        write_json(path, {"detectors": described})
    return list(read_json(path)["detectors"])


# --- what they draw ----------------------------------------------------------------------------


def draw_all(
    path: Path,
    pictures: Sequence[tuple[str, Path]],
    made_by: str,
    looking: Looking,
    reporter: Reporter,
) -> dict[str, Detections]:
    """Raw boxes of all pictures by id; what stands in the file already is not made again.

    Args:
        path: ``detections.jsonl`` or ``val_detections.jsonl``.
        pictures: Id and file of each.
        made_by: The stage that makes a picture that is missing.
        looking: Who looks.
        reporter: Hears how far it is.

    Raises:
        SynthdetError: A picture is missing, or a detector works on none of a batch.
    """
    ids = [image_id for image_id, _file in pictures]
    found = {one.image_id: one for one in read_records(path, Detections)}
    if list(found) != ids[: len(found)]:  # of other pictures: what stands there is of no use
        path.unlink()
        found = {}
    if not path.exists():
        append_records(path, [])
    if len(found) == len(ids):
        return found
    with reporter.bar("label", len(ids), done=len(found), doing="drawing boxes") as advance:
        for begin in range(0, len(pictures), DETECTION_BATCH):
            batch = pictures[begin : begin + DETECTION_BATCH]
            if all(image_id in found for image_id, _file in batch):
                continue
            for _id, file in batch:
                if not file.exists():
                    raise missing(file, made_by)
            made = [one for one in _draw_batch(batch, looking) if one.image_id not in found]
            append_records(path, made)
            found |= {one.image_id: one for one in made}
            advance(len(made))
    return found


def _draw_batch(batch: Sequence[tuple[str, Path]], looking: Looking) -> list[Detections]:
    """The boxes of every detector, one detector after the other, by the run's classes."""
    files = [file for _id, file in batch]
    boxes: list[list[DetectedBox]] = [[] for _ in batch]
    failed = [False] * len(batch)
    for number, opened in enumerate(looking.detectors):
        detector, to_run = opened()
        for place, drawn in enumerate(_draw(detector, files, views=looking.views)):
            failed[place] |= drawn is None
            boxes[place] += (name_detector(box, number) for box in to_classes(drawn or (), to_run))
    return [
        Detections(image_id=image_id, boxes=tuple(own), fault=FAILED if fault else None)
        for (image_id, _file), own, fault in zip(batch, boxes, failed, strict=True)
    ]


def _draw(
    detector: Detector, files: Sequence[Path], *, views: bool
) -> list[tuple[DetectedBox, ...] | None]:
    """Boxes of each file; a batch that fails is drawn one by one. None where that fails too.

    Raises:
        SynthdetError: Nothing in the batch works: it is the detector, not the pictures.
    """
    try:
        return [*detector.detect(files, min_confidence=MIN_CONFIDENCE, views=views)]
    except SynthdetError as error:
        drawn: list[tuple[DetectedBox, ...] | None] = []
        for file in files:
            try:
                drawn += detector.detect([file], min_confidence=MIN_CONFIDENCE, views=views)
            except SynthdetError:
                drawn.append(None)
        if all(boxes is None for boxes in drawn):
            raise error from None
        return drawn


def missing(path: Path, stage: str) -> SynthdetError:
    """What to say of a picture that an earlier stage has made and that is gone."""
    return SynthdetError(
        f"{path} is missing: put it back, or make it again with `synthdet {stage}`"
    )
