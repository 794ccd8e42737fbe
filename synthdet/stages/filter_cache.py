"""What CLIP said of every content, kept by its hash and the model: never asked twice.

``4-filter/embeddings/`` holds shards of up to `BLOCK` contents (``.npz``, stored and not compressed, so
that rows are read in place): ``model``, ``sha256``, ``fault``, ``layout`` and ``embeddings``. While a block is
worked on, its batches lie in files of their own, ``part-*.npz``; a whole block is one shard, and its
parts go. In memory is only where each content lies.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from synthdet.core.layout import NUM_BYTES, Packed, Vectors, layout_vectors
from synthdet.core.similarity import Embeddings, Similarities
from synthdet.workspace import atomic_path, hash_json

BLOCK = 4096
"""Contents of a shard. It decides how files are cut, so it is no knob."""

_PART = "part-"
_ROWS_AT_A_TIME = 512  # a megabyte: it stays near the processor
_MOST_RECENT = 2 * BLOCK
"""Contents that came since, in a dictionary: ten times the memory of sorted keys, into which more go."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What is known of a picture's content: an embedding of length 1 and a layout, or a fault."""

    embedding: NDArray[np.float32] | None
    fault: str | None
    layout: Packed | None = None


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file and where in it the embeddings begin."""

    path: Path
    offset: int
    rows: int
    width: int


class EmbeddingCache:
    """The shards of one model in a folder.

    Args:
        folder: Need not exist.
        model: Shards of another model, and those that cannot be read, are passed over.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder
        self._model = model
        self._shards: list[_Shard] = []
        # Where a content lies: keys in order with a place each, and what came since, in a dictionary.
        self._keys = np.empty(0, dtype=np.uint64)
        self._places = np.empty(0, dtype=np.int64)
        self._recent: dict[int, int] = {}
        self._faults: dict[int, tuple[str, int]] = {}  # and the shard it stands in
        self._indexed = 0
        self._open: tuple[int, Embeddings] | None = None
        for path in sorted(folder.glob("*.npz"), key=lambda path: (not _is_part(path), path.name)):
            self._add_shard(path)

    @property
    def width(self) -> int:
        """Dimensions of an embedding; 0 where nothing is known."""
        return max((shard.width for shard in self._shards), default=0)

    def __contains__(self, sha256: str) -> bool:
        return self._place(sha256) >= 0 or self.fault(sha256) is not None

    def fault(self, sha256: str) -> str | None:
        """Why a content has no embedding."""
        self._index()
        fault, _shard = self._faults.get(_key(sha256), (None, 0))
        return fault

    def rows(self, contents: Sequence[str]) -> Embeddings:
        """The embeddings of contents that have one, ``(n, dimensions)``, in their order."""
        places = np.array([self._place(sha256) for sha256 in contents], dtype=np.int64)
        if len(places) and places.min() < 0:
            raise KeyError(contents[int(places.argmin())])
        found = np.empty((len(places), self.width), dtype=np.float32)
        numbers = places // BLOCK
        for number in np.unique(numbers).tolist():
            here = numbers == number
            found[here] = self._read(number)[places[here] % BLOCK]
        return found

    def layouts(self, contents: Sequence[str]) -> Vectors:
        """The layouts of contents that have an embedding, ``(n, 544)``, in their order."""
        places = np.array([self._place(sha256) for sha256 in contents], dtype=np.int64)
        found = np.empty((len(places), NUM_BYTES), dtype=np.uint8)
        numbers = places // BLOCK
        for number in np.unique(numbers).tolist():
            here = numbers == number
            with np.load(self._shards[number].path) as members:
                found[here] = members["layout"][places[here] % BLOCK]
        return layout_vectors(found)

    def add_part(self, embedded: Mapping[str, Embedded]) -> None:
        """Write down a batch."""
        name = f"{_PART}{hash_json([self._model, *embedded])[:16]}.npz"
        self._write(self._folder / name, embedded)

    def join(self, block: Sequence[str]) -> None:
        """Make a shard of a block whose contents are all known, unless none of them lies in a part."""
        parts = {number for number, shard in enumerate(self._shards) if _is_part(shard.path)}
        places = {place // BLOCK for place in map(self._place, block) if place >= 0}
        faults = [self._faults.get(_key(sha256)) for sha256 in block]
        if not parts & (places | {fault[1] for fault in faults if fault is not None}):
            return
        known = [sha256 for sha256 in block if self.fault(sha256) is None]
        rows = dict(zip(known, self.rows(known), strict=True))
        packed = np.packbits(self.layouts(known) > 0, axis=1)
        layouts = dict(zip(known, packed, strict=True))
        embedded = {
            sha256: Embedded(rows.get(sha256), self.fault(sha256), layouts.get(sha256))
            for sha256 in block
        }
        self._write(self._folder / f"{hash_json([self._model, *embedded])[:16]}.npz", embedded)

    def clean(self) -> None:
        """Remove the parts, once all their contents stand in shards."""
        for path in self._folder.glob(f"{_PART}*.npz"):
            path.unlink()

    def similarities(self, centroid: Embeddings) -> Iterator[tuple[Path, Similarities]]:
        """Cosine of every cached embedding to a centroid, shard by shard, in bounded memory.

        Args:
            centroid: ``(dimensions,)``, of length 1.

        Yields:
            The shard's file and ``(rows,)`` cosines in its order; a row with a fault has 0.
        """
        buffer = np.empty((_ROWS_AT_A_TIME, len(centroid)), dtype=np.float32)
        for shard in self._shards:
            cosines = np.empty(shard.rows, dtype=np.float32)
            with shard.path.open("rb", buffering=0) as handle:
                handle.seek(shard.offset)
                for start in range(0, shard.rows, _ROWS_AT_A_TIME):
                    rows = buffer[: min(_ROWS_AT_A_TIME, shard.rows - start)]
                    _fill(handle, rows)
                    np.matmul(rows, centroid, out=cosines[start : start + len(rows)])
            yield shard.path, cosines.astype(np.float64)

    def _place(self, sha256: str) -> int:
        """Its row, counted over shards of `BLOCK` rows; -1 where it has no embedding."""
        self._index()
        key = _key(sha256)
        if key in self._recent:
            return self._recent[key]
        index = int(np.searchsorted(self._keys, np.uint64(key)))
        if index < len(self._keys) and int(self._keys[index]) == key:
            return int(self._places[index])
        return -1

    def _index(self) -> None:
        """Take in the shards that were added since."""
        if self._indexed == len(self._shards):
            return
        first = self._indexed == 0
        self._indexed, new = len(self._shards), self._shards[self._indexed :]
        keys, places = [self._keys], [self._places]
        for number, shard in enumerate(new, start=self._indexed - len(new)):
            with np.load(shard.path) as members:
                hashes, faults = members["sha256"], members["fault"]
            found = _keys(hashes)
            spoilt = np.flatnonzero(faults != "")
            self._faults |= {int(found[row]): (str(faults[row]), number) for row in spoilt.tolist()}
            rows = np.flatnonzero(faults == "")
            if first:
                keys.append(found[rows])
                places.append(rows + number * BLOCK)
            else:
                at = (rows + number * BLOCK).tolist()
                self._recent |= dict(zip(found[rows].tolist(), at, strict=True))
        if len(self._recent) > _MOST_RECENT:
            keys.append(np.array(list(self._recent), dtype=np.uint64))
            places.append(np.array(list(self._recent.values()), dtype=np.int64))
            self._recent = {}
        if len(keys) > 1:
            # The last of equal keys counts: shards come after parts.
            joined, where = np.concatenate(keys)[::-1], np.concatenate(places)[::-1]
            self._keys, last = np.unique(joined, return_index=True)
            self._places = where[last]

    def _write(self, path: Path, embedded: Mapping[str, Embedded]) -> None:
        rows = [one.embedding for one in embedded.values()]
        width = next((len(row) for row in rows if row is not None), self.width)
        zeros = np.zeros(width, dtype=np.float32)  # a faulty picture's row
        layouts = [one.layout for one in embedded.values()]
        blank = np.zeros(NUM_BYTES, dtype=np.uint8)
        with atomic_path(path) as temporary:
            np.savez(
                temporary,
                model=np.array(self._model),
                sha256=np.array(list(embedded)),
                fault=np.array([one.fault or "" for one in embedded.values()]),
                layout=np.stack([blank if one is None else one for one in layouts]),
                embeddings=np.stack([zeros if row is None else row for row in rows]),
            )
        self._index()
        self._add_shard(path)

    def _add_shard(self, path: Path) -> None:
        try:
            shard, model = _open_shard(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return
        if model == self._model and shard.rows <= BLOCK:
            self._shards.append(shard)

    def _read(self, number: int) -> Embeddings:
        if self._open is None or self._open[0] != number:
            shard = self._shards[number]
            rows = np.empty((shard.rows, shard.width), dtype=np.float32)
            with shard.path.open("rb", buffering=0) as handle:
                handle.seek(shard.offset)
                _fill(handle, rows)
            self._open = number, rows
        return self._open[1]


def _open_shard(path: Path) -> tuple[_Shard, str]:
    """Where the embeddings lie in a shard, a zip file whose members are stored as they are; and the model.

    Raises:
        ValueError: They are not stored as rows of float32.
    """
    with path.open("rb") as handle, zipfile.ZipFile(handle) as members:
        member, _ = members.getinfo("embeddings.npy"), members.getinfo("layout.npy")
        with members.open("model.npy") as named:
            model = str(np.lib.format.read_array(named))
        handle.seek(member.header_offset + 26)
        name, extra = np.frombuffer(handle.read(4), dtype="<u2").tolist()
        handle.seek(name + extra, os.SEEK_CUR)
        version = np.lib.format.read_magic(handle)
        if version != (1, 0):
            raise ValueError("another version of npy")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(handle)
        stored = member.compress_type == zipfile.ZIP_STORED
        if fortran or not stored or kind != np.float32 or len(shape) != 2:
            raise ValueError("not rows of float32")
        return _Shard(path, handle.tell(), *shape), model


def _fill(handle: IO[bytes], rows: Embeddings) -> None:
    """Read rows from where a file stands."""
    view = memoryview(rows.reshape(-1).data).cast("B")
    while view:
        number = handle.readinto(view)  # type: ignore[attr-defined]
        if not number:
            raise EOFError("a shard that ends in the middle of a row")
        view = view[number:]


def _key(sha256: str) -> int:
    return int(sha256[:16], 16)


def _keys(hashes: NDArray[np.str_]) -> NDArray[np.uint64]:
    """`_key` of many hashes at once."""
    if len(hashes) == 0:
        return np.empty(0, dtype=np.uint64)
    letters = np.ascontiguousarray(hashes).view(np.uint32).reshape(len(hashes), -1)[:, :16]
    digits = np.where(letters <= ord("9"), letters - ord("0"), letters - ord("a") + 10)
    shifts = np.arange(60, -1, -4, dtype=np.uint64)
    return np.asarray(np.bitwise_or.reduce(digits.astype(np.uint64) << shifts, axis=1))


def _is_part(path: Path) -> bool:
    return path.name.startswith(_PART)
