"""PNGs by OpenCV with texts of our own, and batches saved in order beside the drawing."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from synthdet.core.records import SyntheticImage
from synthdet.models.protocols import Picture
from synthdet.stages.generate_files import Fields, Saver, encode_png

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)


def test_a_png_holds_the_pixels_and_the_texts() -> None:
    texts = {"prompt": "two seals, côté", "note": "海豹 🦭", "seed": "7", "empty": ""}
    with Image.open(io.BytesIO(encode_png(PICTURE, texts))) as image:
        assert np.array_equal(np.array(image), PICTURE)
        assert image.text == texts  # type: ignore[attr-defined]
        image.close()
    assert encode_png(PICTURE, texts) == encode_png(PICTURE, texts)


def test_the_interpreter_goes_on_while_a_png_is_made() -> None:
    """Else threads could not write while the next batch is sent to the GPU, and it would take processes."""
    large = np.random.default_rng(0).integers(0, 255, (2500, 3000, 3), dtype=np.uint8)
    thread = threading.Thread(target=encode_png, args=(large, {}))
    begun = last = time.perf_counter()
    longest = 0.0
    thread.start()
    while thread.is_alive():
        time.sleep(0.0005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < 0.5 * (last - begun)


def record(number: int) -> SyntheticImage:
    return SyntheticImage(
        image_id=f"syn-{number}", path="", sha256="", prompt="", negative_prompt="", seed=number,
        scheduler="", num_inference_steps=1, guidance_scale=1, lora_scale=1, width=1, height=1,
        batch=0, batch_shape=1,
    )  # fmt: skip


class Disk:
    """Where the first picture takes until it is told to go on."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.go_on = threading.Event()
        self.fail_at = fail_at
        self.appended: list[list[int]] = []

    def write(self, _picture: Picture, fields: Fields) -> SyntheticImage:
        if fields["number"] == 0:
            assert self.go_on.wait(10)
        if fields["number"] == self.fail_at:
            raise OSError("full")
        return record(fields["number"])

    def append(self, records: Sequence[SyntheticImage]) -> None:
        self.appended.append([one.seed for one in records])


def batch(*numbers: int) -> list[tuple[Picture, Fields]]:
    return [(PICTURE, {"number": number}) for number in numbers]


def test_batches_are_appended_whole_and_in_order_and_one_may_wait() -> None:
    disk = Disk()
    with Saver(disk.write, disk.append, workers=3) as saver:
        saver.save(batch(0, 1))  # returns although nothing is written
        assert disk.appended == []
        threading.Timer(0.1, disk.go_on.set).start()
        saver.save(batch(2, 3))  # waits for the batch before
        assert disk.appended[0] == [0, 1]
        assert saver.stalled > 0.05
    assert disk.appended == [[0, 1], [2, 3]]


def test_what_was_drawn_is_saved_where_drawing_fails() -> None:
    disk = Disk()
    disk.go_on.set()
    with (
        pytest.raises(RuntimeError, match="drawing"),
        Saver(disk.write, disk.append, workers=2) as saver,
    ):
        saver.save(batch(0, 1))
        raise RuntimeError("drawing")
    assert disk.appended == [[0, 1]]


def test_a_picture_that_cannot_be_written_is_raised_and_its_batch_not_recorded() -> None:
    disk = Disk(fail_at=3)
    disk.go_on.set()
    with pytest.raises(OSError, match="full"), Saver(disk.write, disk.append, workers=2) as saver:
        saver.save(batch(0, 1))
        saver.save(batch(2, 3))
    assert disk.appended == [[0, 1]]
