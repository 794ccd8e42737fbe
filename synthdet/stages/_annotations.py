"""Which annotations lie beside the photos, for `prepare`: recognised, and read.

Photos and labels find each other by name. Paths in a ``data.yaml`` are not followed: they are wrong
more often than not, and the folders say the same.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import yaml

from synthdet.core.formats.coco import CocoFile, from_coco, is_coco
from synthdet.core.formats.yolo import from_yolo_lines, names_from_text, names_from_yaml
from synthdet.core.groups import LAYOUT_WORDS, given_split
from synthdet.core.records import SPLITS, Box, Rejected, Split
from synthdet.errors import SynthdetError
from synthdet.stages._photos import PHOTO_SUFFIXES, Listing, list_files

Format = Literal["yolo", "coco"]
_NAME_FILES: Final = ("classes.txt", "obj.names", "names.txt", "_darknet.labels", "labels.txt")
_OTHER_FORMATS: Final = (".xml", ".csv", ".json", ".txt")
_METADATA: Final = "metadata.jsonl"


@dataclass(frozen=True, slots=True)
class Annotation:
    """What was written about one photo.

    Attributes:
        path: Of the photo, relative to the photos' folder.
        file: The annotation file, for messages.
        split: The split it was given, if any.
        size_wh: The size in which the boxes are given; None for pixels of the upright photo.
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
    """All that was written about the photos; a photo that is missing here has no annotation file."""

    names: tuple[str, ...]
    photos: tuple[Annotation, ...]
    rejected: tuple[Rejected, ...]

    def with_more(
        self, *, photos: Iterable[Annotation] = (), rejected: Iterable[Rejected] = ()
    ) -> Annotations:
        """With more photos, or more rejections; photos stay in the order of their paths."""
        together = sorted((*self.photos, *photos), key=lambda photo: photo.path)
        return Annotations(self.names, tuple(together), (*self.rejected, *rejected))


@dataclass(frozen=True, slots=True)
class Recognised:
    """What was found in a folder.

    Attributes:
        format: How the annotations are written.
        listing: The photos' folder.
        labels: Photo -> its label file (YOLO).
        coco: The annotation files, read (COCO), by path.
        names: Class number -> name (YOLO); None where no file tells.
        files: Every file that was, or will be, read beside the photos.
    """

    format: Format
    listing: Listing
    labels: dict[str, Path]
    coco: dict[Path, CocoFile]
    names: dict[int, str] | None
    names_file: Path | None
    files: tuple[Path, ...]

    def describe(self) -> str:
        """One line for people."""
        photos = self.listing.photos
        splits = Counter(given_split(path) for path in photos)
        given = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS if splits[split])
        where = f" ({given})" if given else ""
        if self.format == "coco":
            names = sorted({name for file in self.coco.values() for name in file.class_names})
            kind = f"COCO, {_many(len(self.coco), 'annotation file')}"
        else:
            names = list((self.names or {}).values())
            kind = f"YOLO, {_many(len(self.labels), 'label file')}"
        classes = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return f"{_many(len(photos), 'photo')}{where} with {kind}: {classes or 'classes without names'}"


def recognise(photos: Path, labels: Path | None, format: str) -> Recognised:  # noqa: A002
    """Find the photos of a folder and the annotations that belong to them.

    YOLO: a text file of the photo's name beside it, in a parallel folder ``labels``, or anywhere in the
    labels folder given; names from a YAML file with ``names`` or a ``classes.txt``. COCO: any JSON file
    with images, annotations and categories.

    Args:
        photos: The photos' folder.
        labels: ``prepare.labels``: a folder or a JSON file, where not beside the photos.
        format: ``auto``, ``yolo`` or ``coco``.

    Raises:
        SynthdetError: No photos, no annotations, both formats, or files that contradict each other.
    """
    if not photos.is_dir():
        raise SynthdetError(
            f"prepare.photos: {photos} is not a folder: name the one with your photos"
        )
    if labels is not None and not labels.exists():
        raise SynthdetError(
            f"prepare.labels: {labels} does not exist: name the annotation file or folder"
        )
    listing = list_files(photos)
    if not listing.photos:
        raise SynthdetError(
            f"prepare.photos: {photos} holds no photos ({', '.join(PHOTO_SUFFIXES)}): name the folder that does"
        )
    if labels is None:
        label_listing = listing
    elif labels.is_dir():
        label_listing = list_files(labels)
    else:
        label_listing = Listing(labels.parent, (labels.name,), ())
    coco = _find_coco(label_listing) if format in ("auto", "coco") else {}
    found = (
        _find_yolo(listing, label_listing, given=labels is not None)
        if format in ("auto", "yolo")
        else {}
    )
    if found and not coco:
        _require_yolo(found)
    place = labels or photos
    if coco and found:
        raise SynthdetError(
            f"{place} holds both COCO ({', '.join(path.name for path in sorted(coco)[:3])}) and YOLO "
            f"({_many(len(found), 'label file')}) annotations: set prepare.format to coco or yolo"
        )
    if not coco and not found:
        raise SynthdetError(_nothing_found(place, label_listing, format))
    metadata = tuple(photos / path for path in listing.files if _is_metadata(path))
    if coco:
        files = (*sorted(coco), *metadata)
        return Recognised("coco", listing, {}, coco, None, None, files)
    names, names_file = _find_names(listing, label_listing)
    named = (names_file,) if names_file else ()
    files = (*(found[photo] for photo in sorted(found)), *named, *metadata)
    return Recognised("yolo", listing, found, {}, names, names_file, files)


def read_annotations(recognised: Recognised, *, unnamed: bool) -> Annotations:
    """Read all annotations.

    Args:
        recognised: What was found.
        unnamed: Whether classes without names may be called by their numbers (because
            ``prepare.classes`` says what they are).

    Raises:
        SynthdetError: A class number beyond the names, or one photo annotated twice; names the file.
    """
    if recognised.format == "coco":
        return _read_coco(recognised)
    return _read_yolo(recognised, unnamed=unnamed)


def read_metadata(recognised: Recognised) -> dict[str, dict[str, Any]]:
    """Fields of each photo from ``metadata.jsonl`` files beside the photos.

    Returns:
        Path of the photo -> its fields, without ``file_name``.

    Raises:
        SynthdetError: A line is not a JSON object with ``file_name``; names the line.

    Source:
        The ``imagefolder`` convention of Hugging Face datasets.
    """
    fields: dict[str, dict[str, Any]] = {}
    listing = recognised.listing
    for path in (path for path in listing.files if _is_metadata(path)):
        text = _read_text(listing.root / path)
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{listing.root / path}, line {number}"
            try:
                entry = json.loads(line)
                file_name = entry.pop("file_name")
                photo = (PurePosixPath(path).parent / str(file_name)).as_posix()
            except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
                raise SynthdetError(
                    f"{where}: each line must be a JSON object with a file_name"
                ) from error
            fields[photo] = entry
    return fields


# --- YOLO ----------------------------------------------------------------------------------------


def _find_yolo(photos: Listing, labels: Listing, *, given: bool) -> dict[str, Path]:
    """Photo -> its label file: in the parallel folder, beside it, or elsewhere by place and name.

    A label file that belongs to one photo by its folder is not lent to another.
    """
    texts = [
        path
        for path in labels.files
        if path.lower().endswith(".txt") and PurePosixPath(path).name not in _NAME_FILES
    ]
    known = set(texts)
    found: dict[str, str] = {}
    for photo in photos.photos:
        name = PurePosixPath(photo).with_suffix(".txt")
        parallel = "/".join("labels" if part == "images" else part for part in name.parts)
        own = next((path for path in (parallel, name.as_posix()) if path in known), None)
        if own is not None:
            found[photo] = own
    by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in sorted(known.difference(found.values())):
        by_place[_place(path)].append(path)
        by_stem[PurePosixPath(path).stem].append(path)
    stems = Counter(PurePosixPath(path).stem for path in photos.photos)
    for photo in (photo for photo in photos.photos if photo not in found):
        stem, split = PurePosixPath(photo).stem, given_split(photo)
        candidates = [
            path
            for path in by_place[_place(photo)]
            if split is None or given_split(path) in (split, None)
        ]
        if not candidates and given and stems[stem] == 1:
            candidates = by_stem[stem]
        if len(candidates) > 1:
            raise SynthdetError(
                f"{photo} has two label files, {candidates[0]} and {candidates[1]} in {labels.root}: "
                "name their folder with prepare.labels"
            )
        if candidates:
            found[photo] = candidates[0]
    return {photo: labels.root / path for photo, path in found.items()}


def _place(path: str) -> tuple[str, str]:
    """Folder, without words of the layout, and stem: what a photo and its label share."""
    pure = PurePosixPath(path)
    folders = [part for part in pure.parts[:-1] if part.lower() not in LAYOUT_WORDS]
    return "/".join(folders), pure.stem


def _require_yolo(found: dict[str, Path]) -> None:
    """Refuse text files that are something else, like captions."""
    problem = ""
    for path in list(found.values())[:50]:
        text = _read_text(path)
        boxes, problems = from_yolo_lines(text, 1, 1)
        if boxes or not text.strip():
            return
        problem = problem or f"{path}: {problems[0]}"
    raise SynthdetError(
        f"the text files beside the photos are not YOLO labels ({problem}): name the annotations with prepare.labels"
    )


def _find_names(photos: Listing, labels: Listing) -> tuple[dict[int, str] | None, Path | None]:
    found: list[tuple[dict[int, str], Path]] = []
    listings = [photos] if labels is photos else [labels, photos]
    for listing in listings:
        for path in listing.files:
            name = PurePosixPath(path).name.lower()
            names = None
            if name.endswith((".yaml", ".yml")):
                try:
                    names = names_from_yaml(yaml.safe_load(_read_text(listing.root / path)))
                except yaml.YAMLError:
                    continue
            elif name in _NAME_FILES:
                names = names_from_text(_read_text(listing.root / path))
            if names:
                found.append((names, listing.root / path))
        if found:
            break
    for other_names, other_path in found[1:]:
        if other_names != found[0][0]:
            raise SynthdetError(
                f"{found[0][1]} and {other_path} give different class names: leave one, or name its folder with prepare.labels"
            )
    return found[0] if found else (None, None)


def _read_yolo(recognised: Recognised, *, unnamed: bool) -> Annotations:
    names = recognised.names
    read: list[tuple[str, Path, list[Box], list[str]]] = []
    for photo, path in recognised.labels.items():
        boxes, problems = from_yolo_lines(_read_text(path), 1, 1)
        read.append((photo, path, boxes, problems))
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
                    f"{_many(len(names), 'class', 'classes')}: correct the file or the names"
                )
        placed = tuple(Box(xyxy=box.xyxy, class_id=positions[box.class_id]) for box in boxes)
        split = given_split(photo)
        annotations.append(Annotation(photo, str(path), split, (1, 1), placed, tuple(problems)))
    return Annotations(tuple(names.values()), tuple(annotations), ())


# --- COCO ----------------------------------------------------------------------------------------


def _find_coco(labels: Listing) -> dict[Path, CocoFile]:
    paths = [path for path in labels.files if path.lower().endswith(".json")]
    instances = [path for path in paths if PurePosixPath(path).name.startswith("instances_")]
    found = {}
    for path in instances or paths:
        try:
            fields = json.loads(_read_text(labels.root / path))
        except (json.JSONDecodeError, RecursionError) as error:
            if len(labels.files) == 1:  # named by the user
                raise SynthdetError(
                    f"{labels.root / path} is not readable as JSON: {error}"
                ) from error
            continue
        if is_coco(fields):
            found[labels.root / path] = from_coco(fields, where=str(labels.root / path))
    return found


def _read_coco(recognised: Recognised) -> Annotations:
    finder = _PhotoFinder(recognised.listing)
    names: list[tuple[str, int]] = []
    annotations: dict[str, Annotation] = {}
    rejected: list[Rejected] = []
    for path, file in recognised.coco.items():
        place = _relative(path, recognised.listing.root)
        split = given_split(place)
        keys = _category_keys(file.class_names)
        names.extend(key for key in keys if key not in names)
        for image in file.images:
            photo = finder.find(image.file_name, place, split)
            if isinstance(photo, Rejected):
                rejected.append(photo)
                continue
            if photo in annotations:
                raise SynthdetError(
                    f"{photo} is annotated twice, in {annotations[photo].file} and {path}: name one of them with prepare.labels"
                )
            boxes = tuple(
                Box(xyxy=box.xyxy, class_id=names.index(keys[box.class_id])) for box in image.boxes
            )
            annotations[photo] = Annotation(
                path=photo,
                file=str(path),
                split=split or given_split(photo),
                size_wh=image.size_wh,
                boxes=boxes,
                problems=tuple(image.problems),
            )
    ordered = tuple(annotations[photo] for photo in sorted(annotations))
    return Annotations(tuple(name for name, _twin in names), ordered, tuple(rejected))


def _category_keys(class_names: Sequence[str]) -> list[tuple[str, int]]:
    """Name and how often it came before: categories of several files are the same by this key."""
    seen: Counter[str] = Counter()
    keys = []
    for name in class_names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


class _PhotoFinder:
    """Finds the photo that a COCO file means by a ``file_name``."""

    def __init__(self, listing: Listing) -> None:
        self.photos = set(listing.photos)
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for photo in listing.photos:
            self.by_name[PurePosixPath(photo).name].append(photo)

    def find(self, file_name: str, place: str, split: Split | None) -> str | Rejected:
        """The photo's path, or why there is none.

        Args:
            file_name: As the file writes it.
            place: Path of the file, relative to the photos' folder if it lies in it.
            split: Of the file.
        """
        named = PurePosixPath(file_name.replace("\\", "/"))
        if named.is_absolute() or ".." in named.parts or ":" in str(named)[:2]:
            return Rejected(path=file_name, reason=f"leaves the photos' folder (named in {place})")
        beside = (PurePosixPath(place).parent / named).as_posix()
        for candidate in (beside, named.as_posix(), f"images/{named.as_posix()}"):
            if candidate in self.photos:
                return candidate
        same = [photo for photo in self.by_name[named.name] if photo.endswith(named.as_posix())]
        if len(same) > 1 and split is not None:
            same = [photo for photo in same if given_split(photo) == split]
        if len(same) == 1:
            return same[0]
        reason = "fits several photos" if same else "is not in the photos' folder"
        return Rejected(path=file_name, reason=f"{reason} (named in {place})")


# --- shared --------------------------------------------------------------------------------------


def _is_metadata(path: str) -> bool:
    return PurePosixPath(path).name == _METADATA


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _read_text(path: Path) -> str:
    """A text file, whatever its encoding: what is not UTF-8 becomes a sign that no number has."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise SynthdetError(f"{path} cannot be read: {error.strerror}") from error


def _nothing_found(place: Path, listing: Listing, format_: str) -> str:
    others = Counter(PurePosixPath(path).suffix.lower() for path in listing.files)
    seen = ", ".join(f"{others[suffix]} {suffix}" for suffix in _OTHER_FORMATS if others[suffix])
    wanted = {"yolo": "YOLO", "coco": "COCO"}.get(format_, "YOLO or COCO")
    hint = f" (there are {seen} files)" if seen else ""
    return (
        f"{place} holds no {wanted} annotations{hint}: synthdet reads YOLO (a .txt named like each photo) and "
        "COCO (.json); name them with prepare.labels (init --labels), prepare.format (init --format)"
    )


def _many(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
