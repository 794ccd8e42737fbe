"""The pocket VAE: `AutoencoderKL` at factor 4, so that fins of five pixels survive.

Loss: L1 and squares, more inside the animals' boxes, L1 of the gradients, and very little KL (more
of it silences channels: with 1e-6 two of the four carried nothing). In half of the steps the latents are turned or
mirrored before decoding and the target with them, so that a turned latent decodes to the turned
picture: the diffusion model and every LoRA then get the eight views of a picture from one encoding.
Source: Kouzelis et al., "EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image
Modeling", 2025, section 3.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from synthdet.models.symmetries import turn
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
        latent_channels=4,
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
    """Train; the VAE comes back with its averages in it."""
    vae = make_vae(plan.vae, plan.scenes.size, plan.seed)
    vae.to(place.device)
    batch = plan.vae.schedule.batch

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        indices = batch_indices(plan.seed, "vae", step, batch, len(scenes))
        symmetry, latent_symmetry = torch.randint(8, (2,), generator=generator).tolist()
        if torch.rand((), generator=generator).item() >= plan.vae.equivariant:
            latent_symmetry = 0
        pixels = turn(to_pixels(scenes.pictures(indices), place.device), symmetry)
        masks = box_masks([scenes.annotations[i] for i in indices], plan.scenes.size)
        cells = torch.from_numpy(masks).to(place.device).float()[:, None]
        mask = turn(functional.interpolate(cells, scale_factor=4.0), symmetry)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(place.device)
        latents = turn(posterior.mean + posterior.std * noise, latent_symmetry)
        made = vae.decode(latents).sample
        weight = 1 + plan.vae.animal_weight * turn(mask, latent_symmetry)
        kl: Tensor = posterior.kl().float().mean()
        error = _loss(made, turn(pixels, latent_symmetry), weight, plan.vae)
        return error + plan.vae.kl_weight * kl

    trained = train("vae", vae, loss_of, plan.vae.schedule, place, seed=plan.seed)
    trained.averages.give(vae)
    return vae, trained


def _loss(made: Tensor, wanted: Tensor, weight: Tensor, plan: VaePlan) -> Tensor:
    difference = made.float() - wanted
    # L1 alone forgives a black fin drawn blue: the square does not.
    error = difference.abs() + plan.square_weight * difference**2
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return (error * weight).mean() + plan.edge_weight * edges


def train_decoder(
    plan: BuildPlan,
    vae: AutoencoderKL,
    latents: NDArray[np.float16],
    scenes: Scenes,
    place: Workplace,
) -> Trained:
    """Train the decoder of a finished VAE further, in place, its averages in it at the end.

    The loss of a picture is the logarithm of its squared error: the mean is the mean PSNR, but for a
    factor and the animals' weight. Half of the steps decode turned latents, as in `train_vae`.

    Args:
        plan: Of the build.
        vae: Whitened; its encoder stays as it is.
        latents: Of the scenes, as `encode` gives them.
        scenes: What they are to become.
        place: Folder, device and minutes.
    """
    half = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
    vae.requires_grad_(False)
    half.requires_grad_(True)
    batch = plan.decoder.schedule.batch

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        indices = batch_indices(plan.seed, "decoder", step, batch, len(scenes))
        symmetry = int(torch.randint(8, (), generator=generator))
        if torch.rand((), generator=generator).item() >= plan.vae.equivariant:
            symmetry = 0
        given = torch.from_numpy(latents[indices]).float()
        given = given + plan.decoder.latent_noise * torch.randn(given.shape, generator=generator)
        given = turn(given, symmetry).to(place.device) / vae.config.scaling_factor
        masks = box_masks([scenes.annotations[i] for i in indices], plan.scenes.size)
        cells = torch.from_numpy(masks).to(place.device).float()[:, None]
        weight = 1 + plan.decoder.animal_weight * turn(
            functional.interpolate(cells, scale_factor=4.0), symmetry
        )
        made = half["decoder"](half["post_quant_conv"](given)).float()
        wanted = turn(to_pixels(scenes.pictures(indices), place.device), symmetry)
        square = ((made - wanted) ** 2 * weight).mean(dim=(1, 2, 3)) / weight.mean(dim=(1, 2, 3))
        loss: Tensor = (square + 1e-6).log().mean()
        return loss

    trained = train("decoder", half, loss_of, plan.decoder.schedule, place, seed=plan.seed)
    trained.averages.give(half)
    return trained


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: Scenes, device: torch.device) -> NDArray[np.float16]:
    """Mean latents of every scene, times the scaling factor: `(n, 4, size / 4, size / 4)`."""
    parts = []
    for _, pictures in scenes.batches(32):
        mean = vae.encode(to_pixels(pictures, device)).latent_dist.mean
        parts.append((mean * vae.config.scaling_factor).half().cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def whiten(vae: AutoencoderKL, scenes: Scenes, device: torch.device) -> None:
    """Give every latent channel mean 0 and standard deviation 1, without changing any picture.

    Mean and deviation go into the two 1 x 1 convolutions beside the latents; what is left for
    `scaling_factor` is measured again.
    """
    latents = np.concatenate(
        [
            vae.encode(to_pixels(pictures, device)).latent_dist.mean.cpu().numpy()
            for _, pictures in scenes.batches(32)
        ]
    )
    mean = torch.from_numpy(latents.mean((0, 2, 3))).to(device)
    std = torch.from_numpy(latents.std((0, 2, 3))).to(device)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight * mean.view(1, -1, 1, 1)).sum((1, 2, 3))
    post.weight *= std.view(1, -1, 1, 1)
    quant.weight[:4] /= std.view(-1, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) / std
    quant.bias[4:] -= 2 * std.log()
    scaled = (latents - latents.mean((0, 2, 3), keepdims=True)) / latents.std(
        (0, 2, 3), keepdims=True
    )
    vae.register_to_config(scaling_factor=round(float(1 / scaled.std()), 5))


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
