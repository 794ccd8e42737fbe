"""What a picture file tells besides its pixels: taken out, or a mark put in, without decoding it.

A drone writes where it was, when, and its serial numbers into its photos: EXIF, XMP (DJI's own tags
too), text, and whatever stands behind the end of the picture. Exported pictures leave all of that at
home. Kept are what the pixels cannot be shown without: colour profile, transparency, and which side is up.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence

TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for a picture that a trained model drew, as the value of ``DigitalSourceType``."""

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{TRAINED_ALGORITHMIC_MEDIA}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs", b"bKGD", b"cICP")
_JPEG = b"\xff\xd8"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_ORIENTATION = 0x0112
_Part = slice | bytes
"""Of a file: a stretch of it, or bytes that are put in."""
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a stretch of pixels: 0xff 0x00 is a byte of them, 0xff 0xd0 to 0xd7 a mark inside them.

It begins with one plain byte, for which `re` has a search of its own, ten times as fast and more.
"""


def strip_metadata(content: bytes) -> bytes | None:
    """A JPEG or PNG without what it tells besides its pixels; the pixels stay the same bytes.

    Args:
        content: The whole file.

    Returns:
        The whole file; None where it is neither, or too damaged to be read to its end: then the
        picture has to be decoded and written anew.

    Source:
        ITU-T T.81, annex B, for JPEG; the PNG specification, third edition, for chunks; Exif 2.32.
    """
    try:
        if content.startswith(_PNG):
            return _strip_png(content)
        if content.startswith(_JPEG):
            return _strip_jpeg(content)
    except (struct.error, IndexError, ValueError):
        pass
    return None


def mark_synthetic(content: bytes) -> bytes:
    """The same JPEG or PNG with IPTC's mark for pictures that a trained model drew.

    The mark is an XMP packet, where PNG and JPEG each keep theirs, so that search engines, platforms
    and ``PIL.Image.getxmp`` find it.

    Raises:
        ValueError: Neither a JPEG nor a PNG.

    Source:
        IPTC Photo Metadata Standard 2023.2, Digital Source Type; XMP specification part 3.
    """
    if content.startswith(_PNG):
        text = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP)
        end_of_header = len(_PNG) + 25
        return _joined(content, [slice(end_of_header), text, slice(end_of_header, None)])
    if content.startswith(_JPEG):
        at = 2
        if content[2:4] == b"\xff\xe0":  # JFIF wants to be first
            at += 2 + struct.unpack(">H", content[4:6])[0]
        packet = _segment(_APP1, _JPEG_XMP + _XMP)
        return _joined(content, [slice(at), packet, slice(at, None)])
    raise ValueError("neither a JPEG nor a PNG")


def _joined(content: bytes, parts: Sequence[_Part]) -> bytes:
    """Parts of a file, in order, and what is put between them; the file itself where that is all of it.

    A picture is many times larger than everything else in memory here: it is copied once at most.
    """
    view = memoryview(content)
    joined = [part if isinstance(part, bytes) else view[part] for part in parts]
    if not any(isinstance(part, bytes) for part in parts) and len(content) == sum(map(len, joined)):
        return content
    return b"".join(joined)


# --- PNG ---------------------------------------------------------------------------------------


def _strip_png(content: bytes) -> bytes:
    kept: list[_Part] = [slice(0, len(_PNG))]
    at, kind, orientation = len(_PNG), b"", 1
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise ValueError("the file ends within a chunk")
        if kind == b"eXIf":
            orientation = _orientation(content[at + 8 : end - 4])
        # A chunk whose name begins with a capital is needed to show the picture.
        if kind[:1].isupper() or kind in _PNG_KEPT:
            kept.append(slice(at, end))
        at = end
    if orientation != 1:
        kept.insert(2, _chunk(b"eXIf", _exif(orientation)))
    return _joined(content, kept)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- JPEG --------------------------------------------------------------------------------------


def _strip_jpeg(content: bytes) -> bytes:
    kept: list[_Part] = [slice(0, len(_JPEG))]
    orientation, has_jfif = 1, False
    for marker, segment in _segments(content):
        begin = content[segment.start + 4 : segment.start + 20]
        if marker == _APP1 and begin.startswith(b"Exif\0\0"):
            orientation = _orientation(content[segment.start + 10 : segment.stop])
        if _is_needed(marker, begin):
            has_jfif = has_jfif or (len(kept) == 1 and marker == _APP0)
            kept.append(segment)
    if orientation != 1:
        kept.insert(1 + has_jfif, _segment(_APP1, b"Exif\0\0" + _exif(orientation)))
    return _joined(content, kept)


def _segments(content: bytes) -> Iterator[tuple[int, slice]]:
    """Marker and place of every segment after the first two bytes; a scan comes with its pixels.

    It ends with the end of the picture: what cameras hang on behind that is not part of it.
    """
    at = 2
    while True:
        if content[at] != 0xFF:
            raise ValueError("no marker where one has to be")
        while content[at + 1] == 0xFF:  # a marker may be padded
            at += 1
        marker = content[at + 1]
        if marker == _EOI:
            yield marker, slice(at, at + 2)
            return
        end = at + 2 + struct.unpack(">H", content[at + 2 : at + 4])[0]
        if marker == _SOS:
            following = _MARKER.search(content, end)
            if following is None:
                raise ValueError("the file ends within its pixels")
            scan, end = end, following.start()
            while end > scan and content[end - 1] == 0xFF:  # padding
                end -= 1
        if end > len(content):
            raise ValueError("the file ends within a segment")
        yield marker, slice(at, end)
        at = end


def _is_needed(marker: int, begin: bytes) -> bool:
    if marker == _APP0:
        return begin.startswith(b"JFIF\0")
    if marker == _APP2:
        return begin.startswith(b"ICC_PROFILE\0")
    if marker == _APP14:
        return begin.startswith(b"Adobe")  # how CMYK and RGB are told apart
    return not (_APP0 <= marker <= 0xEF or marker == _COM)


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


# --- which side is up --------------------------------------------------------------------------


def _orientation(exif: bytes) -> int:
    """Tag 274 of the first directory of a TIFF header; 1 where there is none or it makes no sense."""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (at,) = struct.unpack(order + "I", exif[4:8])
        (number,) = struct.unpack(order + "H", exif[at : at + 2])
        for entry in range(number):
            start = at + 2 + 12 * entry
            (tag,) = struct.unpack(order + "H", exif[start : start + 2])
            if tag == _ORIENTATION:
                (value,) = struct.unpack(order + "H", exif[start + 8 : start + 10])
                return value if 1 <= value <= 8 else 1
    except (struct.error, KeyError):
        pass
    return 1


def _exif(orientation: int) -> bytes:
    """A TIFF header that holds the orientation and nothing else."""
    entry = struct.pack(">HHIHH", _ORIENTATION, 3, 1, orientation, 0)
    return b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
