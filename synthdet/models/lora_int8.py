"""A frozen network with its linear layers in 8 bits, by torchao: half the memory of 16."""

from __future__ import annotations

import importlib
from typing import Any

from synthdet.errors import SynthdetError


def to_int8(network: Any) -> None:
    """Keep the weights of a network's linear layers in 8 bits, a scale a row, in place.

    They are multiplied in the network's own precision. For the way back torchao keeps them in 16 bits
    again, layer by layer, so memory is saved only where activations are recomputed.

    Args:
        network: Frozen; without adapters.

    Raises:
        SynthdetError: torchao is not installed, or cannot work here.
    """
    try:
        quantization = importlib.import_module("torchao.quantization")
        plan = quantization.Int8WeightOnlyConfig()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise SynthdetError(
            "finetune.base_weights: int8 needs torchao 0.18 or newer, which cannot be imported: "
            "pip install torchao, or set it to full"
        ) from error
    quantization.quantize_(network, plan)
