"""LoRA layers that do no more than they must while they are trained.

peft's layer serves every variant there is: it casts its input to float32, which autograd then keeps, and
takes twice the operations. A training step at 512 pixels on a fast GPU is bound by the number of
operations, so the linear layers of a plain LoRA take this way instead; peft's own layers stand as they
are underneath, and are what is saved and read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class LoraLinear(torch.autograd.Function):
    """``y = x W^T + bias + scale * x A^T B^T`` with W frozen: three products forward, at most five back.

    Everything is in W's own precision but the gradients of A and B, which are in theirs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """Args: ``x (..., in)``, ``weight (out, in)``, ``bias (out,)``, ``a (rank, in)``, ``b (out, rank)``."""
        dtype = weight.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        narrow_a, narrow_b = a.to(dtype), b.to(dtype)
        hidden = flat @ narrow_a.t()
        if scale != 1:
            hidden *= scale
        y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        y.addmm_(hidden, narrow_b.t())
        ctx.save_for_backward(flat, hidden, weight, narrow_a, narrow_b)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, a.dtype, b.dtype)
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of x (where it is wanted), A and B."""
        flat, hidden, weight, a, b = ctx.saved_tensors
        dtype_x, dtype_a, dtype_b = ctx.dtypes
        grad = grad.reshape(-1, weight.shape[0]).to(weight.dtype)
        grad_b = (grad.t() @ hidden).to(dtype_b)
        grad_hidden = grad @ b
        if ctx.scale != 1:
            grad_hidden *= ctx.scale
        grad_a = (grad_hidden.t() @ flat).to(dtype_a)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(grad @ weight, grad_hidden, a).view(ctx.shape).to(dtype_x)
        return grad_x, None, None, grad_a, grad_b, None


@contextmanager
def lean_layers(network: nn.Module) -> Iterator[int]:
    """Let the linear layers of a network's plain LoRA take the short way, and give them back.

    Left as they are: convolutions, a DoRA, and whatever has a dropout or another adapter.

    Args:
        network: With the one adapter ``default``.

    Yields:
        How many layers do.
    """
    taken: list[Any] = [module for module in network.modules() if _is_plain(module)]
    for layer in taken:
        base = layer.base_layer
        layer.forward = partial(
            _forward,
            base.weight,
            base.bias,
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            float(layer.scaling["default"]),
        )
    try:
        yield len(taken)
    finally:
        for layer in taken:
            del layer.forward


def _forward(
    weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, x: Tensor, *_rest: Any
) -> Tensor:
    made: Tensor = LoraLinear.apply(x, weight, bias, a, b, scale)
    return made


def _is_plain(module: Any) -> bool:
    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and list(module.lora_A) == ["default"]
        and not module.lora_variant
        and not module.lora_bias["default"]
        and isinstance(module.lora_dropout["default"], nn.Identity)
    )
