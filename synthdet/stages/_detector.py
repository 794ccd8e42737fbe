"""A detector whose classes are the run's: what `label` and `predict` open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from synthdet.core.labelling import map_classes
from synthdet.errors import SynthdetError
from synthdet.models.detector import is_hub_name
from synthdet.models.protocols import Detector
from synthdet.workspace import hash_file, hash_json

BY_TEXT_WARNING = (
    "finds by text: from the air such detectors are weak (OWLv2: best F1 27.6 %, 69 % of its boxes "
    "false; arXiv:2601.22164), so look through the labels; fewer classes help, other words hardly"
)
"""What to say after the name of a detector that has not learned the run's classes."""

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
        class_map: Detector's name -> the run's name, for weights that a person named. One that was asked
            in words for the run's classes needs none.
        open_detector: Loads them.

    Returns:
        To be called where there is something to look at.

    Raises:
        SynthdetError: With the first call: as `map_classes`, or what loading has to tell.
    """

    @cache
    def opened() -> tuple[Detector, Mapping[int, int]]:
        detector = open_detector(weights)
        known = class_map if detector.queries is None else None
        return detector, map_classes(detector.names, class_names, known)

    return opened


def find_weights(name: str | Path, setting: str) -> Path:
    """The file or folder of a detector that a person named, or its hub name.

    Raises:
        SynthdetError: There is none; names the setting.
    """
    path = Path(name).expanduser()
    if not (path.exists() or is_hub_name(name)):
        raise SynthdetError(f"{setting}: there is no {path}")
    return path


def hash_weights(weights: Path) -> str:
    """Fingerprint of a detector's files; of a hub name alone, where there are none.

    Args:
        weights: File, folder or hub name.
    """
    if not weights.exists():
        return hash_json([str(weights)])
    files = sorted(weights.iterdir()) if weights.is_dir() else [weights]
    return hash_json([hash_file(path) for path in files if path.is_file()])
