"""Instant models: deterministic, they count their calls and can fail at call n."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from synthdet.core.fusion import NUM_VIEWS, view_source
from synthdet.core.records import DetectedBox
from synthdet.models.protocols import Picture, PictureRequest, TrainTile


class PlannedError(RuntimeError):
    """Raised by a fake model where the test asked for it."""


@dataclass
class FakeEmbedder:
    """Embeds a picture by its mean colours on a 3 x 3 grid; alike colours are alike pictures.

    Attributes:
        fail_at: Raise at this call, counted from 1 (0: never).
        error: What to raise. One that is no `Exception` is what ends a program.
        calls: Batches embedded so far.
        sizes: Number of pictures of each batch.
        texts: All that were embedded, in order.
    """

    fail_at: int = 0
    error: type[BaseException] = PlannedError
    calls: int = 0
    sizes: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    smallest_side: int = 3

    def shrink(self, picture: Picture) -> Picture:
        rows = np.array_split(picture.astype(np.float64), 3, axis=0)
        cells = [cell for row in rows for cell in np.array_split(row, 3, axis=1)]
        return np.array([256 * cell.mean(axis=(0, 1)) for cell in cells]).astype(np.uint16)  # type: ignore[return-value]

    def embed_shrunk(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error(f"call {self.calls}")
        self.sizes.append(len(pictures))
        features = np.stack(pictures).reshape(len(pictures), -1) / (256 * 255) - 0.4
        return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A direction for each text, that has nothing to do with any other."""
        self.texts += texts
        seeds = [list(text.encode()) for text in texts]
        rows = np.stack([np.random.default_rng(seed).normal(size=27) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class FakeGenerator:
    """Draws coloured noise that depends on the prompt, the seed and the batch shape alone.

    Precisely decoded, it is one brighter.

    Attributes:
        fail_at: Raise at this call, counted from 1 (0: never).
        max_batch: Larger batches raise `MemoryError`.
        constant: Draw pictures of one colour.
        overflows: Seeds whose pictures are black unless the VAE is precise.
        blanks: Seeds whose pictures are black whatever the VAE.
        fitting: Pictures at once that it says fit.
        calls: Batches asked for so far.
        requests: All that was drawn, in order.
    """

    scheduler: str = "FakeScheduler"
    fail_at: int = 0
    max_batch: int = 1_000
    constant: bool = False
    overflows: tuple[int, ...] = ()
    blanks: tuple[int, ...] = ()
    fitting: int = 4
    calls: int = 0
    requests: list[PictureRequest] = field(default_factory=list)
    lora_scales: list[float] = field(default_factory=list)
    rescales: list[float] = field(default_factory=list)

    def generate(
        self,
        requests: Sequence[PictureRequest],
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        strength: float = 1.0,
        precise_vae: bool = False,
    ) -> list[Picture]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise PlannedError(f"call {self.calls}")
        if len(requests) > self.max_batch:
            raise MemoryError(f"{len(requests)} pictures")
        self.requests += requests
        self.rescales += [guidance_rescale] * len(requests)
        shape = (height, width, 3)
        return [
            np.zeros(shape, np.uint8)
            if request.seed in self.blanks or (request.seed in self.overflows and not precise_vae)
            else self._draw(request, len(requests), shape) + np.uint8(precise_vae)
            for request in requests
        ]

    def find_batch_size(self, *, width: int, height: int) -> int:
        return self.fitting

    def _draw(self, request: PictureRequest, batch: int, shape: tuple[int, ...]) -> Picture:
        words = hashlib.sha256(f"{request.prompt}|{request.negative_prompt}".encode()).digest()
        rng = np.random.default_rng([request.seed, batch, *words[:4]])
        colour = rng.integers(40, 200, size=3)
        noise = 0 if self.constant else rng.integers(0, 40, size=shape)
        return np.broadcast_to(colour + noise, shape).astype(np.uint8)


@dataclass
class FakeLoraTrainer:
    """Writes a small safetensors file that depends on the tiles alone.

    Attributes:
        fail_at: Raise at this call, counted from 1 (0: never).
        steps: Steps it says it made.
        calls: Trainings so far.
        tiles: What the last training was given.
        val_tiles: What it was given to measure on.
        prior_tiles: Pictures of the base model that it was given.
    """

    fail_at: int = 0
    steps: int = 3
    calls: int = 0
    tiles: tuple[TrainTile, ...] = ()
    val_tiles: tuple[TrainTile, ...] = ()
    prior_tiles: tuple[TrainTile, ...] = ()

    def train(
        self,
        tiles: Sequence[TrainTile],
        folder: Path,
        *,
        on_step: Callable[[int, dict[str, Any]], None],
        on_encoded: Callable[[int, int], None],
        val_tiles: Sequence[TrainTile] = (),
        prior_tiles: Sequence[TrainTile] = (),
    ) -> None:
        self.calls += 1
        on_encoded(len(tiles), len(tiles))
        self.prior_tiles = tuple(prior_tiles)
        self.tiles = tuple(tiles)
        self.val_tiles = tuple(val_tiles)
        on_step(1, {"loss": 1.0, "lr": 1e-4})
        if self.calls == self.fail_at:
            raise PlannedError(f"call {self.calls}")
        on_step(self.steps, {"loss": 0.5, "lr": 1e-4})
        lines = [f'{{"step": {step}, "loss": {1 / step}}}\n' for step in range(1, self.steps + 1)]
        (folder / "metrics.jsonl").write_text("".join(lines))
        digest = hashlib.sha256("".join(tile.sha256 for tile in tiles).encode()).digest()
        weights = {"unet.to_q.lora_A.weight": np.frombuffer(digest, np.uint8).astype(np.float32)}
        save_file(weights, folder / "pytorch_lora_weights.safetensors")


@dataclass
class FakeDetector:
    """Draws the boxes it was told to draw in a file, by the file's stem; nothing elsewhere.

    Attributes:
        boxes: Boxes by stem of the file name.
        names: Its class names.
        fail_at: Raise at this call, counted from 1 (0: never).
        blind_views: Views in which it draws nothing.
        queries: What it was asked to look for.
        calls: Batches so far.
        paths: All files it looked at, in order.
    """

    boxes: Mapping[str, Sequence[DetectedBox]] = field(default_factory=dict)
    names: tuple[str, ...] = ("seal", "whale")
    fail_at: int = 0
    blind_views: tuple[int, ...] = ()
    queries: Mapping[str, Sequence[str]] | None = None
    calls: int = 0
    paths: list[Path] = field(default_factory=list)

    def detect(
        self, paths: Sequence[Path], *, min_confidence: float, views: bool = False
    ) -> list[tuple[DetectedBox, ...]]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise PlannedError(f"call {self.calls}")
        self.paths += paths
        drawn = [
            sorted(
                (box for box in self.boxes.get(path.stem, ()) if box.confidence >= min_confidence),
                key=lambda box: -box.confidence,
            )
            for path in paths
        ]
        if not views:
            return [tuple(boxes) for boxes in drawn]
        return [
            tuple(
                box.model_copy(update={"source": view_source("detector", view)})
                for view in range(NUM_VIEWS)
                for box in boxes
                if view not in self.blind_views
            )
            for boxes in drawn
        ]


@dataclass
class FakeDetectorTrainer:
    """Writes a weights folder that depends on the arguments and the pictures named alone.

    Attributes:
        fail_at: Raise in the middle of this training, counted from 1 (0: never).
        trained: Folder names and arguments of all trainings, in order.
    """

    fail_at: int = 0
    trained: list[dict[str, Any]] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return len(self.trained)

    def train(
        self,
        data_yaml: Path,
        weights_dir: Path,
        *,
        seed: int,
        max_train_steps: int,
        train_batch_size: int,
        learning_rate: float,
        image_size: int,
        on_step: Callable[[int], None],
    ) -> None:
        arguments = {
            "seed": seed,
            "max_train_steps": max_train_steps,
            "train_batch_size": train_batch_size,
            "learning_rate": learning_rate,
            "image_size": image_size,
        }
        self.trained.append({"weights": weights_dir.name, "data": data_yaml, **arguments})
        on_step(1)
        if self.calls == self.fail_at:
            raise PlannedError(f"call {self.calls}")
        on_step(max_train_steps)
        weights_dir.mkdir(parents=True)
        content = {path.name: path.read_text() for path in sorted(data_yaml.parent.glob("*.*"))}
        digest = hashlib.sha256(json.dumps([arguments, content]).encode()).digest()
        tensors = {"model.0.conv.weight": np.frombuffer(digest, np.uint8).astype(np.float32)}
        save_file(tensors, weights_dir / "model.safetensors")
        (weights_dir / "model.json").write_text('{"architecture": "fake"}')
        (weights_dir / "names.json").write_text('["seal", "whale"]')
