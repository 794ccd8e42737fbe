"""A run folder written by hand: stages without their models, so that a later stage can be tested.

Animals are dark blots on blue-green water, so the fake embedder sees them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from synthdet.config import Config, make_config
from synthdet.core.records import Box, DetectedBox, Label, Split, SyntheticImage, Tile
from synthdet.progress import Reporter
from synthdet.workspace import StageFolder, Workspace, hash_file, write_json, write_records

WIDTH, HEIGHT = 72, 48
CLASSES = ("seal", "whale")


def quiet() -> tuple[Reporter, io.StringIO]:
    """A reporter and what it has said."""
    said = io.StringIO()
    return Reporter(Console(file=said, width=300)), said


def draw(path: Path, boxes: Sequence[Box], *, seed: int, spread: float = 12) -> str:
    """Water, more or less far from the usual colour, a dark blot in each box; returns the hash."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((HEIGHT, WIDTH, 3))
    pixels[:] = np.array([40, 110, 130]) + rng.normal(0, spread, 3)
    pixels += rng.normal(0, 3, pixels.shape)
    for box in boxes:
        x1, y1, x2, y2 = (round(value) for value in box.xyxy)
        pixels[y1:y2, x1:x2] = np.array([20, 20, 25]) + rng.normal(0, 4, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return hash_file(path)


def some_boxes(rng: np.random.Generator, number: int) -> tuple[Box, ...]:
    """Boxes about the middle, a third of the picture wide, edges at quarter pixels."""
    boxes = []
    for _ in range(number):
        x, y = rng.uniform(18, 24), rng.uniform(8, 14)
        edges = (x, y, x + rng.uniform(20, 28), y + rng.uniform(14, 20))
        x1, y1, x2, y2 = (round(4 * edge) / 4 for edge in edges)
        boxes.append(Box(xyxy=(x1, y1, x2, y2), class_id=int(rng.integers(2))))
    return tuple(boxes)


def finish(folder: StageFolder, outputs: Iterable[str], *, settings: Any = None) -> None:
    """Lock a stage as finished."""
    folder.claim(settings=settings or {}, inputs={})
    folder.close(
        outputs=[folder.path / name for name in outputs], counts={"made": "by hand"}, runtime={}
    )


def make_run(root: Path, **sections: Any) -> tuple[Workspace, Config]:
    """An empty run with settings by section."""
    config = make_config(sections, where="the test")
    return Workspace.make(root, config), config


def make_tiles(
    workspace: Workspace,
    *,
    train: Sequence[int] = (1, 1, 1, 2, 1, 1, 0, 0, 0, 0, 0, 0),
    val: Sequence[int] = (1, 0),
    test: Sequence[int] = (1, 1, 0),
    groups: int = 3,
) -> list[Tile]:
    """Finish prepare: tiles with so many animals each, dealt to the groups in turn."""
    rng = np.random.default_rng(5)
    folder = workspace.stage("prepare")
    tiles = []
    splits: tuple[tuple[Split, Sequence[int]], ...] = (
        ("train", train),
        ("val", val),
        ("test", test),
    )
    for split, numbers in splits:
        for index, number in enumerate(numbers):
            name = f"{split}-{index:03d}"
            path = folder.path / "tiles" / split / f"{name}.png"
            boxes = some_boxes(rng, number)
            tiles.append(
                Tile(
                    tile_id=name,
                    image_id=f"photo-{name}",
                    group=f"{split}-site-{index % groups}",
                    split=split,
                    path=workspace.relative(path),
                    sha256=draw(path, boxes, seed=len(tiles)),
                    xyxy=(0, 0, WIDTH, HEIGHT),
                    scale=1.0,
                    width=WIDTH,
                    height=HEIGHT,
                    boxes=boxes,
                    caption="",
                )
            )
    write_records(folder.path / "tiles.jsonl", tiles)
    write_json(folder.path / "dataset.json", {"classes": list(CLASSES)})
    finish(folder, ["tiles.jsonl", "dataset.json"])
    return tiles


def make_images(
    workspace: Workspace, asked_for: Sequence[tuple[int, ...] | None]
) -> tuple[list[SyntheticImage], list[tuple[Box, ...]]]:
    """Finish generate: a picture for each entry; returns the records and the true boxes."""
    rng = np.random.default_rng(6)
    folder = workspace.stage("generate")
    images, truth = [], []
    for index, asked in enumerate(asked_for):
        name = f"syn-{index:06d}"
        path = folder.path / "images" / f"{name}.png"
        boxes = some_boxes(rng, 1 if asked is None else len(asked))
        truth.append(boxes)
        images.append(
            SyntheticImage(
                image_id=name,
                path=workspace.relative(path),
                sha256=draw(path, boxes, seed=1000 + index, spread=4),
                prompt="aerial photo",
                negative_prompt="",
                seed=index,
                scheduler="Fake",
                num_inference_steps=1,
                guidance_scale=1.0,
                lora_scale=1.0,
                width=WIDTH,
                height=HEIGHT,
                batch=0,
                batch_shape=1,
                asked_for=asked,
            )
        )
    write_records(folder.path / "images.jsonl", images)
    finish(folder, ["images.jsonl"])
    return images, truth


def detected(boxes: Sequence[Box], confidence: float = 0.9) -> tuple[DetectedBox, ...]:
    """Boxes as a detector draws them."""
    return tuple(
        DetectedBox(xyxy=box.xyxy, class_id=box.class_id, confidence=confidence) for box in boxes
    )


def make_labels(workspace: Workspace, labels: Sequence[Label]) -> None:
    """Finish label."""
    folder = workspace.stage("label")
    write_records(folder.path / "labels.jsonl", labels)
    finish(folder, ["labels.jsonl"])


def file_bytes(folder: Path, *, but: Sequence[str] = ("stage.json",)) -> dict[str, bytes]:
    """Every file under a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }
