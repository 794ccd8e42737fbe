"""Boxes encoded from one of their class are what the library would have written."""

from __future__ import annotations

from bson import ObjectId, encode
from hypothesis import given
from hypothesis import strategies as st

from synthdet.core.formats.fiftyone import DrawnBox, make_field
from synthdet.stages.curate_boxes import BoxEncoder

_CLASSES = [
    "seal",
    "Wal 🐋",
    "",
    "_id",
    "Detection",
    "a name of many words, % and {} \x00 included",
]
_NUMBER = st.floats(allow_nan=False)
_BOXES: st.SearchStrategy[DrawnBox] = st.tuples(
    st.binary(min_size=12, max_size=12), st.sampled_from(range(len(_CLASSES))),
    _NUMBER, _NUMBER, _NUMBER, _NUMBER, st.none() | _NUMBER,
)  # fmt: skip


@given(st.lists(_BOXES, max_size=120))
def test_a_field_of_boxes_is_what_the_library_writes(drawn: list[DrawnBox]) -> None:
    assert BoxEncoder(_CLASSES)(drawn) == encode(make_field(drawn, _CLASSES, ObjectId))
