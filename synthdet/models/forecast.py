"""What a fine-tuning will take, worked out before anything starts: memory, time, disk.

Arithmetic from the sizes of SDXL's networks and the operations of a training step, counted on the
networks themselves; nothing here was measured on a card. Every figure is given as such.

Source: operations by torch's `FlopCounterMode` (2 a multiply-add, attention included) on SDXL's UNet with
a LoRA of rank 16; sizes of what autograd keeps, in bfloat16 with LoRA weights in float32.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from synthdet.config import Config, FinetuneConfig
from synthdet.models.machine import GB, Check
from synthdet.workspace import free_bytes

_UNET_WEIGHTS: Final = 2.5675e9
_UNET_LINEAR_WEIGHTS: Final = 2.233e9
_LINEAR_BYTES: Final = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""A weight: of nf4 half a byte, a scale of a byte for 64 of them, and one of 4 bytes for 256 scales."""
_TEXT_WEIGHTS: Final = 0.817e9
_VAE_WEIGHTS: Final = 0.0837e9
_LORA_WEIGHTS_A_RANK: Final = 23.2e6 / 16
"""Of the four attention layers of the UNet."""
_KEPT_GB: Final = {False: 5.61, True: 0.49}
"""By `gradient_checkpointing`: what autograd keeps of one picture of 1024 pixels, in 16 bits."""
_KEPT_BY_PEFT: Final = 7.81 / 5.61
"""By `use_dora` and weights of 8 or 4 bits: peft's own layers keep their inputs in float32."""
_TFLOP: Final = {False: (12.156, 2.032), True: (16.765, 2.571)}
"""By `gradient_checkpointing`: of a picture of n megapixels (1 is 1024 pixels squared), a * n + b * n * n."""
_VAE_ENCODE_TFLOP: Final = 4.879
_OPTIMIZER_BYTES: Final = {"adamw": 16, "adamw8bit": 10, "prodigy": 36}
"""A LoRA weight, its gradient, and what the optimizer keeps of it."""
_NEEDS: Final = {"int8": "torchao", "nf4": "bitsandbytes", "adamw8bit": "bitsandbytes"}
"""Packages that come with no installation of ours."""
_RUNTIME_GB: Final = 0.6
"""What the driver and its libraries take."""
_SHARES: Final = (0.15, 0.4)
"""Of a matrix product's speed that a training reaches: published ones, and careful ones."""
_TILES_UNKNOWN: Final = 300
_PNG_BYTES_A_PIXEL: Final = 1.2
_SMALL_FOR_SDXL: Final = 768
"""Pixels of a tile's side below which SDXL, which learned at 1024, draws worse."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a fine-tuning will take.

    Attributes:
        training_gb: Peak of the steps, on the GPU.
        encoding_gb: Peak of encoding tiles and captions, before the steps.
        tflop: Operations of the whole training, in 10^12.
        cache_gb: Latents on disk while it trains, and checkpoints.
        pictures_gb: What generate and export will write.
    """

    training_gb: float
    encoding_gb: float
    tflop: float
    cache_gb: float
    pictures_gb: float

    @property
    def peak_gb(self) -> float:
        """The larger of the two peaks."""
        return max(self.training_gb, self.encoding_gb)

    def hours(self, tflops: float) -> tuple[float, float]:
        """From and to, on a machine whose matrix product reaches ``tflops``."""
        slow, fast = _SHARES
        return self.tflop / (fast * tflops) / 3600, self.tflop / (slow * tflops) / 3600


def forecast(config: Config, *, num_tiles: int) -> Forecast:
    """Work out what the run's fine-tuning takes on a GPU.

    Args:
        config: Of the run; an SDXL of the ordinary size.
        num_tiles: Train tiles.
    """
    settings, resolution = config.finetune, config.prepare.resolution
    megapixels = (resolution / 1024) ** 2
    wide = 2 if settings.mixed_precision == "no" else 1
    bytes_a_weight = 2 * wide
    lora = _LORA_WEIGHTS_A_RANK * settings.rank
    own = settings.use_dora or settings.base_weights != "full"
    kept = _KEPT_GB[settings.gradient_checkpointing] * (_KEPT_BY_PEFT if own else 1)
    unet = _UNET_WEIGHTS * bytes_a_weight
    if settings.base_weights != "full":
        unet -= _UNET_LINEAR_WEIGHTS * (bytes_a_weight - _LINEAR_BYTES[settings.base_weights])
    training = (
        unet / GB
        + (
            _TEXT_WEIGHTS * bytes_a_weight / GB
            if settings.train_text_encoder or settings.new_word
            else 0
        )
        + lora * _OPTIMIZER_BYTES[settings.optimizer] / GB
        + kept * wide * megapixels * settings.train_batch_size
        + _RUNTIME_GB
    )
    # The VAE encodes in float32, a picture at a time; about four of its widest layers are alive.
    widest = 128 * (resolution**2) * 4 / GB
    encoding = (
        _TEXT_WEIGHTS * bytes_a_weight / GB + _VAE_WEIGHTS * 4 / GB + 4 * widest + _RUNTIME_GB
    )
    a, b = _TFLOP[settings.gradient_checkpointing]
    seen = (
        settings.max_train_steps * settings.train_batch_size * settings.gradient_accumulation_steps
    )
    symmetries = 8 if settings.symmetries else 1
    shapes = [
        side**2 * min(ratio) / max(ratio)
        for side in settings.crop_sides
        for ratio in settings.crop_ratios()
    ]
    areas = [(1 - settings.crop_fraction, 1.0)] + [
        (settings.crop_fraction / len(shapes), area) for area in shapes
    ]
    tflop_a_tile = sum(
        share * (a * megapixels * area + b * (megapixels * area) ** 2) for share, area in areas
    )
    prior = a * megapixels + b * megapixels**2 if settings.prior_pictures else 0.0
    whole, without_forward = _TFLOP[True], _TFLOP[False]  # checkpointing goes forward twice
    forward = (whole[0] - without_forward[0]) * megapixels
    forward += (whole[1] - without_forward[1]) * megapixels**2
    drawn = settings.prior_pictures + settings.num_waters()  # guided: twice forward a step
    drawing = drawn * 2 * config.generate.num_inference_steps * forward
    num_tiles += settings.composites + settings.num_waters()
    encoded = num_tiles * symmetries * _VAE_ENCODE_TFLOP * megapixels
    latent_bytes = 2 * 4 * (resolution // 8) ** 2 * 2  # mean and deviation, four channels, 16 bits
    checkpoint = lora * (_OPTIMIZER_BYTES[settings.optimizer] - 4)
    pictures = config.generate.num_images * resolution**2 * _PNG_BYTES_A_PIXEL
    return Forecast(
        training_gb=training,
        encoding_gb=encoding,
        tflop=seen * (tflop_a_tile + prior) + drawing + encoded,
        cache_gb=(num_tiles * symmetries * latent_bytes + 3 * checkpoint) / GB,
        pictures_gb=2 * pictures / GB,  # once in 3-generate/, once exported
    )


def check_run(config: Config, folder: Path, *, num_tiles: int | None) -> list[Check]:
    """Hold what a run will take against this machine; nothing is loaded, fetched or written.

    Args:
        config: Of the run.
        folder: The run folder.
        num_tiles: Train tiles; None before `prepare` is done.
    """
    settings = config.finetune
    if settings.base_model == "pocket":
        detail = "the embedded networks: under 2 GB and minutes, on a CPU"
        return [Check("fine-tune", True, detail)]
    expected = forecast(config, num_tiles=num_tiles or _TILES_UNKNOWN)
    tiles = (
        f"{num_tiles} train tiles"
        if num_tiles
        else f"before prepare is done, with {_TILES_UNKNOWN} tiles"
    )
    speed, memory_gb = _look_at_gpu()
    small = config.prepare.resolution < _SMALL_FOR_SDXL
    return [
        *_check_packages(settings),
        Check(
            "fine-tune",
            not small,
            f"worked out, not measured, for SDXL's ordinary size and {tiles}, {config.prepare.resolution} pixels",
            "SDXL learned at 1024 pixels and draws worse well below: raise prepare.resolution to 768 or more, if memory allows"
            if small
            else None,
        ),
        _judge_memory(expected, settings, memory_gb),
        _judge_time(expected, speed, on_gpu=memory_gb is not None),
        _judge_disk(expected, free_bytes(folder.resolve()) / GB),
    ]


def _check_packages(settings: FinetuneConfig) -> list[Check]:
    """A line for every package that the settings ask for and that is not there."""
    wanted = {
        f"base_weights: {settings.base_weights}": _NEEDS.get(settings.base_weights),
        f"optimizer: {settings.optimizer}": _NEEDS.get(settings.optimizer),
    }
    return [
        Check("package", False, f"finetune.{setting} needs {package}", f"pip install {package}")
        for setting, package in wanted.items()
        if package and importlib.util.find_spec(package) is None
    ]


def _judge_memory(expected: Forecast, settings: FinetuneConfig, memory_gb: float | None) -> Check:
    detail = (
        f"peak about {expected.peak_gb:.1f} GB (steps {expected.training_gb:.1f}, "
        f"encoding before them {expected.encoding_gb:.1f})"
    )
    if memory_gb is None:
        advice = "there is no GPU here: real SDXL on a CPU takes days; use --config pocket"
        return Check("peak memory", False, detail, advice)
    detail += f" of {memory_gb:.1f} GB"
    if expected.peak_gb <= memory_gb:
        return Check("peak memory", True, detail)
    if not settings.gradient_checkpointing:
        advice = "--set finetune.gradient_checkpointing=true (a third slower); else it falls back to that by itself"
    elif settings.train_batch_size > 1:
        advice = "halve finetune.train_batch_size and double gradient_accumulation_steps; else it falls back to that by itself"
    elif settings.base_weights == "full":
        advice = "set finetune.base_weights to int8 (pip install torchao) or nf4 (bitsandbytes), lower prepare.resolution, or use a larger card"
    else:
        advice = "lower prepare.resolution, or use a larger card"
    return Check("peak memory", False, detail, advice)


def _judge_time(expected: Forecast, tflops: float | None, *, on_gpu: bool) -> Check:
    detail = f"{expected.tflop / 1000:.0f} PFLOP in all"
    if tflops is None:
        return Check("time", True, detail)
    least, most = expected.hours(tflops)
    where = "GPU" if on_gpu else "CPU"
    detail += f": {_say_hours(least)} to {_say_hours(most)} at 40 to 15 % of the {tflops:.3g} TFLOP/s that this {where} reaches"
    if most <= 24:
        return Check("time", True, detail)
    return Check("time", False, detail, "lower finetune.max_train_steps or prepare.resolution")


def _judge_disk(expected: Forecast, free_gb: float) -> Check:
    wanted = expected.cache_gb + expected.pictures_gb
    detail = (
        f"about {wanted:.1f} GB (latents and checkpoints {expected.cache_gb:.1f}, "
        f"pictures {expected.pictures_gb:.1f}) of {free_gb:.0f} GB free"
    )
    if wanted <= free_gb:
        return Check("disk", True, detail)
    return Check("disk", False, detail, "make room, or lower generate.num_images")


def _say_hours(hours: float) -> str:
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def _look_at_gpu() -> tuple[float | None, float | None]:
    """TFLOP/s of a matrix product here, and the GPU's memory in GB; the second None without a GPU."""
    try:
        import torch
    except (ImportError, OSError):
        return None, None
    on_gpu = torch.cuda.is_available()
    device, side = ("cuda", 4096) if on_gpu else ("cpu", 768)
    dtype = torch.float16 if on_gpu else torch.float32
    one = torch.rand(side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):  # the first is slower
        start = time.perf_counter()
        product = one @ one
        float(product[0, 0])  # waits for it
        best = max(best, 2 * side**3 / (time.perf_counter() - start) / 1e12)
    if not on_gpu:
        return best, None
    return best, torch.cuda.get_device_properties(0).total_memory / GB
