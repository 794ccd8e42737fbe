"""Several processes that train one LoRA together, each on its own device.

Started by `accelerate launch` (or torchrun), which tells each its number in the environment. The first
does all that a single process does; the others wait for trainings, take their share of every step's
passes, and write nothing but latents. What a step sees is drawn for the whole step, so the number of
processes changes the time and the rounding, not the training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")
_PATIENCE = timedelta(days=7)
"""The others wait while the first draws pictures or measures: no sign that anything is wrong."""


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a training, as one of them sees them.

    Attributes:
        number: Of this process, from 0.
        size: How many there are.
    """

    number: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.number == 0

    def share(self, work: Sequence[_T]) -> Sequence[_T]:
        """This process's part of work that all know.

        Examples:
            >>> Team(1, 3).share("abcdefg")
            'be'
        """
        return work[self.number :: self.size]

    def join(self) -> None:
        """Meet the others, once, before anything else is asked of the team."""
        import torch

        if self.size == 1 or torch.distributed.is_initialized():
            return
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.number)))
            backend = "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)

    def leave(self) -> None:
        """Part from the others, once all have come to this; the last that is asked of the team.

        A process that ends without it may be aborted by the threads that listen to the others.
        """
        import torch

        if torch.distributed.is_initialized():
            self.wait()
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all are here."""
        self.agree(False)

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        import torch

        said = torch.tensor(int(flag))
        torch.distributed.all_reduce(said)
        return bool(said)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Turn each tensor into the sum of all processes' ones, in one go; nothing waits for the device.

        Args:
            tensors: float32, on the process's device; of the same shapes everywhere. Changed in place.
        """
        if self.size == 1:
            return
        import torch

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def tell(self, job: Any) -> None:
        """The first process hands a job to the others; None lets them go."""
        if self.size > 1:
            import torch

            torch.distributed.broadcast_object_list([job])

    def hear(self) -> Any:
        """The next job, in all processes but the first; None for no more."""
        import torch

        jobs = [None]
        torch.distributed.broadcast_object_list(jobs)
        return jobs[0]


def find_team() -> Team:
    """What the environment says; a team of one where nothing was launched."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in os.environ for name in names):
        return Team()
    return Team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
