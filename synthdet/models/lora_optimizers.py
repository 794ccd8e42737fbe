"""Optimizers of a LoRA's training, none of which waits for the device."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter

from synthdet.errors import SynthdetError

_WEIGHT_DECAY: Final = 1e-2


class Prodigy(torch.optim.Optimizer):
    """AdamW that finds its own learning rate, on one flat buffer and without a device sync.

    The distance estimate ``d`` and what it is made of stay on the device as 0-dimensional tensors,
    so a step is about thirty operations, whatever the number of parameters. All parameters are moved
    into one buffer and become views of it: create the optimizer after the model is on its device.

    Source: Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023,
    algorithm 4, with the decoupled weight decay, bias correction and safeguarded warm-up of the
    authors' own program.

    Args:
        params: float32, all on one device; a gradient that is None counts as zeros.
        lr: Factor on the estimated rate; 1 is what the method is made for.
        betas: Decay of the means of gradients and of their squares.
        eps: Added to the root of the mean square.
        weight_decay: Decoupled, as in AdamW.
        d0: First estimate of the distance; too small costs a few steps, too large diverges.
        max_gradient_norm: Gradients are shortened to it; None: not at all.

    Attributes:
        gradient_norm: Of the last step's gradients as they came, 0-dimensional, on the device.
    """

    def __init__(
        self,
        params: Sequence[Parameter],
        *,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        max_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(
            list(params), {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._params = list(params)
        self._d0, self._max_norm = d0, max_gradient_norm
        self._weights = torch.cat([p.detach().reshape(-1) for p in self._params])
        self._gradients = torch.zeros_like(self._weights)
        self._scratch = torch.zeros_like(self._weights)
        self.gradient_norm = torch.zeros((), device=self._weights.device)
        self._gradient_views = self._split(self._gradients)
        for parameter, view in zip(self._params, self._split(self._weights), strict=True):
            parameter.data = view
        self._steps = 0
        self._flat = {
            "exp_avg": torch.zeros_like(self._weights),
            "exp_avg_sq": torch.zeros_like(self._weights),
            "s": torch.zeros_like(self._weights),
            "start": self._weights.clone(),
            # In float32 the sums over hundreds of steps would lose the small early terms.
            "d": torch.full((), d0, dtype=torch.float64, device=self._weights.device),
            "d_numerator": torch.zeros((), dtype=torch.float64, device=self._weights.device),
        }

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [p.numel() for p in self._params])
        return [part.view_as(p) for part, p in zip(parts, self._params, strict=True)]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the parameters' gradients."""
        if closure is not None:
            raise ValueError("closure: not supported")
        group, flat = self.param_groups[0], self._flat
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        beta3 = math.sqrt(beta2)
        correction = math.sqrt(1 - beta2 ** (self._steps + 1)) / (1 - beta1 ** (self._steps + 1))
        gradients, weights, d = self._gather_gradients(), self._weights, flat["d"]
        rate = d * (lr * correction)
        # Buffers are used again and again: on a CPU new ones of this size cost as much as the sums.
        progress = torch.dot(gradients, torch.sub(flat["start"], weights, out=self._scratch))
        shorter = self._shorten(gradients)
        flat["d_numerator"].mul_(beta3).add_(rate * progress * shorter * d / self._d0)
        scaled = gradients.mul_((d * shorter).float())
        flat["exp_avg"].lerp_(scaled, 1 - beta1)
        flat["exp_avg_sq"].mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        flat["s"].mul_(beta3).addcmul_(scaled, (d / self._d0).float())

        distance = torch.linalg.vector_norm(flat["s"], 1, dtype=torch.float64)
        # Where no gradient has come yet this is 0 / 0: the estimate stays.
        estimate = torch.nan_to_num(flat["d_numerator"] / distance, nan=0.0, posinf=0.0)
        d.copy_(torch.maximum(d, estimate))
        scale = torch.sqrt(flat["exp_avg_sq"], out=self._scratch).add_((d * group["eps"]).float())
        if decay:
            weights.addcmul_(weights, (-decay * rate).float())
        direction = torch.mul(flat["exp_avg"], (-rate).float(), out=self._gradients)
        weights.addcdiv_(direction, scale)
        self._steps += 1

    def _shorten(self, gradients: Tensor) -> Tensor:
        """Factor that brings the gradients to their largest norm, at most 1."""
        self.gradient_norm = torch.linalg.vector_norm(gradients)
        if self._max_norm is None:
            return torch.ones_like(self.gradient_norm)
        return (self._max_norm / (self.gradient_norm + 1e-6)).clamp(max=1.0)

    def _gather_gradients(self) -> Tensor:
        """All gradients in one buffer, in one call."""
        pairs = [
            (view, parameter.grad)
            for view, parameter in zip(self._gradient_views, self._params, strict=True)
            if parameter.grad is not None
        ]
        if len(pairs) < len(self._params):
            self._gradients.zero_()
        if pairs:
            torch._foreach_copy_([view for view, _ in pairs], [gradient for _, gradient in pairs])
        return self._gradients

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the next step depends on besides the weights: tensors by name, and numbers."""
        return dict(self._flat), {"steps": self._steps}

    def unpack(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take over what `pack` gave."""
        for name, tensor in self._flat.items():
            tensor.copy_(tensors[name])
        self._steps = int(numbers["steps"])


def make_optimizer(
    name: str,
    parameters: Sequence[Parameter],
    learning_rate: float,
    *,
    max_gradient_norm: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a training.

    Args:
        name: "adamw" (one fused call), "adamw8bit" (states of 8 bits, from bitsandbytes) or "prodigy".
        parameters: float32, on their device.
        learning_rate: At its highest; for Prodigy the factor on the rate it finds.
        max_gradient_norm: Prodigy shortens gradients itself; those of the others the caller shortens.

    Raises:
        SynthdetError: bitsandbytes is not installed, or cannot work here.
    """
    if name == "prodigy":
        return Prodigy(
            parameters,
            lr=learning_rate,
            weight_decay=_WEIGHT_DECAY,
            max_gradient_norm=max_gradient_norm,
        )
    if name == "adamw8bit":
        try:
            bitsandbytes = importlib.import_module("bitsandbytes")
        except (ImportError, OSError, RuntimeError) as error:
            raise SynthdetError(
                "finetune.optimizer: adamw8bit needs bitsandbytes, which cannot be imported: pip install "
                "bitsandbytes, or set it to adamw (for a LoRA the saving is about 0.15 GB)"
            ) from error
        made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            parameters, lr=learning_rate, weight_decay=_WEIGHT_DECAY
        )
        return made
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)


def pack_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors, named ``<key>.<parameter>``, and as JSON."""
    if isinstance(optimizer, Prodigy):
        return optimizer.pack()
    tensors, numbers = {}, {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            if not isinstance(value, Tensor):
                numbers[f"{key}.{name}"] = value
            else:
                # bitsandbytes shares its table of 8-bit values among all parameters.
                tensors[f"{key}.{name}"] = value.clone() if key.startswith("qmap") else value
    return tensors, numbers


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Take over what `pack_optimizer` gave.

    Raises:
        KeyError: It is the state of another optimizer.
    """
    if isinstance(optimizer, Prodigy):
        optimizer.unpack(tensors, numbers)
        return
    for key_and_name, value in [*tensors.items(), *numbers.items()]:
        key, _, name = key_and_name.partition(".")
        parameter = parameters[name]
        if isinstance(value, Tensor):
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value
