"""The photos' files, for `prepare`: found, hashed, decoded upright, cut into tiles.

Nothing here writes into the photos' folder. Links that leave it are not followed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthdet.core.boxes import to_upright
from synthdet.core.groups import THUMB_SIDE
from synthdet.core.records import XYXY, Rejected
from synthdet.workspace import CONFIG_NAME

PHOTO_SUFFIXES: Final = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".avif",
)  # fmt: skip
MAX_PIXELS: Final = 350_000_000
"""Frames with more are refused as decompression bombs. PIL draws the line at half, but for `large_frames`."""
ROOM_PIXELS: Final = 200_000_000
"""Pixels that may be decoded at a time, by all threads together: about a gigabyte of memory."""
_LARGE_PIXELS: Final = 40_000_000
"""Frames with more are looked at in a smaller size, and held in memory once, not twice."""
_LOOKED_AT: Final = 4_000_000
_LARGE_FILE: Final = 64_000_000
_REDUCIBLE: Final = ("L", "LA", "RGB", "RGBA", "CMYK")
_MAX_BYTES: Final = 2_000_000_000
"""More than MAX_PIXELS pixels need in any format that is read; such a file is not even opened."""
_DECODED: Final = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "AVIF", "GIF", "JPEG2000", "PPM")
"""Decoders that a file may choose by its content. Not all that PIL has: some start other programs."""
_OTHER_SUFFIXES: Final = (
    ".heic", ".heif", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".jp2",
)  # fmt: skip
_LEAST_CONTRAST: Final = 8
_ORIENTATION_TAG: Final = 274
_PNG_COMPRESSION: Final = 3
_BLANK_CELLS: Final = 20
_BLANK_DETAIL: Final = 600
_BLANK_SHARE: Final = 0.8
_BLACK: Final = 12
_COLOURLESS: Final = 8

Picture = NDArray[np.uint8]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Listing:
    """Files under a folder, relative to it, sorted; and links in it that lead out."""

    root: Path
    files: tuple[str, ...]
    rejected: tuple[Rejected, ...]

    @property
    def photos(self) -> list[str]:
        """Those with the suffix of a picture."""
        return [path for path in self.files if path.lower().endswith(PHOTO_SUFFIXES)]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What decoding a photo told.

    Attributes:
        width: Of the upright photo, in pixels.
        height: Of the upright photo, in pixels.
        orientation: EXIF orientation of the file, 1 to 8.
        stored_wh: Width and height as stored.
        thumb: Grey thumbnail ``(32, 32)``.
        blank: Areas that show nothing, in pixels of the upright photo.
        reason: Why it cannot be used; the other fields mean nothing then.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    stored_wh: tuple[int, int] = (0, 0)
    thumb: Picture | None = None
    blank: tuple[XYXY, ...] = ()
    reason: str | None = None


def list_files(root: Path) -> Listing:
    """All files under a folder. Hidden ones, run folders and links that leave the folder are left out."""
    files: list[str] = []
    rejected: list[Rejected] = []
    real_root = root.resolve()
    for folder, subfolders, names in os.walk(root):
        place = Path(folder)
        linked = [name for name in subfolders if (place / name).is_symlink()]
        for name in sorted(linked):
            path = (place / name).relative_to(root).as_posix().encode("utf-8", "replace").decode()
            rejected.append(Rejected(path=path, reason="is a link to a folder: not followed"))
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name not in linked
            and not name.startswith((".", "__MACOSX"))
            and not (place / name / CONFIG_NAME).is_file()
        )
        for name in sorted(names):
            path = (place / name).relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if not _is_text(path):
                if name.lower().endswith(PHOTO_SUFFIXES):
                    told = path.encode("utf-8", "replace").decode()
                    reason = "has a name that is no text in UTF-8: rename it"
                    rejected.append(Rejected(path=told, reason=reason))
                continue
            if (place / name).is_symlink() and not _leads_inside(place / name, real_root):
                if name.lower().endswith(PHOTO_SUFFIXES):
                    reason = "is a link that leads out of the photos' folder, or nowhere"
                    rejected.append(Rejected(path=path, reason=reason))
                continue
            if (place / name).is_file():
                files.append(path)
    return Listing(root, tuple(sorted(files)), (*rejected, *_refuse_others(files)))


def _refuse_others(files: Sequence[str]) -> list[Rejected]:
    """Photos in formats that are not read, but for those that stand beside one that is."""
    stems = {path.rpartition(".")[0] for path in files if path.lower().endswith(PHOTO_SUFFIXES)}
    return [
        Rejected(path=path, reason="is in a format that is not read: convert it to JPEG or PNG")
        for path in sorted(files)
        if path.lower().endswith(_OTHER_SUFFIXES) and path.rpartition(".")[0] not in stems
    ]


def _is_text(path: str) -> bool:
    """Whether a file's name can be written into records; some disks hold names that cannot."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leads_inside(link: Path, real_root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(real_root)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return False


class Room:
    """Lets threads decode only so many pixels at a time, so that memory does not grow with their number.

    Args:
        pixels: In all. A frame with more waits until it is alone.
    """

    def __init__(self, pixels: int = ROOM_PIXELS) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for a frame, and keep it while the block runs."""
        wanted = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


@contextmanager
def large_frames() -> Iterator[None]:
    """Let PIL open frames up to our own limit, while the block runs. For the main thread."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def inspect(path: Path, room: Room | None = None) -> Inspected:
    """Decode a photo whole; say why if that is not possible."""
    try:
        with _opened(path, room or Room()) as image:
            size_wh = image.size
            large = size_wh[0] * size_wh[1] > _LARGE_PIXELS and image.mode in _REDUCIBLE
            if large:
                factor = _times(size_wh, _LOOKED_AT)
                image.draft("RGB", (size_wh[0] // factor, size_wh[1] // factor))
            orientation, stored_wh = _load(image, size_wh)
            few = image.reduce(max(1, _times(image.size, _LOOKED_AT))) if large else image
            picture = np.ascontiguousarray(_turn(_to_rgb(few), _orientation(image)))
    except Exception as error:  # decoders fail in many ways; every one is this file's fault
        return Inspected(reason=decode_reason(path, error))
    width, height = stored_wh[::-1] if orientation in (5, 6, 7, 8) else stored_wh
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    thumb = cv2.resize(grey, (THUMB_SIDE, THUMB_SIDE), interpolation=cv2.INTER_AREA)
    blank = _enlarged(find_blank(picture), picture.shape[1], picture.shape[0], width, height)
    return Inspected(width, height, orientation, stored_wh, thumb, blank)


def _times(size_wh: tuple[int, int], pixels: int) -> int:
    """How many times smaller a picture has to be, along each side, to have about so many pixels."""
    return math.isqrt(math.ceil(size_wh[0] * size_wh[1] / pixels))


def _enlarged(
    areas: Sequence[XYXY], from_width: int, from_height: int, width: int, height: int
) -> tuple[XYXY, ...]:
    """Areas of a smaller picture in whole pixels of the photo."""
    across, down = width / from_width, height / from_height
    return tuple(
        (round(x1 * across), round(y1 * down), round(x2 * across), round(y2 * down))
        for x1, y1, x2, y2 in areas
    )


def find_blank(picture: Picture) -> tuple[XYXY, ...]:
    """Areas of a photo that show nothing: the black edge of a mosaic, of a turned or padded copy.

    A cell of a coarse grid is blank if most of its pixels are black. Photos without colour have none:
    in a thermal picture the sea itself may be black.

    Args:
        picture: ``(height, width, 3)`` RGB.

    Returns:
        Rectangles in pixels of the photo, which do not overlap; none in an ordinary photo.
    """
    height, width = picture.shape[:2]
    stride = max(1, max(height, width) // _BLANK_DETAIL)
    few = picture[::stride, ::stride]
    red, green, blue = few[..., 0], few[..., 1], few[..., 2]  # max(axis=2) is ten times slower
    brightest = np.maximum(np.maximum(red, green), blue)
    black = brightest <= _BLACK
    if not black.any():
        return ()
    colour = brightest - np.minimum(np.minimum(red, green), blue)
    if colour[~black].max(initial=0) <= _COLOURLESS:
        return ()
    rows = np.linspace(0, few.shape[0], _BLANK_CELLS + 1).round().astype(int)
    columns = np.linspace(0, few.shape[1], _BLANK_CELLS + 1).round().astype(int)
    rectangles: list[XYXY] = []
    for top, bottom in itertools.pairwise(rows.tolist()):
        for left, right in itertools.pairwise(columns.tolist()):
            cell = black[top:bottom, left:right]
            if not cell.size or cell.mean() < _BLANK_SHARE:
                continue
            x1, y1, y2 = left * stride, top * stride, min(bottom * stride, height)
            if rectangles and rectangles[-1][1:] == (y1, x1, y2):  # goes on to the right
                x1 = int(rectangles.pop()[0])
            rectangles.append((x1, y1, min(right * stride, width), y2))
    return tuple(rectangles)


def read_upright(path: Path) -> Picture:
    """A photo as ``(height, width, 3)`` RGB, turned as EXIF says.

    Raises:
        OSError: It cannot be decoded.
    """
    with _opened(path, Room()) as image:
        _load(image, image.size)
        return np.ascontiguousarray(_turn(_to_rgb(image), _orientation(image)))


Crops = Sequence[Sequence[float]]


def read_crops(
    path: Path,
    crops: Crops | Callable[[int, int], Crops],
    resolution: int,
    room: Room | None = None,
) -> Iterator[Picture]:
    """Square crops of a photo, each as `cut` makes it, one by one, without ever holding the photo twice.

    Args:
        path: Of the photo.
        crops: ``xyxy`` in whole pixels of the upright photo; or what plans them from its width and height.
        resolution: Side of the results.
        room: What other threads share.

    Raises:
        OSError: It cannot be decoded.
    """
    with _opened(path, room or Room()) as image:
        _load(image, image.size)
        turn = _orientation(image)
        width, height = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
        if callable(crops):
            crops = crops(width, height)
        if image.mode not in _REDUCIBLE:  # as 8 bits, these depend on the whole photo
            upright = np.ascontiguousarray(_turn(_to_rgb(image), turn))
            yield from (cut(upright, xyxy, resolution) for xyxy in crops)
            return
        for xyxy in crops:
            x1, y1, x2, y2 = (int(value) for value in xyxy)
            part = (x1, y1, min(x2, width), min(y2, height))
            # Turned back: a quarter turn is undone by the other one, all else by itself.
            stored = to_upright(part, {6: 8, 8: 6}.get(turn, turn), width, height)
            stored_picture = _to_rgb(image.crop(tuple(int(edge) for edge in stored)))
            picture = np.ascontiguousarray(_turn(stored_picture, turn))
            yield cut(picture, (0, 0, x2 - x1, y2 - y1), resolution)


def cut(picture: Picture, xyxy: Sequence[float], resolution: int) -> Picture:
    """A square crop, resampled to ``resolution``.

    Where the crop reaches over the photo's right or lower edge, the rest is filled with a blurred
    mirror image: it continues the scene without making a second, unlabelled animal.

    Args:
        picture: ``(height, width, 3)`` RGB.
        xyxy: Whole pixels of the photo.
        resolution: Side of the result.
    """
    x1, y1, x2, y2 = (int(value) for value in xyxy)
    crop = picture[y1:y2, x1:x2]
    side = x2 - x1
    height, width = crop.shape[:2]
    if height < side or width < side:
        filled = cv2.copyMakeBorder(
            crop, 0, side - height, 0, side - width, borderType=cv2.BORDER_REFLECT_101
        )
        filled = cv2.GaussianBlur(filled, (0, 0), sigmaX=max(1.0, side / 8))
        filled[:height, :width] = crop
        crop = filled
    if side == resolution:
        return np.ascontiguousarray(crop)
    how = cv2.INTER_AREA if side > resolution else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop, (resolution, resolution), interpolation=how), dtype=np.uint8)


def to_png(picture: Picture) -> bytes:
    """A picture ``(height, width, 3)`` RGB as PNG; the same bytes for the same pixels."""
    encoded = cv2.imencode(
        ".png",
        cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION],
    )[1]
    return bytes(encoded.tobytes())


def hash_bytes(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def in_order(work: Callable[[T], U], items: Iterable[T], workers: int) -> Generator[U, None, None]:
    """Results of ``work`` in the order of the items, a few of them in work at any time.

    Threads, because decoders and encoders let go of the interpreter's lock: nothing has to be copied
    between processes, and a killed run leaves no orphans.

    Args:
        work: What is done with each item.
        items: Taken one by one.
        workers: Threads; 0 for one a core.
    """
    threads = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[Future[U]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _opened(path: Path, room: Room) -> Iterator[Any]:
    """The picture of a file, not decoded yet, once there is room for it."""
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise Image.DecompressionBombError(f"a file of {size:,} bytes")
    with path.open("rb") as handle:
        source = handle if size > _LARGE_FILE else io.BytesIO(handle.read())
        with Image.open(source, formats=_DECODED) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            with room.hold(image.width * image.height):
                yield image


def _load(image: Any, size_wh: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Decode a picture; its EXIF orientation, and width and height as stored."""
    # Asked for EXIF, PIL may decode a PNG, and forget that it failed: load first. Its TIFF decoder
    # turns the picture while loading and then drops the tag, and tells the size it will have.
    before = _orientation(image) if image.format == "TIFF" else 1
    image.load()
    width, height = size_wh
    stored_wh = (height, width) if before in (5, 6, 7, 8) else (width, height)
    return max(before, _orientation(image)), stored_wh


def _orientation(image: Any) -> int:
    try:
        value = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # EXIF that cannot be read says nothing about the picture
        return 1
    return value if 1 <= value <= 8 else 1


def _to_rgb(image: Any) -> Picture:
    """8 bits a colour; what is transparent becomes black, and so blank (`find_blank`)."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image, dtype=np.float64)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _to_8_bit(values: NDArray[np.float64]) -> Picture:
    """Grey values of 16 bits, or floats in 0..1, as 8 bits: the same scale for every photo.

    Raises:
        OSError: Hardly anything is left of their contrast (temperatures, for example).
    """
    if not np.isfinite(values).all():
        raise OSError("it holds values that are not finite numbers")
    factor = 1 / 257 if values.max(initial=0) > 255 else 1
    if values.max(initial=0) <= 1 and (values % 1).any():
        factor = 255
    grey = (values * factor).clip(0, 255).round().astype(np.uint8)
    if values.size and values.min() < values.max() and np.ptp(grey) < _LEAST_CONTRAST:
        raise OSError("8 bits would leave nothing of its contrast: export it as an 8 bit picture")
    return grey


def _turn(picture: Picture, orientation: int) -> Picture:
    if orientation in (5, 6, 7, 8):
        picture = picture.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    return picture


def decode_reason(path: Path, error: Exception) -> str:
    """Why a photo cannot be used, from what its decoder said."""
    if not path.exists():
        return "is gone"
    if path.stat().st_size == 0:
        return "is empty (0 bytes)"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to decode safely (decompression bomb): {error}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not a picture that can be read"
    return f"cannot be decoded whole: {' '.join(str(error).split()) or type(error).__name__}"
