"""Pictures that are larger than what a detector has learned from, looked at tile by tile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2

from synthdet.core.labelling import BORDER
from synthdet.core.records import DetectedBox
from synthdet.core.tiling import Look, Tile, merge_looks, plan_tiles, to_photo
from synthdet.errors import SynthdetError
from synthdet.models.protocols import Detector
from synthdet.stages import _photos
from synthdet.workspace import cannot_write

PICTURES_AT_ONCE: Final = 8
"""Pictures whose tiles wait on the disk, and go to the detector together."""


class TilesNotWrittenError(SynthdetError):
    """The disk takes no tiles: the fault of no picture, and of no detector."""


def look_in_tiles(
    open_detector: Callable[[Path], Detector], side: int, overlap: int, scratch: Path
) -> Callable[[Path], Detector]:
    """What opens detectors that look at large pictures in tiles, at the pictures' own scale.

    Args:
        open_detector: Loads one.
        side: Of a tile, in pixels. Pictures with no longer side are looked at as they are.
        overlap: Of neighbouring tiles, in pixels.
        scratch: Folder on whose disk tiles wait.
    """
    return lambda weights: TiledDetector(open_detector(weights), side, overlap, scratch)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A picture, and the files that are looked at for it: its tiles, or itself."""

    size_wh: tuple[int, int]
    tiles: tuple[Tile, ...]
    files: tuple[Path, ...]


class TiledDetector:
    """A detector that looks at large pictures tile by tile, those of several pictures at once.

    The boxes of each view are those of the whole picture, an animal once.
    """

    def __init__(self, detector: Detector, side: int, overlap: int, scratch: Path) -> None:
        self.names = detector.names
        self.queries = detector.queries
        self._detector = detector
        self._side = side
        self._overlap = overlap
        self._scratch = scratch

    def detect(
        self, paths: Sequence[Path], *, min_confidence: float, views: bool = False
    ) -> list[tuple[DetectedBox, ...]]:
        """As `Detector.detect`.

        Raises:
            SynthdetError: A picture cannot be read.
            TilesNotWrittenError: The disk is full, or cannot be written to.
        """
        found: list[tuple[DetectedBox, ...]] = []
        for begin in range(0, len(paths), PICTURES_AT_ONCE):
            with _make_folder(self._scratch) as folder:
                cuts = [
                    self._cut(path, Path(folder) / str(number))
                    for number, path in enumerate(paths[begin : begin + PICTURES_AT_ONCE])
                ]
                files = [file for cut in cuts for file in cut.files]
                drawn = self._detector.detect(files, min_confidence=min_confidence, views=views)
            for cut in cuts:
                own, drawn = drawn[: len(cut.files)], drawn[len(cut.files) :]
                found.append(_merge(cut, own) if cut.tiles else own[0])
        return found

    def _cut(self, path: Path, files: Path) -> _Cut:
        size_wh: tuple[int, int] = (0, 0)
        tiles: list[Tile] = []

        def plan(width: int, height: int) -> list[Tile]:
            nonlocal size_wh, tiles
            size_wh = (width, height)
            if max(size_wh) > self._side:
                tiles = plan_tiles(width, height, self._side, self._overlap)
            return tiles

        written: list[Path] = []
        try:
            for picture in _photos.read_crops(path, plan, self._side):
                written.append(files.with_name(f"{files.name}-{len(written)}.bmp"))
                _write(written[-1], picture)
        except SynthdetError:
            raise
        except Exception as error:  # decoders fail in many ways; every one is this file's fault
            reason = _photos.decode_reason(path, error)
            raise SynthdetError(f"{path}: {reason}") from error
        return _Cut(size_wh, tuple(tiles), tuple(written) if tiles else (path,))


def _make_folder(scratch: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=".tmp-tiles-", dir=scratch)
    except OSError as error:
        raise TilesNotWrittenError(str(cannot_write(error, scratch))) from error


def _write(path: Path, picture: _photos.Picture) -> None:
    encoded = cv2.imencode(".bmp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise TilesNotWrittenError(str(cannot_write(error, path))) from error


def _merge(cut: _Cut, drawn: Sequence[Sequence[DetectedBox]]) -> tuple[DetectedBox, ...]:
    """The boxes of a picture, one view after the other."""
    merged: list[DetectedBox] = []
    for source in sorted({box.source for boxes in drawn for box in boxes}):
        looks = [
            Look(
                tile,
                to_photo([box for box in boxes if box.source == source], tile, 1.0, cut.size_wh),
            )
            for tile, boxes in zip(cut.tiles, drawn, strict=True)
        ]
        merged += merge_looks(looks, cut.size_wh, BORDER)
    return tuple(merged)
