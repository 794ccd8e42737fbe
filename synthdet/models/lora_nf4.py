"""A frozen network with its linear layers in 4 bits, by bitsandbytes: a quarter of the memory of 16.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, section 3 (4-bit
NormalFloat, with the scales themselves in 8 bits).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from synthdet.errors import SynthdetError


def to_nf4(network: Any) -> None:
    """Keep the weights of a network's linear layers in 4 bits, in place, from its next ``to`` on.

    They are widened layer by layer, in both passes, and multiplied in the network's own precision;
    nothing wide is kept for the way back, so memory is saved without checkpointing too.

    Args:
        network: Frozen; without adapters. peft is told that it is in 4 bits.

    Raises:
        SynthdetError: bitsandbytes is not installed, or cannot work here.
    """
    try:
        made = importlib.import_module("bitsandbytes.nn")
        linear, weights = made.Linear4bit, made.Params4bit
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise SynthdetError(
            "finetune.base_weights: nf4 needs bitsandbytes 0.50 or newer, which cannot be imported: "
            "pip install bitsandbytes, or set it to full"
        ) from error
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, _narrow(layer, linear, weights))
    network.is_loaded_in_4bit = True


def _narrow(layer: nn.Linear, linear: Any, weights: Any) -> Any:
    """The same layer as bitsandbytes has it; its weights become narrow when they reach a device."""
    with torch.device("meta"):
        narrow = linear(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            quant_type="nf4",
        )
    narrow.weight = weights(
        layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    narrow.bias = layer.bias
    # In `eval` on a CPU it would pack the weights anew for a kernel that takes multiples of 32 alone.
    narrow.support_avx512bf16_for_cpu = False
    return narrow
