"""Which photos belong together, so that a split never tears them apart.

Three kinds of kin, from what file names of common tools tell: *copies* of one original (Roboflow
writes augmented copies as ``NAME_jpg.rf.HASH.jpg``), *tiles* of one frame (``NAME_X_Y``, offsets in
pixels; SAHI's ``NAME_X1_Y1_X2_Y2``; ``NAME_r03_c07``), and *consecutive frames* of one flight, which
overlap on the ground. Then near-duplicates, found by looking.

Frames whose numbers differ by at most `FRAME_STEP` form a chain; where EXIF tells time and place of all
frames of a counter, the flight is the chain. A chain longer than ``frames_per_group`` is cut into blocks, each cut at the widest gap within reach. Blocks of one chain
still touch at the cut; `synthdet.core.splits.plan_splits` therefore keeps chains whole where it can,
and where it cannot gives each split one run of neighbouring blocks.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from synthdet.core.flights import Taken, find_flights
from synthdet.core.records import Split
from synthdet.errors import SynthdetError

FRAME_STEP: Final = 2
"""Frames whose numbers differ by at most this overlap, as far as names can tell."""
MIN_TILE_STEP: Final = 16
"""Two numbers at the end of a name are pixel offsets if all of them are multiples of this or more."""
THUMB_SIDE: Final = 32
MAX_NAME: Final = 100
HASH_DISTANCE: Final = 10
"""Perceptual hashes of two near-duplicates differ in at most this many of 64 bits."""
_QUARTERS: Final = 4
_QUARTER_BITS: Final = 16
_PAIRS: Final = 1 << 20
_CONFIRMED: Final = 1024
CORRELATION: Final = 0.92
"""Correlation of grey thumbnails that confirms two near-duplicates."""
MIN_CONTRAST: Final = 2.0
"""Standard deviation, in grey levels, below which a thumbnail shows nothing to compare."""

_SPLIT_WORDS: Final[dict[str, Split]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
LAYOUT_WORDS: Final = frozenset({"images", "labels", "annotations", *_SPLIT_WORDS})
_ROBOFLOW = re.compile(r"^(?P<original>.+)\.rf\.[0-9a-zA-Z]{8,}$")
_ROBOFLOW_SUFFIX = re.compile(r"_(jpe?g|png|tiff?|bmp|webp)$", re.IGNORECASE)
_TILE = re.compile(r"^(?P<frame>.+?)[_-]x?(?P<x>0|[1-9]\d{0,5})[_-]y?(?P<y>0|[1-9]\d{0,5})$")
_SLICE = re.compile(
    r"^(?P<frame>.+?)"
    + "".join(rf"_(?P<{edge}>0|[1-9]\d{{0,5}})" for edge in ("x1", "y1", "x2", "y2"))
    + "$"
)
_GRID = re.compile(
    r"^(?P<frame>.+?)[_-]+(?:r(?:ow)?[_-]?\d+[_-]?c(?:ol)?[_-]?\d+|(?:tile|patch)[_-]?\d+[_-]\d+)$",
    re.IGNORECASE,
)
_UPLOAD = re.compile(r"^(?P<upload>[0-9a-f]{8})-(?=.)")
_RANDOM = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|(?<![0-9a-z])(?=[0-9]*[a-f])[0-9a-f]{16,}(?![0-9a-z])",
    re.IGNORECASE,
)
_TIMESTAMP = re.compile(
    r"(?<!\d)(?P<date>(?:19|20)\d{6})[_T-]?(?P<hour>[01]\d|2[0-3])(?P<minute>[0-5]\d)[0-5]\d(?!\d)"
)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_GENERATED = re.compile(r"syn-\d+", re.IGNORECASE)
_FRAME = re.compile(r"^(?P<before>.*?)(?P<number>(?<!\d)\d{1,9})\D*$")


@dataclass(frozen=True, slots=True)
class Kin:
    """What a photo's name says about its relatives.

    Attributes:
        original: Key that copies of one original share, as far as names say that they are copies.
        frame: Key that tiles of one frame share.
        group: Key of the block of consecutive frames. What a split must not tear.
        chain: Key of the whole chain of consecutive frames that the block was cut from.
    """

    original: str
    frame: str
    group: str
    chain: str


def given_split(path: str) -> Split | None:
    """The split that a path or file name speaks of: a folder, or a word of the name.

    Examples:
        >>> given_split("valid/images/a.jpg"), given_split("annotations/instances_train.json")
        ('val', 'train')
        >>> given_split("site_3/tested.jpg")
    """
    *folders, name = PurePosixPath(path).parts
    for folder in folders:
        if folder.lower() in _SPLIT_WORDS:
            return _SPLIT_WORDS[folder.lower()]
    if name.lower().endswith(".json"):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def find_kin(
    paths: Sequence[str], *, frames_per_group: int, taken: Sequence[Taken | None] = ()
) -> list[Kin]:
    """Relatives by file name, and by time and place where they are known.

    Args:
        paths: Of the photos, relative to their folder, with slashes. Folders named after a split
            or a layout (``train/images``) do not tell photos apart; all others do.
        frames_per_group: The longest block of consecutive frames.
        taken: When and where each photo was taken, as far as it says; empty: nobody knows.

    Returns:
        One for each path, in order.

    Examples:
        >>> names = ["F_01_0003_640_0_JPG.rf.0a1b2c3d.jpg", "F_01_0004_0_0_JPG.rf.4e5f6a7b.jpg"]
        >>> [kin.group for kin in find_kin(names, frames_per_group=20)]
        ['F_01_0003-0004', 'F_01_0003-0004']
    """
    originals = _originals(paths)
    frames = _frames(originals)
    numbered = {frame: _number(frame) for frame in frames}
    spans = _flight_spans(_timed(frames, numbered, taken), frames_per_group)
    sequences: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for frame, found in numbered.items():
        if found is not None and frame not in spans:
            sequences[found[0]][found[1]].append(frame)
    for sequence, by_number in sequences.items():
        for chain in _chains(sorted(by_number)):
            for block in _blocks(chain, frames_per_group):
                for number in block:
                    names = (_span(sequence, block), _span(sequence, chain))
                    spans.update(dict.fromkeys(by_number[number], names))
    return [
        Kin(original, frame, *spans.get(frame, (frame, frame)))
        for original, frame in zip(_told_apart(originals, paths), frames, strict=True)
    ]


def parent_folders(paths: Sequence[str]) -> list[str]:
    """The folder of each photo, without the words of a split or a layout.

    Examples:
        >>> parent_folders(["bay/flight 2/a.jpg", "reef/train/images/b.jpg", "c.jpg"])
        ['bay/flight 2', 'reef', '.']
    """
    return ["/".join(_folders(path)) or "." for path in paths]


def match_groups(paths: Sequence[str], pattern: str) -> list[str]:
    r"""Groups by a regular expression searched in each path: its first capture, or the whole match.

    Raises:
        SynthdetError: Not a regular expression, or it does not match a path.

    Examples:
        >>> match_groups(["bay/flight-2/a.jpg"], r"flight-(\d+)")
        ['2']
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SynthdetError(
            f"prepare.group_pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    groups = []
    for path in paths:
        match = compiled.search(path)
        if match is None or not match.group(1 if compiled.groups else 0):
            raise SynthdetError(
                f"prepare.group_pattern {pattern!r} finds no group in {path}: widen it"
            )
        groups.append(match.group(1 if compiled.groups else 0))
    return groups


def join(keys: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Make one of all keys that pairs of positions tie together; the first by name stays.

    Examples:
        >>> join(["a", "b", "c", "b"], [(2, 1)])
        ['a', 'b', 'b', 'b']
    """
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for first, second in pairs:
        low, high = sorted((root(keys[first]), root(keys[second])))
        parent[high] = low
    return [root(key) for key in keys]


def near_duplicates(
    thumbs: NDArray[np.uint8], keys: Sequence[str], *, chunk: int = 512
) -> list[tuple[int, int]]:
    """Pairs of photos with different keys that show the same, perhaps turned or mirrored.

    A perceptual hash (64 signs of the low frequencies of a cosine transform) of every photo is held
    against those of all eight symmetries of every other; pairs within `HASH_DISTANCE` bits are
    confirmed by the correlation of their thumbnails, with the slow gradients (light, vignette) taken
    out. No pair is missed, and few are looked at: two hashes within 10 bits agree in one of their
    four quarters but for 2 bits, so that only photos in neighbouring buckets of a quarter meet.

    Args:
        thumbs: Grey thumbnails ``(n, 32, 32)``.
        keys: Photos of one key are known to belong together and are not compared.
        chunk: Photos held against all others at a time; what bounds the memory.

    Returns:
        Pairs of positions, the lower first, in order.

    Source:
        Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010
        (the cosine-transform hash, as in the ImageHash library); Norouzi, Punjani and Fleet, "Fast
        exact search in Hamming space with multi-index hashing", 2014, section 3 (the quarters).
    """
    parts = [_look(thumbs[start : start + chunk]) for start in range(0, len(thumbs), chunk)]
    if not parts:
        return []
    seen = np.flatnonzero(np.concatenate([contrast for contrast, _own in parts]) >= MIN_CONTRAST)
    turned = np.concatenate([own for _contrast, own in parts], axis=1)[:, seen]
    hashes = turned[0]
    _, codes = np.unique(np.asarray(keys)[seen], return_inverse=True)
    buckets = [_Buckets.of(hashes, quarter) for quarter in range(_QUARTERS)]
    found: list[NDArray[np.int64]] = []
    for start in range(0, len(seen), chunk):
        own = np.arange(start, min(start + chunk, len(seen)))
        for bucket in buckets:
            bucket.fill(hashes[own])
        near = [
            pairs
            for bucket in buckets
            for side in turned
            for pairs in _near(bucket, hashes, side, own, codes)
        ]
        found.append(_confirm(_unique_pairs(near, len(seen)), thumbs, seen))
    pairs = seen[_unique_pairs(found, len(seen))]
    return [(first, second) for first, second in pairs.tolist()]


def symmetries(pictures: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The eight turns and mirrors of square pictures ``(n, side, side)``."""
    turns = [np.rot90(pictures, turn, axes=(1, 2)) for turn in range(4)]
    return turns + [turn[:, :, ::-1] for turn in turns]


def unique_names(stems: Sequence[str], paths: Sequence[str]) -> list[str]:
    """A name for each photo that is safe as a file name anywhere, and no other photo's.

    The stem, where that will do; a short hash of the path behind it, where stems are equal (but for
    capitals), too long, or look like those of generated pictures.

    Args:
        stems: Of the photos' file names.
        paths: Of the photos, all different.

    Examples:
        >>> unique_names(["bay 1", "A", "a"], ["x/bay 1.jpg", "x/A.jpg", "y/a.jpg"])
        ['bay-1', 'A-d8fd9afa', 'a-66aafdc2']
    """
    safe = [_UNSAFE.sub("-", stem).strip(".-") or "photo" for stem in stems]
    number = Counter(name.lower() for name in safe)
    names = []
    for name, path in zip(safe, paths, strict=True):
        if number[name.lower()] > 1 or len(name) > MAX_NAME or _GENERATED.fullmatch(name):
            name = f"{name[:MAX_NAME]}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        names.append(name)
    return names


def _originals(paths: Sequence[str]) -> list[str]:
    """The original that each photo is a copy of: place and stem without what tools add."""
    stems = [_stem(path) for path in paths]
    uploads = [_UPLOAD.match(stem) for stem in stems]
    prefixes = {upload["upload"] for upload in uploads if upload}
    # Label Studio puts eight random signs before every name; a date may look like them, many do not.
    if any(not prefix.isdecimal() for prefix in prefixes) and 2 * len(prefixes) > len(paths):
        stems = [
            stem[upload.end() :] if upload else stem
            for stem, upload in zip(stems, uploads, strict=True)
        ]
    return ["/".join([*_folders(path), stem]) for path, stem in zip(paths, stems, strict=True)]


def _told_apart(originals: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Originals of one name, unless they say that they are copies, are not copies: 1.jpg of each split."""
    number = Counter(originals)
    return [
        original if number[original] == 1 or ".rf." in path else f"{original} ({path})"
        for original, path in zip(originals, paths, strict=True)
    ]


def _stem(path: str) -> str:
    pure = PurePosixPath(path)
    stem = pure.name[: -len(pure.suffix)] if pure.suffix else pure.name
    roboflow = _ROBOFLOW.match(stem)
    return _ROBOFLOW_SUFFIX.sub("", roboflow["original"]) if roboflow else stem


def _folders(path: str) -> list[str]:
    parts = PurePosixPath(path).parts[:-1]
    return [part for part in parts if part.lower() not in LAYOUT_WORDS]


def _frames(originals: Sequence[str]) -> list[str]:
    """The frame of each original: without tile offsets, where the numbers look like offsets."""
    named = _slices(originals)
    named.update(
        (original, found["frame"]) for original in originals if (found := _GRID.match(original))
    )
    tiles = [None if original in named else _TILE.match(original) for original in originals]
    steps: dict[str, int] = defaultdict(int)
    for tile in tiles:
        if tile:
            shape = _shape(tile["frame"])
            steps[shape] = math.gcd(steps[shape], int(tile["x"]), int(tile["y"]))
    frames = []
    for original, tile in zip(originals, tiles, strict=True):
        step = steps[_shape(tile["frame"])] if tile else 1
        is_offset = tile is not None and (step == 0 or step >= MIN_TILE_STEP)
        frames.append(tile["frame"] if tile and is_offset else named.get(original, original))
    return frames


def _slices(originals: Sequence[str]) -> dict[str, str]:
    """Original -> frame, where four numbers end all names of a kind and span tiles of one size."""
    found = [(original, match) for original in originals if (match := _SLICE.match(original))]
    sizes: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for _original, match in found:
        x1, y1, x2, y2 = (int(match[edge]) for edge in ("x1", "y1", "x2", "y2"))
        sizes[_shape(match["frame"])].add((x2 - x1, y2 - y1))
    return {
        original: match["frame"]
        for original, match in found
        if len(own := sizes[_shape(match["frame"])]) == 1 and min(min(own)) >= MIN_TILE_STEP
    }


def _shape(name: str) -> str:
    """A name without its numbers: what the frames of one survey have in common."""
    return re.sub(r"\d+", "#", name)


def _timed(
    frames: Sequence[str],
    numbered: Mapping[str, tuple[str, int] | None],
    taken: Sequence[Taken | None],
) -> dict[str, Taken]:
    """Time and place of the frames to group by them: those of counters that know it of all frames.

    Half a counter by its numbers and half by the clock would part neighbours.
    """
    known = {frame: own for frame, own in zip(frames, taken, strict=False) if own is not None}
    untimed = {found[0] for frame, found in numbered.items() if found and frame not in known}
    return {
        frame: own
        for frame, own in known.items()
        if (found := numbered[frame]) is None or found[0] not in untimed
    }


def _flight_spans(taken: Mapping[str, Taken], longest: int) -> dict[str, tuple[str, str]]:
    """Frame -> its block and its flight, named by the time so that they sort."""
    spans = {}
    for flight in find_flights(taken):
        whole = f"{taken[flight[0]].describe()} {flight[0]}"
        for part in _parts([taken[frame].time for frame in flight], longest):
            block = [flight[place] for place in part]
            name = f"{taken[block[0]].describe()} {block[0]}"
            spans.update(dict.fromkeys(block, (name, whole)))
    return spans


def _number(frame: str) -> tuple[str, int] | None:
    """Flight and frame number; None where the name has no counter (or is a random identifier).

    A date with a time of day counts minutes where no other number follows it, else it is the date.
    """
    place, slash, stem = frame.rpartition("/")
    if _RANDOM.search(stem):
        return None
    time = _TIMESTAMP.search(stem)
    if time and not re.search(r"\d", stem[time.end() :]):
        minutes = 60 * int(time["hour"]) + int(time["minute"])
        return f"{place}{slash}{stem[: time.start()]}{time['date']}_", minutes
    match = _FRAME.match(_TIMESTAMP.sub(lambda found: found["date"], stem))
    if match is None:
        return None
    return f"{place}{slash}{match['before']}", int(match["number"])


def _chains(numbers: Sequence[int]) -> list[list[int]]:
    chains = [[numbers[0]]]
    for before, number in itertools.pairwise(numbers):
        if number - before > FRAME_STEP:
            chains.append([])
        chains[-1].append(number)
    return chains


def _blocks(chain: Sequence[int], longest: int) -> list[Sequence[int]]:
    return [chain[part.start : part.stop] for part in _parts(chain, longest)]


def _parts(numbers: Sequence[float], longest: int) -> list[range]:
    """Cut a row into parts of half to all of ``longest``, each cut at the widest gap in reach."""
    parts = []
    start = 0
    while len(numbers) - start > longest:
        reach = range(start + max(1, longest // 2), start + longest + 1)
        cut = max(reach, key=lambda place: (numbers[place] - numbers[place - 1], place))
        parts.append(range(start, cut))
        start = cut
    return [*parts, range(start, len(numbers))]


def _span(sequence: str, numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{sequence}{first:04d}" + (f"-{last:04d}" if last > first else "")


def _hashes(grey: NDArray[np.float32]) -> NDArray[np.uint64]:
    """64-bit perceptual hashes ``(n,)`` of thumbnails ``(n, 32, 32)``."""
    place = np.arange(THUMB_SIDE)
    cosines = np.cos(np.pi / THUMB_SIDE * (place[None, :] + 0.5) * place[:8, None])
    low = np.einsum("ui,nij,vj->nuv", cosines, grey, cosines, optimize=True).reshape(len(grey), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _details(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Thumbnails without their mean over a neighbourhood, each of length 1."""
    side = 9
    padded = np.pad(grey, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)), mode="edge")
    sums = padded.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    sums = np.pad(sums, ((0, 0), (1, 0), (1, 0)))
    mean = (
        sums[:, side:, side:]
        - sums[:, :-side, side:]
        - sums[:, side:, :-side]
        + sums[:, :-side, :-side]
    ) / side**2
    detail = grey - mean.astype(np.float32)
    detail -= detail.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt((detail**2).sum(axis=(1, 2), keepdims=True))
    return np.asarray(detail / np.maximum(length, 1e-6), dtype=np.float32)


def _look(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """Contrast ``(n,)`` of thumbnails, and the hashes of their eight symmetries ``(8, n)``."""
    grey = thumbs.astype(np.float32)
    hashes = np.stack([_hashes(symmetry) for symmetry in symmetries(grey)])
    return np.asarray(grey.std(axis=(1, 2))), hashes


@dataclass(frozen=True, slots=True)
class _Buckets:
    """Photos by one quarter of their hash: ``order[starts[value] :][: counts[value]]``.

    They are filled in the order of their positions, so that photos are only held against earlier ones.

    Attributes:
        shift: Place of the quarter in the hash, in bits.
        order: Positions, by the value of their quarter.
        starts: ``(65536,)``.
        counts: Photos filled into each bucket so far, ``(65536,)``.
        masks: What to flip in a quarter to reach every neighbouring bucket.
    """

    shift: int
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    masks: NDArray[np.int64]

    @classmethod
    def of(cls, hashes: NDArray[np.uint64], quarter: int) -> _Buckets:
        shift = quarter * _QUARTER_BITS
        values = _quarter(hashes, shift)
        counts = np.bincount(values, minlength=1 << _QUARTER_BITS)
        # Three bits off in each of the first three quarters leave one for the last.
        radius, rest = divmod(HASH_DISTANCE, _QUARTERS)
        off = radius if quarter <= rest else radius - 1
        bits = [
            sum(1 << bit for bit in flipped)
            for number in range(off + 1)
            for flipped in itertools.combinations(range(_QUARTER_BITS), number)
        ]
        return cls(
            shift,
            np.argsort(values, kind="stable"),
            np.cumsum(counts) - counts,
            np.zeros_like(counts),
            np.array(bits, dtype=np.int64),
        )

    def fill(self, hashes: NDArray[np.uint64]) -> None:
        """Let the next photos be found, whose hashes these are."""
        self.counts[:] += np.bincount(_quarter(hashes, self.shift), minlength=len(self.counts))


def _quarter(hashes: NDArray[np.uint64], shift: int) -> NDArray[np.int64]:
    mask = np.uint64((1 << _QUARTER_BITS) - 1)
    return np.asarray((hashes >> np.uint64(shift)) & mask, dtype=np.int64)


def _near(
    buckets: _Buckets,
    hashes: NDArray[np.uint64],
    turned: NDArray[np.uint64],
    own: NDArray[np.int64],
    codes: NDArray[np.int64],
) -> Iterator[NDArray[np.int64]]:
    """Pairs ``(n, 2)`` of an earlier photo and one of ``own``, turned, that are near by their hash."""
    values = (_quarter(turned[own], buckets.shift)[:, None] ^ buckets.masks[None, :]).ravel()
    asking = np.flatnonzero(buckets.counts[values])
    values = values[asking]
    ends = np.cumsum(buckets.counts[values])
    # A bucket may hold very many photos (all of a calm sea): never more pairs at once than these.
    cuts = np.searchsorted(ends, np.arange(_PAIRS, ends[-1:].sum(), _PAIRS))
    for part in np.split(np.arange(len(asking)), cuts):
        number = buckets.counts[values[part]]
        within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        first = buckets.order[np.repeat(buckets.starts[values[part]], number) + within]
        second = own[np.repeat(asking[part] // len(buckets.masks), number)]
        near = (first < second) & (codes[first] != codes[second])
        first, second = first[near], second[near]
        near = np.bitwise_count(hashes[first] ^ turned[second]) <= HASH_DISTANCE
        yield np.stack([first[near], second[near]], axis=1)


def _unique_pairs(pairs: Sequence[NDArray[np.int64]], number: int) -> NDArray[np.int64]:
    together = np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs])
    codes = np.unique(together[:, 0] * number + together[:, 1])
    return np.stack([codes // number, codes % number], axis=1)


def _confirm(
    pairs: NDArray[np.int64], thumbs: NDArray[np.uint8], seen: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The pairs whose thumbnails correlate, in the best of the eight symmetries."""
    kept = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(pairs), _CONFIRMED):
        some = pairs[start : start + _CONFIRMED]
        first, second = (_details(thumbs[seen[side]].astype(np.float32)) for side in some.T)
        best = np.full(len(some), -1.0, dtype=np.float32)
        for turned in symmetries(second):
            best = np.maximum(best, np.einsum("nij,nij->n", first, turned))
        kept.append(some[best >= CORRELATION])
    return np.concatenate(kept)
