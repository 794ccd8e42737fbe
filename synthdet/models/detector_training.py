"""What the trainings of all detectors have in common: their plan, and the choice of weights on val.

The plan counts optimizer steps and not epochs, so that arms of different size get the same training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthdet.core.comparison import Floats, match_detections, precision_without_groups
from synthdet.core.records import DetectedBox
from synthdet.models.detector_pictures import Dataset, read_labelled

NUM_VALIDATIONS = 10
"""Times in a training that the averaged weights are tried on val."""
VAL_CONFIDENCE = 0.001
"""Boxes on val count down to this confidence, as the measure's curve needs them."""
WHOLE_FROM = 0.8
"""Share of the steps after which pictures are seen as they will be: whole, at their own size."""
_MAX_FOLDS = 50
"""Parts of val that are left out in turn, to tell how much the measure there is worth."""


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that a training depends on. ``learning_rate`` None: what suits the detector."""

    data_yaml: Path
    weights_dir: Path
    seed: int
    max_train_steps: int
    train_batch_size: int
    learning_rate: float | None
    image_size: int


def learning_rate_share(step: int, max_train_steps: int) -> float:
    """Share of the learning rate at a step, 0..1: up over a tenth of the steps, down to a hundredth.

    Examples:
        >>> [round(learning_rate_share(step, 100), 2) for step in (0, 9, 10, 60, 99)]
        [0.1, 1.0, 1.0, 0.45, 0.02]
    """
    warmup = max(1, max_train_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * (max_train_steps - step) / max(1, max_train_steps - warmup)


def validation_steps(max_train_steps: int) -> set[int]:
    """Numbers of steps done after which val is looked at; the last is one of them.

    Examples:
        >>> sorted(validation_steps(20))
        [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    """
    return {round((i + 1) * max_train_steps / NUM_VALIDATIONS) for i in range(NUM_VALIDATIONS)}


def plan_batches(
    num_pictures: int, *, batch_size: int, num_batches: int, seed: int
) -> list[list[int]]:
    """Pictures of every step: the whole set in one shuffled order after another.

    Every picture comes up equally often, give or take one, whatever the size of the set.

    Examples:
        >>> batches = plan_batches(3, batch_size=2, num_batches=3, seed=0)
        >>> sorted(sum(batches, []))
        [0, 0, 1, 1, 2, 2]
    """
    generator = np.random.default_rng(seed)
    wanted = batch_size * num_batches
    rounds = [generator.permutation(num_pictures) for _ in range(math.ceil(wanted / num_pictures))]
    order = np.concatenate(rounds)[:wanted].tolist()
    return [order[i : i + batch_size] for i in range(0, wanted, batch_size)]


class Validation:
    """The val pictures' true boxes, kept in memory if there are any."""

    def __init__(self, dataset: Dataset) -> None:
        self._truths = [read_labelled(path).boxes() for path in dataset.val]
        self._paths = [Path(path) for path in dataset.val] if any(self._truths) else []
        self._num_classes = len(dataset.class_names)

    def look(self, draw: Callable[[Sequence[Path]], list[list[DetectedBox]]]) -> Floats:
        """map50_95 on val, and without each of some parts of it; all 0 where it has no box.

        Args:
            draw: The network: files to boxes, in pixels of the files.
        """
        if not self._paths:
            return np.zeros(1)
        matches = match_detections(self._truths, draw(self._paths), num_classes=self._num_classes)
        folds = [f"{index % _MAX_FOLDS:02d}" for index in range(len(self._paths))]
        looks: Floats = precision_without_groups(matches, folds).mean(axis=1)
        return looks
