"""Parts of drawing a batch: how many at once, guidance for a share of the steps, the VAE."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthdet.core.pictures import is_blank
from synthdet.core.records import XYXY
from synthdet.models.protocols import Picture

MAX_BATCH = 64
"""More pictures at once make no GPU faster, and a restart loses more of them."""
_MEMORY_SHARE = 0.8
"""Of the free memory: other modes and other prompts take a little more than what was measured."""
_CPU_PIXELS = 8 * 128 * 128
"""Pixels at once on a CPU, where larger batches save nothing more."""

StepCallback = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]


def batch_for_cpu(width: int, height: int) -> int:
    """Pictures at once on a CPU.

    Examples:
        >>> batch_for_cpu(128, 128), batch_for_cpu(512, 384)
        (8, 1)
    """
    return max(1, _CPU_PIXELS // (width * height))


def batch_for_memory(*, one: int, two: int, free: int) -> int:
    """Pictures at once in a memory, from what one and two were seen to take.

    Args:
        one: Peak bytes with one picture.
        two: Peak bytes with two.
        free: Bytes that a batch may take, all in all.

    Returns:
        A power of two, 1 to `MAX_BATCH`.

    Examples:
        >>> batch_for_memory(one=3, two=5, free=50)
        16
        >>> batch_for_memory(one=3, two=4, free=500), batch_for_memory(one=3, two=5, free=1)
        (64, 1)
    """
    a_picture = max(1, two - one)
    fits = int((free * _MEMORY_SHARE - one) // a_picture) + 1
    return int(2 ** np.floor(np.log2(min(max(fits, 1), MAX_BATCH))))


def stop_guidance_after(share: float) -> StepCallback:
    """A callback that ends classifier-free guidance after a share of the steps, for whole batches.

    diffusers' own (`SDXLCFGCutoffCallback`) keeps the last picture's tensors alone and fails with
    more than one; this one keeps the half of each tensor that follows the prompts.

    Source: Kynkäänniemi et al., "Applying Guidance in a Limited Interval", 2024.
    """

    def callback(
        pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if step + 1 != max(1, round(share * pipeline.num_timesteps)):
            return tensors
        if not pipeline.do_classifier_free_guidance:
            return tensors
        pipeline._guidance_scale = 1.0  # the pipelines have no other way to be told
        return {name: tensor.chunk(2)[1] for name, tensor in tensors.items()}

    return callback


def guided_tensors(pipeline: Any) -> list[str]:
    """The tensors of a pipeline that are doubled while there is guidance."""
    return [name for name in pipeline._callback_tensor_inputs if name != "latents"]


def decode(vae: Any, latents: Tensor, *, batch_size: int, precise: bool = False) -> list[Picture]:
    """Latents to pictures, a few at a time.

    Args:
        vae: A diffusers VAE; of the same precision afterwards.
        latents: ``(n, 4, h, w)`` as the pipelines leave them.
        batch_size: Pictures a pass: the VAE takes more memory a picture than the UNet.
        precise: In float32, whatever the VAE's own precision.

    Returns:
        ``uint8`` arrays ``(height, width, 3)``, RGB. One that holds a NaN (float16 overflow) anywhere
        is black.
    """
    pictures: list[Picture] = []
    with _in_precision(vae, precise) as dtype:
        for some in torch.split(_unscale(latents, vae.config).to(dtype), batch_size):
            pictures += _to_pictures(vae.decode(some, return_dict=False)[0])
    return pictures


@torch.no_grad()
def give_detail_back(
    pictures: Sequence[Picture],
    sources: Sequence[Picture],
    shares: Tensor,
    vae: Any,
    *,
    batch_size: int,
    precise: bool = False,
) -> list[Picture]:
    """Add to pictures what the VAE alone, there and back, loses of what they started from.

    Where nothing was painted the source comes out as it was; where little was, its fine lines stay.

    Args:
        pictures: ``uint8`` ``(height, width, 3)``, RGB. One of one colour stays so: it is made again.
        sources: Of each.
        shares: ``(n, 1, height, width)``, 0..1: how much of it is given back.
        vae: A diffusers VAE; of the same precision afterwards.
        batch_size: Pictures a pass.
        precise: In float32, whatever the VAE's own precision.
    """
    made: list[Picture] = []
    with _in_precision(vae, precise) as dtype:
        for start in range(0, len(pictures), batch_size):
            some = slice(start, start + batch_size)
            pixels = to_tensor(sources[some]).to(vae.device) * 2 - 1
            latents = vae.encode(pixels.to(dtype)).latent_dist.mode()
            back = vae.decode(latents, return_dict=False)[0].float()
            lost = ((pixels - back) * 127.5).nan_to_num(0.0, 0.0, 0.0).cpu() * shares[some]
            for picture, rest in zip(pictures[some], lost.permute(0, 2, 3, 1), strict=True):
                whole = (picture + rest.numpy()).round().clip(0, 255).astype(np.uint8)
                made.append(picture if is_blank(picture) else whole)
    return made


@contextmanager
def _in_precision(vae: Any, precise: bool) -> Iterator[torch.dtype]:
    """The VAE in float32 for the length of the block, if asked for or needed; yields its precision."""
    own = vae.dtype
    needs_more = own == torch.float16 and vae.config.force_upcast
    dtype = torch.float32 if precise or needs_more else own
    if dtype != own:
        vae.to(dtype)
    try:
        yield dtype
    finally:
        if dtype != own:
            vae.to(own)


def _unscale(latents: Tensor, config: Any) -> Tensor:
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return latents / float(config.scaling_factor)
    mean, std = (torch.tensor(value).view(1, 4, 1, 1).to(latents) for value in (mean, std))
    unscaled: Tensor = latents * std / config.scaling_factor + mean
    return unscaled


def _to_pictures(drawn: Tensor) -> list[Picture]:
    """``(n, 3, height, width)`` in -1..1 to pictures."""
    whole = torch.isfinite(drawn).flatten(1).all(dim=1)
    pixels = (drawn.float() / 2 + 0.5).nan_to_num().clamp(0, 1) * whole[:, None, None, None]
    pixels = pixels.mul(255).round().to(torch.uint8)
    arrays: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return list(arrays)


def to_tensor(pictures: Sequence[Picture]) -> Tensor:
    """Pictures as diffusers' image processor takes them: ``(n, 3, height, width)`` in 0..1."""
    stacked = torch.from_numpy(np.stack(pictures))
    return stacked.permute(0, 3, 1, 2).float() / 255


def make_masks(placed: Sequence[Sequence[XYXY]], width: int, height: int) -> Tensor:
    """``(n, 1, height, width)``: 1 inside a picture's boxes, 0 elsewhere."""
    masks = torch.zeros(len(placed), 1, height, width)
    for mask, boxes in zip(masks, placed, strict=True):
        for x1, y1, x2, y2 in boxes:
            mask[0, math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = 1
    return masks
