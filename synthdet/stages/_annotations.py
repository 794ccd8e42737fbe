"""What the annotations beside the photos say, for `prepare`: read, by photo."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from synthdet.core.formats.annotated import SHARES, AnnotatedPhoto, AnnotationFile
from synthdet.core.formats.yolo import from_yolo_lines
from synthdet.core.groups import given_split
from synthdet.core.records import Box, Rejected, Split
from synthdet.errors import SynthdetError
from synthdet.progress import many
from synthdet.stages._pairs import PhotoFinder, relative
from synthdet.stages._recognise import Recognised, is_metadata, read_text

_NO_CLASS_LIST: Final = ("voc", "labelme", "csv")
_BOX_COLUMNS: Final = 6


@dataclass(frozen=True, slots=True)
class Annotation:
    """What was written about one photo.

    Attributes:
        path: Of the photo, relative to the photos' folder.
        file: The annotation file, for messages.
        split: The split it was given, if any.
        size_wh: The size in which the boxes are given; `SHARES` of it; None for pixels of the upright photo.
        boxes: ``class_id`` is the position in `Annotations.names`.
        problems: What is wrong with single lines.
    """

    path: str
    file: str
    split: Split | None
    size_wh: tuple[int, int] | None
    boxes: tuple[Box, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Annotations:
    """All that was written about the photos; a photo that is missing here has no annotation file.

    ``notes`` tell people what was found in them.
    """

    names: tuple[str, ...]
    photos: tuple[Annotation, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...] = ()

    def with_more(
        self, *, photos: Iterable[Annotation] = (), rejected: Iterable[Rejected] = ()
    ) -> Annotations:
        """With more photos, or more rejections; photos stay in the order of their paths."""
        together = sorted((*self.photos, *photos), key=lambda photo: photo.path)
        return replace(self, photos=tuple(together), rejected=(*self.rejected, *rejected))


def read_annotations(recognised: Recognised, *, unnamed: bool) -> Annotations:
    """Read all annotations.

    Args:
        recognised: What was found.
        unnamed: Whether classes without names may be called by their numbers (because
            ``prepare.classes`` says what they are).

    Raises:
        SynthdetError: A class number beyond the names, or one photo annotated twice; names the file.
    """
    if recognised.format == "yolo":
        annotations = _read_yolo(recognised, unnamed=unnamed)
    else:
        annotations = _read_parsed(recognised)
    usable, useless = [], []
    for photo in annotations.photos:
        # Without its boxes it would be taken for a photo without animals.
        if photo.problems and not photo.boxes:
            reason = f"none of its annotations can be read ({Path(photo.file).name}: {photo.problems[0]})"
            useless.append(Rejected(path=photo.path, reason=reason))
        else:
            usable.append(photo)
    empty = sum(not photo.boxes for photo in usable)
    notes = [*annotations.notes]
    if empty:
        notes.append(f"{many(empty, 'photo')} annotated as holding no animal")
    told = replace(annotations, photos=tuple(usable), notes=tuple(notes))
    return told.with_more(rejected=useless)


def read_metadata(recognised: Recognised) -> dict[str, dict[str, Any]]:
    """Fields of each photo from ``metadata.jsonl`` files beside the photos.

    A text file of the photo's name that holds no labels is its ``caption``, where no line gives one.

    Returns:
        Path of the photo -> its fields, without ``file_name``.

    Raises:
        SynthdetError: A line is not a JSON object with ``file_name``; names the line.

    Source:
        The ``imagefolder`` convention of Hugging Face datasets.
    """
    fields: dict[str, dict[str, Any]] = {}
    listing = recognised.listing
    for path in (path for path in listing.files if is_metadata(path)):
        text = read_text(listing.root / path)
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{listing.root / path}, line {number}"
            try:
                entry = json.loads(line)
                file_name = entry.pop("file_name")
                photo = (PurePosixPath(path).parent / str(file_name)).as_posix()
            except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
                raise SynthdetError(
                    f"{where}: each line must be a JSON object with a file_name"
                ) from error
            fields[photo] = entry
    captions = set(recognised.files) - set(recognised.labels.values())
    for photo in listing.photos:
        beside = (listing.root / photo).with_suffix(".txt")
        if beside in captions and (caption := read_text(beside).strip()):
            fields.setdefault(photo, {}).setdefault("caption", caption)
    return fields


# --- YOLO ----------------------------------------------------------------------------------------


def _read_yolo(recognised: Recognised, *, unnamed: bool) -> Annotations:
    names, shapes = recognised.names, 0
    read: list[tuple[str, Path, list[Box], list[str]]] = []
    for photo, path in recognised.labels.items():
        text = read_text(path)
        boxes, problems = from_yolo_lines(text, 1, 1)
        read.append((photo, path, boxes, problems))
        shapes += sum(len(line.split()) > _BOX_COLUMNS for line in text.splitlines())
    if names is None:
        if not unnamed:
            raise SynthdetError(
                f"no class names beside the labels in {recognised.listing.root}: put a classes.txt there, one name a line, "
                "or set prepare.classes={'0': NAME}"
            )
        numbers = sorted(
            {box.class_id for _photo, _path, boxes, _problems in read for box in boxes}
        )
        names = {number: str(number) for number in numbers}
    positions = {number: position for position, number in enumerate(names)}
    annotations = []
    for photo, path, boxes, problems in read:
        for box in boxes:
            if box.class_id not in positions:
                raise SynthdetError(
                    f"{path} has class {box.class_id}, but {recognised.names_file or 'prepare.classes'} names "
                    f"{many(len(names), 'class', 'classes')}: correct the file or the names"
                )
        placed = tuple(Box(xyxy=box.xyxy, class_id=positions[box.class_id]) for box in boxes)
        split = given_split(photo)
        annotations.append(Annotation(photo, str(path), split, SHARES, placed, tuple(problems)))
    note = f"{many(shapes, 'label is', 'labels are')} polygons or turned boxes: the upright box around each is used"
    return Annotations(tuple(names.values()), tuple(annotations), (), (note,) if shapes else ())


# --- the other formats ---------------------------------------------------------------------------


def _read_parsed(recognised: Recognised) -> Annotations:
    root = recognised.listing.root
    finder = PhotoFinder(recognised.listing)
    owner = {path: photo for photo, path in recognised.labels.items()}
    names: list[tuple[str, int]] = []
    if recognised.format in _NO_CLASS_LIST:  # in an order that more photos do not change
        names = [(name, 0) for name in sorted({name for file in recognised.parsed.values() for name in file.class_names})]  # fmt: skip
    annotations: dict[str, Annotation] = {}
    rejected = [
        Rejected(
            path=owner.get(path, relative(path, root)), reason=_say_broken(path, reason, owner)
        )
        for path, reason in recognised.broken.items()
    ]
    for path, file, image in sorted(_entries(recognised.parsed), key=_outsiders_last(finder)):
        place = relative(path, root)
        keys = _category_keys(file.class_names)
        names.extend(key for key in keys if key not in names)
        split = image.split or given_split(place)
        photo = owner.get(path) or finder.find(image.file_name, place, split)
        if isinstance(photo, Rejected):
            rejected.append(photo)
            continue
        if photo in annotations:
            if path not in owner and finder.leaves(image.file_name):
                reason = f"leaves the photos' folder (named in {place})"
                rejected.append(Rejected(path=image.file_name, reason=reason))
                continue
            raise SynthdetError(
                f"{photo} is annotated twice, in {annotations[photo].file} and {path}: name one of them with prepare.labels "
                "(a pattern like 'labels/*_boxes.csv' names several)"
            )
        boxes = tuple(
            Box(xyxy=box.xyxy, class_id=names.index(keys[box.class_id])) for box in image.boxes
        )
        annotations[photo] = Annotation(
            photo,
            str(path),
            split or given_split(photo),
            image.size_wh,
            boxes,
            tuple(image.problems),
        )
    if not annotations and rejected:
        files = ", ".join(path.name for path in sorted(recognised.parsed)[:3])
        raise SynthdetError(
            f"{files}: none of what is annotated there is a usable photo of {root} (first: {rejected[0].path} {rejected[0].reason}): "
            "name the photos' folder with prepare.photos, or correct the names"
        )
    for path, file in recognised.parsed.items():
        place = relative(path, root)
        rejected.extend(Rejected(path=place, reason=problem, box=()) for problem in file.problems)
    ordered = tuple(annotations[photo] for photo in sorted(annotations))
    return Annotations(tuple(name for name, _twin in names), ordered, tuple(rejected))


def _entries(
    parsed: Mapping[Path, AnnotationFile],
) -> list[tuple[Path, AnnotationFile, AnnotatedPhoto]]:
    return [(path, file, photo) for path, file in parsed.items() for photo in file.photos]


def _outsiders_last(
    finder: PhotoFinder,
) -> Callable[[tuple[Path, AnnotationFile, AnnotatedPhoto]], bool]:
    """Names that lead out of the folder come last: they never take a photo that another one names."""
    return lambda entry: finder.leaves(entry[2].file_name)


def _say_broken(path: Path, reason: str, owner: Mapping[Path, str]) -> str:
    return f"its annotation file {path.name} cannot be used: {reason}" if path in owner else reason


def _category_keys(class_names: Sequence[str]) -> list[tuple[str, int]]:
    """Name and how often it came before: categories of several files are the same by this key."""
    seen: Counter[str] = Counter()
    keys = []
    for name in class_names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys
