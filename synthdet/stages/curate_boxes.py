"""Fields of boxes as BSON, without a dictionary for each box.

Of a run's boxes only ids and numbers differ. What BSON writes around them is taken from one box of each class
that `bson.encode` encoded, so the layout stays the library's: https://bsonspec.org/spec.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from synthdet.core.formats.fiftyone import DrawnBox, make_field

_ID: Final = b"\xff" * 12
_MARKS: Final = [bytes([0xFF] * 6 + [mark, 0x3F]) for mark in range(5)]
"""Doubles like no other piece of a box: no text holds the byte 0xFF."""
_EncodeBox = Callable[[bytes, float, float, float, float, float | None], bytes]


class BoxEncoder:
    """Makes what `bson.encode` would of what `make_field` makes, byte for byte, with ids as ObjectId.

    Args:
        class_names: By class id.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        from bson import encode

        # Without its length (4 bytes) and the empty array: that one's length, its end, and the field's.
        self._head = encode(make_field((), class_names, bytes))[4:-6]
        self._drawn = [_learn(name, confident=False) for name in class_names]
        self._detected = [_learn(name, confident=True) for name in class_names]

    def __call__(self, drawn: Sequence[DrawnBox]) -> bytes:
        """Encode the boxes of one field."""
        pieces = []
        for number, (box_id, class_id, left, top, width, height, confidence) in enumerate(drawn):
            known = self._drawn if confidence is None else self._detected
            pieces.append(b"\x03%d\0" % number)
            pieces.append(known[class_id](box_id, left, top, width, height, confidence))
        boxes = b"".join(pieces)
        array = (len(boxes) + 5).to_bytes(4, "little") + boxes + b"\0"
        return b"%b%b%b\0" % (
            (len(self._head) + len(array) + 5).to_bytes(4, "little"), self._head, array
        )  # fmt: skip


def _learn(class_name: str, *, confident: bool) -> _EncodeBox:
    """How a box of a class is encoded."""
    from bson import ObjectId, encode

    marks = _MARKS if confident else _MARKS[:4]
    numbers: list[Any] = [struct.unpack("<d", mark)[0] for mark in marks]
    box = (_ID, 0, *numbers[:4], numbers[4] if confident else None)
    field = make_field([box], [class_name], ObjectId)
    rest, around = encode(field["detections"][0]), []
    for mark in (_ID, *marks):
        before, rest = rest.split(mark)
        around.append(before)
    start, to_left, to_top, to_width, to_height, *to_confidence = around
    sizes = [len(piece) for piece in around[:5]]
    pack = struct.Struct("<{}s12s{}sd{}sd{}sd{}sd".format(*sizes)).pack
    pack_double = struct.Struct("<d").pack

    def encode_box(
        box_id: bytes, left: float, top: float, width: float, height: float, sure: float | None
    ) -> bytes:
        box = pack(
            start, box_id, to_left, left, to_top, top, to_width, width, to_height, height
        )  # fmt: skip
        return box + rest if sure is None else box + to_confidence[0] + pack_double(sure) + rest

    return encode_box
