"""Which annotations lie beside the photos, for `prepare`: found, and said in a line.

Photos and labels find each other by name (`synthdet.stages._pairs`). Paths in a ``data.yaml`` are not
followed: they are wrong more often than not, and the folders say the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, cast, get_args

import yaml

from synthdet.core.formats.annotated import AnnotationFile
from synthdet.core.formats.coco import from_coco, is_coco
from synthdet.core.formats.cvat import from_cvat, is_cvat
from synthdet.core.formats.labelme import from_labelme, is_labelme
from synthdet.core.formats.safe_xml import parse_xml
from synthdet.core.formats.table import from_csv
from synthdet.core.formats.voc import from_voc, is_voc
from synthdet.core.formats.yolo import from_yolo_lines, names_from_text, names_from_yaml
from synthdet.core.groups import given_split
from synthdet.core.records import SPLITS
from synthdet.errors import SynthdetError
from synthdet.progress import many
from synthdet.stages._pairs import PhotoFinder, pair_files
from synthdet.stages._photos import PHOTO_SUFFIXES, Listing, list_files

Format = Literal["yolo", "coco", "voc", "labelme", "cvat", "csv"]
_FORMATS: Final[Mapping[Format, tuple[str, str]]] = {
    "yolo": ("YOLO", "label file"),
    "coco": ("COCO", "annotation file"),
    "voc": ("Pascal VOC", "annotation file"),
    "labelme": ("LabelMe", "annotation file"),
    "cvat": ("CVAT", "annotation file"),
    "csv": ("CSV", "table"),
}
_FILE_A_PHOTO: Final = ("voc", "labelme")
_JSON: Final = ("coco", "labelme")
_XML: Final = ("voc", "cvat")
_NAME_FILES: Final = ("classes.txt", "obj.names", "names.txt", "_darknet.labels", "labels.txt")
_SUFFIXES: Final = (".xml", ".csv", ".json", ".txt")
_CHOICES: Final = ", ".join(get_args(Format))
_METADATA: Final = "metadata.jsonl"


@dataclass(frozen=True, slots=True)
class Recognised:
    """What was found in a folder.

    Attributes:
        format: How the annotations are written.
        listing: The photos' folder.
        labels: Photo -> its own annotation file, where there is one a photo.
        parsed: The annotation files, read, by path (all formats but YOLO).
        broken: Annotation files that cannot be read -> why.
        names: Class number -> name (YOLO); None where no file tells.
        names_file: Where those stand.
        files: Every file that was, or will be, read beside the photos.
        besides: What else lies there and is not read, for people.
    """

    format: Format
    listing: Listing
    labels: dict[str, Path]
    parsed: dict[Path, AnnotationFile] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)
    names: dict[int, str] | None = None
    names_file: Path | None = None
    files: tuple[Path, ...] = ()
    besides: str = ""

    def describe(self) -> str:
        """One line for people."""
        photos = self.listing.photos
        splits = Counter(given_split(path) for path in photos)
        given = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS if splits[split])
        where = f" ({given})" if given else ""
        word, noun = _FORMATS[self.format]
        kind = f"{word}, {many(len(self.parsed) or len(self.labels), noun)}"
        names = list((self.names or {}).values()) or sorted(
            {name for file in self.parsed.values() for name in file.class_names}
        )
        classes = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        broken = f"; {len(self.broken)} more cannot be read" if self.broken else ""
        besides = f" ({self.besides})" if self.besides else ""
        return f"{many(len(photos), 'photo')}{where} with {kind}: {classes or 'classes without names'}{broken}{besides}"


@dataclass(slots=True)
class _Found:
    """Annotation files of each format that were found, and those that cannot be read."""

    listing: Listing
    by_format: dict[Format, dict[Path, AnnotationFile]] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)

    def add(self, format_: Format, path: Path, file: AnnotationFile) -> None:
        self.by_format.setdefault(format_, {})[path] = file


def recognise(
    photos: Path,
    labels: Path | None,
    format: str,  # noqa: A002 - the setting's name
    csv_columns: Mapping[Any, str] | None = None,
) -> Recognised:
    """Find the photos of a folder and the annotations that belong to them.

    YOLO: a text file of the photo's name beside it, in a parallel folder ``labels``, or anywhere in the
    labels folder given; names from a YAML file with ``names`` or a ``classes.txt``. COCO, LabelMe,
    Pascal VOC, CVAT: JSON and XML files with that content. CSV: a table with a column of photos and
    columns of a box, looked for where there is nothing else, or where it is asked for.

    Args:
        photos: The photos' folder.
        labels: ``prepare.labels``: a folder, a file, or a pattern like ``labels/*_boxes.csv``, where the
            annotations are not beside the photos.
        format: ``auto``, or one of `Format`.
        csv_columns: ``prepare.csv``.

    Raises:
        SynthdetError: No photos, no annotations, several formats, or files that contradict each other.
    """
    if not photos.is_dir():
        raise SynthdetError(
            f"prepare.photos: {photos} is not a folder: name the one with your photos"
        )
    listing = list_files(photos)
    if not listing.photos:
        others = f" ({listing.rejected[0].path} {listing.rejected[0].reason})" if listing.rejected else ""  # fmt: skip
        raise SynthdetError(
            f"prepare.photos: {photos} holds no photos ({', '.join(PHOTO_SUFFIXES)}){others}: name the folder that does"
        )
    label_listing, named = (listing, False) if labels is None else _list_labels(labels)
    wanted = cast("tuple[Format, ...]", get_args(Format) if format == "auto" else (format,))
    if named and format == "auto" and labels is not None:
        wanted = tuple(one for one in wanted if one != "yolo")  # one text file labels no survey
    found = _Found(label_listing)
    _find_json(found, wanted)
    _find_xml(found, wanted)
    texts = _find_yolo(listing, label_listing, labels is not None) if "yolo" in wanted else {}
    why_not = _why_not_yolo(texts)
    if why_not:
        texts = {}
    if format == "csv" or ("csv" in wanted and not found.by_format and not texts):
        asked = named or csv_columns is not None or format == "csv"
        _find_csv(found, PhotoFinder(listing), csv_columns, asked=asked)
    if why_not and not found.by_format:
        raise SynthdetError(
            f"the text files beside the photos are not YOLO labels ({why_not}): name the annotations with prepare.labels"
        )
    place = labels or photos
    kinds: list[Format] = [*(("yolo",) if texts else ()), *found.by_format]
    if len(kinds) > 1:
        raise SynthdetError(_several_found(place, kinds, texts, found))
    if not kinds:
        raise SynthdetError(_nothing_found(place, found, format))
    metadata = tuple(photos / path for path in listing.files if is_metadata(path))
    metadata += tuple(path for path in _texts_beside(listing) if path not in texts.values())
    besides = _say_besides(label_listing, kinds[0])
    if kinds[0] == "yolo":
        names, names_file = _find_names(listing, label_listing)
        more = (names_file,) if names_file else ()
        files = (*(texts[photo] for photo in sorted(texts)), *more, *metadata)
        return Recognised("yolo", listing, texts, {}, {}, names, names_file, files, besides)
    parsed = found.by_format[kinds[0]]
    pairs = _pair_parsed(kinds[0], parsed, found, listing, given=labels is not None)
    files = (*sorted((*parsed, *found.broken)), *metadata)
    return Recognised(kinds[0], listing, pairs, parsed, found.broken, None, None, files, besides)


# --- finding -------------------------------------------------------------------------------------


def _list_labels(labels: Path) -> tuple[Listing, bool]:
    """The files that ``prepare.labels`` means, and whether it names files rather than a folder."""
    if labels.is_dir():
        return list_files(labels), False
    if labels.is_file():
        return Listing(labels.parent, (labels.name,), ()), True
    if "*" in str(labels):
        root = Path(labels.anchor or ".")
        parts = labels.relative_to(root).parts if labels.anchor else labels.parts
        first = next(place for place, part in enumerate(parts) if "*" in part)
        root = root.joinpath(*parts[:first])
        found = [path for path in root.glob("/".join(parts[first:])) if path.is_file()]
        files = tuple(sorted(path.relative_to(root).as_posix() for path in found))
        if files:
            return Listing(root, files, ()), True
    raise SynthdetError(
        f"prepare.labels: {labels} does not exist: name the annotation file or folder"
    )


def _find_json(found: _Found, wanted: Sequence[Format]) -> None:
    """COCO and LabelMe files."""
    if not set(_JSON).intersection(wanted):
        return
    paths = [path for path in found.listing.files if path.lower().endswith(".json")]
    instances = [path for path in paths if PurePosixPath(path).name.startswith("instances_")]
    for path in (found.listing.root / path for path in instances or paths):
        try:
            fields = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            found.broken[path] = f"is not readable as JSON: line {error.lineno}: {error.msg}"
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 1,000 brackets
            found.broken[path] = f"is not readable as JSON: {error}"
        else:
            if is_coco(fields) and "coco" in wanted:
                found.add("coco", path, from_coco(fields, where=str(path)))
            elif is_labelme(fields) and "labelme" in wanted:
                found.add("labelme", path, from_labelme(fields))


def _find_xml(found: _Found, wanted: Sequence[Format]) -> None:
    """Pascal VOC and CVAT files."""
    if not set(_XML).intersection(wanted):
        return
    for path in (found.listing.root / path for path in found.listing.files):
        if path.suffix.lower() != ".xml" or path.name.lower().endswith(".aux.xml"):
            continue
        try:
            root = parse_xml(_read_bytes(path))
        except ValueError as error:
            found.broken[path] = str(error)
            continue
        if is_voc(root) and "voc" in wanted:
            found.add("voc", path, from_voc(root))
        elif is_cvat(root) and "cvat" in wanted:
            found.add("cvat", path, from_cvat(root, where=str(path)))


def _find_csv(
    found: _Found, finder: PhotoFinder, columns: Mapping[Any, str] | None, *, asked: bool
) -> None:
    """Tables of boxes. If they were asked for and there is none, what the first one lacks is told."""
    suffixes = (".csv", ".tsv", ".txt") if asked else (".csv", ".tsv")
    paths = [
        found.listing.root / path for path in found.listing.files if path.lower().endswith(suffixes)
    ]
    read = partial(from_csv, is_photo=finder.is_photo, mapping=columns)
    for path in paths:
        file = read(read_text(path), where=str(path))
        if file is not None:
            found.add("csv", path, file)
    if asked and paths and "csv" not in found.by_format:
        read(read_text(paths[0]), where=str(paths[0]), asked=True)


def _find_yolo(photos: Listing, labels: Listing, given: bool) -> dict[str, Path]:
    texts = [
        path
        for path in labels.files
        if path.lower().endswith(".txt") and PurePosixPath(path).name not in _NAME_FILES
    ]
    found = pair_files(photos, labels, texts, given=given)
    return {photo: labels.root / path for photo, path in found.items()}


def _pair_parsed(
    format_: Format,
    parsed: Mapping[Path, AnnotationFile],
    found: _Found,
    photos: Listing,
    *,
    given: bool,
) -> dict[str, Path]:
    """Photo -> its own annotation file, readable or not, in the formats with a file a photo."""
    if format_ not in _FILE_A_PHOTO:
        return {}
    root = found.listing.root
    paths = [path.relative_to(root).as_posix() for path in (*parsed, *found.broken)]
    pairs = pair_files(photos, found.listing, paths, given=given)
    return {photo: root / path for photo, path in pairs.items()}


def _several_found(
    place: Path, kinds: Sequence[Format], texts: Mapping[str, Path], found: _Found
) -> str:
    told = []
    for kind in kinds:
        word, noun = _FORMATS[kind]
        paths = sorted(set(texts.values()) if kind == "yolo" else found.by_format[kind])
        told.append(f"{word} ({many(len(paths), noun)}, like {paths[0].name})")
    return f"{place} holds {' and '.join(told)} annotations: set prepare.format to {' or '.join(sorted(kinds))}"


def _nothing_found(place: Path, found: _Found, format_: str) -> str:
    if found.broken:
        path, reason = next(iter(found.broken.items()))
        more = f" (and {len(found.broken) - 1} more like it)" if len(found.broken) > 1 else ""
        return f"{path} {reason}{more}: correct it, or name other annotations with prepare.labels"
    others = Counter(PurePosixPath(path).suffix.lower() for path in found.listing.files)
    seen = ", ".join(f"{others[suffix]} {suffix}" for suffix in _SUFFIXES if others[suffix])
    wanted = _FORMATS[format_][0] + " " if format_ in _FORMATS else ""  # type: ignore[index]
    if not seen and format_ == "auto":
        return (
            f"{place} holds no annotations: detector and verdict need boxes on some photos; name their file or folder with "
            f"prepare.labels (init --labels), written as {_CHOICES}"
        )
    hint = f" (there are {seen} files)" if seen else ""
    return (
        f"{place} holds no {wanted}annotations that are recognised{hint}: name their file or folder with prepare.labels (init --labels), and "
        f"how they are written with prepare.format (init --format), one of {_CHOICES}"
    )


def _say_besides(listing: Listing, format_: Format) -> str:
    """Tables that were passed over because there is something better."""
    tables = sum(path.lower().endswith(".csv") for path in listing.files)
    if format_ == "csv" or not tables:
        return ""
    return f"{many(tables, '.csv file')} not read: prepare.format csv would"


# --- YOLO ----------------------------------------------------------------------------------------


def _why_not_yolo(found: Mapping[str, Path]) -> str:
    """What shows that text files are something else, like captions; "" for labels."""
    problem = ""
    for path in list(found.values())[:50]:
        text = read_text(path)
        boxes, problems = from_yolo_lines(text, 1, 1)
        if boxes or not text.strip():
            return ""
        problem = problem or f"{path}: {problems[0]}"
    return problem


def _find_names(photos: Listing, labels: Listing) -> tuple[dict[int, str] | None, Path | None]:
    found: list[tuple[dict[int, str], Path]] = []
    listings = [photos] if labels is photos else [labels, photos]
    for listing in listings:
        for path in listing.files:
            name = PurePosixPath(path).name.lower()
            names = None
            if name.endswith((".yaml", ".yml")):
                try:
                    fields = yaml.safe_load(read_text(listing.root / path))
                except (yaml.YAMLError, ValueError, RecursionError):
                    continue
                if isinstance(fields, dict) and "kpt_shape" in fields:
                    raise SynthdetError(
                        f"{listing.root / path} is of pose labels (kpt_shape), whose points look like polygons: export the "
                        "boxes as YOLO detection"
                    )
                names = names_from_yaml(fields)
            elif name in _NAME_FILES:
                names = names_from_text(read_text(listing.root / path))
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


# --- shared --------------------------------------------------------------------------------------


def _texts_beside(listing: Listing) -> list[Path]:
    """Text files of a photo's name beside it: captions, where they are no labels."""
    there = set(listing.files)
    named = (PurePosixPath(photo).with_suffix(".txt").as_posix() for photo in listing.photos)
    return [listing.root / path for path in named if path in there]


def is_metadata(path: str) -> bool:
    return PurePosixPath(path).name == _METADATA


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SynthdetError(f"{path} cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """A text file: UTF-8, UTF-16 if it says so, else as Windows writes western Europe."""
    content = _read_bytes(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
