"""Training a LoRA for SDXL's UNet, in a way that survives being killed.

A step is a pure function of the seed, the step's number and the weights before it, so a training
that goes on from a checkpoint ends, on a CPU, with the same bits as one that was never stopped.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor

from synthdet.errors import SynthdetError
from synthdet.models.checkpoints import (
    Checkpoint,
    load_newest,
    prune_checkpoints,
    save_checkpoint,
)
from synthdet.models.devices import memory_errors, resolve_device, resolve_dtype
from synthdet.models.lora_data import NUM_SYMMETRIES, LatentCache, Material
from synthdet.models.lora_step import Training
from synthdet.models.protocols import TrainTile
from synthdet.models.sdxl import (
    Embedding,
    count_lost_tokens,
    encode_prompt,
    guides_from_zeros,
    load_pipeline,
)
from synthdet.workspace import atomic_path, write_text

WEIGHTS_NAME: Final = "pytorch_lora_weights.safetensors"
METRICS_NAME: Final = "metrics.jsonl"
_LOG_STEPS: Final = 10
_KEPT_CHECKPOINTS: Final = 2

OnStep = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class SdxlLoraTrainer:
    """Trains a LoRA on tiles and their captions.

    Attributes:
        base_model: Hub id, folder or single ``.safetensors`` file of an SDXL model.
        vae: Another VAE, likewise; None for the model's own.
        rank: Of the LoRA matrices.
        lora_alpha: The update is multiplied by ``lora_alpha / rank``.
        target_modules: Endings of the names of the UNet's layers that get a LoRA.
        optimizer: "adamw", "adamw8bit" or "prodigy".
        learning_rate: At its highest; for Prodigy the factor on the rate that it finds itself.
        lr_warmup_steps: Steps over which it rises; from there it falls along a cosine to zero,
            because the last weights are the ones used and a constant rate leaves them noisy.
        max_train_steps: Optimizer steps.
        train_batch_size: Tiles a forward pass.
        gradient_accumulation_steps: Forward passes a step.
        mixed_precision: "no", "fp16" or "bf16", of the frozen base and the forward pass.
        gradient_checkpointing: Less memory, slower.
        snr_gamma: Of the min-SNR loss weighting; None for none.
        animal_weight: Added weight of the loss inside the animals' boxes.
        noise_offset: Added noise a channel.
        caption_dropout: Share of tiles without caption.
        symmetries: Train on the eight turns and mirror images of each tile.
        checkpointing_steps: Steps between two checkpoints.
        seed: Of everything random.
        device: "auto", "cpu" or "cuda".
        note: Hears what a person should know.
    """

    base_model: str | Path
    _: KW_ONLY
    vae: str | None
    rank: int
    lora_alpha: float
    target_modules: Sequence[str]
    optimizer: str
    learning_rate: float
    lr_warmup_steps: int
    max_train_steps: int
    train_batch_size: int
    gradient_accumulation_steps: int
    mixed_precision: str
    gradient_checkpointing: bool
    snr_gamma: float | None
    animal_weight: float
    noise_offset: float
    caption_dropout: float
    symmetries: bool
    checkpointing_steps: int
    seed: int
    device: str
    note: Callable[[str], None] = lambda _text: None

    def train(self, tiles: Sequence[TrainTile], folder: Path, *, on_step: OnStep) -> None:
        """Train, going on from the newest whole checkpoint, and write the weights.

        Writes ``pytorch_lora_weights.safetensors`` in diffusers' format, ``metrics.jsonl`` and
        ``checkpoints/`` into the folder; ``cache/`` is there while it trains. A checkpoint is
        written on Ctrl-C and SIGTERM too, before `KeyboardInterrupt` goes on.

        Args:
            tiles: Square pictures of one size, at least one.
            folder: Owned by this training.
            on_step: Hears the number of steps done, once at the start and after every step, and
                the last logged figures (``loss``, ``lr``).

        Raises:
            SynthdetError: A model or a tile that cannot be used, a loss that is not a number, too
                little memory, a full disk; what was trained until the last checkpoint is kept.
        """
        if not tiles:
            raise SynthdetError("there is no train tile to learn from: look at 1-prepare")
        prune_checkpoints(folder / "checkpoints", keep=_KEPT_CHECKPOINTS)
        checkpoint = load_newest(folder / "checkpoints", note=self.note)
        try:
            with memory_errors():
                self._train(tiles, folder, checkpoint, on_step)
        except MemoryError as error:
            raise SynthdetError(
                f"out of memory ({error}): lower finetune.train_batch_size (and raise "
                "gradient_accumulation_steps), or set gradient_checkpointing to true"
            ) from error

    def _train(
        self,
        tiles: Sequence[TrainTile],
        folder: Path,
        checkpoint: Checkpoint | None,
        on_step: OnStep,
    ) -> None:
        device = resolve_device(self.device)
        dtype = resolve_dtype(self.mixed_precision, device)
        pipeline = load_pipeline(self.base_model, vae=self.vae, dtype=dtype)
        start = checkpoint.step if checkpoint else 0
        material = None
        if start < self.max_train_steps:
            material = self._make_material(tiles, folder, pipeline, device)
        unet, noiser = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
        del pipeline  # and with it, before the first step, the VAE and the text encoders
        self._add_lora(unet)
        unet.to(device)
        training = Training(self, unet, noiser, device, dtype)
        if checkpoint:
            training.restore(checkpoint)
        _cut_metrics(folder / METRICS_NAME, start)
        on_step(start, {})
        if material is not None:
            self._loop(training, material, folder, start, on_step)
        # Bytes that nobody reads again; the last checkpoint stays, to write the weights anew.
        prune_checkpoints(folder / "checkpoints", keep=1)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        # Last of all: where the weights are, the training is whole.
        with atomic_path(folder / WEIGHTS_NAME) as temporary:
            temporary.write_bytes(self._serialise(unet))
            _check_weights(temporary, unet, training.autocast)

    def _make_material(
        self,
        tiles: Sequence[TrainTile],
        folder: Path,
        pipeline: StableDiffusionXLPipeline,
        device: str,
    ) -> Material:
        captions = {tile.caption for tile in tiles}
        for part in (pipeline.text_encoder, pipeline.text_encoder_2):
            part.to(device)
        embeddings = {text: encode_prompt(pipeline, text, device) for text in sorted(captions)}
        cut = [text for text in sorted(captions) if count_lost_tokens(pipeline, text)]
        if cut:
            self.note(f"{len(cut)} captions are longer than the model reads, such as: {cut[0]}")
        like = embeddings[tiles[0].caption]
        none = Embedding(torch.zeros_like(like.states), torch.zeros_like(like.pooled))
        if not guides_from_zeros(pipeline):
            none = encode_prompt(pipeline, "", device)
        latents = LatentCache(folder / "cache", NUM_SYMMETRIES if self.symmetries else 1)
        vae = pipeline.vae.float().to(device)
        latents.fill(tiles, vae, device)
        return Material(
            tiles=tiles,
            latents=latents,
            embeddings=embeddings,
            no_caption=none,
            scaling_factor=float(vae.config.scaling_factor),
            pixels_per_latent=pipeline.vae_scale_factor,
        )

    def _add_lora(self, unet: Any) -> None:
        unet.requires_grad_(False)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=list(self.target_modules),
        )
        try:
            with torch.random.fork_rng(devices=[]):  # the only way to seed what peft draws
                torch.manual_seed(self.seed)
                unet.add_adapter(config)
        except ValueError as error:
            raise SynthdetError(
                f"finetune.target_modules: {', '.join(self.target_modules)} are no layers of "
                f"{self.base_model} that can have a LoRA"
            ) from error
        # In the base's own half precision, steps of 1e-4 would be rounded away.
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        unet.train()
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()

    def _loop(
        self,
        training: Training,
        material: Material,
        folder: Path,
        start: int,
        on_step: OnStep,
    ) -> None:
        checkpoints = folder / "checkpoints"
        figures: dict[str, Any] = {}
        with _stop_requests() as stop:
            for step in range(start + 1, self.max_train_steps + 1):
                training.step(step, material)
                last, stopping = step == self.max_train_steps, stop.is_set()
                if step % _LOG_STEPS == 0 or last:
                    figures = training.read_figures()
                    _check_finite(figures["loss"], step, checkpoints)
                    with (folder / METRICS_NAME).open("a", encoding="utf-8") as handle:
                        handle.write(json.dumps({"step": step, **figures}) + "\n")
                if last or stopping or step % self.checkpointing_steps == 0:
                    _check_finite(training.largest_weight(), step, checkpoints)
                    tensors, numbers = training.state()
                    save_checkpoint(checkpoints, step, tensors, numbers, keep=_KEPT_CHECKPOINTS)
                on_step(step, figures)
                if stopping:
                    raise KeyboardInterrupt

    def _serialise(self, unet: Any) -> bytes:
        """The LoRA in diffusers' format, with its alpha, which the weights alone do not tell.

        With peft's names (``lora_A``, ``lora_B``) for all layers: diffusers' own converter renames
        those of the attention alone, and its loader, which judges by the first name it meets, then
        silently drops one kind or the other (0.42.1, read and tried).
        """
        state = get_peft_model_state_dict(unet)
        config = {
            "unet.r": self.rank,
            "unet.lora_alpha": self.lora_alpha,
            "unet.target_modules": sorted(self.target_modules),
        }
        content = save(
            {f"unet.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()},
            metadata={
                "format": "pt",
                LORA_ADAPTER_METADATA_KEY: json.dumps(config, indent=2, sort_keys=True),
            },
        )
        return _sort_metadata(content)


def _sort_metadata(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order: the library writes it in a random one."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


# --- around the loop -------------------------------------------------------------------------------


def _check_finite(value: float, step: int, checkpoints: Path) -> None:
    if math.isfinite(value):
        return
    newest = max(checkpoints.glob("step-*"), default=None)
    kept = f"the last good weights are in {newest}" if newest else "nothing was kept yet"
    raise SynthdetError(
        f"the training diverged before step {step} (not a number): lower finetune.learning_rate "
        f"and start again with --redo; {kept}"
    )


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines that were logged after the checkpoint that the training goes on from."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # torn by a kill
    write_text(path, "".join(kept))


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; the second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def _check_weights(path: Path, unet: Any, autocast: Callable[[], Any]) -> None:
    """Read the written LoRA the way a generator will, and see that it does what was trained.

    Raises:
        SynthdetError: It does not change the UNet's answer, or not as the trained one did.
    """
    unet.eval()
    with autocast():
        trained = _probe(unet)
        unet.delete_adapters("default")
        base = _probe(unet)
        state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            use_safetensors=True,
            unet_config=unet.config,
            return_lora_metadata=True,
        )
        StableDiffusionXLPipeline.load_lora_into_unet(
            state, network_alphas=alphas, unet=unet, metadata=metadata
        )
        loaded = _probe(unet)
    if not torch.isfinite(loaded).all() or torch.equal(base, loaded):
        raise SynthdetError(
            "the trained LoRA does not change the model: raise finetune.learning_rate or "
            "finetune.max_train_steps and start again with --redo"
        )
    # A half-precision base rounds its answers; in float32 only the LoRA itself can differ.
    rounding = 0.0 if unet.dtype == torch.float32 else 0.01 * float(base.norm())
    if float((loaded - trained).norm()) > 0.05 * float((trained - base).norm()) + rounding:
        raise RuntimeError(f"{path} does not hold the LoRA that was trained")


def _probe(unet: Any) -> Tensor:
    """The UNet's answer to fixed noise and words."""
    config = unet.config
    generator = torch.Generator("cpu").manual_seed(0)
    pooled_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = (
        (1, config.in_channels, 16, 16),
        (1, 8, config.cross_attention_dim),
        (1, pooled_width),
    )
    noise, states, pooled = (
        torch.randn(*shape, generator=generator).to(unet.device, unet.dtype) for shape in shapes
    )
    time_ids = torch.zeros(1, 6).to(unet.device, unet.dtype)
    answer: Tensor = unet(
        noise,
        500,
        encoder_hidden_states=states,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        return_dict=False,
    )[0]
    return answer.float()
