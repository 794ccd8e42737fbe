"""A YOLO dataset as ultralytics itself reads it, in the process that ultralytics lives in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from synthdet.core.records import Split
from synthdet.models.detector import DetectorProcess
from synthdet.models.protocols import ReadPicture


class UltralyticsReader:
    """Reads through `ultralytics.data`: its paths, its checks of pictures and labels.

    Args:
        process: Where ultralytics lives.
    """

    def __init__(self, process: DetectorProcess) -> None:
        self._process = process

    def read(self, data_yaml: Path, split: Split) -> Iterator[ReadPicture]:
        """Every picture of a split, by name, as ultralytics would train on it.

        Raises:
            SynthdetError: It refuses the dataset.
        """
        with tempfile.TemporaryDirectory(prefix="synthdet-read-") as folder:
            found = Path(folder) / "pictures.jsonl"
            job = {"job": "read", "data_yaml": str(data_yaml.resolve())}
            self._process.ask({**job, "split": split, "found": str(found)})
            with found.open(encoding="utf-8") as lines:
                for line in lines:
                    name, width, height, boxes, complaint = json.loads(line)
                    yield ReadPicture(name, width, height, boxes, complaint)
