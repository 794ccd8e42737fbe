"""Real tiles and chosen synthetic pictures as YOLO, COCO and Pascal VOC from one manifest.

Reads:
    ``1-prepare/tiles.jsonl``, ``photos.jsonl`` and ``dataset.json``, ``3-generate/images.jsonl``,
    ``4-filter/scores.jsonl``, ``decisions.jsonl`` and (to select for diversity) ``embeddings/``,
    ``5-label/labels.jsonl``, ``curation.jsonl``, and the pictures.

Writes:
    ``6-export/yolo/`` (``data.yaml`` without a ``path``, so that the folder can be moved;
    ``images/<split>/``, ``labels/<split>/``), ``6-export/coco/`` (``annotations/instances_<split>.json``;
    ``images/<split>/``, hard links to the YOLO copies), ``6-export/voc/``, ``manifest.jsonl`` and
    ``DATA_CARD.md``. ``frames/``: the whole real test photos. Where ``evaluate.arms`` asks for them,
    ``augmented/``: copies of real train tiles with their own ``manifest.jsonl``, in no dataset.

Resume:
    Everything is built in a folder of its own, moved, read back, compared with the manifest and renamed
    into place: killed before that, it is built again. It is also rebuilt when a decision before it changes.

A person's verdict (the last one on that very picture) counts for synthetic pictures and for real
train tiles. Val and test are the measure: no verdict takes a picture out of them or moves their boxes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthdet.config import Config
from synthdet.core.datacard import make_data_card
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import (
    SPLITS,
    ManifestEntry,
)
from synthdet.errors import SynthdetError
from synthdet.models.protocols import DatasetReader
from synthdet.progress import Reporter
from synthdet.stages.export_augment import Augment, make_augment, write_copy
from synthdet.stages.export_card import Exported, Identify, gather_facts
from synthdet.stages.export_check import check_export
from synthdet.stages.export_files import FileMaker
from synthdet.stages.export_frames import add_frame
from synthdet.stages.export_plan import (
    Copy,
    Files,
    Plan,
    check_plan,
    is_augmented,
    make_plan,
    read_inputs,
)
from synthdet.stages.export_write import DatasetWriter
from synthdet.workspace import (
    LOCK_NAME,
    StageFolder,
    Workspace,
    hash_file,
    iter_records,
    paused_collector,
    write_records,
    write_text,
)

_STEP = 256
"""Pictures between two moves of the progress bar."""


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
            **({"augmented": "asked for"} if is_augmented(config) else {}),
        },
        redo=redo,
        note=lambda text: reporter.note("export", text),
    )
    if done and _is_whole(folder, voc=config.export.voc):
        reporter.close("export", _closing_line((folder.lock() or {})["counts"]))
        return
    _remove_temporary(folder.path)
    build = folder.path / ".tmp-build"
    with paused_collector():
        given = read_inputs(workspace, config)
        plan, class_names = make_plan(workspace, given, config), given.class_names
        del given
        for note in plan.notes:
            reporter.note("export", note)
        check_plan(plan, class_names, workspace)
        _write_datasets(build, plan, class_names, config, reporter)
        _write_card(build, workspace, plan, class_names, config, identify)
        counts = _counts(plan, class_names)
        plan.entries.clear()  # the check reads them from the disk, one at a time
    # A dataset is only good if it can be moved, so it is, before anybody reads it.
    moved = folder.path / ".tmp-moved"
    os.rename(build, moved)
    with paused_collector():
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


# --- writing -----------------------------------------------------------------------------------


def _write_datasets(
    build: Path, plan: Plan, class_names: Sequence[str], config: Config, reporter: Reporter
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
            elif is_augmented(config):
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


def _write_pictures(writer: DatasetWriter, plan: Plan, reporter: Reporter) -> None:
    pictures = zip(plan.entries, plan.sources, strict=True)
    with reporter.bar("export", len(plan.entries)) as advance, writer.copying(pictures):
        for index, source in enumerate(plan.sources):
            plan.entries[index] = writer.add(plan.entries[index], source)
            if index % _STEP == _STEP - 1:
                advance(_STEP)
        advance(len(plan.sources) % _STEP)


def _make_copies(
    build: Path, plan: Plan, config: Config, reporter: Reporter
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
    augment: Augment, plan: Plan, copy: Copy, place: Path, in_train: bool
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


def _is_whole(folder: StageFolder, *, voc: bool) -> bool:
    """Whether every promised file is there."""
    names = ["DATA_CARD.md", "manifest.jsonl", "yolo/data.yaml"]
    names += [f"coco/annotations/instances_{split}.json" for split in SPLITS]
    if not all((folder.path / name).exists() for name in names):
        return False
    root, augmented, files = folder.path.parent, 0, Files()
    for inside in ("", "augmented/", "frames/"):
        has_voc = voc and not inside
        for entry in iter_records(folder.path / f"{inside}manifest.jsonl", ManifestEntry):
            augmented += entry.source == "augmented"
            if not all(files.has(f"{root}/{path}") for path in _promised(entry, has_voc)):
                return False
    return bool(augmented == (folder.lock() or {})["counts"].get("augmented", 0))


def _promised(entry: ManifestEntry, has_voc: bool) -> Iterator[str]:
    """The files of a picture, as paths in the run."""
    yield entry.yolo_path
    folder, _slash, name = entry.yolo_path.rpartition("/")
    before, _images, split = folder.rpartition("/images")  # as YOLO finds the label
    yield f"{before}/labels{split}/{entry.image_id}.txt"
    if entry.coco_path is not None:
        yield entry.coco_path
    if has_voc:
        yield f"6-export/voc/JPEGImages/{name}"
        yield f"6-export/voc/Annotations/{entry.image_id}.xml"


def _write_card(
    build: Path,
    workspace: Workspace,
    plan: Plan,
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


def _counts(plan: Plan, class_names: Sequence[str]) -> dict[str, Any]:
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
