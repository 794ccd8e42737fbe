"""What a LoRA is trained on: latents of tiles, kept on disk, and what a step draws from them.

Everything random about a step is a pure function of the seed and the step's number, so a training
that goes on after it was killed sees exactly what it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from synthdet.core.records import XYXY
from synthdet.errors import SynthdetError
from synthdet.models.lora_text import TextSide
from synthdet.models.protocols import TrainTile
from synthdet.models.sdxl import Embedding
from synthdet.workspace import write_bytes

NUM_SYMMETRIES: Final = 8


def turn(pictures: Tensor, symmetry: int) -> Tensor:
    """One of the eight symmetries of the square: quarter turns 0..3, and the same of the mirror image.

    Args:
        pictures: ``(..., side, side)``.
        symmetry: 0 (as it is) to 7.
    """
    mirrored = pictures.flip(-1) if symmetry >= 4 else pictures
    return torch.rot90(mirrored, symmetry % 4, dims=(-2, -1))


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

    def fill(self, tiles: Sequence[TrainTile], vae: Any, device: str) -> None:
        """Encode the tiles that are not there yet, in float32.

        Args:
            tiles: Square pictures, all of one size.
            vae: An `AutoencoderKL` in float32 on the device.
            device: Of the VAE.

        Raises:
            SynthdetError: A tile that is missing, unreadable or not square; the disk is full.
        """
        for tile in tiles:
            if self._is_whole(tile):
                continue
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

    def read(self, tile: TrainTile, symmetry: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation ``(channels, height, width)`` of the posterior, float32."""
        # As numpy: torch's own slices of a file go through a storage, byte offset by byte offset.
        with safe_open(self._path(tile), framework="numpy") as arrays:
            mean, deviation = (arrays.get_slice(name)[symmetry] for name in ("mean", "std"))
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()

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
    """

    tiles: tuple[int, ...]
    symmetries: tuple[int, ...]
    timesteps: Tensor
    dropped: Tensor
    sampling: Tensor
    noise: Tensor

    def split(self, size: int) -> list[Draw]:
        """The same in forward passes of at most so many tiles."""
        return [
            Draw(
                self.tiles[at : at + size],
                self.symmetries[at : at + size],
                *(
                    tensor[at : at + size]
                    for tensor in (self.timesteps, self.dropped, self.sampling, self.noise)
                ),
            )
            for at in range(0, len(self.tiles), size)
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
) -> Draw:
    """Decide what step number ``index`` (from 0) of a training sees, in however many passes.

    Tiles come in an order shuffled anew each time all of them were seen. The timesteps of a step
    fall into equal strata, one in each: the same average loss, less of its noise.
    Source: Kingma et al., "Variational Diffusion Models", 2021, appendix I.1 (low-discrepancy
    timesteps); Guttenberg, "Diffusion with Offset Noise", 2023.
    """
    generator = _generator(seed, index, stream=0)
    places = range(index * batch_size, (index + 1) * batch_size)
    orders = {
        epoch: torch.randperm(num_tiles, generator=_generator(seed, epoch, stream=1)).tolist()
        for epoch in {place // num_tiles for place in places}
    }
    symmetries = torch.randint(num_symmetries, (batch_size,), generator=generator)
    strata = torch.randperm(batch_size, generator=generator)
    within = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    timesteps = ((strata + within) / batch_size * num_timesteps).long()
    dropped = torch.rand(batch_size, generator=generator) < caption_dropout
    sampling = torch.randn(batch_size, *latent_shape, generator=generator)
    noise = torch.randn(batch_size, *latent_shape, generator=generator)
    if noise_offset:
        offset = torch.randn(batch_size, latent_shape[0], 1, 1, generator=generator)
        noise = noise + noise_offset * offset
    return Draw(
        tiles=tuple(orders[place // num_tiles][place % num_tiles] for place in places),
        symmetries=tuple(symmetries.tolist()),
        timesteps=timesteps.clamp(max=num_timesteps - 1),
        dropped=dropped,
        sampling=sampling,
        noise=noise,
    )


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that the steps read, encoded: latents on disk, captions on the device.

    Attributes:
        tiles: In the order that `Draw.tiles` counts.
        latents: Filled with them.
        embeddings: Of each distinct caption.
        no_caption: What the model hears where the caption is dropped, as in guidance.
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
        """Channels, height, width of one tile's latents."""
        channels, height, width = self.latents.read(self.tiles[0], 0)[0].shape
        return channels, height, width

    @cached_property
    def time_ids(self) -> Tensor:
        """``(1, 6)``: SDXL's original size, crop corner and target size, height first, in pixels."""
        height, width = (side * self.pixels_per_latent for side in self.latent_shape[1:])
        return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)

    @cached_property
    def _animals(self) -> Tensor:
        """``(tiles, 1, height, width)``: share of each latent cell that lies in a box, 0..1."""
        _, height, width = self.latent_shape
        return torch.stack(
            [cover_cells(tile.boxes, height, width, self.pixels_per_latent) for tile in self.tiles]
        )[:, None]

    def find_animals(self, draw: Draw) -> Tensor:
        """``(n, 1, height, width)``: share of each cell of the drawn latents that lies in a box."""
        pairs = zip(draw.tiles, draw.symmetries, strict=True)
        return torch.stack([turn(self._animals[tile], symmetry) for tile, symmetry in pairs])

    def sample_latents(self, draw: Draw) -> Tensor:
        """``(n, channels, height, width)``: a sample of each tile's posterior, scaled.

        Raises:
            SynthdetError: The tiles are not all of one size.
        """
        read = [
            self.latents.read(self.tiles[tile], symmetry)
            for tile, symmetry in zip(draw.tiles, draw.symmetries, strict=True)
        ]
        if any(mean.shape != self.latent_shape for mean, _ in read):
            raise SynthdetError(
                "the train tiles differ in size: `synthdet prepare --redo` makes them again"
            )
        mean = torch.stack([mean for mean, _ in read])
        deviation = torch.stack([deviation for _, deviation in read])
        return (mean + deviation * draw.sampling) * self.scaling_factor

    def read_captions(self, draw: Draw) -> Embedding:
        """Captions of the drawn tiles as the UNet hears them, the dropped ones as none."""
        if self.text is not None:
            heard_now = self.text.encode([self.tiles[tile].caption for tile in draw.tiles])
            dropped = draw.dropped.to(heard_now.states.device)
            return Embedding(
                torch.where(dropped[:, None, None], self.no_caption.states, heard_now.states),
                torch.where(dropped[:, None], self.no_caption.pooled, heard_now.pooled),
            )
        heard = [
            self.no_caption if dropped else self.embeddings[self.tiles[tile].caption]
            for tile, dropped in zip(draw.tiles, draw.dropped.tolist(), strict=True)
        ]
        return Embedding(
            torch.cat([embedding.states for embedding in heard]),
            torch.cat([embedding.pooled for embedding in heard]),
        )


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
