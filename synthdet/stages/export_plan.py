"""What goes into an export, from the records of the stages before it: nothing is written here."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthdet.config import Config
from synthdet.core.boxes import MIN_SIDE, check_boxes
from synthdet.core.mixing import Candidate, Embeddings, Settled, choose, settle
from synthdet.core.records import (
    Box,
    Decision,
    Label,
    ManifestEntry,
    Photo,
    Score,
    Source,
    Split,
    SyntheticImage,
    Tile,
    Verdict,
)
from synthdet.core.splits import require_train
from synthdet.errors import SynthdetError
from synthdet.stages.export_augment import plan_copies
from synthdet.stages.export_frames import plan_frames
from synthdet.workspace import Workspace, iter_records, read_json, read_records

NOT_CHOSEN = "more than the mix asks for"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the stages before left."""

    class_names: tuple[str, ...]
    photos: list[Photo]
    photos_dir: Path
    tiles: Iterator[Tile]
    """Read once, by `make_plan`: there may be 100,000, and none has to stay."""
    images: list[SyntheticImage]
    scores: dict[str, Score]
    decisions: dict[str, Decision]
    labels: dict[str, Label]
    verdicts: dict[str, Verdict]
    embeddings: dict[str, Embeddings]
    """By content hash; read where pictures are selected for diversity."""


@dataclass(frozen=True, slots=True)
class Copy:
    """An augmented copy to make of the real train tile at ``index`` of the plan."""

    image_id: str
    index: int
    number: int
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is exported, each with the file it is copied from, and what is not.

    ``copies`` are augmented: of which entry, and the seed. Their entries are known when they are made.
    """

    entries: list[ManifestEntry]
    sources: list[str]
    copies: list[Copy]
    frames: list[tuple[Photo, Path]]
    left_out: dict[str, int]
    notes: list[str]


def read_inputs(workspace: Workspace, config: Config) -> Inputs:
    """Read the records of all stages before.

    Raises:
        SynthdetError: A line is not such a record; names it.
    """
    prepare, chosen = workspace.stage("prepare").path, workspace.stage("filter").path
    generated, labelled = workspace.stage("generate").path, workspace.stage("label").path
    verdicts = read_records(workspace.root / "curation.jsonl", Verdict)
    dataset = read_json(prepare / "dataset.json")
    return Inputs(
        class_names=tuple(dataset["classes"]),
        photos=read_records(prepare / "photos.jsonl", Photo),
        photos_dir=Path(dataset.get("photos", ".")),
        tiles=iter_records(prepare / "tiles.jsonl", Tile),
        images=read_records(generated / "images.jsonl", SyntheticImage),
        scores={one.image_id: one for one in read_records(chosen / "scores.jsonl", Score)},
        decisions={one.image_id: one for one in read_records(chosen / "decisions.jsonl", Decision)},
        labels={one.image_id: one for one in read_records(labelled / "labels.jsonl", Label)},
        verdicts={verdict.image_id: verdict for verdict in verdicts},
        embeddings=(_read_embeddings(workspace) if config.export.select == "diversity" else {}),
    )


def _read_embeddings(workspace: Workspace) -> dict[str, Embeddings]:
    """What the filter kept of every picture's content.

    Raises:
        SynthdetError: A shard cannot be read.
    """
    folder = workspace.stage("filter")
    model = (folder.lock() or {})["settings"].get("model")
    found: dict[str, Embeddings] = {}
    for path in sorted((folder.path / "embeddings").glob("*.npz")):
        try:
            with np.load(path) as shard:
                if str(shard["model"]) == str(model):
                    rows = zip(shard["sha256"], shard["fault"], shard["embeddings"], strict=True)
                    found |= {str(sha256): row for sha256, fault, row in rows if not fault}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise SynthdetError(
                f"{path} cannot be read: delete it and run `synthdet filter {workspace.root}` again"
            ) from error
    return found


def make_plan(workspace: Workspace, given: Inputs, config: Config) -> Plan:
    """Every picture that goes in, real ones first: from records and settings alone."""
    entries: list[ManifestEntry] = []
    sources: list[str] = []
    heard = unheard = 0
    for tile in given.tiles:
        verdict = _verdict_on(given, tile.tile_id, tile.sha256)
        heard += verdict is not None
        if tile.split != "train":
            unheard += verdict is not None
            verdict = None
        if verdict is None or verdict.verdict == "accept":
            entries.append(_real_entry(tile, verdict))
            sources.append(f"{workspace.root}/{tile.path}")
    num_real = sum(entry.split == "train" for entry in entries)
    verdicts = {
        image.image_id: verdict
        for image in given.images
        if (verdict := _verdict_on(given, image.image_id, image.sha256)) is not None
    }
    settled = {
        image.image_id: settle(
            image,
            given.decisions.get(image.image_id),
            given.labels.get(image.image_id),
            verdicts.get(image.image_id),
            include_review=config.export.include_review,
        )
        for image in given.images
    }
    chosen = _choose(given, settled, num_real, config)
    left_out = Counter(one.reason for one in settled.values() if one.reason is not None)
    left_out[NOT_CHOSEN] = sum(one.reason is None for one in settled.values()) - len(chosen)
    for image in given.images:
        if image.image_id in chosen:
            verdict = verdicts.get(image.image_id)
            entries.append(_synthetic_entry(image, settled[image.image_id], given, verdict))
            sources.append(f"{workspace.root}/{image.path}")
    return Plan(
        entries,
        sources,
        _plan_copies(entries, config),
        plan_frames(given.photos, given.photos_dir) if config.export.whole_frames else [],
        {reason: left_out[reason] for reason in sorted(left_out) if left_out[reason]},
        _notes(gone=len(given.verdicts) - heard - len(verdicts), unheard=unheard),
    )


def _verdict_on(given: Inputs, image_id: str, sha256: str) -> Verdict | None:
    """What a person decided about this very picture."""
    verdict = given.verdicts.get(image_id)
    return verdict if verdict is not None and verdict.sha256 in (None, sha256) else None


def is_augmented(config: Config) -> bool:
    """Whether augmented copies are asked for, by the arms or for the train set."""
    return config.export.augmented == "train" or "real_plus_augmented" in config.evaluate.arms


def _plan_copies(entries: Sequence[ManifestEntry], config: Config) -> list[Copy]:
    """As many copies of real train tiles as synthetic pictures go in."""
    if not is_augmented(config):
        return []
    number = sum(entry.source == "synthetic" for entry in entries)
    tiles = {
        entry.image_id: index
        for index, entry in enumerate(entries)
        if entry.source == "real" and entry.split == "train"
    }
    return [
        Copy(f"{tile_id}-aug{copy}", tiles[tile_id], copy, seed)
        for tile_id, copy, seed in plan_copies(list(tiles), number, seed=config.export.seed)
    ]


def _notes(*, gone: int, unheard: int) -> list[str]:
    notes = []
    if gone:
        notes.append(f"{gone} verdicts are on pictures that are gone: they do not count")
    if unheard:
        notes.append(
            f"{unheard} verdicts on val and test tiles are not followed: correct the annotations instead"
        )
    return notes


def _choose(
    given: Inputs, settled: Mapping[str, Settled], num_real: int, config: Config
) -> set[str]:
    candidates = []
    for image in given.images:
        result = settled[image.image_id]
        if result.reason is None:
            score = given.scores.get(image.image_id, Score(image_id=image.image_id))
            empty = not result.boxes
            candidates.append(
                Candidate(
                    image.image_id,
                    is_background=empty,
                    similarity=score.background_similarity if empty else score.similarity,
                    embedding=given.embeddings.get(image.sha256),
                )
            )
    mix = config.export
    return set(
        choose(
            candidates,
            num_real=num_real,
            num_synthetic=mix.num_synthetic,
            synthetic_fraction=mix.synthetic_fraction,
            max_background_fraction=mix.max_background_fraction,
            select=mix.select,
            seed=mix.seed,
        )
    )


def _real_entry(tile: Tile, verdict: Verdict | None) -> ManifestEntry:
    provenance = {
        "photo": tile.image_id,
        "group": tile.group,
        "xyxy": list(tile.xyxy),
        "scale": tile.scale,
    }
    boxes = tile.boxes
    if verdict is not None and verdict.boxes is not None:
        boxes = verdict.boxes
        provenance["boxes"] = "curation"
    return _entry(tile.tile_id, "real", tile.split, tile, boxes, provenance)


def _synthetic_entry(
    image: SyntheticImage, settled: Settled, given: Inputs, verdict: Verdict | None
) -> ManifestEntry:
    score, label = given.scores.get(image.image_id), given.labels.get(image.image_id)
    provenance = {
        "prompt": image.prompt,
        "seed": image.seed,
        "similarity": score.similarity if score else None,
        "nearest_real": score.nearest_real if score else None,
        "boxes": "curation" if verdict else label.status if label else None,
    }
    known = {name: value for name, value in provenance.items() if value is not None}
    return _entry(image.image_id, "synthetic", "train", image, settled.boxes, known)


def _entry(
    image_id: str,
    source: Source,
    split: Split,
    picture: Tile | SyntheticImage,
    boxes: Sequence[Box],
    provenance: dict[str, Any],
) -> ManifestEntry:
    file_name = picture.path.rpartition("/")[2]
    name = image_id + "".join(file_name.rpartition(".")[1:]).lower()
    return ManifestEntry(
        image_id=image_id,
        source=source,
        split=split,
        yolo_path=f"6-export/yolo/images/{split}/{name}",
        coco_path=f"6-export/coco/images/{split}/{name}",
        sha256=picture.sha256,
        width=picture.width,
        height=picture.height,
        boxes=_usable(boxes, picture.width, picture.height),
        provenance=provenance,
    )


def _usable(boxes: Sequence[Box], width: int, height: int) -> tuple[Box, ...]:
    """The boxes as they are, or cut at the edges where one reaches over them."""
    for box in boxes:
        x1, y1, x2, y2 = box.xyxy
        if not (x1 >= 0 <= y1 and x1 + MIN_SIDE <= x2 <= width and y1 + MIN_SIDE <= y2 <= height):
            break
    else:
        if len({(box.class_id, box.xyxy) for box in boxes}) == len(boxes):
            return tuple(boxes)
    return tuple(check_boxes(boxes, width, height)[0])


def check_plan(plan: Plan, class_names: Sequence[str], workspace: Workspace) -> None:
    """Refuse what must never be written, before anything is."""
    seen: dict[str, str] = {}
    for name in (
        *(entry.image_id for entry in plan.entries),
        *(one.image_id for one in plan.copies),
    ):
        key = name.casefold()  # a stick or a Mac may not tell A.png from a.png
        if key in seen:
            raise SynthdetError(
                f"two pictures are called {seen[key]} and {name}: rename one, or it would hide the other"
            )
        seen[key] = name
    files = Files()
    for entry, source in zip(plan.entries, plan.sources, strict=True):
        require_train(entry.source, entry.split, entry.image_id)
        for box in entry.boxes:
            if not 0 <= box.class_id < len(class_names):
                raise SynthdetError(
                    f"{entry.image_id} has a box of class {box.class_id}, and there are {len(class_names)} classes: "
                    "correct its annotation, or its line in curation.jsonl"
                )
        if not files.has(source):
            stage = "prepare" if entry.source == "real" else "generate"
            raise SynthdetError(
                f"{source} is missing: put it back, or make it again with `synthdet {stage} {workspace.root}`"
            )


class Files:
    """Which files there are: a folder is listed once, not asked for each of its thousands.

    Paths are strings with slashes.
    """

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        """Whether it was there when its folder was first asked for, or is now."""
        folder, _slash, name = path.rpartition("/")
        names = self._names.get(folder)
        if names is None:
            there = os.path.isdir(folder)  # noqa: PTH112 - paths of a plan are strings
            names = self._names[folder] = set(os.listdir(folder)) if there else set()  # noqa: PTH208
        # Some file systems list a name in another spelling than the one they find it by.
        return name in names or os.path.exists(path)  # noqa: PTH110
