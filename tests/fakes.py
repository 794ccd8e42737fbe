"""Instant models: deterministic, they count their calls and can fail at call n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthdet.models.protocols import Picture


class PlannedError(RuntimeError):
    """Raised by a fake model where the test asked for it."""


@dataclass
class FakeEmbedder:
    """Embeds a picture by its mean colours on a 3 x 3 grid; alike colours are alike pictures.

    Attributes:
        fail_at: Raise at this call, counted from 1 (0: never).
        calls: Batches embedded so far.
        sizes: Number of pictures of each batch.
    """

    fail_at: int = 0
    calls: int = 0
    sizes: list[int] = field(default_factory=list)

    def embed(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise PlannedError(f"call {self.calls}")
        self.sizes.append(len(pictures))
        return np.stack([_colours(picture) for picture in pictures]).astype(np.float32)


def _colours(picture: Picture) -> NDArray[np.float64]:
    rows = np.array_split(picture.astype(np.float64), 3, axis=0)
    cells = [cell for row in rows for cell in np.array_split(row, 3, axis=1)]
    features = np.concatenate([cell.mean(axis=(0, 1)) for cell in cells]) / 255 - 0.4
    return features / np.linalg.norm(features)
