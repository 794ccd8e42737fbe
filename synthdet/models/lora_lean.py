"""LoRA layers that do no more than they must while they are trained.

peft's layer serves every variant there is: it casts its input to float32, which autograd then keeps, and
takes twice the operations. A training step at 512 pixels on a fast GPU is bound by the number of
operations, so the linear layers of a plain LoRA take this way instead; peft's own layers stand as they
are underneath, and are what is saved and read back. Convolutions with nearly as many ranks as channels,
and attention over few tokens on a CPU, have a shorter way too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_FEW_SCORES = 128 * 128
"""Queries times keys of a head, up to which a CPU goes back faster over the scores written out."""
_MANY_HEADS = 32
"""Heads of all pictures of a pass, below which it does not: the scores take many operations more, and with
little to do in each their number is the time."""


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


class LoraProjections(torch.autograd.Function):
    """Several `LoraLinear` of one input, without bias, side by side: queries, keys and values.

    W is that of all of them, stacked; so is A, for the one product that all share.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: float, *pairs: Tensor) -> Tensor:
        """Args: ``x (..., in)``, ``weight (k * out, in)``, and A and B of each in turn; ``(..., k * out)``."""
        dtype, number = weight.dtype, len(pairs) // 2
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        a = torch.cat(pairs[0::2]).to(dtype)
        downs = [b.to(dtype) for b in pairs[1::2]]
        hidden = flat @ a.t()
        if scale != 1:
            hidden *= scale
        y = flat @ weight.t()
        for part, low, b in zip(y.chunk(number, 1), hidden.chunk(number, 1), downs, strict=True):
            part.addmm_(low, b.t())
        ctx.save_for_backward(flat, hidden, weight, a, *downs)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, pairs[0].dtype)
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of x (where it is wanted) and of each A and B."""
        flat, hidden, weight, a, *downs = ctx.saved_tensors
        dtype_x, dtype_lora = ctx.dtypes
        number = len(downs)
        grad = grad.reshape(-1, weight.shape[0]).to(weight.dtype)
        grads, lows = [], []
        chunks = (grad.chunk(number, 1), hidden.chunk(number, 1))
        for part, low, b in zip(*chunks, downs, strict=True):
            grads.append((part.t() @ low).to(dtype_lora))
            lows.append(part @ b)
        grad_hidden = torch.cat(lows, 1)
        if ctx.scale != 1:
            grad_hidden *= ctx.scale
        grad_a = (grad_hidden.t() @ flat).to(dtype_lora).chunk(number)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(grad @ weight, grad_hidden, a).view(ctx.shape).to(dtype_x)
        pairs = (part for pair in zip(grad_a, grads, strict=True) for part in pair)
        return grad_x, None, None, *pairs


@contextmanager
def lean_layers(network: nn.Module, *, for_compiling: bool = False) -> Iterator[int]:
    """Let the linear layers of a network's plain LoRA take the short way, and give them back.

    Attentions that have one on queries, keys and values project them together. The base's weights of
    these then lie in one piece, and stay so. A convolution whose LoRA is more work than its own weights'
    gradient adds the two up first, but not for compiling. Left as they are: other convolutions, a DoRA,
    and whatever has a dropout or another adapter.

    Args:
        network: With the one adapter ``default``.
        for_compiling: Look weights up in their modules at every call: slower, but then torch compiles
            blocks of one shape once. Tensors that are bound beforehand it takes for constants.

    Yields:
        How many layers do.
    """
    taken: list[Any] = [module for module in network.modules() if _is_plain(module, nn.Linear)]
    for layer in taken:
        layer.forward = (
            MethodType(_forward_by_module, layer)
            if for_compiling
            else partial(_forward, *_find_weights(layer))
        )
    convolutions: list[Any] = [module for module in network.modules() if _is_better_merged(module)]
    for layer in () if for_compiling else convolutions:
        layer.forward = partial(_convolve, layer)
        taken.append(layer)
    attentions: list[Any] = [module for module in network.modules() if _is_ordinary(module)]
    for attention in attentions:
        weight = _stack(attention)
        if for_compiling:
            attention.stacked_weight = weight
            attention.forward = MethodType(_attend_by_module, attention)
        else:
            attention.forward = partial(
                _attend, attention, attention.is_cross_attention, weight, *_find_pairs(attention)
            )
    try:
        yield len(taken)
    finally:
        for module in (*taken, *attentions):
            del module.forward
        for attention in attentions if for_compiling else ():
            del attention.stacked_weight


def _find_weights(layer: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float]:
    """What `LoraLinear` takes beside x."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return layer.base_layer.weight, layer.base_layer.bias, a, b, layer.scaling["default"]


def _find_projected(attention: Any) -> list[Any]:
    """Layers of an attention that share an input."""
    layers = [attention.to_k, attention.to_v]
    return layers if attention.is_cross_attention else [attention.to_q, *layers]


def _find_pairs(attention: Any) -> tuple[float, tuple[Tensor, ...]]:
    """Scale, and A and B of each of these layers in turn."""
    layers = _find_projected(attention)
    pairs = tuple(
        side["default"].weight for layer in layers for side in (layer.lora_A, layer.lora_B)
    )
    return layers[0].scaling["default"], pairs


def _stack(attention: Any) -> Tensor:
    """W of these layers in one piece, of which theirs become views."""
    layers = _find_projected(attention)
    weight = torch.cat([layer.base_layer.weight.detach() for layer in layers])
    for layer, part in zip(layers, weight.chunk(len(layers)), strict=True):
        layer.base_layer.weight.data = part
    return weight


def _attend(
    attention: Any,
    crossed: bool,
    weight: Tensor,
    scale: float,
    pairs: tuple[Tensor, ...],
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """What diffusers' `AttnProcessor2_0` does for SDXL, with the projections together."""
    if attention_mask is not None or crossed == (encoder_hidden_states is None):
        answer: Tensor = type(attention).forward(
            attention, hidden_states, encoder_hidden_states, attention_mask, **options
        )
        return answer
    source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    made: Tensor = LoraProjections.apply(source, weight, scale, *pairs)
    heads = attention.heads
    parts = made.view(*made.shape[:-1], len(pairs) // 2, heads, -1).unbind(2)
    if crossed:
        query = attention.to_q(hidden_states)
        parts = (query.view(*query.shape[:-1], heads, -1), *parts)
    query, key, value = (part.transpose(1, 2) for part in parts)
    seen = _attend_to(query, key, value)
    seen = seen.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)
    projected: Tensor = attention.to_out[0](seen)
    return projected


def _attend_to(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot product attention: ``(n, heads, tokens, width)`` each, as the first.

    torch's fused one saves memory; going back through it over 64 tokens of many heads takes some CPUs
    several times as long as over the scores written out. In 16 bits the latter would round more.
    """
    on_cpu = query.device.type == "cpu" and query.dtype == torch.float32
    few = on_cpu and query.shape[-2] * key.shape[-2] <= _FEW_SCORES
    many = query.shape[0] * query.shape[1] >= _MANY_HEADS
    with sdpa_kernel(SDPBackend.MATH) if few and many else nullcontext():
        seen: Tensor = nn.functional.scaled_dot_product_attention(query, key, value)
    return seen


def _attend_by_module(
    attention: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    return _attend(
        attention,
        attention.is_cross_attention,
        attention.stacked_weight,
        *_find_pairs(attention),
        hidden_states,
        encoder_hidden_states,
        attention_mask,
        **options,
    )


def _forward_by_module(layer: Any, x: Tensor, *_rest: Any) -> Tensor:
    return _forward(*_find_weights(layer), x)


def _forward(
    weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, x: Tensor, *_rest: Any
) -> Tensor:
    made: Tensor = LoraLinear.apply(x, weight, bias, a, b, scale)
    return made


def _convolve(layer: Any, x: Tensor, *_rest: Any) -> Tensor:
    base = layer.base_layer
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    learned = layer.scaling["default"] * (b.flatten(1) @ a.flatten(1)).view_as(base.weight)
    made: Tensor = base._conv_forward(x, base.weight + learned, base.bias)
    return made


def _is_better_merged(module: Any) -> bool:
    """A convolution whose LoRA's three products a step are more work than its weights' gradient."""
    if not _is_plain(module, nn.Conv2d):
        return False
    down, base = module.lora_A["default"], module.base_layer
    if base.weight.dtype != torch.float32:  # what a LoRA adds would be rounded away
        return False
    # peft leaves some of these out.
    same = ("stride", "padding", "dilation", "padding_mode", "groups")
    if base.groups != 1 or any(getattr(down, name) != getattr(base, name) for name in same):
        return False
    rank, inputs, *kernel = down.weight.shape
    outputs, area = base.out_channels, math.prod(kernel)
    return bool(3 * rank * (inputs * area + outputs) >= inputs * area * outputs)


def _is_ordinary(module: Any) -> bool:
    """An attention as SDXL has it, with a plain LoRA on queries, keys and values."""
    if type(module) is not Attention or not isinstance(module.processor, AttnProcessor2_0):
        return False
    projections = (module.to_q, module.to_k, module.to_v)
    unusual = (module.spatial_norm, module.group_norm, module.norm_q, module.norm_k)
    return (
        all(_is_plain(layer, nn.Linear) and layer.base_layer.bias is None for layer in projections)
        and len({float(layer.scaling["default"]) for layer in projections}) == 1
        and len({layer.base_layer.weight.shape[0] for layer in projections}) == 1
        and all(one is None for one in unusual)
        and not module.norm_cross
        and not module.residual_connection
        and module.rescale_output_factor == 1
    )


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """A LoRA as it comes, and no variant of one, on a layer of that kind."""
    return (
        type(module) is {nn.Linear: Linear, nn.Conv2d: Conv2d}[kind]
        and type(module.base_layer) is kind
        and list(module.lora_A) == ["default"]
        and not module.lora_variant
        and not module.lora_bias["default"]
        and isinstance(module.lora_dropout["default"], nn.Identity)
    )
