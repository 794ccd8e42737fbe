"""The file that the gallery saves a person's verdicts in: ``curation-verdicts.json``.

One JSON object: ``synthdet_verdicts`` (version of the format), ``run`` (a name, for people), ``classes``
(class names by id) and ``verdicts``, a list of ``image_id``, ``sha256`` of the picture that was judged,
``verdict`` (``accept`` or ``reject``) and, left out where the label's boxes stand, ``boxes``: each
``xyxy`` in pixels of the picture and ``class_id``.

The file may have travelled: it belongs to a run if its pictures do, wherever the run lies by now.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from synthdet.core.curation import ACCEPT, Picture, ShownRun, judgeable, trim
from synthdet.core.records import XYXY, Box, Verdict
from synthdet.errors import SynthdetError

VERSION: Final = 1


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _DrawnBox(_Strict):
    xyxy: tuple[float, float, float, float]
    class_id: int


class _Judged(_Strict):
    image_id: str
    sha256: str
    verdict: Literal["accept", "reject"]
    boxes: list[_DrawnBox] | None = None


class _VerdictFile(_Strict):
    synthdet_verdicts: int
    run: str = ""
    classes: list[str]
    verdicts: list[_Judged]


def from_verdict_file(
    text: str, shown: ShownRun, *, where: str, by: str, at: str
) -> tuple[list[Verdict], int]:
    """The verdicts of a file on pictures of this run, as they are now.

    Args:
        text: What the file holds.
        shown: The run as it is now.
        where: The file's name, for messages.
        by: Who decided.
        at: When this was read, ISO 8601.

    Returns:
        The verdicts, boxes cut at the pictures' edges, and how many more are passed over because
        their picture was made again since it was judged.

    Raises:
        SynthdetError: Not such a file, of another run, or with a verdict that cannot be followed:
            a picture or a class that the run does not have, a box outside its picture.
    """
    file = _parse(text, where)
    if file.classes != list(shown.class_names):
        raise SynthdetError(
            f"{where} is of another run: it has the classes {', '.join(file.classes) or 'none'}, and "
            f"this one {', '.join(shown.class_names)}"
        )
    pictures = judgeable(shown)
    known = [judged for judged in file.verdicts if judged.image_id in pictures]
    current = [one for one in known if pictures[one.image_id].sha256 == one.sha256]
    if file.verdicts and not current:
        raise SynthdetError(
            f"{where} is of another run{f' ({file.run})' if file.run else ''}, or all its pictures were made "
            f"again since: none of the {len(file.verdicts)} that it judges is here"
        )
    if len(known) < len(file.verdicts):
        stranger = next(one.image_id for one in file.verdicts if one.image_id not in pictures)
        raise SynthdetError(
            f"{where} judges {stranger!r}, which is no synthetic picture and no real train tile of this "
            "run: take it out of the file"
        )
    return [
        Verdict(
            image_id=judged.image_id,
            verdict=judged.verdict,
            boxes=_boxes(judged, pictures[judged.image_id], shown, where),
            sha256=judged.sha256,
            by=by,
            at=at,
        )
        for judged in current
    ], len(known) - len(current)


def _parse(text: str, where: str) -> _VerdictFile:
    try:
        content: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SynthdetError(f"{where} is not readable as JSON: {error}") from error
    if not isinstance(content, dict) or "synthdet_verdicts" not in content:
        raise SynthdetError(
            f"{where} holds no verdicts of the gallery: save them there with `Save verdicts`"
        )
    if content["synthdet_verdicts"] != VERSION:
        raise SynthdetError(
            f"{where} is version {content['synthdet_verdicts']!r}; this synthdet reads version {VERSION}"
        )
    try:
        file = _VerdictFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SynthdetError(f"{where}: {place}: {first['msg']}") from error
    names = [judged.image_id for judged in file.verdicts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SynthdetError(f"{where} judges {twice!r} twice: leave one of the two verdicts")
    return file


def _boxes(
    judged: _Judged, picture: Picture, shown: ShownRun, where: str
) -> tuple[Box, ...] | None:
    if judged.verdict != ACCEPT or judged.boxes is None:
        return None
    boxes = []
    for drawn in judged.boxes:
        if not 0 <= drawn.class_id < len(shown.class_names):
            raise SynthdetError(
                f"{where}: {judged.image_id} has a box of class {drawn.class_id}; the run has 0 to "
                f"{len(shown.class_names) - 1}"
            )
        boxes.append(Box(xyxy=_inside(drawn.xyxy, judged, picture, where), class_id=drawn.class_id))
    return tuple(boxes)


def _inside(xyxy: XYXY, judged: _Judged, picture: Picture, where: str) -> XYXY:
    cut = trim(xyxy, picture) if all(map(math.isfinite, xyxy)) else (0.0, 0.0, 0.0, 0.0)
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise SynthdetError(
            f"{where}: {judged.image_id} has a box {list(xyxy)} with nothing of it in the picture of "
            f"{picture.width} x {picture.height} pixels"
        )
    return cut
