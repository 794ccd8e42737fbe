"""A run as FiftyOne samples, and what a person changed in them.

Pure: FiftyOne itself is not imported. `make_samples` gives the documents of its own dataset format
(as ``samples.json`` of ``fiftyone.types.FiftyOneDataset`` holds them), `read_verdicts` takes plain values.

A box is there ``[left, top, width, height]`` in shares of the picture, here ``xyxy`` in pixels.
"""

from __future__ import annotations

import hashlib
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from synthdet.core.curation import (
    ACCEPT,
    REJECT,
    Picture,
    ShownRun,
    boxes_to_export,
    doubt,
    drawn_edges,
    judgeable,
    name_of,
    near_threshold,
    only_new,
    standing_verdict,
    trim,
    why,
)
from synthdet.core.fusion import is_upright
from synthdet.core.records import XYXY, Box, DetectedBox, SyntheticImage, Verdict
from synthdet.errors import SynthdetError

FIELDS: Final = {
    "image_id": "Name of the picture, as in all records of the run",
    "source": "real or synthetic",
    "split": "Split of a real tile; synthetic pictures only ever enter train",
    "group": "What a real tile shares with its neighbours: site, flight, block of frames",
    "prompt": "What the picture was made from; the caption of a real tile",
    "seed": "Seed of a synthetic picture",
    "similarity": "Cosine similarity (CLIP) to the centroid of the real train tiles with an animal",
    "background_similarity": "The same, to the centroid of the real background tiles",
    "to_threshold": "Similarity minus the threshold it was held against",
    "near_threshold": "Among the pictures that a slightly moved threshold decides anew",
    "nearest_real": "The most similar real tile",
    "nearest_real_similarity": "Cosine similarity to it",
    "nearest_real_path": "Its file",
    "kept": "What the filter decided",
    "reason": "Why it was dropped, or waits for review",
    "doubt": "Why the label is likely wrong",
    "status": "What the labels' thresholds say: accept, review, or negative",
    "sha256": "Hash of the picture's file",
    "ground_truth": "Boxes of a real tile; edit those of train tiles",
    "predictions": "All boxes of the detector, raw",
    "accepted": "Boxes that go into the export: edit these",
    "boxes_as_loaded": "The boxes before anybody edited them, packed",
}


@dataclass(frozen=True)
class SeenSample:
    """A sample as a person left it.

    Attributes:
        image_id: Which picture.
        sha256: Of the picture that was shown.
        tags: All its tags.
        boxes: Class name and FiftyOne's box of each; None where the picture has no label yet.
        boxes_as_loaded: What `make_samples` wrote there.
    """

    image_id: str
    sha256: str
    tags: Sequence[str]
    boxes: Sequence[tuple[str, Sequence[float]]] | None
    boxes_as_loaded: str | None


_MOST_BOXES: Final = 2**32
"""Of a field, from whose first id the next field's is so far away."""
DrawnBox = tuple[bytes, int, float, float, float, float, float | None]
"""12 bytes of an id, class id, FiftyOne's box, and a detector's confidence."""


@dataclass(frozen=True)
class Forms:
    """What documents are made of, where that is not what ``samples.json`` holds.

    Attributes:
        make_id: Makes a database id of its 12 bytes.
        make_field: Makes a field of boxes.
    """

    make_id: Callable[[bytes], Any]
    make_field: Callable[[Sequence[DrawnBox]], Any]


def make_samples(
    shown: ShownRun, own_tags: Mapping[str, Sequence[str]], forms: Forms | None = None
) -> Iterator[dict[str, Any]]:
    """The documents that FiftyOne's dataset format holds, real tiles first; ids depend on run and picture alone.

    Args:
        shown: The run.
        own_tags: Image id -> further tags, which a person invented.
        forms: Of ids and boxes; by default as JSON has them.
    """
    if forms is None:
        forms = Forms(bytes.hex, lambda drawn: make_field(drawn, shown.class_names, bytes.hex))
    pictures: list[Picture] = [*shown.tiles, *shown.images]
    near = near_threshold(shown)
    paths = {tile.tile_id: f"{shown.root}/{tile.path}" for tile in shown.tiles}
    for picture in pictures:
        name = name_of(picture)
        digest = _digest(f"{shown.dataset}/{name}")
        first_id = int.from_bytes(digest[18:30])
        if isinstance(picture, SyntheticImage):
            field = "accepted"
            fields = _synthetic_fields(shown, picture)
            found = shown.detections.get(name)
            if found is not None:
                upright = [box for box in found.boxes if is_upright(box)]
                drawn = _draw(picture, upright, first_id + _MOST_BOXES)
                fields["predictions"] = forms.make_field(drawn)
            fields["near_threshold"] = name in near
            fields["nearest_real_path"] = paths.get(fields.get("nearest_real", ""))
        else:
            field = "ground_truth"
            fields = {
                "source": "real",
                "split": picture.split,
                "group": picture.group,
                "prompt": picture.caption,
            }
        fields["doubt"] = doubt(shown, picture)
        boxes = boxes_to_export(shown, picture)
        if boxes is not None:
            drawn = _draw(picture, boxes, first_id)
            fields[field] = forms.make_field(drawn)
            fields["boxes_as_loaded"] = _pack(drawn)
        verdict = standing_verdict(shown, picture)
        tags = [fields["source"], *([verdict.verdict] if verdict else [])]
        tags += own_tags.get(name, ())
        given = {key: value for key, value in fields.items() if value is not None}
        yield {
            "_id": forms.make_id(digest[:12]),
            "_media_type": "image",
            "_rand": int.from_bytes(digest[12:18]) / 256**6,
            "filepath": f"{shown.root}/{picture.path}",
            "tags": list(dict.fromkeys(tags)),
            "metadata": {
                "_cls": "ImageMetadata",
                "width": picture.width,
                "height": picture.height,
            },
            "image_id": name,
            "sha256": picture.sha256,
            **given,
        }


def _draw(picture: Picture, boxes: Iterable[Box | DetectedBox], first_id: int) -> list[DrawnBox]:
    width, height = picture.width, picture.height
    drawn: list[DrawnBox] = []
    for number, box in enumerate(boxes, start=first_id):
        left, top, right, bottom = box.xyxy
        drawn.append((
            (number % 256**12).to_bytes(12),
            box.class_id,
            left / width,
            top / height,
            (right - left) / width,
            (bottom - top) / height,
            box.confidence if isinstance(box, DetectedBox) else None,
        ))  # fmt: skip
    return drawn


def make_field(
    drawn: Iterable[DrawnBox], class_names: Sequence[str], make_id: Callable[[bytes], Any]
) -> dict[str, Any]:
    """What a field of boxes holds.

    Args:
        drawn: The boxes.
        class_names: By class id.
        make_id: Makes a database id of its 12 bytes.
    """
    detections = []
    for box_id, class_id, left, top, width, height, confidence in drawn:
        detection: dict[str, Any] = {
            "_id": make_id(box_id),
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": class_names[class_id],
            "bounding_box": [left, top, width, height],
        }
        if confidence is not None:
            detection["confidence"] = confidence
        detections.append(detection)
    return {"_cls": "Detections", "detections": detections}


def _pack(drawn: Iterable[DrawnBox]) -> str:
    """Class id and FiftyOne's box of each, as text: to be held against what a person leaves."""
    values: list[float] = []
    for box in drawn:
        values += box[1:6]
    return b64encode(struct.pack(f"<{len(values)}d", *values)).decode("ascii")


def _unpack(text: str) -> Iterator[tuple[int, Sequence[float]]]:
    """What `_pack` packed.

    Raises:
        SynthdetError: It is something else.
    """
    try:
        for class_id, *box in struct.iter_unpack("<5d", b64decode(text, validate=True)):
            yield int(class_id), box
    except (ValueError, struct.error) as error:
        raise SynthdetError(
            "another version of synthdet loaded this run into FiftyOne: pull its verdicts with that one, or "
            "give them up with `synthdet curate RUN --redo`"
        ) from error


def _synthetic_fields(shown: ShownRun, image: SyntheticImage) -> dict[str, Any]:
    image_id = image.image_id
    score, decision = shown.scores.get(image_id), shown.decisions.get(image_id)
    label = shown.labels.get(image_id)
    fields: dict[str, Any] = {"source": "synthetic", "prompt": image.prompt, "seed": image.seed}
    if decision is not None:
        fields["kept"] = decision.kept
    if score is not None:
        fields["similarity"] = score.similarity
        fields["background_similarity"] = score.background_similarity
        fields["nearest_real"] = score.nearest_real
        fields["nearest_real_similarity"] = score.nearest_real_similarity
        fields["to_threshold"] = shown.margins.get(image_id)
    if label is not None:
        fields["status"] = label.status
    fields["reason"] = why(shown, image)
    return fields


def sample_id(dataset: str, image_id: str) -> str:
    """Id of a picture's sample: the same in every dataset of that name."""
    return _digest(f"{dataset}/{image_id}")[:12].hex()


def _digest(text: str) -> bytes:
    """32 bytes that only depend on the text; the first 12 make a database id."""
    return hashlib.sha256(text.encode()).digest()


def read_verdicts(
    shown: ShownRun, samples: Iterable[SeenSample], *, by: str, at: str
) -> Iterator[Verdict]:
    """What a person decided and ``shown.verdicts`` does not say yet.

    Only synthetic pictures and real train tiles can be judged, and only as they are now: samples of
    pictures that were made again since are passed over.

    Args:
        shown: The run as it is now.
        samples: What FiftyOne holds.
        by: Who decided.
        at: When this was read, ISO 8601.

    Raises:
        SynthdetError: Two verdicts on one picture, or a box of a class that the run does not have.
    """
    return only_new(shown, _read_all(shown, samples, by=by, at=at))


def _read_all(
    shown: ShownRun, samples: Iterable[SeenSample], *, by: str, at: str
) -> Iterator[Verdict]:
    judged = judgeable(shown)
    for sample in samples:
        picture = judged.get(sample.image_id)
        if picture is None or picture.sha256 != sample.sha256:
            continue
        drawn = None if sample.boxes is None else list(_to_pixels(shown, picture, sample.boxes))
        edited = drawn_edges(drawn) != drawn_edges(_as_loaded(picture, sample))
        given = _given_verdict(sample, edited=edited)
        if given is None:
            continue
        boxes = None
        if given == ACCEPT and drawn is not None:
            boxes = tuple(Box(xyxy=xyxy, class_id=class_id) for class_id, xyxy in drawn)
        yield Verdict(
            image_id=sample.image_id,
            verdict=given,
            boxes=boxes,
            sha256=sample.sha256,
            by=by,
            at=at,
        )


def _as_loaded(picture: Picture, sample: SeenSample) -> Iterator[tuple[int, XYXY]] | None:
    if sample.boxes_as_loaded is None:
        return None
    boxes = _unpack(sample.boxes_as_loaded)
    return ((class_id, _in_pixels(picture, box)) for class_id, box in boxes)


def _given_verdict(sample: SeenSample, *, edited: bool) -> Literal["accept", "reject"] | None:
    """What a person said by tags; correcting the boxes is a verdict too."""
    if ACCEPT in sample.tags and REJECT in sample.tags:
        raise SynthdetError(
            f"{sample.image_id} is tagged accept and reject: take one off in the App and pull again"
        )
    if REJECT in sample.tags:
        return REJECT
    return ACCEPT if ACCEPT in sample.tags or edited else None


def _to_pixels(
    shown: ShownRun,
    picture: Picture,
    drawn: Iterable[tuple[str, Sequence[float]]],
) -> Iterator[tuple[int, XYXY]]:
    """Class id and edges in pixels of each box, cut at the picture's edges.

    Args:
        shown: The run, for its classes.
        picture: The picture they are on.
        drawn: Class name, and FiftyOne's box: left, top, width, height as shares of the picture.

    Raises:
        SynthdetError: A class name that the run does not have.
    """
    for class_name, box in drawn:
        if class_name not in shown.class_names:
            raise SynthdetError(
                f"{name_of(picture)} has a box of class {class_name!r}: name it one of "
                f"{', '.join(shown.class_names)} in the App and pull again"
            )
        yield shown.class_names.index(class_name), _in_pixels(picture, box)


def _in_pixels(picture: Picture, box: Sequence[float]) -> XYXY:
    left, top, width, height = box
    xyxy = (
        left * picture.width,
        top * picture.height,
        (left + width) * picture.width,
        (top + height) * picture.height,
    )
    return trim(xyxy, picture)
