"""Which photos belong together, so that a split never tears them apart.

Three kinds of kin, from what file names of common tools tell: *copies* of one original (Roboflow
writes augmented copies as ``NAME_jpg.rf.HASH.jpg``), *tiles* of one frame (``NAME_X_Y``, offsets in
pixels), and *consecutive frames* of one flight, which overlap on the ground. Then near-duplicates,
found by looking.

Frames whose numbers differ by at most `FRAME_STEP` form a chain. A chain longer than
``frames_per_group`` is cut into blocks, each cut at the widest gap within reach. Blocks of one chain
still touch at the cut; `synthdet.core.splits.plan_splits` therefore keeps chains whole where it can,
and where it cannot gives each split one run of neighbouring blocks.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
        original: Key that copies of one original share.
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


def find_kin(paths: Sequence[str], *, frames_per_group: int) -> list[Kin]:
    """Relatives by file name.

    Args:
        paths: Of the photos, relative to their folder, with slashes. Folders named after a split
            or a layout (``train/images``) do not tell photos apart; all others do.
        frames_per_group: The longest block of consecutive frames.

    Returns:
        One for each path, in order.

    Examples:
        >>> names = ["F_01_0003_640_0_JPG.rf.0a1b2c3d.jpg", "F_01_0004_0_0_JPG.rf.4e5f6a7b.jpg"]
        >>> [kin.group for kin in find_kin(names, frames_per_group=20)]
        ['F_01_0003-0004', 'F_01_0003-0004']
    """
    originals = [_original(path) for path in paths]
    frames = _frames(originals)
    numbered = [_number(frame) for frame in frames]
    sequences: dict[str, set[int]] = defaultdict(set)
    for found in numbered:
        if found is not None:
            sequences[found[0]].add(found[1])
    spans: dict[tuple[str, int], tuple[str, str]] = {}
    for sequence, numbers in sequences.items():
        for chain in _chains(sorted(numbers)):
            for block in _blocks(chain, frames_per_group):
                for number in block:
                    spans[sequence, number] = (_span(sequence, block), _span(sequence, chain))
    kin = []
    for original, frame, found in zip(originals, frames, numbered, strict=True):
        group, whole = (frame, frame) if found is None else spans[found]
        kin.append(Kin(original=original, frame=frame, group=group, chain=whole))
    return kin


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
    thumbs: NDArray[np.uint8], keys: Sequence[str], *, chunk: int = 128
) -> list[tuple[int, int]]:
    """Pairs of photos with different keys that show the same, perhaps turned or mirrored.

    A perceptual hash (64 signs of the low frequencies of a cosine transform) of every photo is
    compared with those of all eight symmetries of every other; pairs within `HASH_DISTANCE` bits
    are confirmed by the correlation of their thumbnails, with the slow gradients (light, vignette)
    taken out. About a second for 5,000 photos; time grows with the square, memory does not.

    Args:
        thumbs: Grey thumbnails ``(n, 32, 32)``.
        keys: Photos of one key are known to belong together and are not compared.
        chunk: Photos compared with all others at a time.

    Returns:
        Pairs of positions, the lower first, in order.

    Source:
        Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010
        (the cosine-transform hash, as in the ImageHash library).
    """
    number = len(thumbs)
    if number < 2:
        return []
    grey = thumbs.astype(np.float32)
    hashes = _hashes(grey)
    turned = [_hashes(symmetry) for symmetry in symmetries(grey)]
    flat = grey.std(axis=(1, 2)) < MIN_CONTRAST
    _, codes = np.unique(np.asarray(keys), return_inverse=True)
    details = _details(grey)
    pairs: list[tuple[int, int]] = []
    for start in range(0, number, chunk):
        stop = min(start + chunk, number)
        near = np.zeros((stop - start, number), dtype=np.bool_)
        for hashed in turned:
            near |= np.bitwise_count(hashes[start:stop, None] ^ hashed[None, :]) <= HASH_DISTANCE
        near &= codes[start:stop, None] != codes[None, :]
        near &= ~flat[start:stop, None] & ~flat[None, :]
        rows, columns = np.nonzero(near)
        rows = rows + start
        later = rows < columns
        for first, second in zip(rows[later].tolist(), columns[later].tolist(), strict=True):
            if _correlation(details[first], details[second]) >= CORRELATION:
                pairs.append((first, second))
    return pairs


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


def _original(path: str) -> str:
    pure = PurePosixPath(path)
    stem = pure.name[: -len(pure.suffix)] if pure.suffix else pure.name
    roboflow = _ROBOFLOW.match(stem)
    if roboflow:
        stem = _ROBOFLOW_SUFFIX.sub("", roboflow["original"])
    place = [part for part in pure.parts[:-1] if part.lower() not in LAYOUT_WORDS]
    return "/".join([*place, stem])


def _frames(originals: Sequence[str]) -> list[str]:
    """The frame of each original: without tile offsets, where the numbers look like offsets."""
    tiles = [_TILE.match(original) for original in originals]
    steps: dict[str, int] = defaultdict(int)
    for tile in tiles:
        if tile:
            shape = re.sub(r"\d+", "#", tile["frame"])
            steps[shape] = math.gcd(steps[shape], int(tile["x"]), int(tile["y"]))
    frames = []
    for original, tile in zip(originals, tiles, strict=True):
        step = steps[re.sub(r"\d+", "#", tile["frame"])] if tile else 1
        is_offset = tile is not None and (step == 0 or step >= MIN_TILE_STEP)
        frames.append(tile["frame"] if tile and is_offset else original)
    return frames


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
    """Cut a chain into blocks of half to all of ``longest``, each cut at the widest gap in reach."""
    blocks = []
    rest = chain
    while len(rest) > longest:
        reach = range(max(1, longest // 2), longest + 1)
        cut = max(reach, key=lambda place: (rest[place] - rest[place - 1], place))
        blocks.append(rest[:cut])
        rest = rest[cut:]
    return [*blocks, rest]


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


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The best correlation of two normalised thumbnails over the eight symmetries of one."""
    return max(float((first * turn[0]).sum()) for turn in symmetries(second[None]))
