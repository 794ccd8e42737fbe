"""How the planned pictures come together in batches, and in smaller ones where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from synthdet.core.prompts import PlannedPicture
from synthdet.errors import SynthdetError
from synthdet.workspace import read_json, write_json


class Batches:
    """How the plan is cut into batches; written down, because a batch's shape changes pixels.

    Args:
        path: Of ``plan.json``.
        groups: Pictures that may share a batch, group after group.
        find_size: Pictures a batch; called where nothing is written down yet.
    """

    def __init__(self, path: Path, groups: Sequence[int], find_size: Callable[[], int]) -> None:
        self._path = path
        if path.exists():
            self._shapes = [int(shape) for shape in read_json(path)["batch_shapes"]]
        else:
            batch_size = find_size()
            self._shapes = []
            for num_pictures in groups:
                whole, rest = divmod(num_pictures, batch_size)
                self._shapes += [batch_size] * whole + [rest] * (rest > 0)
            self._write()
        if sum(self._shapes) != sum(groups):
            raise SynthdetError(f"{path} does not fit the settings: start again with --redo")

    def walk(
        self, planned: Sequence[PlannedPicture]
    ) -> Iterator[tuple[int, Sequence[PlannedPicture]]]:
        """Number and members of each batch; one that was halved comes again, as its halves."""
        number = start = 0
        while number < len(self._shapes):
            shape = self._shapes[number]
            yield number, planned[start : start + shape]
            if self._shapes[number] == shape:
                number, start = number + 1, start + shape

    def halve(self, number: int, *, because: MemoryError) -> None:
        """Cut a batch, and all after it that are as large, in two.

        Raises:
            SynthdetError: It is one picture.
        """
        limit = self._shapes[number]
        if limit == 1:
            raise SynthdetError(
                f"one picture alone does not fit into memory ({because}): free some, or make "
                "smaller pictures (prepare.resolution)"
            ) from because
        shapes = self._shapes[:number]
        for shape in self._shapes[number:]:
            shapes += [shape] if shape < limit else [shape - shape // 2, shape // 2]
        self._shapes = shapes
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"batch_shapes": self._shapes})
