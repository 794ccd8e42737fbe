"""What there is to look at in a run, read together: for FiftyOne and for the gallery alike."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from synthdet.core.curation import LAYOUT, ShownRun
from synthdet.core.doubts import doubt_annotations, doubt_tiles
from synthdet.core.records import (
    Decision,
    Detections,
    Label,
    Score,
    SyntheticImage,
    Tile,
    Verdict,
)
from synthdet.core.similarity import Embeddings
from synthdet.stages.filter_cache import EmbeddingCache
from synthdet.workspace import (
    Workspace,
    hash_file,
    hash_json,
    iter_records,
    read_json,
    read_records,
)

R = TypeVar("R", Score, Decision, Detections, Label)
_SHOWN_FILES: Final = (
    "1-prepare/dataset.json", "1-prepare/tiles.jsonl", "3-generate/images.jsonl", "4-filter/scores.jsonl",
    "4-filter/decisions.jsonl", "5-label/detections.jsonl", "5-label/labels.jsonl",
    "5-label/calibration.json", "5-label/val_detections.jsonl", "curation.jsonl",
)  # fmt: skip


class _Once(Mapping[str, R]):
    """A record file with one line a picture, for who goes through the pictures once, in its order or nearly.

    No more of it is read than is asked for, and a record is forgotten as soon as that of another picture
    is asked for.

    Args:
        path: The file. A missing one has no records.
        kind: Of its lines.

    Raises:
        SynthdetError: As `iter_records`, when a wrong line is met.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self._rest: Iterator[R] = iter_records(path, kind)
        self._passed: dict[str, R] = {}
        self._last: R | None = None

    def __getitem__(self, image_id: str) -> R:
        record = self._take(image_id)
        if record is None:
            raise KeyError(image_id)
        return record

    def get(self, image_id: str, default: Any = None) -> Any:
        """The picture's record, or the default."""
        return self._take(image_id) or default

    def _take(self, image_id: str) -> R | None:
        last = self._last
        if last is None or last.image_id != image_id:
            self._last = last = self._passed.pop(image_id, None) or self._find(image_id)
        return last

    def _find(self, image_id: str) -> R | None:
        for record in self._rest:
            if record.image_id == image_id:
                return record
            self._passed[record.image_id] = record
        return None

    def __iter__(self) -> Iterator[str]:
        raise TypeError("records that are forgotten when they were read cannot be gone through")

    def __len__(self) -> int:
        raise TypeError("records that are forgotten when they were read cannot be counted")


def dataset_name(run: Path) -> str:
    """Name of a run's dataset: its folder's name, and a short hash of where that is."""
    path = run.resolve()
    plain = re.sub(r"[^a-z0-9]+", "-", path.name.lower()).strip("-") or "run"
    return f"synthdet-{plain}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def read_run(workspace: Workspace, *, once: bool = False) -> ShownRun:
    """All that is shown of the run, as far as it has come.

    Args:
        workspace: The run.
        once: Who goes through the synthetic pictures once, in their order, is given detections and labels as
            they are asked for, and never holds more than one of them.

    Raises:
        SynthdetError: Prepare is not done: there is nothing to show.
    """
    workspace.stage("prepare").output()
    prepare, chosen = workspace.stage("prepare").path, workspace.stage("filter").path
    generated, labelled = workspace.stage("generate").path, workspace.stage("label").path
    tiles = read_records(prepare / "tiles.jsonl", Tile)
    images = read_records(generated / "images.jsonl", SyntheticImage)
    hashes = {tile.tile_id: tile.sha256 for tile in tiles}
    hashes |= {image.image_id: image.sha256 for image in images}
    detections, labels = labelled / "detections.jsonl", labelled / "labels.jsonl"
    verdicts = read_records(curation_path(workspace), Verdict)
    return ShownRun(
        root=str(workspace.root.resolve()),
        dataset=dataset_name(workspace.root),
        class_names=tuple(read_json(prepare / "dataset.json")["classes"]),
        tiles=tiles,
        images=images,
        scores=_read_by_image(chosen / "scores.jsonl", Score),
        decisions=_read_by_image(chosen / "decisions.jsonl", Decision),
        detections=_Once(detections, Detections)
        if once
        else _read_by_image(detections, Detections),
        labels=_Once(labels, Label) if once else _read_by_image(labels, Label),
        verdicts={
            one.image_id: one
            for one in verdicts
            if one.image_id in hashes and one.sha256 in (None, hashes[one.image_id])
        },
        tile_doubts=_doubt_real(workspace, tiles),
    )


def _read_by_image(path: Path, kind: type[R]) -> dict[str, R]:
    return {one.image_id: one for one in iter_records(path, kind)}


def run_fingerprint(workspace: Workspace) -> str:
    """Hash of all that is shown of the run: the same as long as its records are the same bytes.

    Raises:
        SynthdetError: Prepare is not done: there is nothing to show.
    """
    workspace.stage("prepare").output()
    lock = workspace.stage("filter").lock() or {}
    shown = [LAYOUT, str(workspace.root.resolve()), lock.get("settings", {}).get("model")]
    files = [workspace.root / name for name in _SHOWN_FILES]
    return hash_json([*shown, *(hash_file(path) if path.exists() else None for path in files)])


def read_hashes(workspace: Workspace) -> dict[str, str]:
    """Content hash of every picture, by its name in curation."""
    tiles = iter_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    images = iter_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    hashes = {tile.tile_id: tile.sha256 for tile in tiles}
    return hashes | {image.image_id: image.sha256 for image in images}


def _doubt_real(workspace: Workspace, tiles: Sequence[Tile]) -> dict[str, str]:
    """Doubts about the annotations of real tiles."""
    train = {tile.tile_id: tile for tile in tiles if tile.split == "train"}
    names, embeddings = read_embeddings(workspace, {i: t.sha256 for i, t in train.items()})
    doubts = doubt_tiles([train[name] for name in names], embeddings)
    labelled = workspace.stage("label").path
    if (labelled / "calibration.json").exists():
        confidence = read_json(labelled / "calibration.json")["accept_confidence"]
        found = read_records(labelled / "val_detections.jsonl", Detections)
        by_id = {one.image_id: one for one in found}
        doubts |= doubt_annotations([t for t in tiles if t.split == "val"], by_id, confidence)
    return doubts


def curation_path(workspace: Workspace) -> Path:
    """Where verdicts are recorded."""
    return workspace.root / "curation.jsonl"


def read_embeddings(
    workspace: Workspace, hashes: Mapping[str, str]
) -> tuple[list[str], Embeddings]:
    """What the filter's model said of pictures: those of ``hashes`` that it knows, and ``(n, dimensions)``."""
    folder = workspace.stage("filter")
    lock = folder.lock()
    if lock is None:
        return [], np.empty((0, 0), dtype=np.float32)
    cache = EmbeddingCache(folder.path / "embeddings", str(lock["settings"].get("model")))
    names = [
        name
        for name, sha256 in hashes.items()
        if sha256 in cache and cache.fault(sha256) is None
    ]  # fmt: skip
    return names, cache.rows([hashes[name] for name in names])
