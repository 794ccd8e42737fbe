"""Where the networks run, in which precision, and what happens when memory runs out."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from synthdet.errors import SynthdetError


def resolve_device(name: str) -> str:
    """Turn "auto" into "cuda" where there is one, else "cpu".

    Raises:
        SynthdetError: "cuda" was asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SynthdetError(
            "device: cuda was asked for and this machine has none: set device to auto"
        )
    return name


def resolve_dtype(mixed_precision: str, device: str) -> torch.dtype:
    """The type of the frozen weights and of the forward pass.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; or "auto": what the device multiplies fastest without
            losing range, bf16 where it has it, else fp16 on a GPU and float32 on a CPU.
        device: "cpu" or "cuda".

    Raises:
        SynthdetError: The device cannot do it; says what it can.
    """
    if mixed_precision == "auto":
        if _multiplies_bf16(device):
            return torch.bfloat16
        return torch.float16 if device == "cuda" else torch.float32
    if mixed_precision == "no":
        return torch.float32
    if mixed_precision == "fp16":
        if device == "cpu":
            raise SynthdetError("mixed_precision: fp16 needs a GPU: set it to auto")
        return torch.float16
    if device == "cuda" and not _multiplies_bf16(device):
        raise SynthdetError(
            f"mixed_precision: {torch.cuda.get_device_name()} has no bf16: set it to auto"
        )
    return torch.bfloat16


def _multiplies_bf16(device: str) -> bool:
    """Whether in hardware: emulated it is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for it.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's ways of running out of memory into `MemoryError`, with the memory freed."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        # The frames that failed hold their tensors as long as the error is chained to.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise MemoryError(str(error).strip().split("\n", maxsplit=1)[0]) from error
