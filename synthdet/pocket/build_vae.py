"""The pocket VAE: `AutoencoderKL` at factor 4, so that fins of five pixels survive.

What a small UNet can learn in a CPU's hours is decided here, by how smooth the latents are. Left alone
four channels hide the edges of 48 numbers in chequered codes. So in training the latents have mean 0 and
deviation 1 in every channel, noise a fifth as strong is laid over them, and in half of the steps
they are turned or mirrored, in half shrunk, before they are decoded, and the target with them: codes that do
not survive that are not learned. Turned latents also give the diffusion model and every LoRA the eight views of
a picture from one encoding.
Source: Kouzelis et al., "EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image
Modeling", 2025, section 3; Skorokhodov et al., "Improving the Diffusability of Autoencoders", 2025,
section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synthdet.core.windows import Window, window_side
from synthdet.models.symmetries import turn
from synthdet.pocket.build_crops import CELL, STEP, choose_windows, take
from synthdet.pocket.build_plan import BuildPlan, VaePlan
from synthdet.pocket.build_scenes import Scenes, batch_indices, box_masks
from synthdet.pocket.build_training import Trained, Workplace, train


def make_vae(plan: VaePlan, sample_size: int, seed: int) -> AutoencoderKL:
    """An untrained VAE."""
    blocks = len(plan.channels)
    torch.manual_seed(seed)  # The builder owns its process: nobody else's random state is here.
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=plan.channels,
        layers_per_block=1,
        latent_channels=plan.latent_channels,
        norm_num_groups=plan.norm_groups,
        sample_size=sample_size,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def to_pixels(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pictures `(n, height, width, 3)` to `(n, 3, height, width)` in -1..1."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(plan: BuildPlan, scenes: Scenes, place: Workplace) -> tuple[AutoencoderKL, Trained]:
    """Train on crops; the VAE comes back with its averages in it.

    Its latents are not normalised by themselves yet: see `whiten`.
    """
    vae = make_vae(plan.vae, plan.scenes.size, plan.seed)
    vae.to(place.device)
    batch, whole = plan.vae.schedule.batch, plan.scenes.size // CELL
    side = window_side(plan.vae.crop_side, whole, STEP)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        indices = batch_indices(plan.seed, "vae", step, batch, len(scenes))
        annotations = [scenes.annotations[i] for i in indices]
        windows = choose_windows(annotations, side, whole, generator)
        masks = take(box_masks(annotations, plan.scenes.size), windows, side)
        pixels = _take_pixels(scenes.pictures(indices), windows, side, place.device)
        mask = torch.from_numpy(masks).to(place.device).float()[:, None]
        mask = functional.interpolate(mask, scale_factor=float(CELL))
        first, second = torch.randint(8, (2,), generator=generator).tolist()
        turned, shrunk = (
            torch.rand(2, generator=generator) < torch.tensor([plan.vae.turned, plan.vae.shrunk])
        ).tolist()
        pixels, mask = turn(pixels, first), turn(mask, first)
        latents = _normalise(vae.encode(pixels).latent_dist.mean.float())
        if turned:
            latents, pixels, mask = (turn(one, second) for one in (latents, pixels, mask))
        if shrunk:
            latents, pixels, mask = (
                functional.avg_pool2d(one, 2) for one in (latents, pixels, mask)
            )
        noise = torch.randn(latents.shape, generator=generator).to(place.device)
        made = vae.decode(latents + plan.vae.latent_noise * noise).sample
        return _loss(made, pixels, 1 + plan.vae.animal_weight * mask, plan.vae)

    trained = train("vae", vae, loss_of, plan.vae.schedule, place, seed=plan.seed)
    trained.averages.give(vae)
    return vae, trained


def _take_pixels(
    pictures: NDArray[np.uint8], windows: Sequence[Window], side: int, device: torch.device
) -> Tensor:
    """The windows, which are in cells, of pictures `(n, height, width, 3)`: `(n, 3, 4 side, 4 side)`."""
    corners = [(CELL * x, CELL * y) for x, y in windows]
    return to_pixels(
        take(pictures.transpose(0, 3, 1, 2), corners, CELL * side).transpose(0, 2, 3, 1), device
    )


def _normalise(latents: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 in every channel of the batch."""
    axes = (0, 2, 3)
    return (latents - latents.mean(axes, keepdim=True)) / (latents.std(axes, keepdim=True) + 1e-4)


def _loss(made: Tensor, wanted: Tensor, weight: Tensor, plan: VaePlan) -> Tensor:
    difference = made.float() - wanted
    # L1 alone forgives a black fin drawn blue: the square does not.
    error = difference.abs() + plan.square_weight * difference**2
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return (error * weight).mean() + plan.edge_weight * edges


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: Scenes, device: torch.device) -> NDArray[np.float16]:
    """Mean latents of every scene, times the scaling factor: `(n, channels, size / 4, size / 4)`."""
    parts = []
    for _, pictures in scenes.batches(32):
        mean = vae.encode(to_pixels(pictures, device)).latent_dist.mean
        parts.append((mean * vae.config.scaling_factor).half().cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def whiten(vae: AutoencoderKL, scenes: Scenes, device: torch.device) -> None:
    """Give every latent channel mean 0 and standard deviation 1, as the decoder knows them.

    Mean and deviation go into the 1 x 1 convolution before the latents. The encoder's own
    deviation becomes nothing (exp(-15)): the noise of the training was the training's.
    """
    latents = np.concatenate(
        [
            vae.encode(to_pixels(pictures, device)).latent_dist.mean.cpu().numpy()
            for _, pictures in scenes.batches(32)
        ]
    )
    mean = torch.from_numpy(latents.mean((0, 2, 3))).to(device)
    std = torch.from_numpy(latents.std((0, 2, 3))).to(device)
    quant, channels = vae.quant_conv, len(mean)
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[channels:], quant.bias[channels:] = 0.0, -30.0


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, scenes: Scenes, device: torch.device, count: int) -> float:
    """Mean peak signal-to-noise ratio of pictures through the VAE and back, rounded to uint8."""
    values: list[float] = []
    for _, pictures in scenes.batches(32):
        made = vae.decode(vae.encode(to_pixels(pictures, device)).latent_dist.mean).sample
        back = ((made.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).cpu().numpy()
        errors = ((back - pictures.astype(np.float32)) ** 2).mean((1, 2, 3))
        values += (10 * np.log10(255**2 / np.maximum(errors, 1e-6))).tolist()
        if len(values) >= count:
            break
    return float(np.mean(values[:count]))


def save_vae(vae: AutoencoderKL, folder: Path) -> None:
    """Ordinary diffusers folder."""
    vae.save_pretrained(folder, safe_serialization=True)
