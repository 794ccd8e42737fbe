"""Compiling the UNet's transformer blocks while a LoRA is trained, where that pays back within its steps.

A compiled step rounds otherwise than one that is not, so from which step on it is compiled is written
into ``compile.json`` before a checkpoint can hold its doing, and a training that goes on repeats it.

Blocks and not the whole network: SDXL has 70 of them in two widths, each compiled once for a shape of
pictures; they hold most of the work. Static: a graph for every shape, none for a range of them.
Source: diffusers' ``compile_repeated_blocks`` (regional compilation).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from synthdet.workspace import read_json, write_json

COMPILE_NAME: Final = "compile.json"
_STRIDE: Final = 10
"""Steps between two that are timed: after them the log has waited for the device."""
_SAVED: Final = {"cuda": 0.15, "cpu": 0.0}
"""Share of a step's time that compiled blocks are taken to save: careful for a GPU; on a CPU measured, none."""
_SECONDS_A_SHAPE: Final = 60.0
"""What compiling for one shape of pictures is taken to cost."""
_PAYS_BACK: Final = 2.0
"""Times over: both figures above may be wrong."""
_MOST_GRAPHS: Final = 256
_BACKEND = "inductor"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided, once.

    Attributes:
        from_step: The first step that is compiled; None for none.
        to_step: The last one; None for all that follow.
        reason: In words.
        setting: `finetune.compile` as it was then.
    """

    from_step: int | None
    to_step: int | None
    reason: str
    setting: str

    def covers(self, step: int) -> bool:
        """Whether a step is compiled."""
        return (
            self.from_step is not None
            and self.from_step <= step
            and (self.to_step is None or step <= self.to_step)
        )


class Compiling:
    """Decides whether a training is compiled, and remembers it in the training's folder.

    Args:
        setting: "auto", "never" or "always".
        folder: Of the training.
        device: Of the networks.
        num_shapes: Different shapes of pictures that a step may have, as the blocks see them.
        num_steps: That are planned.
        blocked: Why it cannot be compiled, or decided by one process; None where it can.
        start: Steps that are done. Where none is, nothing binds: what an earlier try came to is dropped,
            and not even read, so that the first process may drop it while others start.
        writes: Whether this process writes the choice down; of several the first.
        note: Hears it.
    """

    def __init__(
        self,
        setting: str,
        folder: Path,
        *,
        device: str,
        num_shapes: int,
        num_steps: int,
        blocked: str | None,
        start: int,
        writes: bool,
        note: Callable[[str], None],
    ) -> None:
        self._path, self._device, self._setting = folder / COMPILE_NAME, device, setting
        self._num_shapes, self._num_steps = num_shapes, num_steps
        self._writes, self._note = writes, note
        self._marked: tuple[int, float] | None = None
        if start == 0 and writes:
            self._path.unlink(missing_ok=True)
        self.choice = self._read() if start else None
        if self.choice is not None:
            return
        if setting == "never":
            self._keep(Choice(None, None, "finetune.compile is never", setting))
        elif blocked is not None:
            self._choose(None, blocked)
        elif setting == "always":
            self._choose(start + 1, "finetune.compile is always")
        elif not _SAVED[device]:
            self._choose(None, "on a CPU compiled steps are no faster")

    def _read(self) -> Choice | None:
        """What was decided before, and said again; None where nothing was."""
        if not self._path.exists():
            return None
        choice = Choice(**read_json(self._path))
        if choice.setting != self._setting:
            self._note(
                f"finetune.compile is now {self._setting}, but this training goes on as it began, "
                f"with {choice.setting} ({say(choice)}): --redo starts another"
            )
        elif self._setting != "never":
            self._note(f"{say(choice)}, as this training began: {choice.reason}")
        return choice

    def is_on(self, step: int) -> bool:
        """Whether step number ``step`` is compiled."""
        return self.choice is not None and self.choice.covers(step)

    def mark(self, step: int, *, paused: bool) -> None:
        """A step is done with all that belongs to it: every tenth time, the next ten are timed.

        Args:
            step: Its number.
            paused: Whether a held-out loss or a checkpoint belonged to it, which ten timed steps do
                not hold.
        """
        if self.choice is not None:
            return
        if step % _STRIDE == 0:
            self._marked = (step, time.monotonic())
        elif paused:
            self._marked = None

    def look(self, step: int) -> None:
        """Decide, where a step has just been waited for and those before it were timed."""
        if self.choice is not None or self._marked is None or step != self._marked[0] + _STRIDE:
            return
        seconds = (time.monotonic() - self._marked[1]) / _STRIDE
        pays, reason = weigh(
            self._device, seconds, self._num_steps - step, num_shapes=self._num_shapes
        )
        self._choose(step + 1 if pays else None, reason)

    def give_up(self, step: int, why: str) -> None:
        """Go on without it from a step on, which is compiled and whose compiling failed."""
        before = self.choice or Choice(step, None, "", self._setting)
        reason = f"it failed at step {step} ({why})"
        if before.from_step is not None and before.from_step < step:
            self._say_and_keep(replace(before, to_step=step - 1, reason=reason))
        else:
            self._say_and_keep(replace(before, from_step=None, to_step=None, reason=reason))

    def _choose(self, from_step: int | None, reason: str) -> None:
        self._say_and_keep(Choice(from_step, None, reason, self._setting))

    def _say_and_keep(self, choice: Choice) -> None:
        self._keep(choice)
        self._note(f"{say(choice)}: {choice.reason}")

    def _keep(self, choice: Choice) -> None:
        self.choice = choice
        if self._writes:
            write_json(self._path, asdict(choice))


def say(choice: Choice) -> str:
    """A choice in a few words.

    Examples:
        >>> say(Choice(21, None, "", "auto"))
        'compiled from step 21 on'
        >>> say(Choice(None, None, "", "auto"))
        'not compiled'
    """
    if choice.from_step is None:
        return "not compiled"
    if choice.to_step is not None:
        return f"compiled from step {choice.from_step} to {choice.to_step}"
    return f"compiled from step {choice.from_step} on"


def weigh(device: str, seconds: float, steps_left: int, *, num_shapes: int) -> tuple[bool, str]:
    """Whether compiling pays back, and the sum in words.

    Args:
        device: "cpu" or "cuda".
        seconds: Of a step that is not compiled.
        steps_left: That are still to be done.
        num_shapes: Different shapes of pictures, each compiled for itself.

    Examples:
        >>> weigh("cuda", 1.2, 1180, num_shapes=1)
        (True, '1180 steps of 1.2 s are left, 15 % of that is 212 s, compiling about 60 s')
        >>> weigh("cuda", 0.03, 1180, num_shapes=1)[0]
        False
    """
    gain, cost = _SAVED[device] * seconds * steps_left, _SECONDS_A_SHAPE * num_shapes
    reason = (
        f"{steps_left} steps of {seconds:.2g} s are left, {100 * _SAVED[device]:.0f} % of that is "
        f"{gain:.0f} s, compiling about {cost:.0f} s"
    )
    return gain >= _PAYS_BACK * cost, reason


@contextmanager
def compiled_blocks(unet: Any) -> Iterator[None]:
    """Compile a UNet's transformer blocks as they are met, and let go of them afterwards."""
    blocks = [module for module in unet.modules() if type(module).__name__ in unet._repeated_blocks]
    # A limit that is met is no error but leaves a block uncompiled: which one, would hang on the
    # order of the shapes, and with it on where a training was cut off.
    limits = {"recompile_limit": _MOST_GRAPHS, "accumulated_recompile_limit": _MOST_GRAPHS}
    with torch._dynamo.config.patch(limits):
        for block in blocks:
            block.compile(backend=_BACKEND, dynamic=False)
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None
            torch.compiler.reset()


def compile_errors() -> tuple[type[BaseException], ...]:
    """What torch raises where it cannot compile: no compiler, a network that it cannot read."""
    return (torch._dynamo.exc.TorchDynamoException,)


def tell_failure(error: BaseException) -> str:
    """Why compiling failed, in a line; empties the frames of the step that was broken off.

    They hold its activations, as long as something holds the error: a second try needs that memory.
    """
    told = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    behind: BaseException | None = error
    while behind is not None:
        traceback.clear_frames(behind.__traceback__)
        behind = behind.__cause__ or behind.__context__
    return told
