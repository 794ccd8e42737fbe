"""The detectors of `label`: which they are, what they draw, and how their boxes are joined."""

from __future__ import annotations

import os
import shutil
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
from synthdet.core.labelling import MIN_CONFIDENCE, drop_twice_drawn, map_classes, to_classes
from synthdet.core.records import DetectedBox, Detections
from synthdet.errors import SynthdetError
from synthdet.models.detector import has_weights, is_hub_name
from synthdet.models.identity import identify
from synthdet.models.protocols import Detector
from synthdet.progress import Reporter
from synthdet.stages._detector import Opened, find_weights, hash_weights, open_once
from synthdet.stages.label_tiles import TilesNotWrittenError
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

DETECTORS_NAME = "detectors.json"
OWN_NAME = "own.json"
VAL_DETECTIONS_NAME = "val_detections.jsonl"

_LOOKED_FOR = ("class_map", "queries")
_NAMED_BY = ("weights", *_LOOKED_FOR)
"""The settings that say which detectors look, and for what."""
NEWER: Mapping[str, Any] = {"queries": None, "tile_side": None}
"""Making settings that came later, null by default: runs that were labelled before go on."""
_LEARNED_BY = (
    "detector", "image_size", "max_train_steps", "train_batch_size", "learning_rate", "seed"
)  # fmt: skip
"""The settings by which the run's own detector learns."""


@dataclass(frozen=True, slots=True)
class Looking:
    """The detectors that look at every picture.

    Attributes:
        detectors: In the order of `label.weights`.
        views: Whether each looks at all eight views.
    """

    detectors: tuple[Opened, ...]
    views: bool

    def joined(
        self, found: Mapping[str, Detections], known: Sequence[frozenset[int]]
    ) -> dict[str, tuple[DetectedBox, ...]]:
        """The boxes to decide on by picture: those of all detectors and views, joined.

        Args:
            found: Raw boxes by picture.
            known: Class ids that each detector can draw: it has no vote about other classes.
        """
        num_views = NUM_VIEWS if self.views else 1
        if len(self.detectors) * num_views == 1:
            return {image_id: one.boxes for image_id, one in found.items()}
        voters = {
            class_id: [
                view_source(detector_source(number), view)
                for number, classes in enumerate(known)
                for view in range(num_views)
                if class_id in classes
            ]
            for class_id in frozenset[int]().union(*known)
        }
        return {image_id: _join(one.boxes, voters) for image_id, one in found.items()}


def _join(
    boxes: Sequence[DetectedBox], voters: Mapping[int, Sequence[str]]
) -> tuple[DetectedBox, ...]:
    """Boxes of one picture, joined class by class."""
    fused: list[DetectedBox] = []
    for class_id, sources in voters.items():
        own = [box for box in boxes if box.class_id == class_id]
        fused += fuse_boxes(split_by_source(own, sources))
    return drop_twice_drawn(sorted(fused, key=lambda box: (-box.confidence, box.xyxy)))


# --- which they are ----------------------------------------------------------------------------


def own_is_missing(folder: StageFolder, settings: LabelConfig) -> bool:
    """Whether the run's own detector is asked for and not trained."""
    return OWN_WEIGHTS in settings.weights_names() and not has_weights(folder.path / "weights")


def find_own(
    folder: StageFolder,
    settings: LabelConfig,
    inputs: Mapping[str, str],
    identify_start: Callable[[str], str | None],
) -> Path | None:
    """The folder set aside last, if the run's own detector there has learned what it would learn now.

    None where nothing else is asked for than what stands there either: whoever makes the same again with
    ``--redo`` wants it made. None too where nobody knows whether it started from the same weights.

    Args:
        folder: Of the stage.
        settings: What is asked for now.
        inputs: Fingerprints of what is labelled with, now.
        identify_start: Finds out which weights `label.detector` stands for now.
    """
    aside = folder.set_aside()[:1]
    if not aside or not has_weights(aside[0] / "weights"):
        return None
    lock_path = aside[0] / folder.lock_path.name
    if not lock_path.exists():
        return None
    lock, now = read_json(lock_path), settings.settings("making")
    if NEWER | lock["settings"] == now and lock["inputs"] == dict(inputs):
        return None
    learned = all(lock["settings"].get(key) == now[key] for key in _LEARNED_BY)
    if not learned or lock["inputs"].get("prepare") != inputs["prepare"]:
        return None
    own_path = aside[0] / OWN_NAME
    if not own_path.exists():  # trained by a synthdet that did not write it down
        return None
    start = settings.detector
    before, identity = read_json(own_path)["identity"], identify_start(start)
    # A model's bare name stands for random weights, and those are the same without a hash.
    is_known = identity is not None or not (is_hub_name(start) or Path(start).exists())
    return aside[0] if is_known and before == identity else None


def write_own(folder: StageFolder, settings: LabelConfig, identity: str | None) -> None:
    """Write down what the run's own detector started from, once it is trained.

    Args:
        folder: Of the stage.
        settings: Name what it started from.
        identity: Which weights that was; None where nobody knows, or where they were random.
    """
    write_json(folder.path / OWN_NAME, {"detector": settings.detector, "identity": identity})


def take_over(source: Path, folder: StageFolder) -> None:
    """Copy the run's own detector from a folder that was set aside, whole or not at all."""
    temporary = folder.path / ".tmp-weights"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source / "weights", temporary)
    shutil.rmtree(folder.path / "weights", ignore_errors=True)
    os.rename(temporary, folder.path / "weights")
    write_json(folder.path / OWN_NAME, read_json(source / OWN_NAME))


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


def refuse_other_detectors(folder: StageFolder, settings: LabelConfig) -> None:
    """Refuse others than those whose boxes stand in the folder, before their files count as an input.

    Where nothing was drawn yet others are welcome, and so are another `class_map` and other `queries`:
    a name in them that does not fit is only found out when the detector opens, after the training of
    the run's own, which must not be thrown away for it.

    Raises:
        SynthdetError: They were changed; names the setting.
    """
    lock, drawn = folder.lock(), folder.path / "detections.jsonl"
    if lock is None:
        return
    now = settings.settings("making")
    if not drawn.exists() or not drawn.stat().st_size:
        if lock["settings"].get("weights") == now["weights"]:
            _look_for_another(folder, lock, settings)
        return
    for key in _NAMED_BY:
        before = lock["settings"].get(key)
        if before != now[key]:
            raise SynthdetError(
                f"label.{key} was {before!r} and is now {now[key]!r}: set it back, or "
                f"`synthdet label {folder.workspace.root} --redo` keeps the old folder aside and makes it again"
            )
    # A relative path that is none in another folder would pass for a hub name, so for another detector.
    gone = [
        name for name in settings.weights_names() if is_hub_name(name) and not Path(name).exists()
    ]
    if gone and lock["inputs"].get("label.weights") != hash_named(settings)["label.weights"]:
        raise SynthdetError(
            f"label.weights: there is no {gone[0]} here, but boxes of such a file or folder stand in "
            f"{folder.path}: go to the folder where you ran it before, or put it back"
        )


def _look_for_another(folder: StageFolder, lock: Mapping[str, Any], settings: LabelConfig) -> None:
    """Let another `class_map` or other `queries` take the place of those in the lock."""
    before, making = lock["settings"], settings.settings("making")
    if all(before.get(key) == making.get(key) for key in _LOOKED_FOR):
        return
    for name in (DETECTORS_NAME, VAL_DETECTIONS_NAME):  # made by what was looked for before
        (folder.path / name).unlink(missing_ok=True)
    now = {key: making[key] for key in _LOOKED_FOR}
    write_json(folder.lock_path, {**lock, "settings": before | now})


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
        One for each detector that was named: ``source``, ``weights``, their ``identity`` (a hash, or the
        revision of the hub; null where nobody knows), its class ``names``, and the ``queries`` it looks for,
        phrases by class, null if it has learned its classes.
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
            weights = path.parent / "weights" if name == OWN_WEIGHTS else Path(name).expanduser()
            described.append(
                {
                    "source": detector_source(number),
                    "weights": name,
                    "identity": identify(weights),
                    "names": list(detector.names),
                    "queries": None
                    if queries is None
                    else {key: list(said) for key, said in queries.items()},
                }
            )
        write_json(path, {"detectors": described})
    return list(read_json(path)["detectors"])


def known_classes(
    settings: LabelConfig, class_names: Sequence[str], described: Sequence[Mapping[str, Any]]
) -> list[frozenset[int]]:
    """The run's class ids that each detector can draw.

    Args:
        settings: Which detectors, and what their classes are called here.
        class_names: The run's.
        described: As `describe` gives it.
    """
    if not described:
        return [frozenset(range(len(class_names)))]
    known = []
    for one in described:
        class_map = None if one["queries"] is not None else settings.class_map_of(one["weights"])
        known.append(frozenset(map_classes(one["names"], class_names, class_map).values()))
    return known


def not_looked_for(settings: LabelConfig, described: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say of `queries` and a `class_map` that none of the detectors takes notice of.

    Args:
        settings: What was asked for.
        described: As `describe` gives it.
    """
    unused = []
    if settings.queries is not None and all(one["queries"] is None for one in described):
        unused.append("label.queries changes nothing: no detector in label.weights finds by text")
    learned = [str(one["weights"]) for one in described if one["queries"] is None]
    if settings.class_map is not None and not any(map(settings.class_map_of, learned)):
        unused.append(
            "label.class_map changes nothing: it is for detectors in label.weights that have learned classes"
        )
    return unused


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
            works = any(one.fault is None for one in found.values())
            drawn = _draw_batch(batch, looking, works=works)
            made = [one for one in drawn if one.image_id not in found]
            append_records(path, made)
            found |= {one.image_id: one for one in made}
            advance(len(made))
    return found


def _draw_batch(
    batch: Sequence[tuple[str, Path]], looking: Looking, *, works: bool
) -> list[Detections]:
    """The boxes of every detector, one detector after the other, by the run's classes."""
    files = [file for _id, file in batch]
    boxes: list[list[DetectedBox]] = [[] for _ in batch]
    failed = [False] * len(batch)
    for number, opened in enumerate(looking.detectors):
        detector, to_run = opened()
        for place, drawn in enumerate(_draw(detector, files, looking.views, works=works)):
            failed[place] |= drawn is None
            boxes[place] += (name_detector(box, number) for box in to_classes(drawn or (), to_run))
    return [
        Detections(image_id=image_id, boxes=tuple(own), fault=FAILED if fault else None)
        for (image_id, _file), own, fault in zip(batch, boxes, failed, strict=True)
    ]


def _draw(
    detector: Detector, files: Sequence[Path], views: bool, *, works: bool
) -> list[tuple[DetectedBox, ...] | None]:
    """Boxes of each file; a batch that fails is drawn one by one. None where that fails too.

    Raises:
        SynthdetError: Nothing in the batch works: it is the detector, not the pictures. A last batch of
            one tells nothing: there it is the picture, if the detector ``works`` on others.
        TilesNotWrittenError: It is the disk, neither of the two.
    """
    try:
        return [*detector.detect(files, min_confidence=MIN_CONFIDENCE, views=views)]
    except TilesNotWrittenError:
        raise
    except SynthdetError as error:
        drawn: list[tuple[DetectedBox, ...] | None] = []
        for file in files:
            try:
                drawn += detector.detect([file], min_confidence=MIN_CONFIDENCE, views=views)
            except TilesNotWrittenError:
                raise
            except SynthdetError:
                drawn.append(None)
        if all(boxes is None for boxes in drawn) and not (works and len(files) == 1):
            raise error from None
        return drawn


def missing(path: Path, stage: str) -> SynthdetError:
    """What to say of a picture that an earlier stage has made and that is gone."""
    return SynthdetError(
        f"{path} is missing: put it back, or make it again with `synthdet {stage}`"
    )
