"""A detector whose classes are the run's: what `label` and `predict` open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from synthdet.core.labelling import map_classes
from synthdet.models.protocols import Detector
from synthdet.workspace import hash_file, hash_json

Opened = Callable[[], tuple[Detector, Mapping[int, int]]]
"""Gives the detector, and its class ids in the run's; opened with the first call."""


def open_once(
    weights: Path,
    class_names: Sequence[str],
    class_map: Mapping[str, str] | None,
    open_detector: Callable[[Path], Detector],
) -> Opened:
    """Open a detector when it is first needed.

    Args:
        weights: File or folder.
        class_names: The run's.
        class_map: Detector's name -> the run's name, for weights that a person named.
        open_detector: Loads them.

    Returns:
        To be called where there is something to look at.

    Raises:
        SynthdetError: With the first call: as `map_classes`, or what loading has to tell.
    """

    @cache
    def opened() -> tuple[Detector, Mapping[int, int]]:
        detector = open_detector(weights)
        return detector, map_classes(detector.names, class_names, class_map)

    return opened


def hash_weights(weights: Path) -> str:
    """Fingerprint of a detector's files.

    Args:
        weights: File or folder.
    """
    files = sorted(weights.iterdir()) if weights.is_dir() else [weights]
    return hash_json([hash_file(path) for path in files if path.is_file()])
