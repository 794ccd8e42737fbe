"""When and where a photo was taken, for `prepare`: EXIF of a file, read without decoding it."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from PIL import Image

from synthdet.core.flights import Taken

_FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")
_EXIF: Final = 0x8769
_GPS: Final = 0x8825
_TAKEN: Final = 0x9003  # DateTimeOriginal: the moment itself, which editors leave alone
_FRACTION: Final = 0x9291  # SubSecTimeOriginal
_LATITUDE: Final = (1, 2)
_LONGITUDE: Final = (3, 4)


def read_taken(path: Path) -> Taken | None:
    """Time and place of a photo; None where it does not tell both, or nonsense."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.format == "PNG" and "exif" not in image.info:
                return None  # asked for it, PIL would decode the whole picture to look for some
            exif = image.getexif()
            own, gps = exif.get_ifd(_EXIF), exif.get_ifd(_GPS)
        moment = datetime.strptime(_text(own[_TAKEN]), "%Y:%m:%d %H:%M:%S")
        fraction = _text(own.get(_FRACTION, ""))
        seconds = (moment - datetime(1970, 1, 1)).total_seconds()
        if fraction.isascii() and fraction.isdecimal():
            seconds += float(f"0.{fraction}")
        latitude = _degrees(gps[_LATITUDE[1]], gps.get(_LATITUDE[0]), "S")
        longitude = _degrees(gps[_LONGITUDE[1]], gps.get(_LONGITUDE[0]), "W")
    except Exception:  # whatever a camera or an editor wrote there, it is no reason to stop
        return None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or latitude == longitude == 0:
        return None  # a receiver without satellites says 0, 0
    return Taken(seconds, latitude, longitude)


def _text(value: Any) -> str:
    text = value.decode("ascii") if isinstance(value, bytes) else str(value)
    return text.strip("\x00 ")


def _degrees(value: Any, side: Any, negative: str) -> float:
    degrees, minutes, seconds = (float(part) for part in value)
    together = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(together):
        raise ValueError("not a place")
    return -together if _text(side or "") == negative else together
