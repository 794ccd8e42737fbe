"""Real photos in: checked, split once by group, cut into tiles.

Reads:
    ``prepare.photos`` (never written to), and the annotations recognised in it or named by
    ``prepare.labels``.
Writes:
    ``photos.jsonl``, ``rejected.jsonl``, ``dataset.json``; ``tiles/<split>/<tile_id>.png`` and
    ``tiles.jsonl``.
Resume:
    The three survey files are written whole, ``dataset.json`` last, and made again if one is missing.
    Tiles are planned from them alone; a tile whose line or file is missing is cut again, and gives
    the same bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from synthdet.config import Config
from synthdet.core.records import SPLITS, Photo, Tile
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.stages import _photos
from synthdet.stages._recognise import Recognised, recognise
from synthdet.stages._survey import SURVEY_FILES, make_survey
from synthdet.stages._tiles import cut_tiles, plan_tiles
from synthdet.workspace import (
    HASHES_NAME,
    StageFolder,
    Workspace,
    hash_file,
    hash_json,
    read_json,
    read_records,
    write_text,
)

__all__ = ["Recognised", "recognise", "run"]

_RACY_NS: Final = 2_000_000_000
"""A file changed less than this long ago is read again at the next start."""


def run(workspace: Workspace, config: Config, reporter: Reporter, *, redo: bool = False) -> None:
    """Prepare the photos of a run.

    Raises:
        SynthdetError: Anything about the photos, annotations or settings that a person has to decide.
    """
    settings = config.prepare
    if settings.photos is None:
        raise SynthdetError("prepare.photos is not set: name the folder with your photos")
    photos_dir = Path(os.path.abspath(settings.photos.expanduser()))  # noqa: PTH100 (keeps links)
    folder = workspace.stage("prepare")
    lock = folder.lock()
    if not photos_dir.exists() and not redo and lock is not None and lock["finished"]:
        reporter.note("prepare", f"{photos_dir} is not there: going on with what was prepared")
        reporter.close("prepare", _closing_line(lock["counts"]))
        return
    if lock is not None and not redo and not (folder.path / SURVEY_FILES[-1]).is_file():
        folder.lock_path.unlink()  # nothing was made yet: other settings are welcome
    recognised = recognise(photos_dir, settings.labels, settings.format, settings.csv)
    hashes = _hash_inputs(recognised, settings.workers, workspace.root / HASHES_NAME)
    done = folder.claim(
        settings=settings.settings("making"),
        inputs={"photos": hash_json(hashes)},
        redo=redo,
        note=lambda text: reporter.note("prepare", text),
    )
    for leftover in folder.path.rglob(".tmp-*"):
        leftover.unlink()
    if not done:
        reporter.note("prepare", recognised.describe())
    survey = [folder.path / name for name in SURVEY_FILES]
    if done and all(path.is_file() for path in survey) and _has_all_tiles(folder):
        reporter.close("prepare", _closing_line((folder.lock() or {})["counts"]))
        return
    if not all(path.is_file() for path in survey):
        make_survey(folder, settings, recognised, hashes, reporter)
    photos = read_records(survey[0], Photo)
    dataset = read_json(survey[2])
    for text in dataset["notes"] if not done else ():
        reporter.note("prepare", text)
    planned = plan_tiles(photos, dataset, settings)
    cut_tiles(folder, planned.tiles, photos_dir, settings, reporter)
    counts = _counts(photos, dataset, planned.tiles)
    folder.close(
        outputs=[*survey, folder.path / "tiles.jsonl"],
        counts=counts,
        runtime={"workers": settings.workers},
    )
    reporter.close("prepare", _closing_line(counts))


def _has_all_tiles(folder: StageFolder) -> bool:
    """Whether every tile of a finished stage is there; planning them anew would take its time."""
    recorded = read_records(folder.path / "tiles.jsonl", Tile)
    number = sum((folder.lock() or {})["counts"]["tiles"].values())
    root = folder.workspace.root
    return len(recorded) == number and all((root / tile.path).is_file() for tile in recorded)


def _hash_inputs(recognised: Recognised, workers: int, memory: Path) -> dict[str, str]:
    """SHA-256 of every photo (by its path) and every annotation file (by its whole path).

    A file is read again only where its size, times or inode are not those that it was last read with.
    Those of a file that was changed in the last moments tell nothing: it may change again within the
    same tick of the clock.

    Source:
        The last is git's rule for "racily clean" files (Documentation/technical/racy-git).
    """
    root = recognised.listing.root
    photos = recognised.listing.photos
    paths = [*(root / photo for photo in photos), *recognised.files]
    names = [*photos, *(os.path.relpath(path, root) for path in recognised.files)]
    known = _read_memory(memory)
    settled = time.time_ns() - _RACY_NS

    def hash_once(path: Path) -> tuple[list[int], str]:
        found = path.stat()
        stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        before = known.get(str(path))
        return stamp, before[1] if before and before[0] == stamp else hash_file(path)

    try:
        found = list(_photos.in_order(hash_once, paths, workers))
    except OSError as error:
        raise SynthdetError(f"{error.filename} cannot be read: {error.strerror}") from error
    now = {
        str(path): entry
        for path, entry in zip(paths, found, strict=True)
        if max(entry[0][1:3]) < settled
    }
    if now != known:
        write_text(memory, json.dumps(now, separators=(",", ":")))
    return dict(zip(names, (sha256 for _stamp, sha256 in found), strict=True))


def _read_memory(path: Path) -> dict[str, tuple[list[int], str]]:
    """What the last start knew; nothing where it cannot be read, for it can be found out again."""
    try:
        entries = json.loads(path.read_bytes())
        return {str(name): (list(stamp), str(sha256)) for name, (stamp, sha256) in entries.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _counts(
    photos: Sequence[Photo], dataset: Mapping[str, Any], own: Sequence[Tile]
) -> dict[str, Any]:
    return {
        "photos": len(photos),
        "groups": len({photo.group for photo in photos}),
        "tiles": {split: sum(tile.split == split for tile in own) for split in SPLITS},
        "background_tiles": sum(not tile.boxes for tile in own),
        "boxes": sum(len(photo.boxes) for photo in photos),
        "rejected": dataset["num_rejected"],
    }


def _closing_line(counts: Mapping[str, Any]) -> str:
    own = counts["tiles"]
    parts = [
        f"{counts['photos']:,} photos",
        f"{counts['groups']:,} groups",
        f"{sum(own.values()):,} tiles ({', '.join(f'{split} {own[split]:,}' for split in SPLITS)})",
    ]
    rejected = counts["rejected"]
    names = {"photos": "rejected", "boxes": "boxes dropped", "left out": "left out"}
    parts.extend(f"{rejected[kind]:,} {word}" for kind, word in names.items() if rejected.get(kind))
    return " · ".join(parts)
