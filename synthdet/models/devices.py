"""Where the networks run."""

from __future__ import annotations

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
