"""What the builder makes, in numbers: one frozen dataclass a part, and a tiny set for tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class ScenesPlan:
    """How many scenes are rendered, and how large."""

    base_train: int = 24_000
    base_test: int = 1_000
    humpback_train: int = 6_000
    """For the CLIP alone."""
    humpback_test: int = 1_000
    """For the CLIP's and the VAE's held-out figures alone."""
    size: int = 128
    """Side of a picture in pixels."""


@dataclass(frozen=True)
class Schedule:
    """Steps of one part. The learning rate rises, stays, and falls to a twentieth at the end.

    Every value is a function of the step alone, so a training that goes on after `kill -9` walks the
    same path. A longer `steps` later lifts the rate again and goes on from there.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    decay_fraction: float = 0.3
    """Share of the steps, at the end, over which the rate falls linearly."""
    weight_decay: float = 0.01
    ema: float = 0.999
    clip_norm: float = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0)."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        left = (self.steps - step) / max(1.0, self.steps * self.decay_fraction)
        return self.learning_rate * rise * max(0.05, min(1.0, left))


@dataclass(frozen=True)
class VaePlan:
    """`AutoencoderKL` at factor 4."""

    channels: tuple[int, ...] = (24, 48, 96)
    latent_channels: int = 4
    norm_groups: int = 8
    square_weight: float = 4.0
    edge_weight: float = 0.5
    animal_weight: float = 3.0
    """Added weight of the error inside boxes."""
    crop_side: float = 0.5
    """Side of the crops it sees, as a share of a scene's."""
    latent_noise: float = 0.2
    """Standard deviation of the noise on the latents, of which every channel has deviation 1."""
    turned: float = 0.5
    """Share of steps whose latents are turned or mirrored before decoding (see `build_vae`)."""
    shrunk: float = 0.5
    """Share of steps whose latents are shrunk to half before decoding."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            4_000, 16, 2e-3, warmup=50, decay_fraction=0.6, ema=0.995, optimizer="muon"
        )
    )


@dataclass(frozen=True)
class TextPlan:
    """The two text encoders of the SDXL pipeline, trained with the UNet."""

    width: int = 96
    """Of each; the UNet's cross attention sees both side by side."""
    layers: int = 3
    heads: int = 4
    max_length: int = 32
    """Tokens, start and end included."""


@dataclass(frozen=True)
class UNetPlan:
    """`UNet2DConditionModel` with SDXL's `text_time` conditioning."""

    channels: tuple[int, ...] = (32, 64, 128)
    """A CPU's hours buy a network of four million weights three times the pictures that one of twelve
    million sees, and so the better pictures."""
    layers: int = 1
    attention: tuple[bool, ...] = (False, False, True)
    """Which levels see the caption; on the coarsest an animal is four cells long."""
    head_width: int = 32
    norm_groups: int = 16
    time_id_width: int = 32
    beta_end: float = 0.02
    """SDXL's 0.012 leaves so much of the picture's mean colour in the last timestep, at 32 x 32 cells, that
    the UNet reads the sea's colour from the noise and not from the caption."""
    prediction_type: str = "v_prediction"
    """Well-conditioned where nearly all is noise, which is where the sea's colour is decided."""
    caption_dropout: float = 0.1
    snr_gamma: float = 5.0
    animal_weight: float = 3.0
    """Added weight of the loss inside boxes, times the share of the signal (as in `finetune`): in full at
    every timestep it drew pieces of animals all over the sea."""
    timestep_focus: float = 0.6
    """Share of timesteps drawn where shapes are decided (see `build_unet.draw_timesteps`)."""
    crop_sides: tuple[float, ...] = (0.5,)
    """Sides of crops around animals (see `build_crops`), as shares of a scene's."""
    crops_until: float = 0.05
    """Share of the steps that see nothing but crops."""
    crop_fraction: float = 0.5
    """Share of crops among the steps after that."""
    whole_batch: int = 16
    """Whole scenes in a step, where it sees those."""
    text_steps: int = 3_000
    """Steps in which the text encoders learn too. Then they are left as they are, and read every caption
    once."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            30_000, 64, 2e-3, warmup=200, decay_fraction=0.5, optimizer="muon"
        )
    )


@dataclass(frozen=True)
class ClipPlan:
    """`CLIPModel`, a ViT on pictures of the scenes' size."""

    vision_width: int = 128
    vision_layers: int = 4
    patch: int = 8
    """Fins are five pixels wide: cells of 16 hide them."""
    text_width: int = 128
    text_layers: int = 3
    projection: int = 128
    humpback_fraction: float = 0.2
    """Share of humpback scenes in a batch."""
    kind_weight: float = 1.0
    """Weight of the loss that draws pictures of one kind together."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            6_200, 64, 1e-3, decay_fraction=0.355, weight_decay=0.05, optimizer="muon"
        )
    )


@dataclass(frozen=True)
class YoloPlan:
    """YOLO11n from scratch on the base world's classes."""

    architecture: str = "yolo11n.yaml"
    """A configuration that ultralytics brings along."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            2_000, 32, 2e-3, decay_fraction=0.6, weight_decay=5e-4, ema=0.998, clip_norm=10.0
        )
    )


@dataclass(frozen=True)
class BuildPlan:
    """All of it."""

    seed: int = 0
    scenes: ScenesPlan = ScenesPlan()
    vae: VaePlan = VaePlan()
    text: TextPlan = TextPlan()
    unet: UNetPlan = UNetPlan()
    clip: ClipPlan = ClipPlan()
    yolo: YoloPlan = YoloPlan()


def tiny_plan(*, steps: int = 2) -> BuildPlan:
    """Everything at toy size, for tests: seconds on one core, and pictures of noise."""
    short = Schedule(steps, 2, 1e-3, warmup=1)
    return BuildPlan(
        scenes=ScenesPlan(base_train=8, base_test=4, humpback_train=4, humpback_test=4, size=96),
        vae=VaePlan(channels=(4, 4, 8), norm_groups=2, schedule=short),
        text=TextPlan(width=8, layers=2, heads=2, max_length=16),
        unet=UNetPlan(
            channels=(8, 8, 16),
            head_width=4,
            norm_groups=4,
            time_id_width=8,
            whole_batch=2,
            text_steps=1,
            schedule=replace(short, optimizer="muon"),
        ),
        clip=ClipPlan(
            vision_width=16,
            vision_layers=1,
            patch=16,
            text_width=8,
            text_layers=1,
            projection=8,
            schedule=short,
        ),
        yolo=YoloPlan(schedule=short),
    )
