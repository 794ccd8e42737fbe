"""Pictures into a detector and boxes out of it, whatever its make.

A picture is fitted whole into the square that the network sees, in its own shape, on grey: at one ground
scale an animal keeps its form. Boxes come back in pixels of the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthdet.core.fusion import turn_picture, undo_view, view_source
from synthdet.core.records import Box, DetectedBox
from synthdet.errors import SynthdetError

MAX_BOXES = 100
"""Boxes of a picture, at most, as COCO counts them."""
NMS_IOU = 0.7
"""Of two boxes of a class that overlap more than this, the less confident one goes."""
PADDING = 114
"""Grey around a picture that is not square, as ultralytics trains with."""
ONE_BY_ONE_FROM = 320
"""Side in pixels from which a CPU is faster without batches (measured with yolo11n: 22 against 40 ms
a picture at 320, 55 against 147 at 640; at 128 it is 9 against 2.7; with RT-DETR-R18 336 against 359,
934 against 1220, and at 128 159 against 137). On one core there is little between them."""
_MOST_SIDE_BY_SIDE = 8
"""Batches at once, however many cores: each needs memory of its own."""
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Of pictures in a dataset's folders."""


# --- a dataset ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a ``data.yaml`` names: classes, and the pictures of two splits."""

    class_names: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]


def read_dataset(data_yaml: Path) -> Dataset:
    """Read a YOLO dataset. Its paths are folders, or lists of pictures in text files.

    Raises:
        SynthdetError: It has no picture to train on.
    """
    fields = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
    names = fields["names"]
    dataset = Dataset(
        tuple(str(name) for name in (names.values() if isinstance(names, dict) else names)),
        _list_pictures(data_yaml.parent / fields["train"]),
        _list_pictures(data_yaml.parent / fields["val"]),
    )
    if not dataset.train:
        raise SynthdetError(f"{data_yaml} names no picture to train on")
    return dataset


def _list_pictures(place: Path) -> tuple[str, ...]:
    if place.is_dir():
        found = [path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES]
    else:
        lines = place.read_text(encoding="utf-8").splitlines()
        found = [place.parent / line for line in lines if line.strip()]
    return tuple(sorted(os.path.normpath(path) for path in found))


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture of a dataset and its true boxes.

    Attributes:
        path: Its file.
        size_wh: In pixels.
        class_ids: ``(n, 1)``.
        cxcywh: ``(n, 4)``: centre, width and height as shares of the picture.
    """

    path: str
    size_wh: tuple[int, int]
    class_ids: NDArray[np.float32]
    cxcywh: NDArray[np.float32]

    def boxes(self) -> list[Box]:
        """The true boxes in pixels."""
        width, height = self.size_wh
        boxes = []
        for class_id, (cx, cy, w, h) in zip(
            self.class_ids[:, 0], self.cxcywh.tolist(), strict=True
        ):
            xyxy = ((cx - w / 2) * width, (cy - h / 2) * height,
                    (cx + w / 2) * width, (cy + h / 2) * height)  # fmt: skip
            boxes.append(Box(xyxy=xyxy, class_id=int(class_id)))
        return boxes


def label_path(picture: str) -> str:
    """Where a picture's label lies: in ``labels/`` where the picture is in ``images/``.

    Examples:
        >>> label_path("/set/images/train/a.b.png")
        '/set/labels/train/a.b.txt'
    """
    images, labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return os.path.splitext(labels.join(picture.rsplit(images, 1)))[0] + ".txt"  # noqa: PTH122


def read_labelled(picture: str) -> LabelledPicture:
    """Read a picture's size and label; one without a label file has no boxes."""
    label = Path(label_path(picture))
    lines = label.read_text(encoding="utf-8").splitlines() if label.is_file() else []
    rows = np.array([line.split() for line in lines if line.strip()], dtype=np.float32)
    rows = rows.reshape(-1, 5)
    with Image.open(picture) as opened:
        size_wh = opened.size
    return LabelledPicture(picture, size_wh, rows[:, :1], rows[:, 1:])


# --- detection ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a picture lies in the square that the network sees."""

    scale: float
    left: int
    top: int
    width: int
    height: int


def read_picture(path: Path) -> NDArray[np.uint8]:
    """RGB ``(height, width, 3)``.

    Raises:
        SynthdetError: It is not a picture that OpenCV reads; names it.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SynthdetError(f"{path} cannot be read as a picture")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def letterbox(picture: NDArray[np.uint8], image_size: int) -> tuple[NDArray[np.uint8], Fit]:
    """RGB ``(image_size, image_size, 3)``: the whole picture, in its shape, on grey."""
    height, width = picture.shape[:2]
    scale = min(image_size / width, image_size / height)
    fitted = round(width * scale), round(height * scale)
    if fitted != (width, height):
        picture = cv2.resize(picture, fitted, interpolation=cv2.INTER_LINEAR)
    left, top = (image_size - fitted[0]) // 2, (image_size - fitted[1]) // 2
    square = np.full((image_size, image_size, 3), PADDING, dtype=np.uint8)
    square[top : top + fitted[1], left : left + fitted[0]] = picture
    return square, Fit(scale, left, top, width, height)


def draw_boxes(
    paths: Sequence[Path],
    look: Callable[[Tensor], Sequence[Tensor]],
    *,
    image_size: int,
    batch_size: int,
    device: str,
    num_views: int = 1,
    side_by_side: int = 1,
) -> list[list[DetectedBox]]:
    """Boxes of each picture file, in pixels of the file: view by view, most confident first.

    A file is read once, whatever the number of views (1, or `fusion.NUM_VIEWS`). Confidences are
    rounded to 1e-6 and corners to 1e-3 pixels: what is written is what is compared.

    Args:
        paths: Files.
        look: The network: pixels ``(n, 3, image_size, image_size)``, RGB, 0..1, channels last in
            memory, to a tensor ``(boxes, 6)`` a picture: x1, y1, x2, y2 in those pixels, confidence, class.
        image_size: Side in pixels of what the network sees.
        batch_size: Pictures at once, at most.
        device: Where the network is.
        num_views: Turns and mirrors.
        side_by_side: Batches at once on a CPU, at most, which share its cores: on a small batch two
            cores mostly wait for each other (measured with yolo11n: 2.4 for 3.8 ms a picture at 128
            pixels, 61 for 91 at 640). `look` must bear several threads at once.

    Raises:
        SynthdetError: A file is not a picture that OpenCV reads; names it.
    """
    draw = partial(
        _draw_batch, look=look, image_size=image_size, device=device, num_views=num_views
    )
    workers = min(side_by_side, _MOST_SIDE_BY_SIDE, len(paths)) if device == "cpu" else 1
    if device == "cpu" and image_size >= ONE_BY_ONE_FROM:
        batch_size = 1
    elif workers > 1:
        batch_size = min(batch_size, math.ceil(len(paths) / workers))
    batches = [paths[begin : begin + batch_size] for begin in range(0, len(paths), batch_size)]
    if workers < 2:
        return [boxes for batch in batches for boxes in draw(batch)]
    threads = torch.get_num_threads()
    share = partial(torch.set_num_threads, max(1, threads // workers))
    try:
        with ThreadPoolExecutor(workers, initializer=share) as pool:
            return [boxes for drawn in pool.map(draw, batches) for boxes in drawn]
    finally:
        torch.set_num_threads(threads)  # threads that start later take the number set last


@torch.no_grad()
def _draw_batch(
    paths: Sequence[Path],
    *,
    look: Callable[[Tensor], Sequence[Tensor]],
    image_size: int,
    device: str,
    num_views: int,
) -> list[list[DetectedBox]]:
    opened = [letterbox(read_picture(path), image_size) for path in paths]
    squares = np.stack([picture for picture, _fit in opened])
    drawn: list[list[DetectedBox]] = [[] for _ in opened]
    for view in range(num_views):
        turned = torch.from_numpy(np.ascontiguousarray(turn_picture(squares, view)))
        pixels = turned.to(device).permute(0, 3, 1, 2).float() / 255  # channels last in memory
        for boxes, rows, (_picture, fit) in zip(drawn, look(pixels), opened, strict=True):
            boxes += _to_boxes(rows.cpu().numpy(), fit, view, image_size)
    return drawn


def _to_boxes(rows: NDArray[np.float32], fit: Fit, view: int, image_size: int) -> list[DetectedBox]:
    boxes = []
    values = rows.astype(np.float64)
    values[:, :4] = undo_view(values[:, :4], view, (image_size, image_size))
    for x1, y1, x2, y2, confidence, class_id in values.tolist():
        left, right = ((x - fit.left) / fit.scale for x in (x1, x2))
        top, bottom = ((y - fit.top) / fit.scale for y in (y1, y2))
        xyxy = (max(left, 0), max(top, 0), min(right, fit.width), min(bottom, fit.height))
        if xyxy[2] - xyxy[0] > 0.5 and xyxy[3] - xyxy[1] > 0.5:
            corners = [round(value, 3) for value in xyxy]
            boxes.append(
                DetectedBox(
                    xyxy=(corners[0], corners[1], corners[2], corners[3]),
                    class_id=int(class_id),
                    confidence=round(confidence, 6),
                    source=view_source("detector", view),
                )
            )
    return sorted(boxes, key=lambda box: (-box.confidence, box.xyxy))
