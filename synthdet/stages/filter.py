"""Keep the synthetic pictures that look like the real ones; drop the others and say why.

Reads:
    ``1-prepare/tiles.jsonl`` and ``3-generate/images.jsonl``, with their pictures. Train tiles alone
    decide; val tiles only say how good the set is as a whole; test tiles are never opened.

Writes:
    ``4-filter/embeddings/*.npz``, by content hash and model; ``centroid.npy``, the mean direction of
    the train tiles with an animal; ``scores.jsonl``, raw, in the order of ``images.jsonl``;
    ``decisions.jsonl``, what the thresholds make of the scores; ``report.png``. With
    ``filter.prompt_agreement``: ``embeddings/prompts/*.npz``, the prompts', by their hash and model.

Resume:
    Batches are planned from the whole list; a batch is embedded again if any member is missing.
    All else follows from the embeddings, so a new threshold or centroid opens no model.

Pictures asked to show an animal (and those nobody asked anything of) are held against the centroid
of the tiles with an animal. Pictures asked to be background are held against the centroid of the
background tiles, if there are enough of those, and never count as copies or near-duplicates.

Pictures go through in blocks, so that memory does not grow with them but for some bytes each.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache as once
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthdet.config import Config
from synthdet.core.layout import (
    NUM_BYTES,
    SIDE,
    Packed,
    find_layout,
    to_agreement,
)
from synthdet.core.records import Decision, Record, Score, SyntheticImage, Tile
from synthdet.core.scenes import Scene, scene_of, shows_others
from synthdet.core.set_quality import SetQuality, cmmd, measure_set
from synthdet.core.similarity import (
    COPY,
    EMPTY,
    FAILED,
    FAR,
    FAULTS,
    MIN_BACKGROUNDS,
    TWIN,
    UNLIKE_PROMPT,
    UNREADABLE,
    Calibration,
    Centroids,
    EmbeddedPicture,
    Embeddings,
    RealTiles,
    calibrate,
    find_fault,
    find_twins,
    judge,
    make_centroids,
    score_pictures,
    similarity_to_nearest,
)
from synthdet.errors import SynthdetError
from synthdet.models.protocols import ImageEmbedder, Picture
from synthdet.progress import Reporter
from synthdet.stages.filter_cache import BLOCK, Embedded, EmbeddingCache
from synthdet.stages.filter_report import MAX_SHOWN, ReportFacts, Shown, draw_report
from synthdet.workspace import (
    StageFolder,
    Workspace,
    atomic_path,
    hash_file,
    read_records,
)

PROMISED = ("scores.jsonl", "decisions.jsonl", "centroid.npy", "report.png")
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}
_BATCHES_AHEAD = 3
_AT_A_TIME = 1024  # pictures whose records are in memory
_QUALITY_PICTURES = 2_000


@dataclass(frozen=True, slots=True)
class _Content:
    """A picture file by its content, and who promised it: a stage, or the user's negatives."""

    sha256: str
    path: Path
    origin: str


@dataclass(frozen=True, slots=True)
class _Given:
    """The real side of the comparison, which is small, and where the synthetic side stands."""

    workspace: Workspace
    tiles: tuple[Tile, ...]
    negatives: tuple[_Content, ...]

    def images(self) -> Iterator[SyntheticImage]:
        """The synthetic pictures, one at a time."""
        return _each(self.workspace.stage("generate").path / "images.jsonl", SyntheticImage)

    def contents(self) -> Iterator[_Content]:
        """Every different content once: real tiles, synthetic pictures, named negatives."""
        root, seen = self.workspace.root, set[int]()
        tiles = (_Content(one.sha256, root / one.path, "prepare") for one in self.tiles)
        images = (_Content(one.sha256, root / one.path, "generate") for one in self.images())
        for contents in (tiles, images, self.negatives):
            for content in contents:
                key = int(content.sha256[:16], 16)
                if key not in seen:
                    seen.add(key)
                    yield content


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

    given = _read_given(workspace, config)
    open_embedder = once(open_embedder)
    if config.filter.prompt_agreement and not _has_prompt_agreement(folder, given):
        # Before the pictures, which take long: a checkpoint that reads no texts is refused at once.
        _embed_prompts(folder, given, config, reporter, open_embedder)
    cache = _embed(folder, given, config, reporter, open_embedder)
    train = [tile for tile in given.tiles if tile.split == "train"]
    animals = _real_tiles([tile for tile in train if tile.boxes], cache)
    backgrounds = _real_tiles([tile for tile in train if not tile.boxes], cache)
    if not animals.tile_ids:
        raise SynthdetError(
            "no real train tile holds an animal, so there is nothing to compare with: look at 1-prepare/tiles.jsonl"
        )
    calibration = _calibrate(animals, backgrounds, given, cache, config)
    centroids = make_centroids(
        animals, per_class=config.filter.per_class, clusters=config.filter.clusters
    )
    unchanged = _write_centroid(folder.path / "centroid.npy", centroids)
    if not (unchanged and _has_scores(folder.path / "scores.jsonl", given)):
        _write_scores(folder, given, cache, animals, backgrounds, centroids)
    if config.filter.prompt_agreement and not _has_prompt_agreement(folder, given):
        _add_prompt_agreement(folder, given, cache, config, reporter, open_embedder)
    dropped = _write_decisions(folder, given, calibration)
    quality, between_real = _measure_quality(folder, given, cache, animals)
    told = _tell_quality(quality, between_real)
    with atomic_path(folder.path / "report.png") as temporary:
        draw_report(temporary, _report_facts(folder, given, calibration, told))
    agreement = _measure_agreement(folder) if config.filter.prompt_agreement else None
    also_told = [one for one in (told, _tell_agreement(agreement)) if one]
    for note in [*_notes(calibration, given), *also_told]:
        reporter.note("filter", note)
    counts = _counts(dropped, calibration, animals)
    counts["prompt_agreement"] = agreement
    counts["quality"] = None if quality is None else asdict(quality)
    counts["cmmd_between_real"] = between_real
    folder.close(
        outputs=[folder.path / "scores.jsonl", folder.path / "decisions.jsonl"],
        counts=counts,
        runtime=config.filter.settings("runtime"),
    )
    reporter.close("filter", _closing_line(counts))


def _read_given(workspace: Workspace, config: Config) -> _Given:
    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    named = config.filter.negatives
    negatives: list[_Content] = []
    if named is not None:
        found = sorted(path for path in named.expanduser().rglob("*") if _is_picture(path))
        if not found:
            raise SynthdetError(f"filter.negatives: there is no picture in {named}")
        negatives = [_Content(hash_file(path), path, "negatives") for path in found]
    return _Given(
        workspace, tuple(tile for tile in tiles if tile.split != "test"), tuple(negatives)
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def _each(path: Path, kind: type[Any]) -> Iterator[Any]:
    """Records of a finished file, one at a time."""
    with path.open("rb") as handle:
        for line in handle:
            yield kind.model_validate_json(line)


def _in_blocks(things: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(things)
    while block := list(islice(iterator, size)):
        yield block


# --- embeddings --------------------------------------------------------------------------------


def _embed(
    folder: StageFolder,
    given: _Given,
    config: Config,
    reporter: Reporter,
    open_embedder: Callable[[], ImageEmbedder],
) -> EmbeddingCache:
    """The cache with all contents in it; the model is opened if any is not there yet."""
    cache = EmbeddingCache(folder.path / "embeddings", config.filter.model)
    size = config.filter.batch_size
    total = missing = 0
    for content in given.contents():
        total += 1
        if content.sha256 not in cache:
            missing += 1
            if not content.path.exists():
                raise SynthdetError(
                    f"{content.path} is missing: put it back, or make it again with "
                    f"`synthdet {content.origin} {folder.workspace.root}`"
                )
    work = _Work(open_embedder() if missing else None, config.filter.workers or os.cpu_count() or 1)
    with reporter.bar("filter", total, done=total - missing) as advance, work:
        for block in _in_blocks(given.contents(), BLOCK):
            batches = [batch for batch in _in_blocks(block, size) if _misses(batch, cache)]
            for fresh in work.embed(batches):
                new = sum(sha256 not in cache for sha256 in fresh)
                cache.add_part(fresh)
                advance(new)
            cache.join([content.sha256 for content in block])
    cache.clean()
    return cache


def _misses(batch: Sequence[_Content], cache: EmbeddingCache) -> bool:
    return any(content.sha256 not in cache for content in batch)


@dataclass(frozen=True, slots=True)
class _Read:
    """A picture as the network sees it, or the fault for which it cannot be used."""

    picture: Picture | None
    fault: str | None
    layout: Packed | None = None


class _Work:
    """Pictures decoded by all cores, a few batches ahead of the network.

    A batch on which the network fails is done picture by picture; those on which it fails again get
    that as their fault. A network that has never done anything right is not the pictures' fault.
    """

    def __init__(self, embedder: ImageEmbedder | None, workers: int) -> None:
        self._embedder = embedder
        self._threads = ThreadPoolExecutor(workers, "decode")
        self._has_worked = False

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *_error: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def embed(self, batches: Sequence[Sequence[_Content]]) -> Iterator[dict[str, Embedded]]:
        """What is known of the contents of each batch, in order."""
        if self._embedder is None:
            return
        ahead: deque[tuple[Sequence[_Content], list[Future[_Read]]]] = deque()
        coming = iter(batches)
        while True:
            for batch in islice(coming, _BATCHES_AHEAD - len(ahead)):
                read = [
                    self._threads.submit(_read, content.path, self._embedder) for content in batch
                ]
                ahead.append((batch, read))
            if not ahead:
                return
            batch, futures = ahead.popleft()
            yield self._embed_batch(batch, [future.result() for future in futures])

    def _embed_batch(self, batch: Sequence[_Content], read: Sequence[_Read]) -> dict[str, Embedded]:
        sound = [
            (c, one.picture) for c, one in zip(batch, read, strict=True) if one.picture is not None
        ]
        found = {c.sha256: Embedded(None, one.fault) for c, one in zip(batch, read, strict=True)}
        layouts = {c.sha256: one.layout for c, one in zip(batch, read, strict=True)}
        found |= {
            sha256: replace(one, layout=layouts[sha256]) for sha256, one in self._ask(sound).items()
        }
        for content in batch:
            _check_real(content, found[content.sha256].fault)
        return found

    def _ask(self, sound: Sequence[tuple[_Content, Picture]]) -> dict[str, Embedded]:
        assert self._embedder is not None  # noqa: S101 - else nothing would be asked
        if not sound:
            return {}
        try:
            rows = self._embedder.embed_shrunk([picture for _, picture in sound])
        except Exception:
            if len(sound) > 1:
                parts = [self._try(one) for one in sound]
                if not self._has_worked:
                    raise
                return {sha256: one for part in parts for sha256, one in part.items()}
            if not self._has_worked:
                raise
            return {sound[0][0].sha256: Embedded(None, FAILED)}
        _check_finite(rows, [str(content.path) for content, _ in sound])
        self._has_worked = True
        return {
            content.sha256: Embedded(row, None)
            for (content, _), row in zip(sound, rows, strict=True)
        }

    def _try(self, one: tuple[_Content, Picture]) -> dict[str, Embedded]:
        try:
            return self._ask([one])
        except Exception:
            return {one[0].sha256: Embedded(None, FAILED)}


def _read(path: Path, embedder: ImageEmbedder) -> _Read:
    """Decode and shrink a picture; a JPEG is decoded no larger than is of use."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (embedder.smallest_side, embedder.smallest_side))
            picture = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _Read(None, UNREADABLE)
    if fault := find_fault(picture):
        return _Read(None, fault)
    grey = Image.fromarray(picture).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return _Read(embedder.shrink(picture), None, find_layout(np.asarray(grey)))


def _check_real(content: _Content, fault: str | None) -> None:
    if content.origin == "prepare" and fault == UNREADABLE:
        raise SynthdetError(
            f"{content.path} cannot be read: make the tiles again with `synthdet prepare ... --redo`"
        )
    if content.origin == "prepare" and fault == FAILED:
        raise SynthdetError(f"filter.model fails on the real tile {content.path}: name another")


def _check_finite(rows: Embeddings, embedded: Sequence[str]) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        what = embedded[int(finite.argmin())]
        raise SynthdetError(
            f"filter.model gives no finite embedding of {what}: its weights are damaged, name another"
        )


# --- scores and decisions ----------------------------------------------------------------------


def _real_tiles(tiles: Sequence[Tile], cache: EmbeddingCache) -> RealTiles:
    """Tiles with their embeddings; a real tile of one flat colour says nothing and is left out."""
    sound = [tile for tile in tiles if cache.fault(tile.sha256) is None]
    return RealTiles(
        tuple(tile.tile_id for tile in sound),
        tuple(tile.group for tile in sound),
        cache.rows([tile.sha256 for tile in sound]),
        cache.layouts([tile.sha256 for tile in sound]),
        tuple(tuple(sorted({box.class_id for box in tile.boxes})) for tile in sound),
    )


def _calibrate(
    animals: RealTiles,
    backgrounds: RealTiles,
    given: _Given,
    cache: EmbeddingCache,
    config: Config,
) -> Calibration:
    settings = config.filter
    negatives = [one.sha256 for one in given.negatives if cache.fault(one.sha256) is None]
    return calibrate(
        animals,
        backgrounds,
        threshold=settings.threshold,
        copy_threshold=settings.copy_threshold,
        percentile=settings.percentile,
        duplicate_threshold=settings.duplicate_threshold,
        background_check=settings.background_check,
        per_class=settings.per_class,
        clusters=settings.clusters,
        negatives=cache.rows(negatives) if negatives else None,
        prompt_threshold=settings.prompt_threshold,
    )


def _write_centroid(path: Path, centroids: Centroids) -> bool:
    """Write it; whether it stood there like this already."""
    vectors = centroids.vectors[0] if centroids.class_ids == (None,) else centroids.vectors
    if path.exists():
        try:
            if np.array_equal(np.load(path), vectors):
                return True
        except (OSError, ValueError):
            pass
    with atomic_path(path) as temporary:
        np.save(temporary, vectors)
    return False


def _has_scores(path: Path, given: _Given) -> bool:
    """Whether the scores of exactly these pictures stand there."""
    if not path.exists():
        return False
    try:
        pairs = zip(_each(path, Score), given.images(), strict=True)
        return all(score.image_id == image.image_id for score, image in pairs)
    except ValueError:  # more of one than of the other, or a line that is no score
        return False


def _write_scores(
    folder: StageFolder,
    given: _Given,
    cache: EmbeddingCache,
    animals: RealTiles,
    backgrounds: RealTiles,
    centroids: Centroids,
) -> None:
    twins = _find_twins(folder, given, cache, centroids)
    with atomic_path(folder.path / "scores.jsonl") as temporary, temporary.open("wb") as handle:
        for block in _in_blocks(given.images(), _AT_A_TIME):
            pictures = _with_embeddings(block, cache)
            named = {one.image_id: twins.of(one.image_id) for one in pictures}
            scores = score_pictures(
                pictures,
                animals,
                backgrounds,
                centroids=centroids,
                twins={image_id: twin for image_id, twin in named.items() if twin is not None},
            )
            _write_lines(handle, scores)


def _write_lines(handle: Any, records: Iterable[Record]) -> None:
    handle.write("".join(record.to_line() + "\n" for record in records).encode("utf-8"))


def _with_embeddings(
    images: Sequence[SyntheticImage], cache: EmbeddingCache
) -> list[EmbeddedPicture]:
    faults = [cache.fault(image.sha256) for image in images]
    sound = [image.sha256 for image, fault in zip(images, faults, strict=True) if not fault]
    rows, layouts = iter(cache.rows(sound)), iter(cache.layouts(sound))
    return [
        EmbeddedPicture(
            image.image_id,
            None if fault else next(rows),
            fault,
            is_background=image.asked_for == (),
            asked_for=image.asked_for,
            layout=None if fault else next(layouts),
        )
        for image, fault in zip(images, faults, strict=True)
    ]


# --- prompts -----------------------------------------------------------------------------------


def _has_prompt_agreement(folder: StageFolder, given: _Given) -> bool:
    """Whether every picture that has an embedding was held against its prompt, and none that has no prompt."""
    return _has_scores(folder.path / "scores.jsonl", given) and all(
        (score.prompt_agreement is not None) == _can_agree(score, image)
        for score, image in _scored(folder, given)
    )


def _can_agree(score: Score, image: SyntheticImage) -> bool:
    """Whether there is something on both sides: pictures that were taken in may have no prompt."""
    return score.fault is None and bool(image.prompt)


def _add_prompt_agreement(
    folder: StageFolder,
    given: _Given,
    cache: EmbeddingCache,
    config: Config,
    reporter: Reporter,
    open_embedder: Callable[[], ImageEmbedder],
) -> None:
    """Put how each picture agrees with its prompt into the scores, which are else as they were."""
    prompts = _embed_prompts(folder, given, config, reporter, open_embedder)
    path = folder.path / "scores.jsonl"
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        for block in _in_blocks(_scored(folder, given), _AT_A_TIME):
            asked = [image for score, image in block if _can_agree(score, image)]
            cosines = iter(_agreements(asked, cache, prompts))
            found = [next(cosines) if _can_agree(score, image) else None for score, image in block]
            _write_lines(
                handle,
                [
                    score.model_copy(update={"prompt_agreement": agreement})
                    for (score, _image), agreement in zip(block, found, strict=True)
                ],
            )


def _agreements(
    images: Sequence[SyntheticImage], cache: EmbeddingCache, prompts: EmbeddingCache
) -> list[float]:
    """Cosine of each picture to its prompt, -1..1."""
    if not images:
        return []
    pictures = cache.rows([image.sha256 for image in images])
    texts = prompts.rows([_hash_text(image.prompt) for image in images])
    cosines: list[float] = np.round((pictures * texts).sum(axis=1, dtype=np.float64), 6).tolist()
    return cosines


def _embed_prompts(
    folder: StageFolder,
    given: _Given,
    config: Config,
    reporter: Reporter,
    open_embedder: Callable[[], ImageEmbedder],
) -> EmbeddingCache:
    """The cache of the prompts; the model is opened if any is not there yet."""
    prompts = EmbeddingCache(folder.path / "embeddings" / "prompts", config.filter.model)
    for block in _in_blocks(_different_prompts(given), BLOCK):
        new = {sha256: text for sha256, text in block if sha256 not in prompts}
        if not new:
            continue
        with reporter.bar(
            "filter", len(block), done=len(block) - len(new), doing="reading prompts"
        ) as advance:
            for batch in _in_blocks(new.items(), config.filter.batch_size):
                rows = open_embedder().embed_texts([text for _sha256, text in batch])
                _check_finite(rows, [f"the prompt {text!r}" for _sha256, text in batch])
                known = zip(batch, rows, strict=True)
                prompts.add_part({sha256: Embedded(row, None) for (sha256, _), row in known})
                advance(len(batch))
        prompts.join([sha256 for sha256, _text in block])
    prompts.clean()
    return prompts


def _different_prompts(given: _Given) -> Iterator[tuple[str, str]]:
    """Hash and text of every prompt, once; no empty one."""
    seen = set[int]()
    for image in given.images():
        if not image.prompt:
            continue
        sha256 = _hash_text(image.prompt)
        key = int(sha256[:16], 16)
        if key not in seen:
            seen.add(key)
            yield sha256, image.prompt


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _measure_agreement(folder: StageFolder) -> dict[str, float] | None:
    """How the pictures agree with their prompts: the 2nd percentile, the middle and the 98th."""
    scores = _each(folder.path / "scores.jsonl", Score)
    values = [one.prompt_agreement for one in scores if one.prompt_agreement is not None]
    if not values:
        return None
    found = np.percentile(np.array(values), [2, 50, 98]).round(4).tolist()
    return dict(zip(("percentile_2", "median", "percentile_98"), found, strict=True))


def _tell_agreement(agreement: Mapping[str, float] | None) -> str | None:
    if agreement is None:
        return None
    low, middle, high = agreement.values()
    return (
        f"agreement of pictures with their prompts: {middle:.3f} in the middle, 2 % below {low:.3f}, 2 % above "
        f"{high:.3f} (filter.prompt_threshold drops pictures by it)"
    )


# --- near-duplicates ---------------------------------------------------------------------------


class _Twins:
    """The better picture whose layout each repeats most, by name: numbers, and one list of names."""

    def __init__(self, names: list[str], best: Any, agreements: Any) -> None:
        self._names, self._best, self._agreements = names, best, agreements
        self._numbers = {name: number for number, name in enumerate(names)}

    def of(self, image_id: str) -> tuple[str, float] | None:
        """Name and agreement; None for the best picture, and for those not asked for an animal."""
        number = self._numbers.get(image_id)
        if number is None or self._best[number] < 0:
            return None
        return self._names[self._best[number]], float(self._agreements[number])


def _find_twins(
    folder: StageFolder, given: _Given, cache: EmbeddingCache, centroids: Centroids
) -> _Twins:
    """Sort the layouts by their pictures' similarity in a file, and look for each one's nearest before it."""
    names: list[str] = []
    scenes: list[Scene | None] = []
    similarities: list[np.ndarray[Any, Any]] = []
    folder.path.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryFile(dir=folder.path, prefix=".tmp-") as plain,
        tempfile.TemporaryFile(dir=folder.path, prefix=".tmp-") as ordered,
    ):
        for block in _in_blocks(given.images(), _AT_A_TIME):
            pictures = zip(_with_embeddings(block, cache), block, strict=True)
            chosen = [
                (one, image)
                for one, image in pictures
                if one.embedding is not None and not one.is_background
            ]
            members = [one for one, _ in chosen]
            if members:
                rows = np.stack([one.embedding for one in members if one.embedding is not None])
                asked = [one.asked_for for one in members]
                similarities.append(similarity_to_nearest(rows, centroids, asked))
                names += [one.image_id for one in members]
                scenes += [scene_of(image) for _, image in chosen]
                layouts = np.stack([one.layout for one in members if one.layout is not None])
                plain.write(np.packbits(layouts > 0, axis=1).tobytes())
        if not names:
            return _Twins([], [], [])
        # Best first; of equals the earlier one.
        order = np.argsort(-np.concatenate(similarities), kind="stable")
        for number in order.tolist():
            plain.seek(number * NUM_BYTES)
            ordered.write(plain.read(NUM_BYTES))

        def read(start: int, stop: int) -> Packed:
            ordered.seek(start * NUM_BYTES)
            content = ordered.read((stop - start) * NUM_BYTES)
            return np.frombuffer(content, dtype=np.uint8).reshape(-1, NUM_BYTES)

        sorted_scenes = [scenes[number] for number in order.tolist()]
        best, differing = find_twins(
            read,
            len(names),
            are_apart=lambda one, better: shows_others(sorted_scenes[one], sorted_scenes[better]),
        )
    agreements = to_agreement(np.round(1 - 2 * differing / (8 * NUM_BYTES), 6))
    return _Twins([names[number] for number in order.tolist()], best, agreements)


def _write_decisions(
    folder: StageFolder, given: _Given, calibration: Calibration
) -> Counter[str | None]:
    """Decide; returns how many pictures there are of each reason, and of none."""
    alone = (_judge(score, image, calibration, ()) for score, image in _scored(folder, given))
    spent = {one.image_id for one in alone if one.reason not in (None, TWIN)}
    reasons: Counter[str | None] = Counter()
    path = folder.path / "decisions.jsonl"
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        for block in _in_blocks(_scored(folder, given), _AT_A_TIME):
            decisions = [_judge(score, image, calibration, spent) for score, image in block]
            reasons.update(decision.reason for decision in decisions)
            _write_lines(handle, decisions)
    return reasons


def _scored(folder: StageFolder, given: _Given) -> Iterator[tuple[Score, SyntheticImage]]:
    return zip(_each(folder.path / "scores.jsonl", Score), given.images(), strict=True)


def _judge(
    score: Score, image: SyntheticImage, calibration: Calibration, spent: Container[str]
) -> Decision:
    return judge(
        score,
        calibration.limits,
        is_background=image.asked_for == (),
        is_placed=bool(image.placed),
        spent=spent,
    )


# --- what is told ------------------------------------------------------------------------------


def _measure_quality(
    folder: StageFolder, given: _Given, cache: EmbeddingCache, animals: RealTiles
) -> tuple[SetQuality | None, float | None]:
    """The kept pictures with animals against the real val tiles; and train tiles against those."""
    val = [tile for tile in given.tiles if tile.split == "val" and tile.boxes]
    held_out = _real_tiles(val, cache)
    decided = zip(_each(folder.path / "decisions.jsonl", Decision), given.images(), strict=True)
    kept = [image.sha256 for one, image in decided if one.kept and image.asked_for != ()]
    if len(kept) > _QUALITY_PICTURES:
        chosen = np.linspace(0, len(kept) - 1, _QUALITY_PICTURES).round().astype(int)
        kept = [kept[index] for index in chosen.tolist()]
    real, groups = held_out.embeddings[:_QUALITY_PICTURES], held_out.groups[:_QUALITY_PICTURES]
    quality = measure_set(real, groups, cache.rows(kept))
    if quality is None:
        return None, None
    return quality, cmmd(animals.embeddings[:_QUALITY_PICTURES], real)


def _tell_quality(quality: SetQuality | None, between_real: float | None) -> str | None:
    if quality is None:
        return None
    shares = [
        f"{name} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})"
        for name, one in (
            ("precision", quality.precision),
            ("recall", quality.recall),
            ("density", quality.density),
            ("coverage", quality.coverage),
        )
    ]
    distance = quality.cmmd
    return (
        f"kept pictures against {quality.num_real} real val tiles: CMMD {distance.value:.3f} "
        f"({distance.low:.3f} to {distance.high:.3f}; real train tiles {between_real:.3f}), "
        + ", ".join(shares)
    )


def _report_facts(
    folder: StageFolder, given: _Given, calibration: Calibration, told: str | None
) -> ReportFacts:
    """What the report shows: all similarities as numbers, and a few pictures of either kind."""
    similarities, asked, dropped = [], [], []
    records = zip(
        _each(folder.path / "decisions.jsonl", Decision), _scored(folder, given), strict=True
    )
    for decision, (score, image) in records:
        background = image.asked_for == ()
        value = score.background_similarity if background else score.similarity
        similarities.append(np.nan if value is None else value)
        asked.append(not background)
        dropped.append(not decision.kept)
    values, is_asked, is_dropped = (
        np.array(similarities),
        np.array(asked, bool),
        np.array(dropped, bool),
    )
    order = np.argsort(np.nan_to_num(values, nan=-2.0), kind="stable")
    chosen = {
        kind: _thin_out([n for n in order.tolist() if is_dropped[n] == kind], MAX_SHOWN)
        for kind in (False, True)
    }
    wanted = {number for numbers in chosen.values() for number in numbers}
    shown: dict[int, Shown] = {}
    records = zip(
        _each(folder.path / "decisions.jsonl", Decision), _scored(folder, given), strict=True
    )
    for number, (decision, (_, image)) in enumerate(records):
        if number in wanted:
            shown[number] = Shown(
                given.workspace.root / image.path,
                None if np.isnan(values[number]) else float(values[number]),
                decision.reason,
                image.asked_for == (),
            )
    sound = is_asked & ~np.isnan(values)
    return ReportFacts(
        kept=tuple(shown[number] for number in chosen[False]),
        num_kept=int((~is_dropped).sum()),
        dropped=tuple(shown[number] for number in chosen[True]),
        num_dropped=int(is_dropped.sum()),
        similarities=values[sound],
        calibration=calibration,
        quality=told,
    )


def _thin_out(members: Sequence[int], most: int) -> list[int]:
    """At most so many, the first, the last, and evenly between."""
    if len(members) <= most:
        return list(members)
    return [members[index] for index in np.linspace(0, len(members) - 1, most).round().astype(int)]


def _notes(calibration: Calibration, given: _Given) -> list[str]:
    notes = list(calibration.notes)
    if calibration.limits.backgrounds is None:
        unjudged = sum(image.asked_for == () for image in given.images())
        if unjudged:
            notes.append(
                f"fewer than {MIN_BACKGROUNDS} real background tiles: the {unjudged} pictures asked to be background "
                "are only checked for faults"
            )
    return notes


def _counts(
    reasons: Mapping[str | None, int], calibration: Calibration, animals: RealTiles
) -> dict[str, Any]:
    limits, left_out = calibration.limits, calibration.left_out
    order = (FAR, COPY, EMPTY, UNLIKE_PROMPT, TWIN, *FAULTS)
    return {
        "pictures": sum(reasons.values()),
        "kept": reasons.get(None, 0),
        "dropped": {reason: reasons[reason] for reason in order if reasons.get(reason)},
        "threshold": limits.animals,
        "threshold_from": "calibrated" if calibration.chosen else "given",
        "threshold_percentile": calibration.chosen and calibration.chosen.percentile,
        "threshold_fence": calibration.chosen and calibration.chosen.fence,
        "background_threshold": limits.backgrounds,
        "copy_threshold": limits.copy,
        "layout_threshold": limits.layout,
        "duplicate_threshold": limits.twin,
        "prompt_threshold": limits.prompt,
        "background_margin": limits.empty,
        "real_tiles": len(animals.tile_ids),
        "real_groups": len(set(animals.groups)),
        "left_out_by": left_out.by if left_out else None,
        "real_lost": calibration.real_lost,
        "negatives": len(calibration.negatives),
        "negatives_passing": calibration.negatives_passing,
        "named_negatives": len(calibration.named),
        "named_negatives_passing": calibration.named_passing,
        "separation": calibration.separation,
    }


def _closing_line(counts: Mapping[str, Any]) -> str:
    parts = [f"{counts['kept']:,} kept of {counts['pictures']:,}"]
    plurals = {COPY: COPY.replace("copy", "copies", 1), TWIN: f"{TWIN}s"}
    for reason, number in counts["dropped"].items():
        parts.append(f"{number:,} {plurals.get(reason, reason) if number > 1 else reason}")
    threshold = f"(threshold {counts['threshold']:.2f}, {counts['threshold_from']})"
    return f"{' · '.join(parts)}  {threshold}"
