"""Groups and splits of the survey, for `prepare`: found, kept from an earlier survey, or made.

A photo that stood in a split once stays there: what the LoRA has seen must never be tested on. Each
survey therefore leaves `splits.jsonl` behind, and the next one of the same run reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from synthdet.config import PrepareConfig
from synthdet.core import groups, splits
from synthdet.core.flights import Taken
from synthdet.core.records import SPLITS, XYXY, Assignment, Box, Photo, Split
from synthdet.errors import SynthdetError
from synthdet.stages._photos import Picture
from synthdet.workspace import StageFolder, read_json, read_records

SPLIT_SETTINGS: Final = (
    "split", "val_fraction", "test_fraction", "group_by", "group_pattern", "frames_per_group",
    "few_groups", "seed",
)  # fmt: skip
"""A change of one of these asks for other splits; any other change keeps them."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A photo that was decoded, with its checked boxes."""

    path: str
    sha256: str
    given: Split | None
    width: int
    height: int
    boxes: tuple[Box, ...]
    thumb: Picture
    blank: tuple[XYXY, ...]
    taken: Taken | None


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the survey before this one decided.

    Attributes:
        assignments: A line for every photo that ever stood in a split of this run.
        photos: The photos that it used.
        dataset: Its ``dataset.json``.
        settings: Its making settings.
    """

    assignments: list[Assignment]
    photos: list[Photo]
    dataset: dict[str, Any]
    settings: dict[str, Any]

    def known(self, photos: Sequence[Checked], root: Path) -> list[Assignment | None]:
        """What is known of each photo: by its content, or by its name in the same folder."""
        by_content = {own.sha256: own for own in self.assignments}
        same = self.dataset["photos"] == str(root)
        by_path = {own.path: own for own in self.assignments} if same else {}
        return [by_content.get(photo.sha256) or by_path.get(photo.path) for photo in photos]


@dataclass(frozen=True, slots=True)
class Plan:
    """The splits of all photos, and what there is to say about them.

    Attributes:
        places: Group and split of each photo; None where it would leak wherever it stood.
        originals: The key of each photo that its copies share.
        kept: Which photos stand where they stood in an earlier survey.
        origin: Whether the splits were ``given``, ``kept`` or ``new``.
        leaks: Kin across the given splits, by kind.
        touching: Neighbouring blocks of frames in different splits.
        near_across: Near-duplicates in different splits.
        notes: For people.
    """

    places: list[splits.Place | None]
    originals: list[str]
    kept: list[bool]
    origin: str
    leaks: dict[str, int] | None
    touching: int
    near_across: int
    notes: list[str]


def read_earlier(folder: StageFolder) -> Earlier | None:
    """The newest survey of this run that was set aside, if it was whole."""
    for old in folder.set_aside():
        if not (old / "dataset.json").is_file():
            continue
        photos = read_records(old / "photos.jsonl", Photo)
        assignments = read_records(old / "splits.jsonl", Assignment) or [
            Assignment(path=own.path, sha256=own.sha256, group=own.group, split=own.split)
            for own in photos
        ]
        settings = read_json(old / "stage.json")["settings"]
        return Earlier(assignments, photos, read_json(old / "dataset.json"), settings)
    return None


def plan(
    checked: Sequence[Checked],
    metadata: Mapping[str, Mapping[str, Any]],
    settings: PrepareConfig,
    earlier: Earlier | None,
    root: Path,
) -> Plan:
    """Group the photos; keep the given splits or the earlier ones, else plan new ones; say why.

    Raises:
        SynthdetError: Fewer than three groups, given splits that are asked for and leak, or a split
            that nothing is left for.
    """
    notes: list[str] = []
    kin, close = _find_groups(checked, metadata, settings)
    known = _known(checked, settings, earlier, root, notes)
    if len({own.group for own in kin}) < len(SPLITS) and not _cover(known):
        kin = _few_groups(kin, settings, notes)
        close = [own.original for own in kin]
    given = [photo.given for photo in checked]
    leaks = _given_leaks(kin, given)
    whole = None not in given and set(given) == set(SPLITS)
    clean = whole and leaks is not None and not any(leaks.values())
    if settings.split == "given":
        _require_given(given, leaks, whole)
    if settings.split == "given" or (
        settings.split == "auto" and clean and _stood_as_given(known, given)
    ):
        places: list[splits.Place | None] = [
            splits.Place(own.group, split)
            for own, split in zip(kin, given, strict=True)
            if split is not None
        ]
        origin = "given"
    elif any(known):
        places, origin = _keep(checked, kin, close, known, settings), "kept"
        notes.extend(_describe_kept(checked, known, places))
    else:
        places, origin = _make(checked, kin, settings), "new"
    if settings.split == "auto" and origin != "given":
        notes.extend(_why_not_given(given, leaks, whole, origin))
    touching, near_across = _across(checked, kin, places)
    if touching or near_across:
        notes.append(
            f"{touching} cuts run through consecutive frames, {near_across} pairs of near-duplicates lie across them: "
            "the photos are too few chains to avoid it; test figures may be a little too good"
        )
    return Plan(
        places,
        [own.original for own in kin],
        [own is not None for own in known],
        origin,
        leaks,
        touching,
        near_across,
        notes,
    )


def assignments(
    checked: Sequence[Checked], own_plan: Plan, earlier: Earlier | None
) -> list[Assignment]:
    """Lines of ``splits.jsonl``: all photos that stand in a split, and those that once stood in one."""
    own = [
        Assignment(path=photo.path, sha256=photo.sha256, group=place.group, split=place.split)
        for photo, place in zip(checked, own_plan.places, strict=True)
        if place is not None
    ]
    if own_plan.origin != "kept" or earlier is None:
        return own
    present = {line.sha256 for line in own} | {line.path for line in own}
    return [
        *own,
        *(line for line in earlier.assignments if not {line.sha256, line.path} & present),
    ]


def _find_groups(
    checked: Sequence[Checked], metadata: Mapping[str, Mapping[str, Any]], settings: PrepareConfig
) -> tuple[list[groups.Kin], list[str]]:
    """Kin of every photo, joined by near-duplicates.

    Near-duplicates in two blocks of one chain do not join them: a chain that is cut is cut on purpose.

    Returns:
        Kin; and for each photo the key that it shares with copies, tiles of one frame and
        near-duplicates in other chains.
    """
    paths = [photo.path for photo in checked]
    taken = [] if settings.group_by == "names" else [photo.taken for photo in checked]
    kin = groups.find_kin(paths, frames_per_group=settings.frames_per_group, taken=taken)
    told: list[str | None]
    if settings.group_pattern is not None:
        told = list(groups.match_groups(paths, settings.group_pattern))
    else:
        values = [metadata.get(path, {}).get("group") for path in paths]
        told = [None if value is None else str(value) for value in values]
        if settings.group_by == "folder":
            folders = groups.parent_folders(paths)
            told = [group or folder for group, folder in zip(told, folders, strict=True)]
    kin = [
        own if group is None else groups.Kin(own.original, own.frame, group, group)
        for own, group in zip(kin, told, strict=True)
    ]
    originals = groups.join(
        [own.original for own in kin], _same([photo.sha256 for photo in checked])
    )
    kin = [replace(own, original=original) for own, original in zip(kin, originals, strict=True)]
    thumbs = np.stack([photo.thumb for photo in checked])
    near = groups.near_duplicates(thumbs, [own.chain for own in kin])
    copies = [*near, *_same([own.original for own in kin])]
    # What a person says about groups stands above what names say about tiles.
    closest = [
        own.frame if group is None else own.original for own, group in zip(kin, told, strict=True)
    ]
    ties = [*copies, *_same(closest)]
    chains = groups.join([own.chain for own in kin], ties)
    joined = groups.join([own.group for own in kin], ties)
    return (
        [
            groups.Kin(own.original, own.frame, group, chain)
            for own, group, chain in zip(kin, joined, chains, strict=True)
        ],
        groups.join(closest, copies),
    )


def _same(keys: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of positions, enough to tie together all that share a key."""
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        yield first.setdefault(key, number), number


def _known(
    checked: Sequence[Checked],
    settings: PrepareConfig,
    earlier: Earlier | None,
    root: Path,
    notes: list[str],
) -> list[splits.Place | None]:
    """Where each photo stood in the survey before, unless other splits are asked for."""
    found = earlier.known(checked, root) if earlier else []
    if earlier is None or not any(found):
        return [None] * len(checked)
    now = settings.settings("making")
    for key in SPLIT_SETTINGS:
        before = earlier.settings.get(key, now[key])
        if before != now[key]:
            notes.append(
                f"prepare.{key} was {before!r} and is now {now[key]!r}: the splits are made afresh"
            )
            return [None] * len(checked)
    return [None if own is None else splits.Place(own.group, own.split) for own in found]


def _cover(known: Sequence[splits.Place | None]) -> bool:
    return {own.split for own in known if own} == set(SPLITS)


def _stood_as_given(known: Sequence[splits.Place | None], given: Sequence[Split | None]) -> bool:
    return all(own is None or own.split == split for own, split in zip(known, given, strict=True))


def _few_groups(
    kin: list[groups.Kin], settings: PrepareConfig, notes: list[str]
) -> list[groups.Kin]:
    number = len({own.group for own in kin})
    if settings.few_groups == "error":
        raise SynthdetError(
            f"the photos form {number} group(s) of kin ({kin[0].group} ...), and a clean split needs three: tell groups with "
            "prepare.group_pattern or a metadata.jsonl, lower prepare.frames_per_group, or set prepare.few_groups to allow"
        )
    notes.append(
        f"only {number} group(s): split by photo all the same (prepare.few_groups); test figures will be too good"
    )
    return [groups.Kin(own.original, own.original, own.original, own.original) for own in kin]


def _members(checked: Sequence[Checked], kin: Sequence[groups.Kin]) -> list[splits.Member]:
    return [
        splits.Member(
            own.group, own.chain, own.original, tuple(box.class_id for box in photo.boxes)
        )
        for own, photo in zip(kin, checked, strict=True)
    ]


def _make(
    checked: Sequence[Checked], kin: Sequence[groups.Kin], settings: PrepareConfig
) -> list[splits.Place | None]:
    planned = splits.plan_splits(
        _members(checked, kin),
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
    )
    return [splits.Place(own.group, planned[own.group]) for own in kin]


def _keep(
    checked: Sequence[Checked],
    kin: Sequence[groups.Kin],
    close: Sequence[str],
    known: Sequence[splits.Place | None],
    settings: PrepareConfig,
) -> list[splits.Place | None]:
    return splits.plan_additions(
        _members(checked, kin),
        close,
        known,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
    )


def _describe_kept(
    checked: Sequence[Checked],
    known: Sequence[splits.Place | None],
    places: Sequence[splits.Place | None],
) -> Iterator[str]:
    new = [place for place, before in zip(places, known, strict=True) if before is None]
    counts = [
        f"{sum(own is not None and own.split == split for own in new)} {split}" for split in SPLITS
    ]
    yield (
        f"{len(checked) - len(new)} photos stay in the splits they were in"
        + (f", {len(new)} new ones join: {', '.join(counts)}" if new else "")
    )
    if None in new:
        yield (
            f"{new.count(None)} new photos are left out: they have near-copies in two splits "
            "(another prepare.seed makes new splits)"
        )


def _across(
    checked: Sequence[Checked],
    kin: Sequence[groups.Kin],
    places: Sequence[splits.Place | None],
) -> tuple[int, int]:
    """Cuts through chains, and pairs of near-duplicates on both sides of one."""
    splits_of: dict[str, set[Split]] = defaultdict(set)
    for own, place in zip(kin, places, strict=True):
        if place is not None:
            splits_of[own.chain].add(place.split)
    cut = [
        (photo, own, place)
        for photo, own, place in zip(checked, kin, places, strict=True)
        if place is not None and len(splits_of[own.chain]) > 1
    ]
    if not cut:
        return 0, 0
    touching = splits.touching(
        [splits.Member(place.group, own.chain, own.original, ()) for _photo, own, place in cut],
        {place.group: place.split for _photo, _own, place in cut},
    )
    thumbs = np.stack([photo.thumb for photo, _own, _place in cut])
    across = groups.near_duplicates(thumbs, [place.split for _photo, _own, place in cut])
    return touching, len(across)


def _given_leaks(kin: Sequence[groups.Kin], given: Sequence[Split | None]) -> dict[str, int] | None:
    told = [(own, split) for own, split in zip(kin, given, strict=True) if split is not None]
    if not told:
        return None
    levels = {
        "originals": [own.original for own, _split in told],
        "frames": [own.frame for own, _split in told],
        "groups": [own.group for own, _split in told],
    }
    return splits.find_leaks(levels, [split for _own, split in told])


def _require_given(
    given: Sequence[Split | None], leaks: Mapping[str, int] | None, whole: bool
) -> None:
    if not whole:
        lacking = [split for split in SPLITS if split not in given]
        what = f"no photos in {', '.join(lacking)}" if lacking else "photos outside the splits"
        raise SynthdetError(
            f"prepare.split is given, but there are {what}: set it to auto for new splits by group"
        )
    if leaks and any(leaks.values()):
        raise SynthdetError(
            f"prepare.split is given, but {_leak_text(leaks)}: set it to auto for clean splits by group"
        )


def _why_not_given(
    given: Sequence[Split | None], leaks: Mapping[str, int] | None, whole: bool, origin: str
) -> list[str]:
    if leaks is None:
        return []
    instead = "kept" if origin == "kept" else "made"
    if any(leaks.values()):
        return [
            f"the given splits leak: {_leak_text(leaks)}; clean splits by group are {instead} instead"
        ]
    lacking = ", ".join(split for split in SPLITS if split not in given) or "some photos"
    return [] if whole else [f"the given splits lack {lacking}: splits by group are {instead}"]


def _leak_text(leaks: Mapping[str, int]) -> str:
    return (
        f"{leaks['originals']} originals, {leaks['frames']} frames and {leaks['groups']} groups of overlapping frames are in "
        f"more than one split, and {leaks['photos']} val and test photos have kin in train"
    )
