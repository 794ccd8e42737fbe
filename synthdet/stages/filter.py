"""Keep the synthetic pictures that look like the real ones; drop the others and say why.

Reads:
    ``1-prepare/tiles.jsonl`` (train tiles alone, so that val and test stay unseen) and
    ``3-generate/images.jsonl``, with their pictures.

Writes:
    ``4-filter/embeddings/*.npz``, a shard a batch, by content hash and model; ``centroid.npy``, the
    mean direction of the train tiles with an animal; ``scores.jsonl``, raw, once, in the order of
    ``images.jsonl``; ``decisions.jsonl``, what the thresholds make of the scores; ``report.png``.

Resume:
    Batches are planned from the whole list; a batch is embedded again if any member is missing.
    All else follows from the embeddings, so a new threshold opens no model.

Pictures asked to show an animal (and those nobody asked anything of) are held against the centroid
of the tiles with an animal. Pictures asked to be background are held against the centroid of the
background tiles, if there are enough of those, and never count as copies.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthdet.config import Config
from synthdet.core.records import Decision, Score, SyntheticImage, Tile
from synthdet.core.similarity import (
    COPY,
    FAR,
    FAULTS,
    MIN_BACKGROUNDS,
    UNREADABLE,
    Calibration,
    EmbeddedPicture,
    RealTiles,
    calibrate,
    find_fault,
    judge,
    make_centroid,
    score_pictures,
)
from synthdet.errors import SynthdetError
from synthdet.models.protocols import ImageEmbedder, Picture
from synthdet.progress import Reporter
from synthdet.stages.filter_report import draw_report
from synthdet.workspace import (
    StageFolder,
    Workspace,
    atomic_path,
    hash_json,
    read_records,
    write_records,
)

PROMISED = ("scores.jsonl", "decisions.jsonl", "centroid.npy", "report.png")


@dataclass(frozen=True, slots=True)
class _Embedded:
    """What is known of a picture's content: an embedding of length 1, or a fault."""

    embedding: NDArray[np.float32] | None
    fault: str | None


@dataclass(frozen=True, slots=True)
class _Content:
    """A picture file by its content, and the stage that promised it."""

    sha256: str
    path: Path
    stage: str


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    open_embedder: Callable[[], ImageEmbedder],
    redo: bool = False,
) -> None:
    """Score every synthetic picture and decide which to keep.

    Raises:
        SynthdetError: A stage before is not done, a promised picture is missing, no real train tile
            holds an animal, or a setting that was used was changed.
    """
    folder = workspace.stage("filter")
    done = folder.claim(
        settings=config.filter.settings("making"),
        inputs={name: workspace.stage(name).output() for name in ("prepare", "generate")},
        decisions=config.filter.settings("decision"),
        redo=redo,
        note=lambda text: reporter.note("filter", text),
    )
    if done and all((folder.path / name).exists() for name in PROMISED):
        reporter.close("filter", _closing_line((folder.lock() or {})["counts"]))
        return
    for leftover in folder.path.rglob(".tmp-*"):
        leftover.unlink()

    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    tiles = [tile for tile in tiles if tile.split == "train"]
    images = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    embedded = _embed(folder, _contents(workspace, tiles, images), config, reporter, open_embedder)
    animals = _real_tiles([tile for tile in tiles if tile.boxes], embedded)
    backgrounds = _real_tiles([tile for tile in tiles if not tile.boxes], embedded)
    if not animals.tile_ids:
        raise SynthdetError(
            "no real train tile holds an animal, so there is nothing to compare with: look at 1-prepare/tiles.jsonl"
        )
    _write_centroid(folder.path / "centroid.npy", animals)
    scores = _write_scores(folder.path / "scores.jsonl", images, embedded, animals, backgrounds)

    calibration = calibrate(
        animals,
        backgrounds,
        threshold=config.filter.threshold,
        copy_threshold=config.filter.copy_threshold,
        percentile=config.filter.percentile,
    )
    decisions = [
        judge(score, calibration.limits, is_background=image.asked_for == ())
        for score, image in zip(scores, images, strict=True)
    ]
    write_records(folder.path / "decisions.jsonl", decisions)
    with atomic_path(folder.path / "report.png") as temporary:
        draw_report(temporary, workspace.root, images, scores, decisions, calibration)
    for note in _notes(calibration, images):
        reporter.note("filter", note)
    counts = _counts(decisions, calibration, animals, config)
    folder.close(
        outputs=[folder.path / "scores.jsonl", folder.path / "decisions.jsonl"],
        counts=counts,
        runtime=config.filter.settings("runtime"),
    )
    reporter.close("filter", _closing_line(counts))


# --- embeddings --------------------------------------------------------------------------------


def _contents(
    workspace: Workspace, tiles: Sequence[Tile], images: Sequence[SyntheticImage]
) -> list[_Content]:
    """Every different content once, real tiles first."""
    contents = [_Content(tile.sha256, workspace.root / tile.path, "prepare") for tile in tiles]
    contents += [_Content(one.sha256, workspace.root / one.path, "generate") for one in images]
    return list({content.sha256: content for content in reversed(contents)}.values())[::-1]


def _embed(
    folder: StageFolder,
    contents: Sequence[_Content],
    config: Config,
    reporter: Reporter,
    open_embedder: Callable[[], ImageEmbedder],
) -> dict[str, _Embedded]:
    """Embeddings of all contents by hash; the model is opened if any is not cached."""
    shards = folder.path / "embeddings"
    known = _read_shards(shards, config.filter.model)
    size = config.filter.batch_size
    batches = [contents[start : start + size] for start in range(0, len(contents), size)]
    missing = [batch for batch in batches if any(one.sha256 not in known for one in batch)]
    if not missing:
        return known
    for content in (one for batch in missing for one in batch):
        if not content.path.exists():
            raise SynthdetError(
                f"{content.path} is missing: put it back, or make it again with "
                f"`synthdet {content.stage} {folder.workspace.root}`"
            )
    embedder = open_embedder()
    done = len(contents) - sum(map(len, missing))
    with reporter.bar("filter", len(contents), done=done) as advance:
        for batch in missing:
            fresh = _embed_batch(embedder, batch)
            name = hash_json([config.filter.model, *fresh])[:16]
            _write_shard(shards / f"{name}.npz", config.filter.model, fresh)
            known |= fresh
            advance(len(batch))
    return known


def _embed_batch(embedder: ImageEmbedder, batch: Sequence[_Content]) -> dict[str, _Embedded]:
    pictures = [_read_picture(content.path) for content in batch]
    faults = [UNREADABLE if one is None else find_fault(one) for one in pictures]
    sound = [
        one for one, fault in zip(pictures, faults, strict=True) if one is not None and not fault
    ]
    rows = iter(embedder.embed(sound) if sound else ())
    embedded = {}
    for content, fault in zip(batch, faults, strict=True):
        row = None if fault else next(rows)
        if row is not None and not np.isfinite(row).all():
            raise SynthdetError(
                f"filter.model gives no finite embedding of {content.path}: its weights are damaged, name another"
            )
        if fault == UNREADABLE and content.stage == "prepare":
            raise SynthdetError(
                f"{content.path} cannot be read: make the tiles again with `synthdet prepare ... --redo`"
            )
        embedded[content.sha256] = _Embedded(row, fault)
    return embedded


def _read_picture(path: Path) -> Picture | None:
    """The picture in RGB; None where it is damaged."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _write_shard(path: Path, model: str, embedded: Mapping[str, _Embedded]) -> None:
    rows = [one.embedding for one in embedded.values()]
    width = next((len(row) for row in rows if row is not None), 0)
    zeros = np.zeros(width, dtype=np.float32)  # a faulty picture's row
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            model=np.array(model),
            sha256=np.array(list(embedded)),
            fault=np.array([one.fault or "" for one in embedded.values()]),
            embeddings=np.stack([zeros if row is None else row for row in rows]),
        )


def _read_shards(folder: Path, model: str) -> dict[str, _Embedded]:
    """All cached contents; a shard of another model, or one that cannot be read, is passed over."""
    known = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as handle, np.load(handle) as shard:
                if str(shard["model"]) != model:
                    continue
                columns = zip(shard["sha256"], shard["fault"], shard["embeddings"], strict=True)
                for sha256, fault, row in columns:
                    known[str(sha256)] = _Embedded(None if fault else row, str(fault) or None)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue
    return known


# --- scores and decisions ----------------------------------------------------------------------


def _real_tiles(tiles: Sequence[Tile], embedded: Mapping[str, _Embedded]) -> RealTiles:
    """Tiles with their embeddings; a real tile of one flat colour says nothing and is left out."""
    rows = [(tile, embedded[tile.sha256].embedding) for tile in tiles]
    sound = [(tile, row) for tile, row in rows if row is not None]
    width = next((len(one.embedding) for one in embedded.values() if one.embedding is not None), 0)
    return RealTiles(
        tuple(tile.tile_id for tile, _ in sound),
        tuple(tile.group for tile, _ in sound),
        np.array([row for _, row in sound], dtype=np.float32).reshape(len(sound), width),
    )


def _write_centroid(path: Path, animals: RealTiles) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, make_centroid(animals.embeddings))


def _write_scores(
    path: Path,
    images: Sequence[SyntheticImage],
    embedded: Mapping[str, _Embedded],
    animals: RealTiles,
    backgrounds: RealTiles,
) -> list[Score]:
    scores = read_records(path, Score)
    if path.exists() and [one.image_id for one in scores] == [one.image_id for one in images]:
        return scores
    pictures = [
        EmbeddedPicture(
            image.image_id,
            embedded[image.sha256].embedding,
            embedded[image.sha256].fault,
            is_background=image.asked_for == (),
        )
        for image in images
    ]
    scores = score_pictures(pictures, animals, backgrounds)
    write_records(path, scores)
    return scores


def _notes(calibration: Calibration, images: Sequence[SyntheticImage]) -> list[str]:
    notes = list(calibration.notes)
    unjudged = sum(image.asked_for == () for image in images)
    if calibration.limits.backgrounds is None and unjudged:
        notes.append(
            f"fewer than {MIN_BACKGROUNDS} real background tiles: the {unjudged} pictures asked to be background "
            "are only checked for faults"
        )
    return notes


def _counts(
    decisions: Sequence[Decision], calibration: Calibration, animals: RealTiles, config: Config
) -> dict[str, Any]:
    dropped = Counter(one.reason for one in decisions if one.reason is not None)
    limits, left_out = calibration.limits, calibration.left_out
    return {
        "pictures": len(decisions),
        "kept": sum(one.kept for one in decisions),
        "dropped": {reason: dropped[reason] for reason in (FAR, COPY, *FAULTS) if dropped[reason]},
        "threshold": limits.animals,
        "threshold_from": "calibrated" if config.filter.threshold == "calibrated" else "given",
        "background_threshold": limits.backgrounds,
        "copy_threshold": limits.copy,
        "real_tiles": len(animals.tile_ids),
        "real_groups": len(set(animals.groups)),
        "left_out_by": left_out.by if left_out else None,
        "real_lost": calibration.real_lost,
        "negatives": len(calibration.negatives),
        "negatives_passing": calibration.negatives_passing,
        "separation": calibration.separation,
    }


def _closing_line(counts: Mapping[str, Any]) -> str:
    parts = [f"{counts['kept']:,} kept of {counts['pictures']:,}"]
    for reason, number in counts["dropped"].items():
        copies = reason == COPY and number > 1
        parts.append(f"{number:,} {reason.replace('copy', 'copies', 1) if copies else reason}")
    threshold = f"(threshold {counts['threshold']:.2f}, {counts['threshold_from']})"
    return f"{' · '.join(parts)}  {threshold}"
