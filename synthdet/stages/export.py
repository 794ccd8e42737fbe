"""Real tiles and chosen synthetic pictures, as one YOLO and one COCO dataset from one manifest.

Reads:
    ``1-prepare/tiles.jsonl`` and ``dataset.json``, ``3-generate/images.jsonl``, ``4-filter/scores.jsonl``
    and ``decisions.jsonl``, ``5-label/labels.jsonl``, ``curation.jsonl``, and the pictures.

Writes:
    ``6-export/yolo/`` (``data.yaml`` without a ``path``, so that the folder can be moved;
    ``images/<split>/``, ``labels/<split>/``), ``6-export/coco/`` (``annotations/instances_<split>.json``;
    ``images/<split>/``, hard links to the YOLO copies), ``manifest.jsonl`` and ``DATA_CARD.md``. Where
    ``evaluate.arms`` asks for them, ``augmented/``: copies of real train tiles with their own
    ``manifest.jsonl``, in neither dataset.

Resume:
    Everything is built in a folder of its own, read back, compared with the manifest and renamed into
    place: killed before that, it is built again. It is also rebuilt when a decision before it changes.

A person's verdict (the last one on that very picture) counts for synthetic pictures and for real
train tiles. Val and test are the measure: no verdict takes a picture out of them or moves their boxes.
"""

from __future__ import annotations

import gc
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthdet.config import Config
from synthdet.core.boxes import MIN_SIDE, check_boxes
from synthdet.core.datacard import make_data_card
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.mixing import Candidate, Embeddings, Settled, choose, settle
from synthdet.core.records import (
    SPLITS,
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
from synthdet.models.protocols import DatasetReader
from synthdet.progress import Reporter
from synthdet.stages.export_augment import Augment, make_augment, plan_copies, write_copy
from synthdet.stages.export_card import Exported, Identify, gather_facts
from synthdet.stages.export_check import check_export
from synthdet.stages.export_files import FileMaker
from synthdet.stages.export_frames import add_frame, plan_frames
from synthdet.stages.export_write import DatasetWriter
from synthdet.workspace import (
    LOCK_NAME,
    StageFolder,
    Workspace,
    hash_file,
    read_json,
    read_records,
    write_records,
    write_text,
)

_STEP = 256
"""Pictures between two moves of the progress bar."""
NOT_CHOSEN = "more than the mix asks for"


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the stages before left."""

    class_names: tuple[str, ...]
    photos: list[Photo]
    photos_dir: Path
    tiles: list[Tile]
    images: list[SyntheticImage]
    scores: dict[str, Score]
    decisions: dict[str, Decision]
    labels: dict[str, Label]
    verdicts: dict[str, Verdict]
    embeddings: dict[str, Embeddings]
    """By content hash; read where pictures are selected for diversity."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """An augmented copy to make of the real train tile at ``index`` of the plan."""

    image_id: str
    index: int
    number: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is exported, each with the file it is copied from, and what is not.

    ``copies`` are augmented: of which entry, and the seed. Their entries are known when they are made.
    """

    entries: list[ManifestEntry]
    sources: list[str]
    copies: list[_Copy]
    frames: list[tuple[Photo, Path]]
    left_out: dict[str, int]
    notes: list[str]


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    open_reader: Callable[[], DatasetReader] | None = None,
    identify: Identify | None = None,
    redo: bool = False,
) -> None:
    """Write the datasets.

    Args:
        workspace: The run.
        config: Its settings.
        reporter: Hears what goes on.
        open_reader: Reads the YOLO datasets besides, to check them: ultralytics.
        identify: Finds out which weights a model's name stood for, for the data card.
        redo: Set the old folder aside and start afresh.

    Raises:
        SynthdetError: A stage before is not done, a promised picture is missing, two pictures have
            one name, a box has no class, or what was written does not read back as it was meant.
    """
    folder = workspace.stage("export")
    before = ("generate", "filter", "label")
    curation = workspace.root / "curation.jsonl"
    done = folder.claim(
        settings=config.export.settings("making"),
        inputs={"prepare": workspace.stage("prepare").output()},
        decisions=config.export.settings("decision"),
        decision_inputs={
            **{name: workspace.stage(name).output() for name in before},
            "curation": hash_file(curation) if curation.exists() else "none",
            **({"augmented": "asked for"} if _is_augmented(config) else {}),
        },
        redo=redo,
        note=lambda text: reporter.note("export", text),
    )
    if done and _is_whole(folder):
        reporter.close("export", _closing_line((folder.lock() or {})["counts"]))
        return
    _remove_temporary(folder.path)
    build = folder.path / ".tmp-build"
    with _paused_collector():
        given = _read_inputs(workspace, config)
        plan, class_names = _plan(workspace, given, config), given.class_names
        del given
        for note in plan.notes:
            reporter.note("export", note)
        _check_plan(plan, class_names, workspace)
        _write_datasets(build, plan, class_names, config, reporter)
    _write_card(build, workspace, plan, class_names, config, identify)
    counts = _counts(plan, class_names)
    plan.entries.clear()  # the check reads them from the disk, one at a time
    # A dataset is only good if it can be moved, so it is, before anybody reads it.
    moved = folder.path / ".tmp-moved"
    os.rename(build, moved)
    check_export(moved, class_names, open_reader() if open_reader else None)
    _put_in_place(moved, folder.path)
    outputs = ["manifest.jsonl", "yolo/data.yaml"]
    outputs += ["augmented/manifest.jsonl"] if (folder.path / "augmented").exists() else []
    folder.close(
        outputs=[folder.path / name for name in outputs],
        counts=counts,
        runtime={},
    )
    reporter.close("export", _closing_line(counts))


# --- planning ----------------------------------------------------------------------------------


def _read_inputs(workspace: Workspace, config: Config) -> _Inputs:
    prepare, chosen = workspace.stage("prepare").path, workspace.stage("filter").path
    generated, labelled = workspace.stage("generate").path, workspace.stage("label").path
    verdicts = read_records(workspace.root / "curation.jsonl", Verdict)
    dataset = read_json(prepare / "dataset.json")
    return _Inputs(
        class_names=tuple(dataset["classes"]),
        photos=read_records(prepare / "photos.jsonl", Photo),
        photos_dir=Path(dataset.get("photos", ".")),
        tiles=read_records(prepare / "tiles.jsonl", Tile),
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


def _plan(workspace: Workspace, given: _Inputs, config: Config) -> _Plan:
    """Every picture that goes in, real ones first: from records and settings alone."""
    hashes = {tile.tile_id: tile.sha256 for tile in given.tiles}
    hashes |= {image.image_id: image.sha256 for image in given.images}
    verdicts = {
        image_id: verdict
        for image_id, verdict in given.verdicts.items()
        if image_id in hashes and verdict.sha256 in (None, hashes[image_id])
    }
    entries = []
    for tile in given.tiles:
        verdict = verdicts.get(tile.tile_id) if tile.split == "train" else None
        if verdict is None or verdict.verdict == "accept":
            entries.append(_real_entry(tile, verdict))
    num_real = sum(entry.split == "train" for entry in entries)
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
    entries += [
        _synthetic_entry(image, settled[image.image_id], given, verdicts.get(image.image_id))
        for image in given.images
        if image.image_id in chosen
    ]
    paths = {tile.tile_id: tile.path for tile in given.tiles}
    paths |= {image.image_id: image.path for image in given.images if image.image_id in chosen}
    return _Plan(
        entries,
        [f"{workspace.root}/{paths[entry.image_id]}" for entry in entries],
        _plan_copies(entries, config),
        plan_frames(given.photos, given.photos_dir) if config.export.whole_frames else [],
        {reason: left_out[reason] for reason in sorted(left_out) if left_out[reason]},
        _notes(given, verdicts),
    )


def _is_augmented(config: Config) -> bool:
    return config.export.augmented == "train" or "real_plus_augmented" in config.evaluate.arms


def _plan_copies(entries: Sequence[ManifestEntry], config: Config) -> list[_Copy]:
    """As many copies of real train tiles as synthetic pictures go in."""
    if not _is_augmented(config):
        return []
    number = sum(entry.source == "synthetic" for entry in entries)
    tiles = {
        entry.image_id: index
        for index, entry in enumerate(entries)
        if entry.source == "real" and entry.split == "train"
    }
    return [
        _Copy(f"{tile_id}-aug{copy}", tiles[tile_id], copy, seed)
        for tile_id, copy, seed in plan_copies(list(tiles), number, seed=config.export.seed)
    ]


def _notes(given: _Inputs, verdicts: Mapping[str, Verdict]) -> list[str]:
    notes = []
    if gone := len(given.verdicts) - len(verdicts):
        notes.append(f"{gone} verdicts are on pictures that are gone: they do not count")
    held_out = {tile.tile_id for tile in given.tiles if tile.split != "train"}
    if unheard := len(held_out & verdicts.keys()):
        notes.append(
            f"{unheard} verdicts on val and test tiles are not followed: correct the annotations instead"
        )
    return notes


def _choose(
    given: _Inputs, settled: Mapping[str, Settled], num_real: int, config: Config
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
    image: SyntheticImage, settled: Settled, given: _Inputs, verdict: Verdict | None
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


def _check_plan(plan: _Plan, class_names: Sequence[str], workspace: Workspace) -> None:
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
    for entry, source in zip(plan.entries, plan.sources, strict=True):
        require_train(entry.source, entry.split, entry.image_id)
        for box in entry.boxes:
            if not 0 <= box.class_id < len(class_names):
                raise SynthdetError(
                    f"{entry.image_id} has a box of class {box.class_id}, and there are {len(class_names)} classes: "
                    "correct its annotation, or its line in curation.jsonl"
                )
        if not os.path.exists(source):  # noqa: PTH110 - a string, thousands of times
            stage = "prepare" if entry.source == "real" else "generate"
            raise SynthdetError(
                f"{source} is missing: put it back, or make it again with `synthdet {stage} {workspace.root}`"
            )


# --- writing -----------------------------------------------------------------------------------


def _write_datasets(
    build: Path, plan: _Plan, class_names: Sequence[str], config: Config, reporter: Reporter
) -> None:
    """Write all datasets; ``plan.entries`` become those that stand in the manifest."""
    mix = config.export
    with FileMaker() as files:
        with DatasetWriter(
            build, files, class_names, voc=mix.voc, keep_metadata=mix.keep_metadata
        ) as writer:
            _write_pictures(writer, plan, reporter)
            copies = _make_copies(build, plan, config, reporter)
            if mix.augmented == "train":
                for entry in copies:
                    writer.add_made(entry)
                plan.entries.extend(copies)
            elif _is_augmented(config):
                write_records(build / "augmented" / "manifest.jsonl", copies)
        if not plan.frames:
            return
        with (
            DatasetWriter(
                build, files, class_names, inside="frames/", keep_metadata=mix.keep_metadata
            ) as writer,
            reporter.bar("export", len(plan.frames), doing="whole photos") as advance,
        ):
            for photo, path in plan.frames:
                add_frame(writer, photo, path)
                advance(1)


def _write_pictures(writer: DatasetWriter, plan: _Plan, reporter: Reporter) -> None:
    with reporter.bar("export", len(plan.entries)) as advance:
        for index, source in enumerate(plan.sources):
            plan.entries[index] = writer.add(plan.entries[index], source)
            if index % _STEP == _STEP - 1:
                advance(_STEP)
        advance(len(plan.sources) % _STEP)


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Records have no cycles, and looking for some in 100,000 of them takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _make_copies(
    build: Path, plan: _Plan, config: Config, reporter: Reporter
) -> list[ManifestEntry]:
    """Augmented copies, into the train set or, for the arm alone, into ``augmented/``."""
    if not plan.copies:
        return []
    in_train = config.export.augmented == "train"
    images = build / ("yolo/images/train" if in_train else "augmented/images")
    labels = build / "augmented" / "labels"
    augment, entries = make_augment(), []
    try:
        for folder in (images, *([] if in_train else [labels])):
            folder.mkdir(parents=True, exist_ok=True)
        with reporter.bar("export", len(plan.copies), doing="augmenting") as advance:
            for copy in plan.copies:
                entry = _make_copy(augment, plan, copy, images / f"{copy.image_id}.png", in_train)
                if not in_train:
                    text = to_yolo_lines(entry.boxes, entry.width, entry.height)
                    (labels / f"{entry.image_id}.txt").write_text(text, encoding="utf-8")
                entries.append(entry)
                advance(1)
    except OSError as error:
        raise SynthdetError(
            f"{images} cannot be written ({error.strerror or error}): make room and run the same command again"
        ) from error
    return entries


def _make_copy(
    augment: Augment, plan: _Plan, copy: _Copy, place: Path, in_train: bool
) -> ManifestEntry:
    tile = plan.entries[copy.index]
    width, height, boxes = write_copy(
        augment, Path(plan.sources[copy.index]), tile.boxes, copy.seed, place
    )
    known = {key: tile.provenance[key] for key in tile.provenance if key in ("photo", "group")}
    where = "yolo/images/train" if in_train else "augmented/images"
    return ManifestEntry(
        image_id=copy.image_id,
        source="augmented",
        split="train",
        yolo_path=f"6-export/{where}/{place.name}",
        coco_path=f"6-export/coco/images/train/{place.name}" if in_train else None,
        sha256=hash_file(place),
        width=width,
        height=height,
        boxes=boxes,
        provenance={**known, "tile": tile.image_id, "copy": copy.number, "seed": copy.seed},
    )


def _put_in_place(build: Path, folder: Path) -> None:
    """Replace the old export piece by piece; the lock says unfinished until all are there."""
    for old in sorted(folder.iterdir()):
        if old.name != LOCK_NAME and not old.name.startswith(".tmp-"):
            os.rename(old, folder / f".tmp-old-{old.name}")
    for piece in sorted(build.iterdir()):
        os.rename(piece, folder / piece.name)
    _remove_temporary(folder)


def _remove_temporary(folder: Path) -> None:
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


# --- telling -----------------------------------------------------------------------------------


def _is_whole(folder: StageFolder) -> bool:
    """Whether every promised file is there."""
    names = ["DATA_CARD.md", "manifest.jsonl", "yolo/data.yaml"]
    names += [f"coco/annotations/instances_{split}.json" for split in SPLITS]
    if not all((folder.path / name).exists() for name in names):
        return False
    root, augmented = folder.path.parent, 0
    for name in ("manifest.jsonl", "augmented/manifest.jsonl", "frames/manifest.jsonl"):
        for entry in read_records(folder.path / name, ManifestEntry):
            augmented += entry.source == "augmented"
            image = root / entry.yolo_path
            if not image.exists() or not _label_path(image).exists():
                return False
            if entry.coco_path is not None and not (root / entry.coco_path).exists():
                return False
    return bool(augmented == (folder.lock() or {})["counts"].get("augmented", 0))


def _label_path(image: Path) -> Path:
    """Where YOLO looks for the label of ``images/<split>/<name>``."""
    before, _images, after = image.parent.as_posix().rpartition("/images")
    return Path(f"{before}/labels{after}") / f"{image.stem}.txt"


def _write_card(
    build: Path,
    workspace: Workspace,
    plan: _Plan,
    class_names: Sequence[str],
    config: Config,
    identify: Identify | None,
) -> None:
    exported = Exported(
        class_names=class_names,
        entries=plan.entries,
        left_out=plan.left_out,
        num_copies=0 if config.export.augmented == "train" else len(plan.copies),
        num_frames=len(plan.frames),
        manifest=build / "manifest.jsonl",
    )
    mix = config.export.settings("decision")
    facts = gather_facts(workspace, exported, mix, identify)
    write_text(build / "DATA_CARD.md", make_data_card(facts))


def _counts(plan: _Plan, class_names: Sequence[str]) -> dict[str, Any]:
    sources = Counter(entry.source for entry in plan.entries)
    backgrounds = sum(one.source == "synthetic" and not one.boxes for one in plan.entries)
    boxes = Counter(box.class_id for entry in plan.entries for box in entry.boxes)
    splits = Counter(entry.split for entry in plan.entries)
    return {
        "splits": {split: splits[split] for split in SPLITS if splits[split]},
        "real": sources["real"],
        "synthetic": sources["synthetic"],
        "synthetic_backgrounds": backgrounds,
        "augmented": len(plan.copies),
        "boxes": {name: boxes[class_id] for class_id, name in enumerate(class_names)},
        "left_out": plan.left_out,
    }


def _closing_line(counts: Mapping[str, Any]) -> str:
    number, empty = counts["synthetic"], counts["synthetic_backgrounds"]
    if number:
        what = f"{counts['real']:,} real and {number:,} synthetic pictures"
        what += f" ({empty:,} of them confirmed backgrounds)" if empty else ""
    else:
        what = f"{counts['real']:,} real pictures and no synthetic one"
        reasons = [f"{some:,} {reason}" for reason, some in counts["left_out"].items()]
        what += f": {', '.join(reasons)}" if reasons else ""
    if counts.get("augmented"):
        what += f" · {counts['augmented']:,} augmented copies"
    splits = ", ".join(f"{split} {some:,}" for split, some in counts["splits"].items())
    return f"{what} · {splits} · YOLO and COCO read back equal"
