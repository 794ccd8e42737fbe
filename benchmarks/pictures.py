"""Any number of small pictures with boxes, for benchmarks of what is done with files and records.

Not a benchmark itself; the scripts beside it import it, as Python finds a script's own folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthdet.core.records import Box

SIZE_WH = (96, 64)
CLASSES = ("humpback whale", "seal")
_LINKS_A_FILE = 30_000
"""Names that one source file has; ext4 allows 65,000, and another folder may link to each again."""


def boxes_of(index: int) -> tuple[Box, ...]:
    """Three boxes that differ from picture to picture."""
    shift = index % 17
    return tuple(
        Box(xyxy=(2.25 + 20 * k + shift, 3.5 + shift, 20.5 + 20 * k + shift, 30.125 + shift), class_id=k % 2)
        for k in range(3)
    )  # fmt: skip


def write_pictures(picture: NDArray[np.uint8], paths: Sequence[Path]) -> None:
    """One picture, RGB of `SIZE_WH`, under every path; nearly all are hard links to another of them."""
    source = paths[0]
    for index, path in enumerate(paths):
        if index % _LINKS_A_FILE == 0:
            Image.fromarray(picture).save(path)
            source = path
        else:
            os.link(source, path)
