"""Training a LoRA for SDXL's UNet, in a way that survives being killed.

A step is a pure function of the seed, the step's number and the weights before it, so a training
that goes on from a checkpoint ends, on a CPU, with the same bits as one that was never stopped.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig
from torch import Tensor

from synthdet.errors import SynthdetError
from synthdet.models.checkpoints import (
    Checkpoint,
    load_newest,
    prune_checkpoints,
    save_checkpoint,
)
from synthdet.models.devices import memory_errors, resolve_device, resolve_dtype
from synthdet.models.lora_compile import COMPILE_NAME as COMPILE_NAME
from synthdet.models.lora_compile import Compiling, compile_errors, tell_failure
from synthdet.models.lora_data import NUM_SYMMETRIES, LatentCache, Material, count_anew
from synthdet.models.lora_file import check_weights, serialise, serialise_kohya
from synthdet.models.lora_int8 import to_int8
from synthdet.models.lora_log import METRICS_NAME as METRICS_NAME
from synthdet.models.lora_log import Log
from synthdet.models.lora_nf4 import to_nf4
from synthdet.models.lora_step import Training
from synthdet.models.lora_team import Team, find_team
from synthdet.models.lora_text import TEXT_MODULES, EmbeddingCache, TextSide
from synthdet.models.new_words import WORDS_NAME, NewWord, add_word, serialise_word
from synthdet.models.protocols import TrainTile
from synthdet.models.sdxl import (
    Embedding,
    count_lost_tokens,
    guides_from_zeros,
    load_pipeline,
)
from synthdet.workspace import atomic_path, read_json, write_bytes, write_json

WEIGHTS_NAME: Final = "pytorch_lora_weights.safetensors"
KOHYA_NAME: Final = "pytorch_lora_weights_kohya.safetensors"
MEMORY_NAME: Final = "memory.json"
_SHAPE: Final = ("gradient_checkpointing", "train_batch_size", "gradient_accumulation_steps")
_TILES, _HELD_OUT, _PRIOR = "tiles", "held-out", "prior"
"""What a training is given; also the folders of their latents in ``cache/``."""
_LOG_STEPS: Final = 10
_KEPT_CHECKPOINTS: Final = 2

OnStep = Callable[[int, dict[str, Any]], None]
OnEncoded = Callable[[int, int], None]
Given = Mapping[str, Sequence[TrainTile]]


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
        mixed_precision: "auto", "no", "fp16" or "bf16", of the frozen base and the forward pass.
        gradient_checkpointing: Less memory, slower.
        snr_gamma: Of the min-SNR loss weighting; None for none.
        animal_weight: Added weight of the loss inside the animals' boxes.
        noise_offset: Added noise a channel.
        caption_dropout: Share of tiles without caption.
        symmetries: Train on the eight turns and mirror images of each tile.
        crop_fraction: Share of steps on windows of the tiles, around an animal where there is one.
        crop_sides: Longer sides of those windows, as shares of the tile's.
        crop_ratios: Their width to height, each as likely; all of a step have one.
        prior_weight: Weight of the loss on the base model's own pictures.
        checkpointing_steps: Steps between two checkpoints.
        validation_steps: Steps between two held-out losses.
        use_dora: Learn a magnitude beside each direction. Source: Liu et al., "DoRA", 2024.
        train_text_encoder: Both text encoders get a LoRA too, in their attention.
        base_weights: "full", or "int8" or "nf4" for the frozen UNet's linear layers in 8 or 4 bits.
        compile: "auto" where it pays back, "always" or "never": whether the UNet's blocks are compiled.
        new_word: A word of the captions to learn as new tokens; None for none.
        new_tokens: How many tokens.
        kohya_copy: Write the LoRA under kohya's names too.
        tensorboard: Write TensorBoard's event files where its package is installed.
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
    crop_fraction: float = 0.0
    crop_sides: Sequence[float] = (0.5, 0.75)
    crop_ratios: Sequence[tuple[int, int]] = ((1, 1),)
    prior_weight: float = 1.0
    validation_steps: int = 100
    use_dora: bool = False
    train_text_encoder: bool = False
    base_weights: str = "full"
    compile: str = "never"
    new_word: str | None = None
    new_tokens: int = 2
    kohya_copy: bool = False
    tensorboard: bool = True
    note: Callable[[str], None] = lambda _text: None

    def train(
        self,
        tiles: Sequence[TrainTile],
        folder: Path,
        *,
        on_step: OnStep,
        on_encoded: OnEncoded = lambda _number, _total: None,
        val_tiles: Sequence[TrainTile] = (),
        prior_tiles: Sequence[TrainTile] = (),
    ) -> None:
        """Train, going on from the newest whole checkpoint, and write the weights.

        Writes ``pytorch_lora_weights.safetensors`` in diffusers' format, ``metrics.jsonl`` and
        ``checkpoints/`` into the folder; ``cache/`` is there while it trains. A checkpoint is
        written on Ctrl-C and SIGTERM too, before `KeyboardInterrupt` goes on.

        Out of memory, it goes on from the newest checkpoint with activation checkpointing, then with
        half as many tiles a pass and twice as many passes a step, as often as that goes; what it came
        to is kept in ``memory.json``, so that a restart does the same.

        Args:
            tiles: Square pictures of one size, at least one.
            folder: Owned by this training.
            on_step: Hears the number of steps done, once at the start and after every step, and
                the last logged figures (``loss``, ``lr``).
            on_encoded: Hears how many pictures of this process's share are encoded, and of how many,
                before the first step; those of an earlier start at once.
            val_tiles: Pictures of the same size that are not trained on, for the held-out loss.
            prior_tiles: The base model's own pictures, of the same size: as many passes a step see
                them as see tiles, so that it keeps drawing them.

        Raises:
            SynthdetError: A model or a tile that cannot be used, a loss that is not a number, too
                little memory, a full disk; what was trained until the last checkpoint is kept.
        """
        if not tiles:
            raise SynthdetError("there is no train tile to learn from: look at 1-prepare")
        team = find_team()
        team.join()
        plan, fallen = self, []
        if (folder / MEMORY_NAME).exists():
            kept = read_json(folder / MEMORY_NAME)
            fallen = kept.pop("fell_back")
            plan = replace(self, **kept)
        while True:
            prune_checkpoints(folder / "checkpoints", keep=_KEPT_CHECKPOINTS)
            checkpoint = load_newest(folder / "checkpoints", note=self.note)
            given = plan._spell({_TILES: tiles, _HELD_OUT: val_tiles, _PRIOR: prior_tiles})
            team.tell((replace(plan, note=_say_nothing), given, folder))
            try:
                with memory_errors():
                    plan._train(given, folder, checkpoint, on_step, on_encoded, team)
                return
            except MemoryError as error:
                if team.size > 1:
                    raise SynthdetError(
                        f"out of memory ({error}): with several processes nothing is lowered by "
                        "itself; lower finetune.train_batch_size or set gradient_checkpointing"
                    ) from error
                smaller = plan._use_less_memory()
                if smaller is None:
                    raise SynthdetError(
                        f"out of memory ({error}) even with gradient_checkpointing and "
                        "train_batch_size 1: lower prepare.resolution, or use a larger card"
                    ) from error
            plan, did = smaller
            fallen = [*fallen, did]
            self.note(f"out of memory: {did}")
            shape = {name: getattr(plan, name) for name in _SHAPE}
            write_json(folder / MEMORY_NAME, {**shape, "fell_back": fallen})

    def _spell(self, given: Given) -> Given:
        """The same with the new word as it is read, in captions and in what they count.

        Raises:
            SynthdetError: No caption has the word.
        """
        if not self.new_word:
            return given
        spell = NewWord(self.new_word, self.new_tokens).spell
        spelt = {
            name: [
                replace(
                    tile, caption=spell(tile.caption), names=tuple(spell(one) for one in tile.names)
                )
                for tile in tiles
            ]
            for name, tiles in given.items()
        }
        if spelt[_TILES] == list(given[_TILES]):
            raise SynthdetError(
                f"finetune.new_word: no caption has the word {self.new_word}, such as: "
                f"{given[_TILES][0].caption}"
            )
        return spelt

    def _use_less_memory(self) -> tuple[SdxlLoraTrainer, str] | None:
        """The next smaller way to do the same steps, and what it is; None where there is none."""
        if not self.gradient_checkpointing:
            return replace(self, gradient_checkpointing=True), "gradient_checkpointing is now true"
        batch, passes = self.train_batch_size, self.gradient_accumulation_steps
        if batch % 2:
            # An odd batch has no half: one tile a pass is the smallest shape with the same steps.
            smaller, more = 1, batch * passes
        else:
            smaller, more = batch // 2, 2 * passes
        if smaller == batch:
            return None
        made = replace(self, train_batch_size=smaller, gradient_accumulation_steps=more)
        return (
            made,
            f"{smaller} tiles a pass and {more} passes a step, instead of {batch} and {passes}",
        )

    def _train(
        self,
        given: Given,
        folder: Path,
        checkpoint: Checkpoint | None,
        on_step: OnStep,
        on_encoded: OnEncoded,
        team: Team,
    ) -> None:
        device = resolve_device(self.device)
        dtype = resolve_dtype(self.mixed_precision, device)
        pipeline = load_pipeline(self.base_model, vae=self.vae, dtype=dtype)
        if self.base_weights == "int8":
            to_int8(pipeline.unet)
        if self.base_weights == "nf4":
            to_nf4(pipeline.unet)
        start = checkpoint.step if checkpoint else 0
        parts = {"unet": pipeline.unet}
        text, rows = None, {}
        if self.new_word:
            rows = add_word(pipeline, NewWord(self.new_word, self.new_tokens))
        if self.train_text_encoder or rows:
            text = TextSide(pipeline, device)
        if text and self.train_text_encoder:
            parts |= text.encoders
        materials: dict[str, Material] = {}
        if start < self.max_train_steps:
            materials = self._make_materials(
                given, folder, pipeline, device, text, on_encoded, team
            )
        noiser = DDPMScheduler.from_config(pipeline.scheduler.config)
        del pipeline  # and with it, before the first step, the VAE and the frozen text encoders
        for part, network in parts.items():
            self._add_lora(part, network)
            network.to(device)
        for row in rows.values():
            row.requires_grad_(True)  # with the rest of the text encoders they were frozen
        training = Training(self, parts, rows, noiser, device, dtype, team)
        if checkpoint:
            training.restore(checkpoint)
        log = Log(folder, start, tensorboard=self.tensorboard) if team.leads else None
        on_step(start, {})
        if materials:
            self._loop(training, materials, log, folder, start, on_step, team)
        if log is None:
            return
        log.close()
        # Bytes that nobody reads again; the last checkpoint stays, to write the weights anew.
        prune_checkpoints(folder / "checkpoints", keep=1)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        # The weights last of all: where they are, the training is whole.
        tiles = given[_TILES]
        made = {KOHYA_NAME: serialise_kohya(self, parts, tiles)} if self.kohya_copy else {}
        made[WEIGHTS_NAME] = serialise(self, parts, tiles)
        if self.new_word:
            word = NewWord(self.new_word, self.new_tokens)
            write_bytes(folder / WORDS_NAME, serialise_word(word, rows))
        for name, content in made.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
                check_weights(temporary, parts, training.autocast)

    def _make_materials(
        self,
        given: Given,
        folder: Path,
        pipeline: StableDiffusionXLPipeline,
        device: str,
        text: TextSide | None,
        on_encoded: OnEncoded,
        team: Team,
    ) -> dict[str, Material]:
        """Latents and embeddings of all that is given, under the same names, where there is any."""
        told = count_anew if self.crop_fraction else lambda tile: [tile.caption]
        captions = sorted(
            {text for tiles in given.values() for tile in tiles for text in told(tile)}
        )
        cut = [text for text in captions if count_lost_tokens(pipeline, text)]
        if cut:
            self.note(f"{len(cut)} captions are longer than the model reads, such as: {cut[0]}")
        heard = EmbeddingCache(folder / "cache" / "captions")
        frozen = captions if text is None else []
        if team.leads:
            heard.fill(["", *frozen], pipeline, device)
        vae = pipeline.vae.float().to(device)
        caches = {
            name: LatentCache(
                folder / "cache" / name,
                NUM_SYMMETRIES if self.symmetries and name == _TILES else 1,
            )
            for name, tiles in given.items()
            if tiles
        }
        shares = {name: team.share(given[name]) for name in caches}
        total, encoded = sum(map(len, shares.values())), 0

        def on_tiles(number: int) -> None:
            nonlocal encoded
            encoded += number
            on_encoded(encoded, total)

        for name, latents in caches.items():
            latents.fill(shares[name], vae, device, on_tiles)
        team.wait()
        none = heard.read("")
        if guides_from_zeros(pipeline):
            none = Embedding(*map(torch.zeros_like, none))
        if text is not None:
            none = Embedding(*(one.to(device) for one in none))
        embeddings = {caption: heard.read(caption) for caption in frozen}
        return {
            name: Material(
                tiles=given[name],
                latents=latents,
                embeddings=embeddings,
                no_caption=none,
                scaling_factor=float(vae.config.scaling_factor),
                pixels_per_latent=pipeline.vae_scale_factor,
                text=text,
            )
            for name, latents in caches.items()
        }

    def _add_lora(self, part: str, network: Any) -> None:
        network.requires_grad_(False)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.lora_alpha,
            init_lora_weights="gaussian",
            use_dora=self.use_dora,
            target_modules=list(self.target_modules if part == "unet" else TEXT_MODULES),
        )
        try:
            with (
                torch.random.fork_rng(devices=[]),
                _quiet_merging(),
            ):  # the only way to seed what peft draws
                torch.manual_seed(self.seed)
                network.add_adapter(config)
        except ValueError as error:
            raise SynthdetError(
                f"finetune.target_modules: {', '.join(self.target_modules)} are no layers of "
                f"{self.base_model} that can have a LoRA"
            ) from error
        # In the base's own half precision, steps of 1e-4 would be rounded away.
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        network.train()
        if self.gradient_checkpointing and part == "unet":
            network.enable_gradient_checkpointing()

    def _loop(
        self,
        training: Training,
        materials: Mapping[str, Material],
        log: Log | None,
        folder: Path,
        start: int,
        on_step: OnStep,
        team: Team,
    ) -> None:
        checkpoints = folder / "checkpoints"
        figures: dict[str, Any] = {}
        held_out = materials.get(_HELD_OUT)
        compiling = self._open_compiling(training, materials, folder, start, team)
        with _stop_requests() as stop, training.lean():
            if log and held_out and start == 0:
                log.write(0, {"val_loss": training.measure_held_out(held_out)})
            for step in range(start + 1, self.max_train_steps + 1):
                _make_step(training, step, materials, compiling, team)
                last = step == self.max_train_steps
                validating = bool(held_out) and (last or step % self.validation_steps == 0)
                stopping = team.agree(stop.is_set())  # all have to stop after the same step
                saving = last or stopping or step % self.checkpointing_steps == 0
                if step % _LOG_STEPS == 0 or last or validating:
                    figures = training.read_figures()
                    _check_finite(figures["loss"], step, checkpoints)
                    compiling.look(step)
                    if log and validating and held_out:
                        figures["val_loss"] = training.measure_held_out(held_out)
                    if log:
                        log.write(step, figures)
                if saving:
                    _check_finite(training.largest_weight(), step, checkpoints)
                    if log:
                        save_checkpoint(
                            checkpoints, step, *training.state(), keep=_KEPT_CHECKPOINTS
                        )
                on_step(step, figures)
                if stopping:
                    raise KeyboardInterrupt
                compiling.mark(step, paused=validating or saving)

    def _open_compiling(
        self,
        training: Training,
        materials: Mapping[str, Material],
        folder: Path,
        start: int,
        team: Team,
    ) -> Compiling:
        blocked = None
        if self.base_weights != "full" or self.use_dora:
            blocked = "layers of 8 or 4 bits and those of a DoRA are left as they are"
        elif team.size > 1 and self.compile == "auto":
            blocked = (
                "several processes do not time one another: finetune.compile=always asks for it"
            )
        return Compiling(
            self.compile,
            folder,
            device=resolve_device(self.device),
            num_shapes=training.count_shapes(materials[_TILES], prior=_PRIOR in materials),
            num_steps=self.max_train_steps,
            blocked=blocked,
            start=start,
            writes=team.leads,
            note=self.note,
        )


def help_to_train() -> None:
    """Take a share of every training that the first process starts, until it lets go.

    For all processes but the first of those that `accelerate launch` started.

    Raises:
        SynthdetError: As `SdxlLoraTrainer.train`.
    """
    team = find_team()
    team.join()
    while (job := team.hear()) is not None:
        plan, given, folder = job
        checkpoint = load_newest(folder / "checkpoints", note=_say_nothing)
        plan._train(given, folder, checkpoint, _hear_nothing, _hear_nothing, team)
    team.leave()


def _hear_nothing(_number: int, _more: object) -> None:
    """For those whose steps nobody follows."""


def let_helpers_go() -> None:
    """End `help_to_train` in the other processes."""
    team = find_team()
    team.join()
    team.tell(None)
    team.leave()


def _say_nothing(_text: str) -> None:
    """The first process has said it."""


# --- around the loop -------------------------------------------------------------------------------


def _make_step(
    training: Training,
    step: int,
    materials: Mapping[str, Material],
    compiling: Compiling,
    team: Team,
) -> None:
    """One step, compiled where that was decided; without, where it turns out that it cannot be."""
    seen = (materials[_TILES], materials.get(_PRIOR))
    compiled = compiling.is_on(step)
    training.compile(compiled)
    losses: Sequence[Tensor] = ()
    failure = ""
    try:
        losses = training.learn(step, *seen)
    except compile_errors() as error:
        if not compiled:
            raise
        failure = tell_failure(error)  # the step anew comes later: in here the error is still held
    # What one process cannot compile, none does, so that the first one's file tells what all did.
    if compiled and team.agree(bool(failure)):
        compiling.give_up(step, failure or "in another process")
        training.forget()
        training.compile(False)
        losses = training.learn(step, *seen)
    training.update(step, losses)


def _check_finite(value: float, step: int, checkpoints: Path) -> None:
    if math.isfinite(value):
        return
    newest = max(checkpoints.glob("step-*"), default=None)
    kept = f"the last good weights are in {newest}" if newest else "nothing was kept yet"
    raise SynthdetError(
        f"the training diverged before step {step} (not a number): lower finetune.learning_rate "
        f"and start again with --redo; {kept}"
    )


@contextmanager
def _quiet_merging() -> Iterator[None]:
    """Without peft's word, a layer, that it cannot merge into torchao's weights: nobody will."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
        yield


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
