"""The records that stages leave for each other: one JSON object a line.

Every record is frozen, keeps keys it does not know (a newer version may have written them) and
carries no clock time, so that the same work gives the same bytes. ``docs/run-folder.md`` is the
reference for the files they live in.

Coordinates are ``xyxy`` in pixels, origin at the top left corner of the top left pixel, so that a
box over a whole picture of width ``w`` and height ``h`` is ``(0, 0, w, h)``.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from synthdet.errors import SynthdetError

XYXY = tuple[float, float, float, float]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": "))


class Record(BaseModel):
    """What all records share: frozen, unknown keys kept, one compact JSON line."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def to_line(self) -> str:
        """The record as one line of JSON, without the line end, keys in declared order."""
        return _ENCODER.encode(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_dict(cls, fields: dict[str, Any], *, where: str) -> Self:
        """Check a parsed line.

        Args:
            fields: The parsed JSON object.
            where: File and line, for the message.

        Raises:
            SynthdetError: A field is missing or of the wrong type.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise SynthdetError(f"{where}: {place}: {first['msg']}") from error


class Box(Record):
    """A true box: pixels of the picture it belongs to, and the class.

    ``segmentation`` is room for a mask: polygons in pixels, each ``x1, y1, x2, y2, ...`` as in COCO,
    which export writes there. No stage makes one yet.
    """

    xyxy: XYXY
    class_id: int
    segmentation: tuple[tuple[float, ...], ...] | None = None


class DetectedBox(Record):
    """A box that a detector drew, with its confidence in 0..1 and who drew it.

    ``agreement`` (0..1) is there where several views were joined: how far they agree on it.
    """

    xyxy: XYXY
    class_id: int
    confidence: float
    source: str = "detector"
    agreement: float | None = None


class Photo(Record):
    """A line of ``1-prepare/photos.jsonl``: a real photo after the checks.

    ``path`` is relative to the photos' folder; ``width``, ``height``, ``boxes`` and ``blank`` (areas
    that show nothing, like the black edge of a mosaic) are those of the upright photo (EXIF
    orientation applied).
    """

    image_id: str
    path: str
    sha256: str
    width: int
    height: int
    group: str
    split: Split
    boxes: tuple[Box, ...]
    blank: tuple[XYXY, ...] = ()
    metadata: dict[str, Any] = {}


class Assignment(Record):
    """A line of ``1-prepare/splits.jsonl``: where a photo stands, or stood before it was taken away.

    ``path`` is relative to the photos' folder.
    """

    path: str
    sha256: str
    group: str
    split: Split


class Rejected(Record):
    """A line of ``1-prepare/rejected.jsonl``: a photo, or one box of it, that was not used."""

    path: str
    reason: str
    box: tuple[float, ...] | None = None

    @field_validator("box")
    @classmethod
    def _only_what_json_can_hold(cls, box: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return box and tuple(value for value in box if math.isfinite(value))


class Tile(Record):
    """A line of ``1-prepare/tiles.jsonl``: a square crop of a photo at the run's ground scale.

    ``xyxy`` is the crop in pixels of the upright photo, ``scale`` the factor from photo pixels to
    tile pixels, ``boxes`` are in pixels of the tile. ``path`` is relative to the run folder.
    """

    tile_id: str
    image_id: str
    group: str
    split: Split
    path: str
    sha256: str
    xyxy: XYXY
    scale: float
    width: int
    height: int
    boxes: tuple[Box, ...]
    caption: str


GenerateMode = Literal["text", "image", "placed"]


class PlacedBox(Record):
    """Where an animal was painted into a picture, in its pixels: a prior for a label, not a label.

    It has the size of a real one, ``animal_xyxy`` of the train tile ``animal_tile``, seen in
    ``animal_view`` (mirrored left to right first from 4 on, then turned so many quarters mod 4 against
    the clock), from which the painting started. Without a tile it started from noise.
    """

    xyxy: XYXY
    class_id: int
    animal_tile: str | None = None
    animal_xyxy: XYXY | None = None
    animal_view: int = 0
    correlation: float | None = None


class Composite(Record):
    """A line of ``2-finetune/composites.jsonl``: train animals set into a picture of the base model.

    ``water`` is the ``picture_id`` of the background picture that they are set into, turned to
    ``water_view``, at the boxes ``placed``; a background picture itself has neither.
    """

    picture_id: str
    prompt: str
    seed: int
    negative_prompt: str = ""
    water: str | None = None
    water_view: int | None = None
    placed: tuple[PlacedBox, ...] = ()


class SyntheticImage(Record):
    """A line of ``3-generate/images.jsonl``: everything needed to make the picture again.

    ``asked_for`` is what the prompt asked to be in it: class id per animal, empty for background.
    ``mode`` is how it was drawn (None: taken in): from its prompt alone, or at ``strength`` from the
    real train tile ``source_tile``, or from the background picture ``source_image`` of this run, turned to
    ``source_view`` (numbered as in `PlacedBox`). In mode `placed` all but the boxes ``placed`` is water of
    there.
    ``path`` is relative to the run folder. ``vae`` is the precision it was decoded in where that is not
    the run's own; ``fault`` says what is wrong with it all the same.
    """

    image_id: str
    path: str
    sha256: str
    prompt: str
    negative_prompt: str
    seed: int
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    lora_scale: float
    width: int
    height: int
    batch: int
    batch_shape: int
    guidance_end: float = 1.0
    guidance_rescale: float = 0.0
    asked_for: tuple[int, ...] | None = None
    mode: GenerateMode | None = None
    source_tile: str | None = None
    source_image: str | None = None
    source_view: int | None = None
    strength: float | None = None
    placed: tuple[PlacedBox, ...] | None = None
    vae: Literal["float32"] | None = None
    fault: Literal["blank"] | None = None


class Score(Record):
    """A line of ``4-filter/scores.jsonl``: raw, written once. ``fault`` names an unusable picture.

    ``similarity`` is to the centroid of the real train tiles with an animal (the nearest of them, where
    there are several), ``background_similarity`` to that of the real background tiles. ``same_layout``
    is the real tile whose layout (`core.layout`) it repeats most, ``twin`` that of the synthetic pictures
    which are nearer to the centroid. ``prompt_agreement`` is the cosine to the picture's own prompt, where
    that was asked for.
    """

    image_id: str
    similarity: float | None = None
    background_similarity: float | None = None
    nearest_real: str | None = None
    nearest_real_similarity: float | None = None
    same_layout: str | None = None
    layout_agreement: float | None = None
    twin: str | None = None
    twin_agreement: float | None = None
    prompt_agreement: float | None = None
    fault: str | None = None


class Decision(Record):
    """A line of ``4-filter/decisions.jsonl``. ``reason`` is given for every drop."""

    image_id: str
    kept: bool
    threshold: float
    reason: str | None = None


class Detections(Record):
    """A line of ``5-label/detections.jsonl``: raw boxes down to a low confidence, written once.

    ``fault`` says why there are none, where the detector failed on the picture.
    """

    image_id: str
    boxes: tuple[DetectedBox, ...]
    fault: str | None = None


class Prediction(Record):
    """A line of ``8-predict/<survey>/predictions.jsonl``: raw boxes of a new photo, written once.

    ``path`` is relative to the survey's folder; ``width``, ``height`` and ``boxes`` (down to a low
    confidence, one an animal, joined from ``num_tiles`` tiles) are those of the upright photo.
    ``num_bytes`` is the size of the file: a photo of another size is looked at again, and the last line
    of a path counts. ``fault`` says why the photo cannot be used.
    """

    path: str
    num_bytes: int
    width: int
    height: int
    num_tiles: int
    boxes: tuple[DetectedBox, ...]
    fault: str | None = None


LabelStatus = Literal["accept", "review", "negative"]


class Label(Record):
    """A line of ``5-label/labels.jsonl``: what the thresholds make of the raw boxes."""

    image_id: str
    status: LabelStatus
    boxes: tuple[DetectedBox, ...]
    reason: str | None = None


Source = Literal["real", "synthetic", "augmented"]


class ManifestEntry(Record):
    """A line of ``6-export/manifest.jsonl``: one exported picture. Paths are relative to the run.

    Also of ``6-export/augmented/manifest.jsonl``, whose pictures are in no COCO set.
    """

    image_id: str
    source: Source
    split: Split
    yolo_path: str
    coco_path: str | None = None
    sha256: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    provenance: dict[str, Any]


class Verdict(Record):
    """A line of ``curation.jsonl``: what a person decided about a picture. The last line counts.

    ``boxes`` are the true ones, as the person left them; without them the label's stand. ``sha256``
    is of the picture that was judged: on another picture of that id the verdict does not count.
    """

    image_id: str
    verdict: Literal["accept", "reject"]
    boxes: tuple[Box, ...] | None = None
    sha256: str | None = None
    by: str
    at: str
