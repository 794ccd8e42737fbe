"""What a LoRA is trained on: latents of tiles, kept on disk, and what a step draws from them.

Everything random about a step is a pure function of the seed and the step's number, so a training
that goes on after it was killed sees exactly what it would have seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from synthdet.core.boxes import intersection, turn_box
from synthdet.core.captions import recount
from synthdet.core.records import XYXY
from synthdet.core.windows import Shape, Window, find_inside, place_window
from synthdet.errors import SynthdetError
from synthdet.models.lora_text import TextSide
from synthdet.models.protocols import TrainTile
from synthdet.models.sdxl import Embedding
from synthdet.models.symmetries import turn
from synthdet.workspace import write_bytes

NUM_SYMMETRIES: Final = 8
_MOST_COUNTS: Final = 500
"""Of captions that say how many of its animals a tile shows; a tile with more keeps its own."""


class LatentCache:
    """The VAE's posterior of every tile in every symmetry, a file a tile, named by its content.

    Mean and deviation are kept rather than a sample, so that every step draws its own. They are
    kept in float16: an error of 0.0005 of a latent is far below the noise of a training step.
    Source: the posterior cache of unsloth's diffusion trainer (the idea alone).

    Args:
        folder: Of the files; made when needed.
        num_symmetries: 8, or 1 for the tiles as they are.
    """

    def __init__(self, folder: Path, num_symmetries: int) -> None:
        self._folder = folder
        self.num_symmetries = num_symmetries

    def fill(
        self,
        tiles: Sequence[TrainTile],
        vae: Any,
        device: str,
        on_tiles: Callable[[int], None] = lambda _number: None,
    ) -> None:
        """Encode the tiles that are not there yet, in float32.

        Args:
            tiles: Square pictures, all of one size.
            vae: An `AutoencoderKL` in float32 on the device.
            device: Of the VAE.
            on_tiles: Hears how many were there already, and then of each one more.

        Raises:
            SynthdetError: A tile that is missing, unreadable or not square; the disk is full.
        """
        missing = [tile for tile in tiles if not self._is_whole(tile)]
        on_tiles(len(tiles) - len(missing))
        for tile in missing:
            pixels = _read_pixels(tile).to(device)
            means, deviations = [], []
            # One symmetry at a time: eight pictures of 1024 px at once do not fit a small GPU.
            for symmetry in range(self.num_symmetries):
                with torch.inference_mode():
                    posterior = vae.encode(turn(pixels, symmetry)).latent_dist
                means.append(posterior.mean.half().cpu())
                deviations.append(posterior.std.half().cpu())
            tensors = {"mean": torch.cat(means), "std": torch.cat(deviations)}
            write_bytes(self._path(tile), save(tensors))
            on_tiles(1)

    def read(
        self, tile: TrainTile, symmetry: int, window: Window = (0, 0), shape: Shape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and deviation ``(channels, height, width)`` of the posterior, float32.

        Args:
            tile: Which.
            symmetry: In which of its symmetries.
            window: Left and top of what is read, in cells of the turned tile.
            shape: Width and height of what is read, in cells; None for all of it.
        """
        (left, top), (width, height) = window, shape or (None, None)
        rows, columns = (
            slice(at, at + reach if reach else None) for at, reach in ((top, height), (left, width))
        )
        # As numpy: torch's own slices of a file go through a storage, byte offset by byte offset.
        with safe_open(self._path(tile), framework="numpy") as arrays:
            mean, deviation = (
                arrays.get_slice(name)[symmetry, :, rows, columns] for name in ("mean", "std")
            )
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()

    def read_shape(self, tile: TrainTile) -> tuple[int, int, int]:
        """Channels, height and width of a tile's latents."""
        with safe_open(self._path(tile), framework="numpy") as arrays:
            _, channels, height, width = arrays.get_slice("mean").get_shape()
        return channels, height, width

    def _path(self, tile: TrainTile) -> Path:
        return self._folder / f"{tile.sha256}.safetensors"

    def _is_whole(self, tile: TrainTile) -> bool:
        try:
            with safe_open(self._path(tile), framework="pt") as tensors:
                return bool(tensors.get_slice("mean").get_shape()[0] == self.num_symmetries)
        except (OSError, SafetensorError):
            return False


def _read_pixels(tile: TrainTile) -> Tensor:
    """A tile as ``(1, 3, side, side)``, RGB in -1..1."""
    try:
        with Image.open(tile.path) as image:
            pixels = np.array(image.convert("RGB"))
    except OSError as error:
        raise SynthdetError(
            f"{tile.path} cannot be read: `synthdet prepare --redo` makes the tiles again"
        ) from error
    height, width, _ = pixels.shape
    if height != width:
        raise SynthdetError(f"{tile.path} is {width} x {height}: tiles must be square")
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """Everything random about one step of ``n`` tiles, on the CPU.

    Attributes:
        tiles: Index of each tile.
        symmetries: Symmetry of each tile.
        timesteps: ``(n,)``, from 0 to ``num_timesteps - 1``.
        dropped: ``(n,)`` bool: without caption.
        sampling: ``(n, channels, height, width)``, standard normal: which sample of the posterior.
        noise: The same shape: the noise to be found, noise offset included.
        window: Width and height of what is seen of the tiles, in cells of the latents; None for all of them.
        places: With a window: what decides where it lies, for each tile, as `place_window` takes it.
    """

    tiles: tuple[int, ...]
    symmetries: tuple[int, ...]
    timesteps: Tensor
    dropped: Tensor
    sampling: Tensor
    noise: Tensor
    window: Shape | None = None
    places: tuple[tuple[float, float, float], ...] = ()

    def split(self, size: int) -> list[Draw]:
        """The same in forward passes of at most so many tiles."""
        parts = (slice(at, at + size) for at in range(0, len(self.tiles), size))
        return [
            Draw(
                tiles=self.tiles[part],
                symmetries=self.symmetries[part],
                timesteps=self.timesteps[part],
                dropped=self.dropped[part],
                sampling=self.sampling[part],
                noise=self.noise[part],
                window=self.window,
                places=self.places[part],
            )
            for part in parts
        ]


def draw_step(
    seed: int,
    index: int,
    *,
    num_tiles: int,
    batch_size: int,
    latent_shape: tuple[int, int, int],
    num_symmetries: int,
    num_timesteps: int,
    caption_dropout: float,
    noise_offset: float,
    crop_fraction: float = 0.0,
    crop_shapes: Sequence[Shape] = (),
) -> Draw:
    """Decide what step number ``index`` (from 0) of a training sees, in however many passes.

    All tiles of a step are seen whole, or all in windows of one shape (``crop_shapes``, width and height
    in cells): they go through the network together.

    Tiles come in an order shuffled anew each time all of them were seen. The timesteps of a step
    fall into equal strata, one in each: the same average loss, less of its noise.
    Source: Kingma et al., "Variational Diffusion Models", 2021, appendix I.1 (low-discrepancy
    timesteps); Guttenberg, "Diffusion with Offset Noise", 2023.
    """
    generator = _generator(seed, index, stream=0)
    numbers = range(index * batch_size, (index + 1) * batch_size)
    orders = {
        epoch: torch.randperm(num_tiles, generator=_generator(seed, epoch, stream=1)).tolist()
        for epoch in {number // num_tiles for number in numbers}
    }
    symmetries = torch.randint(num_symmetries, (batch_size,), generator=generator)
    strata = torch.randperm(batch_size, generator=generator)
    within = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    timesteps = ((strata + within) / batch_size * num_timesteps).long()
    dropped = torch.rand(batch_size, generator=generator) < caption_dropout
    window, places = _draw_windows(seed, index, batch_size, crop_fraction, crop_shapes)
    channels, *whole = latent_shape
    shape = (batch_size, channels, *(reversed(window) if window else whole))
    sampling = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if noise_offset:
        offset = torch.randn(batch_size, channels, 1, 1, generator=generator)
        noise = noise + noise_offset * offset
    return Draw(
        tiles=tuple(orders[number // num_tiles][number % num_tiles] for number in numbers),
        symmetries=tuple(symmetries.tolist()),
        timesteps=timesteps.clamp(max=num_timesteps - 1),
        dropped=dropped,
        sampling=sampling,
        noise=noise,
        window=window,
        places=places,
    )


def _draw_windows(
    seed: int, index: int, count: int, fraction: float, shapes: Sequence[Shape]
) -> tuple[Shape | None, tuple[tuple[float, float, float], ...]]:
    """Shape of a step's windows, None for whole tiles, and what decides where each lies."""
    if not fraction:
        return None, ()
    # A stream of its own: the other draws are the same with and without windows.
    generator = _generator(seed, index, stream=2)
    drawn, which = torch.rand(2, generator=generator).tolist()
    if drawn >= fraction:
        return None, ()
    places = torch.rand(count, 3, generator=generator).tolist()
    return shapes[int(which * len(shapes))], tuple((box, x, y) for box, x, y in places)


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that the steps read, encoded: latents on disk, captions in memory.

    Attributes:
        tiles: In the order that `Draw.tiles` counts.
        latents: Filled with them.
        embeddings: Of each distinct caption that may come up, on the CPU.
        no_caption: What the model hears where the caption is dropped, as in guidance; with ``text`` on
            its device.
        scaling_factor: From the VAE's latents to the UNet's.
        pixels_per_latent: Side of a latent's cell.
        text: The text encoders where they are trained; the embeddings are then not used.
    """

    tiles: Sequence[TrainTile]
    latents: LatentCache
    embeddings: Mapping[str, Embedding]
    no_caption: Embedding
    scaling_factor: float
    pixels_per_latent: int
    text: TextSide | None = None

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one tile's latents.

        Raises:
            SynthdetError: The tiles are not all of one size.
        """
        shape, *others = {self.latents.read_shape(tile) for tile in self.tiles}
        if others:
            raise SynthdetError(
                "the train tiles differ in size: `synthdet prepare --redo` makes them again"
            )
        return shape

    def find_windows(self, draw: Draw) -> list[Window]:
        """Where the drawn windows lie in the turned tiles, in cells; the corner for whole tiles."""
        if draw.window is None:
            return [(0, 0)] * len(draw.tiles)
        size, cell = self.latent_shape[-1], self.pixels_per_latent
        windows = []
        for tile, symmetry, place in zip(draw.tiles, draw.symmetries, draw.places, strict=True):
            # Whole cells: what is kept of a box is kept of every cell that it touches.
            boxes = [
                (x1 // cell, y1 // cell, -(-x2 // cell), -(-y2 // cell))
                for x1, y1, x2, y2 in self._turned_boxes(tile, symmetry)
            ]
            windows.append(place_window(boxes, place, side=draw.window, size=size))
        return windows

    def size_ids(self, draw: Draw) -> Tensor:
        """``(n, 6)``: SDXL's original size, crop corner and target size, height first, in pixels."""
        whole, cell = self.latent_shape[-1], self.pixels_per_latent
        width, height = draw.window or (whole, whole)
        rows = [(whole, whole, top, left, height, width) for left, top in self.find_windows(draw)]
        return torch.tensor(rows, dtype=torch.float32) * cell

    @cached_property
    def _animals(self) -> Tensor:
        """``(tiles, 1, height, width)``: share of each latent cell that lies in a box, 0..1."""
        _, height, width = self.latent_shape
        return torch.stack(
            [cover_cells(tile.boxes, height, width, self.pixels_per_latent) for tile in self.tiles]
        )[:, None]

    def find_animals(self, draw: Draw) -> Tensor:
        """``(n, 1, height, width)``: share of each cell of the drawn latents that lies in a box."""
        whole, seen = self.latent_shape[-1], []
        width, height = draw.window or (whole, whole)
        drawn = zip(draw.tiles, draw.symmetries, self.find_windows(draw), strict=True)
        for tile, symmetry, (left, top) in drawn:
            turned = turn(self._animals[tile], symmetry)
            seen.append(turned[:, top : top + height, left : left + width])
        return torch.stack(seen)

    def sample_latents(self, draw: Draw) -> Tensor:
        """``(n, channels, height, width)``: a sample of each tile's posterior, scaled."""
        drawn = zip(draw.tiles, draw.symmetries, self.find_windows(draw), strict=True)
        read = [
            self.latents.read(self.tiles[tile], symmetry, window, draw.window)
            for tile, symmetry, window in drawn
        ]
        mean = torch.stack([mean for mean, _ in read])
        deviation = torch.stack([deviation for _, deviation in read])
        return (mean + deviation * draw.sampling) * self.scaling_factor

    def read_captions(self, draw: Draw) -> Embedding:
        """Captions of the drawn tiles as the UNet hears them, the dropped ones as none."""
        captions = self.find_captions(draw)
        if self.text is not None:
            heard_now = self.text.encode(captions)
            dropped = draw.dropped.to(heard_now.states.device)
            return Embedding(
                torch.where(dropped[:, None, None], self.no_caption.states, heard_now.states),
                torch.where(dropped[:, None], self.no_caption.pooled, heard_now.pooled),
            )
        heard = [
            self.no_caption if dropped else self.embeddings[caption]
            for caption, dropped in zip(captions, draw.dropped.tolist(), strict=True)
        ]
        return Embedding(
            torch.cat([embedding.states for embedding in heard]),
            torch.cat([embedding.pooled for embedding in heard]),
        )

    def find_captions(self, draw: Draw) -> list[str]:
        """Captions of the drawn tiles; those that count the animals count what is in the window."""
        if draw.window is None:
            return [self.tiles[tile].caption for tile in draw.tiles]
        wide, high = (reach * self.pixels_per_latent for reach in draw.window)
        captions = []
        drawn = zip(draw.tiles, draw.symmetries, self.find_windows(draw), strict=True)
        for tile, symmetry, window in drawn:
            left, top = (edge * self.pixels_per_latent for edge in window)
            frame = (left, top, left + wide, top + high)
            captions.append(_say_seen(self.tiles[tile], self._turned_boxes(tile, symmetry), frame))
        return captions

    def _turned_boxes(self, tile: int, symmetry: int) -> list[XYXY]:
        side = self.latent_shape[-1] * self.pixels_per_latent
        return [turn_box(box, symmetry, side) for box in self.tiles[tile].boxes]


def count_anew(tile: TrainTile) -> list[str]:
    """All captions that windows of a tile may have."""
    counts = Counter(tile.names)
    if not _is_countable(tile):
        return [tile.caption]
    numbers = product(*(range(count + 1) for count in counts.values()))
    return [recount(tile.caption, counts, dict(zip(counts, some, strict=True))) for some in numbers]


def _is_countable(tile: TrainTile) -> bool:
    return math.prod(count + 1 for count in Counter(tile.names).values()) <= _MOST_COUNTS


def _say_seen(tile: TrainTile, boxes: Sequence[XYXY], frame: XYXY) -> str:
    """A tile's caption for a frame of it, with the tile's boxes as they lie to that frame."""
    if not tile.names or not _is_countable(tile):
        return tile.caption
    # Of an animal larger than the frame little may be inside, and still it is what is seen.
    most = max(range(len(boxes)), key=lambda at: intersection(boxes[at], frame))
    seen = find_inside(boxes, frame) or [most]
    return recount(tile.caption, Counter(tile.names), Counter(tile.names[at] for at in seen))


def cover_cells(boxes: Sequence[XYXY], height: int, width: int, side: int) -> Tensor:
    """Share of each cell of a grid that lies in a box, ``(height, width)``, 0..1.

    Args:
        boxes: In pixels. Where they overlap the larger share counts.
        height: Cells.
        width: Cells.
        side: Of a cell, in pixels.

    Examples:
        >>> cover_cells([(0, 2, 6, 4)], 2, 2, 4).tolist()
        [[0.5, 0.25], [0.0, 0.0]]
    """

    def overlap(low: float, high: float, count: int) -> Tensor:
        edges = torch.arange(count) * side
        return ((edges + side).clamp(max=high) - edges.clamp(min=low)).clamp(min=0) / side

    covered = torch.zeros(height, width)
    for x1, y1, x2, y2 in boxes:
        covered = covered.maximum(overlap(y1, y2, height)[:, None] * overlap(x1, x2, width))
    return covered


def _generator(seed: int, index: int, *, stream: int) -> torch.Generator:
    words = np.random.SeedSequence([seed % 2**64, stream, index]).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(words[0]) >> 1)
