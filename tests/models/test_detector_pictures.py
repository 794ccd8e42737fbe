"""Pictures into a network and boxes out of it, with a network that knows what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from synthdet.errors import SynthdetError
from synthdet.models.detector_pictures import ONE_BY_ONE_FROM, draw_boxes

SIZE = 32


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Seven grey pictures, each brighter than the one before."""
    found = [tmp_path / f"{index}.png" for index in range(7)]
    for index, path in enumerate(found):
        cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), 10 * index, dtype=np.uint8))
    return found


def look_at(pixels: Tensor) -> list[Tensor]:
    """A box a picture whose confidence is its brightness."""
    return [torch.tensor([[1, 2, 20, 30, float(one.mean()), 0]]) for one in pixels]


def draw(
    paths: Sequence[Path],
    look: Callable[[Tensor], Sequence[Tensor]] = look_at,
    *,
    side_by_side: int,
    image_size: int = SIZE,
    batch_size: int = 4,
) -> list[float]:
    drawn = draw_boxes(
        paths, look, image_size=image_size, batch_size=batch_size, device="cpu", side_by_side=side_by_side
    )  # fmt: skip
    return [round(255 * boxes[0].confidence) for boxes in drawn]


@pytest.mark.parametrize("side_by_side", [1, 2, 3, 16])
def test_every_picture_has_its_own_boxes_however_many_batches_go_at_once(
    paths: list[Path], side_by_side: int
) -> None:
    assert draw(paths, side_by_side=side_by_side) == [0, 10, 20, 30, 40, 50, 60]
    assert draw([], side_by_side=side_by_side) == []


def test_batches_go_side_by_side_on_a_core_each(paths: list[Path]) -> None:
    meet = threading.Barrier(2, timeout=20)  # breaks where one batch waits for another's end
    seen = []

    def look(pixels: Tensor) -> list[Tensor]:
        seen.append((len(pixels), torch.get_num_threads(), torch.is_grad_enabled()))
        meet.wait()
        return look_at(pixels)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        draw(paths[:6], look, side_by_side=2)
        left: list[int] = []
        later = threading.Thread(target=lambda: left.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [(3, 1, False)] * 2  # shared out evenly: not four and two
        assert torch.get_num_threads() == 3
        assert left == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("number", "cores"), [(2, 4), (3, 2), (40, 1)])
def test_batches_share_the_cores(paths: list[Path], number: int, cores: int) -> None:
    """However many there are: a batch needs memory of its own."""
    running: set[int] = set()
    most, shares = 0, set()
    meet = threading.Barrier(min(number, 8), timeout=20)

    def look(pixels: Tensor) -> list[Tensor]:
        nonlocal most
        running.add(threading.get_ident())
        most = max(most, len(running))
        shares.add(torch.get_num_threads())
        meet.wait()
        running.discard(threading.get_ident())
        return look_at(pixels)

    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        draw((paths * 6)[:number], look, side_by_side=8 if number < 40 else 64, batch_size=1)
    finally:
        torch.set_num_threads(before)
    assert shares == {cores}
    assert most == min(number, 8)


def test_large_pictures_go_one_by_one_on_a_cpu(paths: list[Path]) -> None:
    sizes = []

    def look(pixels: Tensor) -> list[Tensor]:
        sizes.append(len(pixels))
        return look_at(pixels)

    draw(paths, look, side_by_side=1, image_size=ONE_BY_ONE_FROM)
    draw(paths, look, side_by_side=2, image_size=ONE_BY_ONE_FROM)
    assert sizes == [1] * 14


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_a_file_that_is_no_picture_is_named(paths: list[Path], side_by_side: int) -> None:
    paths[5].write_bytes(b"nothing")
    with pytest.raises(SynthdetError, match=r"5\.png cannot be read"):
        draw(paths, side_by_side=side_by_side)
