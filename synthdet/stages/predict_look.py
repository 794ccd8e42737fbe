"""Photos of any size, looked at tile by tile: boxes of the whole photo, an animal once.

Tiles wait on the disk, where any detector reads them; only a few photos are open at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2

from synthdet.core.labelling import BORDER, MIN_CONFIDENCE, to_classes
from synthdet.core.records import DetectedBox, Prediction
from synthdet.core.tiling import Look, Tile, merge_looks, plan_tiles, to_photo
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.stages import _photos
from synthdet.stages._detector import Opened
from synthdet.workspace import append_records, cannot_write, read_records

BATCH: Final = 8
"""Photos whose boxes are written at once. Part of what is made, so it is no knob."""
_READERS: Final = 2
"""Threads that decode photos and cut tiles; each adds two photos whose tiles wait on the disk."""
_SCRATCH: Final = ".tmp-tiles-"


@dataclass(frozen=True, slots=True)
class Ground:
    """How photos are cut: sides and overlap in photo pixels, resolution in tile pixels."""

    side: int
    overlap: int
    resolution: int

    @property
    def scale(self) -> float:
        """Tile pixels a photo pixel."""
        return self.resolution / self.side

    def plan(self, width: int, height: int) -> list[Tile]:
        """The tiles of a photo."""
        return plan_tiles(width, height, self.side, self.overlap)


def file_size(path: Path) -> int:
    """Of a file, in bytes; -1 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


@dataclass(frozen=True, slots=True)
class _CutPhoto:
    """A photo whose tiles lie on the disk, or why it cannot be used."""

    path: str
    num_bytes: int
    size_wh: tuple[int, int]
    tiles: tuple[Tile, ...]
    files: tuple[Path, ...]
    fault: str | None


def look_at_photos(
    path: Path,
    root: Path,
    photos: Sequence[str],
    ground: Ground,
    opened: Opened,
    reporter: Reporter,
    *,
    doing: str,
) -> list[Prediction]:
    """Every photo's line; what stands in the file already is not made again.

    Args:
        path: Of the lines. Tiles are put beside it for a while.
        root: Folder of the photos.
        photos: Relative to it, sorted.
        ground: How they are cut.
        opened: The detector.
        reporter: Hears how far it is.
        doing: What goes on.

    Returns:
        In the order of the photos. One that cannot be read has a fault and no box.

    Raises:
        SynthdetError: The detector failed, or the disk is full.
    """
    for leftover in path.parent.glob(f"{_SCRATCH}*"):
        shutil.rmtree(leftover)
    known = {one.path: one for one in read_records(path, Prediction)}
    known = {
        photo: known[photo]
        for photo in photos
        if photo in known and known[photo].num_bytes == file_size(root / photo)
    }
    batches = [photos[begin : begin + BATCH] for begin in range(0, len(photos), BATCH)]
    todo = [batch for batch in batches if not all(photo in known for photo in batch)]
    if not path.exists():
        append_records(path, [])
    if not todo:
        return [known[photo] for photo in photos]
    room = _photos.Room()
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=path.parent) as scratch,
        reporter.bar("predict", len(photos), unit="photo", done=len(known), doing=doing) as advance,
        _photos.large_frames(),
    ):
        numbered = enumerate(photo for batch in todo for photo in batch)
        cuts = _photos.in_order(
            lambda one: _cut_photo(root, one[1], Path(scratch) / str(one[0]), ground, room),
            numbered,
            _READERS,
        )
        try:
            for batch in todo:
                own = [next(cuts) for _photo in batch]
                made = [one for one in _detect(own, ground, opened) if one.path not in known]
                append_records(path, made)
                known |= {one.path: one for one in made}
                advance(len(made))
        finally:
            cuts.close()
    return [known[photo] for photo in photos]


def _cut_photo(
    root: Path, photo: str, files: Path, ground: Ground, room: _photos.Room
) -> _CutPhoto:
    """Write the tiles of a photo as ``<files>-<n>.bmp``: any detector reads it, and it is fast.

    Raises:
        SynthdetError: They cannot be written.
    """
    path, size_wh = root / photo, (0, 0)
    num_bytes = file_size(path)

    def plan(width: int, height: int) -> list[Tile]:
        nonlocal size_wh
        size_wh = (width, height)
        return ground.plan(width, height)

    written: list[Path] = []
    try:
        for picture in _photos.read_crops(path, plan, ground.resolution, room):
            written.append(files.with_name(f"{files.name}-{len(written)}.bmp"))
            _write_bmp(written[-1], picture)
    except SynthdetError:
        raise
    except Exception as error:  # decoders fail in many ways; every one is this file's fault
        for file in written:
            file.unlink(missing_ok=True)
        return _CutPhoto(photo, num_bytes, (0, 0), (), (), _photos.decode_reason(path, error))
    return _CutPhoto(photo, num_bytes, size_wh, tuple(ground.plan(*size_wh)), tuple(written), None)


def _write_bmp(path: Path, picture: _photos.Picture) -> None:
    try:
        path.write_bytes(
            cv2.imencode(".bmp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        )
    except OSError as error:
        raise cannot_write(error, path) from error


def _detect(photos: Sequence[_CutPhoto], ground: Ground, opened: Opened) -> list[Prediction]:
    """The lines of a batch; its tiles are removed from the disk."""
    files = [file for photo in photos for file in photo.files]
    drawn: list[tuple[DetectedBox, ...]] = []
    if files:
        detector, to_run = opened()
        raw = detector.detect(files, min_confidence=MIN_CONFIDENCE)
        drawn = [to_classes(boxes, to_run) for boxes in raw]
    for file in files:
        file.unlink()
    predictions = []
    for photo in photos:
        own, drawn = drawn[: len(photo.tiles)], drawn[len(photo.tiles) :]
        looks = [
            Look(tile, to_photo(boxes, tile, ground.scale, photo.size_wh))
            for tile, boxes in zip(photo.tiles, own, strict=True)
        ]
        predictions.append(
            Prediction(
                path=photo.path,
                num_bytes=photo.num_bytes,
                width=photo.size_wh[0],
                height=photo.size_wh[1],
                num_tiles=len(photo.tiles),
                boxes=merge_looks(looks, photo.size_wh, BORDER / ground.scale),
                fault=photo.fault,
            )
        )
    return predictions
