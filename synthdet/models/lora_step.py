"""One step of a LoRA's training, and the state it changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from synthdet.core.windows import Shape, window_shape
from synthdet.errors import SynthdetError
from synthdet.models.checkpoints import Checkpoint
from synthdet.models.lora_compile import compiled_blocks
from synthdet.models.lora_data import Draw, Material, draw_step
from synthdet.models.lora_lean import lean_layers
from synthdet.models.lora_optimizers import (
    Prodigy,
    make_optimizer,
    pack_optimizer,
    unpack_optimizer,
)
from synthdet.models.lora_team import Team

if TYPE_CHECKING:
    from synthdet.models.lora import SdxlLoraTrainer

_MAX_GRADIENT_NORM: Final = 1.0
_HELD_OUT_SEED: Final = 20_000_000
_PRIOR_SEED: Final = 30_000_000
_FEWEST_HELD_OUT, _MOST_HELD_OUT = 16, 64
"""Pictures of a held-out loss: few tiles are seen at several timesteps, of many only some."""


class Training:
    """Networks, optimizer and scaler: what a step changes and a checkpoint holds.

    Args:
        plan: The training's settings.
        parts: ``unet``, and the text encoders where they are trained, by the pipeline's names, each with
            its adapter and on its device.
        rows: Of a new word, by name; on the device.
        noiser: A `DDPMScheduler`.
        device: Of the networks.
        dtype: Of their frozen weights and of the forward pass.
        team: Of processes that share the passes of a step.
    """

    def __init__(
        self,
        plan: SdxlLoraTrainer,
        parts: Mapping[str, Any],
        rows: Mapping[str, Tensor],
        noiser: Any,
        device: str,
        dtype: torch.dtype,
        team: Team,
    ) -> None:
        self._plan, self._unet, self._noiser = plan, parts["unet"], noiser
        self._team = team
        self._device, self._dtype, self._parts = device, dtype, tuple(parts.values())
        self._lora = {
            f"{part}.{name}": parameter
            for part, network in parts.items()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and not any(parameter is row for row in rows.values())
        }
        self._lora |= {f"words.{name}": row for name, row in rows.items()}
        self._optimizer = make_optimizer(
            plan.optimizer,
            list(self._lora.values()),
            plan.learning_rate,
            max_gradient_norm=_MAX_GRADIENT_NORM,
        )
        self._scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        self._snr = signal_to_noise(noiser.alphas_cumprod)
        self._loss_sum = torch.zeros((), device=device)
        self._prior_sum = torch.zeros((), device=device)
        self._steps = 0
        self._gradient_norm = torch.zeros((), device=device)
        self._lean, self._compiled = ExitStack(), False

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward pass's precision."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    @contextmanager
    def lean(self) -> Iterator[None]:
        """While it trains, the linear layers take the short way."""
        try:
            self._go_lean(compiled=False)
            yield
        finally:
            self._lean.close()

    def compile(self, on: bool) -> None:
        """Within `lean`: from now on run the UNet's blocks compiled, or as they are."""
        if on != self._compiled:
            self._go_lean(compiled=on)

    def _go_lean(self, *, compiled: bool) -> None:
        self._lean.close()
        for network in self._parts:
            here = compiled and network is self._unet
            self._lean.enter_context(lean_layers(network, for_compiling=here))
        if compiled:
            self._lean.enter_context(compiled_blocks(self._unet))
        self._compiled = compiled

    def learn(self, step: int, material: Material, prior: Material | None = None) -> list[Tensor]:
        """This process's gradients of step number ``step`` from 1; nothing waits for the device.

        What it sees is drawn for the whole step: fewer tiles a pass and more passes change nothing
        but the rounding.

        Args:
            step: Its number.
            material: Tiles to learn from.
            prior: The base model's own pictures: as many of them are seen as tiles.

        Returns:
            Its part of the mean loss, and of that of the base model's pictures: for `update`.
        """
        loss = self._run_passes(self._draw(step, material), material, 1.0)
        prior_loss = torch.zeros_like(loss)
        if prior is not None:
            drawn = self._draw(step, prior, prior=True)
            prior_loss = self._run_passes(drawn, prior, self._plan.prior_weight)
        return [loss, prior_loss]

    def update(self, step: int, losses: Sequence[Tensor]) -> None:
        """Change the weights by what all processes have learnt; nothing waits for the device.

        Args:
            step: Its number, from 1.
            losses: Of `learn`. Changed in place.
        """
        plan = self._plan
        for group in self._optimizer.param_groups:
            group["lr"] = plan.learning_rate * learning_rate_factor(
                step, plan.lr_warmup_steps, plan.max_train_steps
            )
        self._add_up_gradients(losses)
        loss, prior_loss = losses
        self._loss_sum += loss
        self._prior_sum += prior_loss
        self._steps += 1
        self._scaler.unscale_(self._optimizer)
        if isinstance(self._optimizer, Prodigy):
            self._scaler.step(self._optimizer)
            self._gradient_norm = self._optimizer.gradient_norm
        else:
            self._gradient_norm = torch.nn.utils.clip_grad_norm_(
                self._lora.values(), _MAX_GRADIENT_NORM
            )
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Drop the gradients of a step that was broken off, which can then be done anew."""
        self._optimizer.zero_grad(set_to_none=True)

    def count_shapes(self, material: Material, *, prior: bool) -> int:
        """Different shapes of pictures as the UNet's blocks see them: rows of tokens, whose number counts."""
        fraction = self._plan.crop_fraction
        seen = self._find_shapes(material) if fraction else []
        if fraction < 1 or prior:
            height, width = material.latent_shape[-2:]
            seen.append((width, height))
        return len({width * height for width, height in seen})

    def _draw(self, step: int, material: Material, *, prior: bool = False) -> Draw:
        """What a step sees of tiles, or of the base model's pictures, which are seen whole."""
        plan = self._plan
        return draw_step(
            plan.seed + _PRIOR_SEED if prior else plan.seed,
            step - 1,
            num_tiles=len(material.tiles),
            batch_size=plan.train_batch_size * plan.gradient_accumulation_steps,
            latent_shape=material.latent_shape,
            num_symmetries=material.latents.num_symmetries,
            num_timesteps=self._noiser.config.num_train_timesteps,
            caption_dropout=plan.caption_dropout,
            noise_offset=plan.noise_offset,
            crop_fraction=0.0 if prior else plan.crop_fraction,
            crop_shapes=self._find_shapes(material),
        )

    def _run_passes(self, draw: Draw, material: Material, weight: float) -> Tensor:
        """Add the gradients of this process's passes; returns its part of the mean loss, unweighted."""
        count = len(draw.tiles)
        # With more processes than passes, smaller passes give each of them some.
        size = min(self._plan.train_batch_size, -(-count // self._team.size))
        total = torch.zeros((), device=self._device)
        for part in self._team.share(draw.split(size)):
            share = len(part.tiles) / count
            loss = self._loss(part, material)
            self._scaler.scale(loss * (weight * share)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * share
        return total

    def _add_up_gradients(self, losses: Sequence[Tensor]) -> None:
        """Give every process the gradients, and the losses, of all."""
        if self._team.size == 1:
            return
        gradients = []
        for parameter in self._lora.values():
            if parameter.grad is None:  # of a process without a pass in this step
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._team.add_up([*gradients, *losses])

    def _find_shapes(self, material: Material) -> list[Shape]:
        """Shapes of windows in cells, such that the UNet can halve their sides on each of its levels."""
        step = 2 ** (len(self._unet.config.block_out_channels) - 1)
        size = material.latent_shape[-1]
        plan = self._plan
        return [
            window_shape(share, ratio, size, step)
            for share in plan.crop_sides
            for ratio in plan.crop_ratios
        ]

    @torch.no_grad()
    def measure_held_out(self, material: Material) -> float:
        """Mean squared error of the noise on tiles that are not trained on; waits for the device.

        The tiles, their noise and their timesteps are the same at every call and for every seed, and
        no weighting of the training's loss is in it: the figures of two trainings can be compared.
        """
        count = min(max(len(material.tiles), _FEWEST_HELD_OUT), _MOST_HELD_OUT)
        draw = draw_step(
            _HELD_OUT_SEED,
            0,
            num_tiles=len(material.tiles),
            batch_size=count,
            latent_shape=material.latent_shape,
            num_symmetries=1,
            num_timesteps=self._noiser.config.num_train_timesteps,
            caption_dropout=0.0,
            noise_offset=0.0,
        )
        total = torch.zeros((), device=self._device)
        with torch.compiler.set_stance("force_eager"):  # shapes that are met nowhere else
            for part in draw.split(self._plan.train_batch_size):
                total += self._square_error(part, material).mean(dim=(1, 2, 3)).sum()
        return float(total) / count

    def _loss(self, draw: Draw, material: Material) -> Tensor:
        """Loss of a forward pass, weighted."""
        plan = self._plan
        square = self._square_error(draw, material)
        weights = torch.ones(len(draw.tiles))
        if plan.snr_gamma is not None:
            snr = self._snr[draw.timesteps]
            weights = min_snr_weights(snr, plan.snr_gamma, self._noiser.config.prediction_type)
        if plan.animal_weight:
            signal = self._noiser.alphas_cumprod[draw.timesteps]
            inside = weigh_animals(material.find_animals(draw), signal, plan.animal_weight)
            square = square * self._send(inside)
        loss: Tensor = (square.mean(dim=(1, 2, 3)) * self._send(weights)).mean()
        return loss

    def _square_error(self, draw: Draw, material: Material) -> Tensor:
        """Squared error of the answer, ``(n, 1, height, width)``, mean over the channels."""
        latents = material.sample_latents(draw)
        target = draw.noise
        if self._noiser.config.prediction_type == "v_prediction":
            target = self._noiser.get_velocity(latents, draw.noise, draw.timesteps)
        noisy = self._noiser.add_noise(latents, draw.noise, draw.timesteps)
        with self.autocast():
            heard = material.read_captions(draw)
            predicted = self._unet(
                self._send(noisy).to(self._dtype),
                self._send(draw.timesteps),
                encoder_hidden_states=self._send(heard.states),
                added_cond_kwargs={
                    "text_embeds": self._send(heard.pooled),
                    "time_ids": self._send(material.size_ids(draw)).to(heard.pooled.dtype),
                },
                return_dict=False,
            )[0]
        error: Tensor = predicted.float() - self._send(target)
        return error.square().mean(dim=1, keepdim=True)

    def _send(self, tensor: Tensor) -> Tensor:
        """To the device, if it is not there yet, without waiting for it."""
        if tensor.device.type == self._device:
            return tensor
        return tensor.contiguous().pin_memory().to(self._device, non_blocking=True)

    def read_figures(self) -> dict[str, Any]:
        """Mean loss since the last call, and the last step's rate and norm; waits for the device."""
        loss, prior, norm = torch.stack(
            [self._loss_sum / self._steps, self._prior_sum / self._steps, self._gradient_norm]
        ).tolist()
        self._loss_sum.zero_()
        self._prior_sum.zero_()
        self._steps = 0
        return {
            "loss": loss,
            **({"prior_loss": prior} if prior else {}),
            "lr": self._optimizer.param_groups[0]["lr"],
            "gradient_norm": norm if math.isfinite(norm) else None,
        }

    def largest_weight(self) -> float:
        """Largest LoRA weight, not a number where one is not."""
        return float(torch.stack([p.detach().abs().max() for p in self._lora.values()]).max())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on, as tensors and as JSON.

        No state of a random generator: every step makes its own from the seed.
        """
        tensors = {"loss_sum": self._loss_sum, "prior_sum": self._prior_sum}
        for name, parameter in self._lora.items():
            tensors[f"lora.{name}"] = parameter
        states, numbers = pack_optimizer(self._optimizer, self._lora)
        tensors |= {f"optimizer.{name}": state for name, state in states.items()}
        return tensors, {
            "steps_since_logged": self._steps,
            "scaler": self._scaler.state_dict(),
            "optimizer": numbers,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what `state` gave.

        Raises:
            SynthdetError: The checkpoint is of another LoRA.
        """
        tensors = checkpoint.tensors
        kept = {name for name in tensors if name.startswith("lora.")}
        if kept != {f"lora.{name}" for name in self._lora}:
            raise SynthdetError(
                f"checkpoint step-{checkpoint.step:06d} is of another LoRA: train anew with --redo"
            )
        for name, parameter in self._lora.items():
            parameter.data.copy_(tensors[f"lora.{name}"])
        states = {
            name.removeprefix("optimizer."): tensor
            for name, tensor in tensors.items()
            if name.startswith("optimizer.")
        }
        unpack_optimizer(self._optimizer, self._lora, states, checkpoint.numbers["optimizer"])
        self._loss_sum.copy_(tensors["loss_sum"])
        self._prior_sum.copy_(tensors["prior_sum"])
        self._steps = int(checkpoint.numbers["steps_since_logged"])
        self._scaler.load_state_dict(checkpoint.numbers["scaler"])


# --- pure ------------------------------------------------------------------------------------------


def learning_rate_factor(step: int, num_warmup_steps: int, num_steps: int) -> float:
    """Share of the learning rate at step ``step`` (from 1): a linear rise, then half a cosine.

    Examples:
        >>> [round(learning_rate_factor(step, 2, 6), 2) for step in (1, 2, 3, 4, 5, 6)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step <= num_warmup_steps:
        return step / num_warmup_steps
    done = (step - 1 - num_warmup_steps) / (num_steps - num_warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def signal_to_noise(alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio (of variances) at each timestep."""
    return alphas_cumprod / (1 - alphas_cumprod)


def weigh_animals(covered: Tensor, signal: Tensor, weight: float) -> Tensor:
    """Weights of a picture's cells, of mean 1: a picture without animals counts as much as one with.

    Animals count more only as far as the noise lets them be seen. Where nobody can tell where they
    are, a weight on the places where they were teaches to draw pieces of them everywhere.

    Args:
        covered: ``(n, 1, height, width)``, share of each cell inside a box, 0..1.
        signal: ``(n,)``, share of the signal in the noise (alpha bar of the timestep), 0..1.
        weight: Added to a cell that lies in a box, without noise.

    Examples:
        >>> cells = torch.tensor([[[[1.0, 0.0]]]])
        >>> [weigh_animals(cells, torch.tensor([seen]), 2.0).flatten().tolist() for seen in (0, 1)]
        [[1.0, 1.0], [1.5, 0.5]]
    """
    inside = 1 + weight * signal.view(-1, 1, 1, 1) * covered
    return inside / inside.mean(dim=(2, 3), keepdim=True)


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Loss weights that keep the nearly clean timesteps from dominating.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
    section 3.4, written for a squared error of the noise, or of the velocity.

    Args:
        snr: ``(n,)``.
        gamma: Largest weight, on the scale of a squared error of the clean picture.
        prediction_type: "epsilon" or "v_prediction".
    """
    clamped = snr.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return clamped / (snr + 1)
    return clamped / snr.clamp(min=1e-8)  # zero terminal SNR: weight 0, not 0 / 0
