"""The cache of embeddings: what comes out is what went in, wherever it was interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from synthdet.core.layout import NUM_BYTES, layout_vectors
from synthdet.stages import filter_cache
from synthdet.stages.filter_cache import Embedded, EmbeddingCache

HASHES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(10)]
ROWS = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
LAYOUTS = np.random.default_rng(1).integers(0, 256, (10, NUM_BYTES), dtype=np.uint8)
SPOILT = 3


def known(*numbers: int) -> dict[str, Embedded]:
    return {
        HASHES[n]: Embedded(None, "blank") if n == SPOILT else Embedded(ROWS[n], None, LAYOUTS[n])
        for n in numbers
    }


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_cache, "BLOCK", 4)


def fill(folder: Path, model: str = "clip") -> None:
    cache = EmbeddingCache(folder, model)
    for begin in (0, 4, 8):
        block = range(begin, min(begin + 4, 10))
        for part in (block[:2], block[2:]):
            if part and HASHES[part[0]] not in cache:
                cache.add_part(known(*part))
        cache.join([HASHES[n] for n in block])
    cache.clean()


def check(cache: EmbeddingCache) -> None:
    sound = [n for n in (7, 0, 9, 2, 8, 0) if n != SPOILT]
    assert np.array_equal(cache.rows([HASHES[n] for n in sound]), ROWS[sound])
    assert np.array_equal(cache.layouts([HASHES[n] for n in sound]), layout_vectors(LAYOUTS[sound]))
    assert cache.fault(HASHES[SPOILT]) == "blank"
    assert cache.fault(HASHES[0]) is None
    assert all(sha256 in cache for sha256 in HASHES)
    assert "ab" * 32 not in cache
    assert cache.width == 5


def test_blocks_are_read_back(tmp_path: Path) -> None:
    fill(tmp_path)
    check(EmbeddingCache(tmp_path, "clip"))
    assert sorted(np.load(path)["embeddings"].shape[0] for path in tmp_path.iterdir()) == [2, 4, 4]
    assert HASHES[0] not in EmbeddingCache(tmp_path, "another")
    with pytest.raises(KeyError):
        EmbeddingCache(tmp_path, "clip").rows([HASHES[SPOILT]])


def test_parts_are_known_before_they_are_joined(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    cache = EmbeddingCache(tmp_path / "torn", "clip")
    cache.add_part(known(0, 1))
    assert np.array_equal(cache.rows([HASHES[1]]), ROWS[[1]])
    cache.add_part(known(2, 3))
    cache.join(HASHES[:4])
    cache.add_part(known(4, 5))  # and here it was killed: two parts too many, one not joined
    assert len(list((tmp_path / "torn").glob("part-*"))) == 3
    fill(tmp_path / "torn")
    check(EmbeddingCache(tmp_path / "torn", "clip"))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "torn").iterdir()} == whole


def test_what_came_since_goes_into_the_sorted_keys_and_the_shard_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filter_cache, "_MOST_RECENT", 2)
    cache = EmbeddingCache(tmp_path, "clip")
    for begin in (0, 4, 8):
        block = range(begin, min(begin + 4, 10))
        for number in block:
            assert HASHES[number] not in cache
            cache.add_part(known(number))
            assert HASHES[number] in cache
            assert len(cache._recent) <= 2
        cache.join([HASHES[number] for number in block])
        assert HASHES[begin] in cache
    cache.clean()  # the parts are gone: rows have to come from the shards
    check(cache)


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path)
    paths = sorted(tmp_path.iterdir())
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    np.savez_compressed(
        tmp_path / "packed.npz", model=np.array("clip"), embeddings=ROWS, layout=LAYOUTS
    )
    np.savez(tmp_path / "older.npz", model=np.array("clip"), embeddings=ROWS)
    (tmp_path / "empty.npz").write_bytes(b"")
    cache = EmbeddingCache(tmp_path, "clip")
    assert 4 <= sum(sha256 in cache for sha256 in HASHES) < 10
    fill(tmp_path)
    check(EmbeddingCache(tmp_path, "clip"))


def test_similarities_are_those_of_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filter_cache, "_ROWS_AT_A_TIME", 3)
    fill(tmp_path)
    centroid = ROWS[0] / np.linalg.norm(ROWS[0])
    found = {}
    for path, cosines in EmbeddingCache(tmp_path, "clip").similarities(centroid):
        with np.load(path) as shard:
            found |= dict(zip(shard["sha256"].tolist(), cosines.tolist(), strict=True))
    expected = ROWS @ centroid
    expected[SPOILT] = 0
    assert [found[sha256] for sha256 in HASHES] == pytest.approx(expected, abs=1e-6)
