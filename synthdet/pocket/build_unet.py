"""The pocket SDXL: a UNet with `text_time` conditioning, and its two text encoders, trained together.

Min-SNR weighting (Hang et al., 2023, section 3.4), stratified timesteps, caption dropout as SDXL has it, crops first,
an average of the weights, and a larger weight of the loss inside the animals' boxes.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from synthdet.core.boxes import turn_box
from synthdet.core.windows import Window, window_side
from synthdet.models.symmetries import turn
from synthdet.pocket.build_crops import (
    CELL,
    STEP,
    captions_by_count,
    choose_windows,
    count_in,
    take,
)
from synthdet.pocket.build_plan import BuildPlan, UNetPlan
from synthdet.pocket.build_scenes import Annotation, Scenes, batch_indices, box_masks
from synthdet.pocket.build_text import read_as_float32, text_config, token_ids
from synthdet.pocket.build_training import (
    Trained,
    Workplace,
    step_generator,
    train,
)


def noise_schedule(plan: UNetPlan) -> dict[str, Any]:
    """SDXL's schedule, with the plan's end and prediction, as any diffusers scheduler takes it."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": plan.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": plan.prediction_type,
    }


class Denoiser(nn.Module):
    """UNet and text encoders as one module, so that one loop trains, averages and keeps them."""

    def __init__(self, plan: BuildPlan, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)  # The builder owns its process.
        text, unet = plan.text, plan.unet
        self.unet = UNet2DConditionModel(
            sample_size=plan.scenes.size // 4,
            in_channels=plan.vae.latent_channels,
            out_channels=plan.vae.latent_channels,
            block_out_channels=unet.channels,
            layers_per_block=unet.layers,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in unet.attention
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in unet.attention[::-1]
            ),
            # diffusers takes the number of heads under this name, as SDXL's own config does.
            attention_head_dim=tuple(c // unet.head_width for c in unet.channels),
            transformer_layers_per_block=1,
            cross_attention_dim=2 * text.width,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=unet.time_id_width,
            projection_class_embeddings_input_dim=6 * unet.time_id_width + text.width,
            norm_num_groups=unet.norm_groups,
        )
        # On a CPU plain matrix products train a third faster than the fused attention kernel.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = CLIPTextModel(text_config(tokenizer, text))
        self.text_encoder_2 = CLIPTextModelWithProjection(text_config(tokenizer, text))

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Words as the SDXL pipeline reads them: states `(n, length, 2 width)`, pooled `(n, width)`."""
        one = self.text_encoder(ids, output_hidden_states=True)
        two = self.text_encoder_2(ids, output_hidden_states=True)
        states = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        return states, two.text_embeds


@dataclass(frozen=True)
class LatentScenes:
    """What the UNet is trained on: latents, and what is in them."""

    latents: NDArray[np.float16]
    """`(n, 4, size / 4, size / 4)`."""
    annotations: Sequence[Annotation]
    ids: Tensor
    """`(n, 3, length)`: the caption for one, two and three things in sight."""
    masks: NDArray[np.bool_]
    """`(n, size / 4, size / 4)`: inside a box."""


def latent_scenes(
    latents: NDArray[np.float16], scenes: Scenes, tokenizer: CLIPTokenizer, size: int
) -> LatentScenes:
    """Scenes of which the latents are there."""
    captions = [text for one in scenes.annotations for text in captions_by_count(one)]
    ids = token_ids(tokenizer, captions).view(len(scenes), 3, -1)
    return LatentScenes(latents, scenes.annotations, ids, box_masks(scenes.annotations, size))


def draw_timesteps(count: int, focus: float, generator: torch.Generator) -> Tensor:
    """Timesteps `(count,)`, one from each of as many equal strata: less noise in the gradient.

    A share of `focus` is logit-normal, mostly 450 to 800, where an animal's place and shape are
    decided; the others are spread evenly.
    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    2024, section 3.1; mean and deviation are our own.
    """
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    even = strata / count
    focused = torch.sigmoid(0.6 + 0.8 * torch.special.ndtri(even.double())).float()
    chosen = torch.rand(count, generator=generator) < focus
    return (torch.where(chosen, focused, even) * 1000).long().clamp(0, 999)


def draw_side(plan: UNetPlan, step: int, whole: int, generator: torch.Generator) -> int:
    """Side of a step's crops in cells; the whole scene's in some of the later steps."""
    drawn, which = torch.rand(2, generator=generator).tolist()
    if step >= plan.crops_until * plan.schedule.steps and drawn >= plan.crop_fraction:
        return whole
    share = plan.crop_sides[int(which * len(plan.crop_sides))]
    return window_side(share, whole, STEP)


class DenoisingLoss:
    """Loss of a step, a pure function of the step, its generator and the model."""

    def __init__(
        self,
        plan: BuildPlan,
        model: Denoiser,
        data: LatentScenes,
        tokenizer: CLIPTokenizer,
        device: torch.device,
    ) -> None:
        self.plan, self.model, self.data, self.device = plan, model, data, device
        self.whole = plan.scenes.size // CELL
        self.empty = token_ids(tokenizer, [""])
        self._known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self.noiser = DDPMScheduler(**noise_schedule(plan.unet))
        alphas = self.noiser.alphas_cumprod
        self.snr = alphas / (1 - alphas)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Loss of a training step."""
        plan, whole = self.plan.unet, self.whole
        side = draw_side(plan, step, whole, generator)
        indices = batch_indices(
            self.plan.seed, "unet", step, plan.schedule.batch, len(self.data.latents)
        )
        if side == whole:
            indices = indices[: plan.whole_batch]
        return self.of(indices, side, generator, learn_words=step < plan.text_steps)

    def of(
        self,
        indices: NDArray[np.int64],
        side: int,
        generator: torch.Generator,
        *,
        learn_words: bool = False,
    ) -> Tensor:
        """Loss of windows of `side` cells in the scenes of these indices."""
        plan, whole, count = self.plan.unet, self.whole, len(indices)
        symmetry = int(torch.randint(8, (), generator=generator))
        annotations = [self.data.annotations[i] for i in indices]
        windows = choose_windows(annotations, side, whole, generator)
        taken = take(self.data.latents[indices], windows, side)
        latents = turn(torch.from_numpy(taken).float(), symmetry)
        mask = torch.from_numpy(take(self.data.masks[indices], windows, side)).float()[:, None]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = draw_timesteps(count, plan.timestep_focus, generator)
        snr = self.snr[timesteps]
        # Where noise hides the animals a weight inside their boxes would draw them everywhere.
        seen = (snr / (snr + 1)).view(-1, 1, 1, 1)
        weight = 1 + plan.animal_weight * seen * turn(mask, symmetry)
        target, floor = noise, 0.0
        if plan.prediction_type == "v_prediction":
            # The error of v is that of the picture times snr + 1.
            target, floor = self.noiser.get_velocity(latents, noise, timesteps), 1.0
        weight = weight * ((snr + floor).clamp(max=plan.snr_gamma) / (snr + floor)).view(
            -1, 1, 1, 1
        )
        noisy = self.noiser.add_noise(latents, noise, timesteps).to(self.device)
        pairs = zip(annotations, windows, strict=True)
        counts = torch.tensor([max(1, min(3, count_in(*pair, side))) for pair in pairs])
        ids = self._drop(self.data.ids[torch.from_numpy(indices), counts - 1], generator)
        states, pooled = self._learn(ids) if learn_words else self._know(ids)
        time_ids = self._time_ids(windows, side, symmetry)
        made = self.model.unet(
            noisy,
            timesteps.to(self.device),
            states,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids.to(self.device)},
        ).sample
        error: Tensor = (made.float() - target.to(self.device)) ** 2
        weighted: Tensor = error * weight.to(self.device)
        return weighted.mean()

    def _time_ids(self, windows: Sequence[Window], side: int, symmetry: int) -> Tensor:
        """SDXL's size ids `(n, 6)` in pixels: of the scene, of the crop's corner, of the crop."""
        size, wide = self.plan.scenes.size, CELL * side
        rows = []
        for x, y in windows:
            left, top = CELL * x, CELL * y
            left, top, _, _ = map(
                int, turn_box((left, top, left + wide, top + wide), symmetry, size)
            )
            rows.append([size, size, top, left, wide, wide])
        return torch.tensor(rows).float()

    def _drop(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Some captions made empty, and some of those made nothing at all: ids of -1.

        Without a negative prompt SDXL's pipeline guides away from zeros, with an empty one from its
        encoding: both must be known as "no caption".
        """
        dropout = self.plan.unet.caption_dropout
        draw = torch.rand(len(ids), generator=generator)[:, None]
        ids = torch.where(draw < dropout, self.empty, ids)
        return torch.where(draw < dropout * 0.7, -1, ids)

    def _learn(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States and pooled states of captions, with gradients."""
        states, pooled = self.model.read(ids.clamp(min=0).to(self.device))
        kept = (ids[:, 0] >= 0).to(self.device)
        return states * kept.view(-1, 1, 1), pooled * kept.view(-1, 1)

    @torch.no_grad()
    def _know(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The same of encoders that learn no more: every caption is read once, on its own."""
        rows = []
        for row in ids:
            key = tuple(row.tolist())
            if key not in self._known:
                with torch.autocast(self.device.type, enabled=False):
                    self._known[key] = self._learn(row[None])
            rows.append(self._known[key])
        states, pooled = zip(*rows, strict=True)
        return torch.cat(states), torch.cat(pooled)


def make_pipeline(
    plan: UNetPlan, model: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionXLPipeline:
    """The ordinary pipeline around a copy of the networks, in float32 on the CPU."""
    copied = copy.deepcopy(model).float().cpu().eval()
    scheduler = DPMSolverMultistepScheduler(
        **noise_schedule(plan),
        algorithm_type="dpmsolver++",
        use_karras_sigmas=True,
        timestep_spacing="trailing",
    )
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(vae).float().cpu().eval(),
        text_encoder=copied.text_encoder,
        text_encoder_2=copied.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=copied.unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.unet.set_default_attn_processor()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Ordinary SDXL folder; weights in float16 that load as float32."""
    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    for network in networks:
        network.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for network in networks:
        network.float()
    read_as_float32(folder / "text_encoder")
    read_as_float32(folder / "text_encoder_2")
    _forget_origin(folder / "vae")


def _forget_origin(folder: Path) -> None:
    """A network that was loaded remembers from where: a path of this machine, which is no one's business."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def draw(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    *,
    size: int,
    seed: int = 0,
    steps: int = 12,
    guidance: float = 4.0,
    batch: int = 8,
) -> tuple[NDArray[np.uint8], float]:
    """Pictures `(n, size, size, 3)`, a seed a picture, and the seconds a picture took."""
    pictures: list[NDArray[np.uint8]] = []
    started = time.perf_counter()
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        made: Any = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            height=size,
            width=size,
            output_type="np",
        )
        pictures.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures), (time.perf_counter() - started) / len(prompts)


def validation_loss(
    plan: BuildPlan,
    model: Denoiser,
    data: LatentScenes,
    tokenizer: CLIPTokenizer,
    device: torch.device,
) -> float:
    """Mean loss on held-out scenes with noise of its own, the same at every call."""
    loss = DenoisingLoss(plan, model, data, tokenizer, device)
    count = min(256, len(data.latents))
    batch = min(16, count)
    values = []
    with torch.no_grad():
        for step, start in enumerate(range(0, count - batch + 1, batch)):
            generator = step_generator(plan.seed, "unet-test", step)
            indices = np.arange(start, start + batch)
            values.append(loss.of(indices, loss.whole, generator).item())
    return float(np.mean(values))


def train_unet(
    plan: BuildPlan,
    data: LatentScenes,
    tokenizer: CLIPTokenizer,
    place: Workplace,
    on_checkpoint: Callable[[Denoiser, Trained], None],
) -> tuple[Denoiser, Trained]:
    """Train; `on_checkpoint` is called with the averages in the model, and it comes back so."""
    model = Denoiser(plan, tokenizer).to(place.device)
    loss = DenoisingLoss(plan, model, data, tokenizer, place.device)

    def hand_over(trained: Trained) -> None:
        with trained.averages.applied(model):
            on_checkpoint(model, trained)

    trained = train(
        "unet", model, loss, plan.unet.schedule, place, seed=plan.seed, on_checkpoint=hand_over
    )
    trained.averages.give(model)
    return model, trained
