"""Which photo an annotation file means, for `prepare`: by its own name, or by a name in it.

Photos are only ever looked for among those listed under the photos' folder: no name in a file makes
anything else be opened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from synthdet.core.groups import LAYOUT_WORDS, given_split
from synthdet.core.records import Rejected, Split
from synthdet.errors import SynthdetError
from synthdet.stages._photos import PHOTO_SUFFIXES, Listing

_LAYOUT: Final = LAYOUT_WORDS | {
    "jpegimages", "image", "img", "imgs", "photos", "pictures", "frames", "data", "label", "annotation",
    "ann", "anns", "xml", "xmls", "json", "jsons", "txt", "txts", "voc", "yolo",
}  # fmt: skip
"""Folders that say how a survey is laid out, not what is in it."""
_PARALLEL: Final = {"images": ("labels", "annotations"), "JPEGImages": ("Annotations",)}


def pair_files(
    photos: Listing, labels: Listing, paths: Sequence[str], *, given: bool
) -> dict[str, str]:
    """Photo -> the file of its name: in the parallel folder, beside it, or elsewhere by place and name.

    A file that belongs to one photo by its folder is not lent to another.

    Args:
        photos: The photos' folder.
        labels: Where the files are.
        paths: The files, relative to ``labels``.
        given: Whether the user named that folder: a file may then lie anywhere in it.

    Raises:
        SynthdetError: Two files fit one photo; names them.
    """
    known = {PurePosixPath(path).with_suffix("").as_posix(): path for path in paths}
    found: dict[str, str] = {}
    for photo in photos.photos:
        stem = PurePosixPath(photo).with_suffix("").as_posix()
        own = next((known[place] for place in _parallel(stem) if place in known), None)
        if own is not None:
            found[photo] = own
    by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in sorted(set(paths).difference(found.values())):
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
    return found


def _parallel(stem: str) -> list[str]:
    """Where the file of a photo usually lies, without its suffix."""
    parts = PurePosixPath(stem).parts
    places = [
        "/".join(other if part == folder else part for part in parts)
        for folder, others in _PARALLEL.items()
        if folder in parts
        for other in others
    ]
    return [*places, stem]


def _place(path: str) -> tuple[str, str]:
    """Folder, without words of the layout, and stem: what a photo and its label share."""
    pure = PurePosixPath(path)
    folders = [part for part in pure.parts[:-1] if part.lower() not in _LAYOUT]
    return "/".join(folders), pure.stem


class PhotoFinder:
    """Finds the photo that an annotation file means by a name."""

    def __init__(self, listing: Listing) -> None:
        self.root = listing.root
        self.photos = set(listing.photos)
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for photo in listing.photos:
            pure = PurePosixPath(photo)
            self.by_name[pure.name.casefold()].append(photo)
            self.by_name[pure.stem.casefold()].append(photo)

    def is_photo(self, name: str) -> bool:
        """Whether a name is a photo's, of the folder or at least by its suffix."""
        name = name.replace("\\", "/").rpartition("/")[2].casefold()
        return name in self.by_name or name.endswith(PHOTO_SUFFIXES)

    def leaves(self, file_name: str) -> bool:
        """Whether a name leads out of the photos' folder."""
        named = self._inside(file_name)
        return named.is_absolute() or ".." in named.parts or ":" in str(named)[:2]

    def find(self, file_name: str, place: str, split: Split | None) -> str | Rejected:
        """The photo's path, or why there is none.

        A name that leads out of the folder, as written on somebody's computer, means the one photo of
        that file name in the folder, if there is one; nothing outside is ever looked at.

        Args:
            file_name: As the file writes it.
            place: Path of the file, relative to the photos' folder if it lies in it.
            split: Of the file.
        """
        if not file_name.strip():
            return Rejected(path=place, reason="names no photo")
        named, leaves = self._inside(file_name), self.leaves(file_name)
        if not leaves:
            beside = (PurePosixPath(place).parent / named).as_posix()
            for candidate in (beside, named.as_posix(), f"images/{named.as_posix()}"):
                if candidate in self.photos:
                    return candidate
        tail = named.name if leaves else named.as_posix()
        same = self._called(tail, str) or self._called(tail, str.casefold)
        if len(same) > 1 and split is not None:
            same = [photo for photo in same if given_split(photo) == split]
        if len(same) == 1:
            return same[0]
        where = f"(named in {place})"
        if same:
            return Rejected(path=file_name, reason=f"fits several photos {where}")
        why = "leaves the photos' folder" if leaves else "is not in the photos' folder"
        return Rejected(path=file_name, reason=f"{why} {where}")

    def _called(self, tail: str, spelt: Callable[[str], str]) -> list[str]:
        """Photos whose path ends so, with or without their suffix, in a way of spelling."""
        name = PurePosixPath(tail).name.casefold()
        return [
            photo
            for photo in self.by_name.get(name, ())
            if spelt(f"/{photo}").endswith(spelt(f"/{tail}"))
            or spelt(f"/{PurePosixPath(photo).with_suffix('')}").endswith(spelt(f"/{tail}"))
        ]

    def _inside(self, file_name: str) -> PurePosixPath:
        """A name as a path, relative to the photos' folder where it is written in full."""
        named = PurePosixPath(file_name.strip().replace("\\", "/"))
        return named.relative_to(self.root) if named.is_relative_to(self.root) else named


def relative(path: Path, root: Path) -> str:
    """A path relative to the photos' folder, or its name where it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
