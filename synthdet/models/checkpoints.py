"""Checkpoints of a training: whole or not there, checked when they are read, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from synthdet.workspace import hash_file, write_bytes, write_json

_TENSORS = "state.safetensors"
_NUMBERS = "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after a number of steps.

    Attributes:
        step: Steps done.
        tensors: Weights, optimizer state and the like, by name.
        numbers: Whatever else is needed, as JSON has it.
    """

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of one checkpoint, like ``step-000100``."""
    return folder / f"step-{step:06d}"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], *, keep: int
) -> None:
    """Write a checkpoint beside its place, rename it into it, then drop the oldest.

    Args:
        folder: Holds the checkpoints and nothing else.
        step: Steps done.
        tensors: By name.
        numbers: Ready for JSON.
        keep: Checkpoints to keep, this one among them.

    Raises:
        SynthdetError: The disk is full; the checkpoints before are untouched.
    """
    path = checkpoint_path(folder, step)
    temporary = folder / f".tmp-{path.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        content = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
        write_bytes(temporary / _TENSORS, content)
        write_json(
            temporary / _NUMBERS,
            {"step": step, "sha256": hash_file(temporary / _TENSORS), **numbers},
        )
        shutil.rmtree(path, ignore_errors=True)  # ours, and broken: else it would be the newest
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(folder)
    prune_checkpoints(folder, keep=keep)


def load_newest(folder: Path, *, note: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest whole checkpoint; None where there is none.

    Args:
        folder: Holds the checkpoints; need not exist.
        note: Hears of a broken one that is passed over.
    """
    for path in reversed(_list(folder)):
        try:
            numbers = json.loads((path / _NUMBERS).read_text(encoding="utf-8"))
            if hash_file(path / _TENSORS) != numbers.pop("sha256"):
                raise ValueError(f"{_TENSORS} is not what was written")
            step = int(numbers.pop("step"))
            return Checkpoint(step, load_file(path / _TENSORS), numbers)
        except (OSError, ValueError, KeyError) as error:
            note(f"checkpoint {path.name} is broken ({error}): going on from the one before")
    return None


def prune_checkpoints(folder: Path, *, keep: int) -> None:
    """Remove all checkpoints but the newest, and what a killed process left half written."""
    doomed = [*folder.glob(".tmp-*"), *_list(folder)[:-keep]]
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)


def _list(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
