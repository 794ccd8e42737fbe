"""The filter on a run written by hand, with an embedder that sees mean colours."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from synthdet.config import Config, set_values
from synthdet.core.records import Decision, PlacedBox, Score, SyntheticImage
from synthdet.core.similarity import Calibration, LeftOut, Limits
from synthdet.core.thresholds import Threshold
from synthdet.errors import SynthdetError
from synthdet.stages import filter as filter_stage
from synthdet.stages.filter_report import ReportFacts, draw_report
from synthdet.workspace import Workspace, hash_file, read_records, write_records
from tests.fakes import FakeEmbedder, PlannedError
from tests.handmade import file_bytes, finish, make_images, make_run, make_tiles, quiet

ASKED: tuple[tuple[int, ...] | None, ...] = (
    (0,),
    (0,),
    (1,),
    (0, 1),
    (0,),
    (1,),
    (),
    (),
    None,
    (0,),
)
RED, BLACK, TORN, COPY = 4, 5, 8, 9


def spoil(workspace: Workspace, images: list[SyntheticImage], tile: Path) -> None:
    """Plant one picture of each fault, and put their hashes into the records."""
    paths = [workspace.root / image.path for image in images]
    rng = np.random.default_rng(1)
    red = (np.array([220, 30, 20]) + rng.normal(0, 9, (48, 72, 3))).clip(0, 255)
    Image.fromarray(red.astype(np.uint8)).save(paths[RED])
    Image.fromarray(np.zeros((48, 72, 3), np.uint8)).save(paths[BLACK])
    paths[TORN].write_bytes(paths[TORN].read_bytes()[:400])
    shutil.copyfile(tile, paths[COPY])
    fresh = [
        image.model_copy(update={"sha256": hash_file(path)})
        for image, path in zip(images, paths, strict=True)
    ]
    folder = workspace.stage("generate")
    write_records(folder.path / "images.jsonl", fresh)
    finish(folder, ["images.jsonl"])


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report takes half a second to draw; one test draws it."""

    def note(path: Path, *facts: Any) -> None:
        path.write_text(repr(facts))

    monkeypatch.setattr(filter_stage, "draw_report", note)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Workspace, Config]:
    workspace, config = make_run(tmp_path / "run", filter={"batch_size": 3, "model": "fake"})
    tiles = make_tiles(workspace)
    images, _ = make_images(workspace, ASKED)
    spoil(workspace, images, workspace.root / tiles[0].path)
    return workspace, config


def run(
    prepared: tuple[Workspace, Config], embedder: FakeEmbedder | None = None, *settings: str
) -> str:
    workspace, config = prepared
    reporter, said = quiet()
    embedder = embedder or FakeEmbedder()
    filter_stage.run(
        workspace, set_values(config, list(settings)), reporter, open_embedder=lambda: embedder
    )
    return said.getvalue()


def no_model() -> Any:
    raise AssertionError("a model was opened")


def decisions_of(workspace: Workspace) -> list[Decision]:
    return read_records(workspace.stage("filter").path / "decisions.jsonl", Decision)


def test_the_report_is_drawn_to_the_same_bytes(
    prepared: tuple[Workspace, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filter_stage, "draw_report", draw_report)
    report = prepared[0].stage("filter").path / "report.png"
    run(prepared)
    first = report.read_bytes()
    with Image.open(report) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 500
    report.unlink()
    run(prepared)
    assert report.read_bytes() == first


def test_the_report_shows_what_the_threshold_was_raised_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    draw_line = Axes.axvline

    def note(self: Axes, *place: Any, **style: Any) -> Any:
        told.append(style["label"])
        return draw_line(self, *place, **style)

    monkeypatch.setattr(Axes, "axvline", note)
    real = np.linspace(0.5, 0.9, 9)
    calibration = Calibration(
        Limits(animals=0.7, backgrounds=None, copy=None), LeftOut(real, "group"), real - 0.3,
        None, None, None, (), Threshold(0.7, 0.512, 0.75),
    )  # fmt: skip
    facts = ReportFacts((), 0, (), 0, real, calibration, None)
    draw_report(tmp_path / "raised.png", facts)
    assert told == ["threshold 0.700", "raised from 0.512, the percentile of all real tiles"]
    told.clear()
    as_is = replace(calibration, chosen=Threshold(0.7, 0.7, 0.75))
    draw_report(tmp_path / "as-is.png", replace(facts, calibration=as_is))
    assert told == ["threshold 0.700"]


def test_whole(prepared: tuple[Workspace, Config]) -> None:
    workspace, _ = prepared
    embedder = FakeEmbedder()
    said = run(prepared, embedder)
    folder = workspace.stage("filter")
    scores = read_records(folder.path / "scores.jsonl", Score)
    reasons = {one.image_id: one.reason for one in decisions_of(workspace)}
    assert list(reasons) == [score.image_id for score in scores]
    assert list(reasons) == [f"syn-{number:06d}" for number in range(len(ASKED))]
    assert reasons["syn-000004"] == "far from real"
    assert reasons["syn-000005"] == "blank"
    assert reasons["syn-000008"] == "unreadable"
    assert reasons["syn-000009"] == "copy of a real photo"
    assert reasons["syn-000006"] is None
    assert scores[COPY].nearest_real == "train-000"
    assert scores[COPY].nearest_real_similarity == 1
    assert scores[BLACK].similarity is None
    assert scores[0].background_similarity is not None

    centroid = np.load(folder.path / "centroid.npy")
    assert np.linalg.norm(centroid) == pytest.approx(1)
    lock = folder.lock()
    assert lock is not None
    counts = lock["counts"]
    kept = sum(reason is None for reason in reasons.values())
    assert (counts["kept"], counts["pictures"]) == (kept, len(ASKED))
    assert counts["dropped"] == Counter(reason for reason in reasons.values() if reason)
    assert counts["negatives"] == 6
    assert 0 <= counts["negatives_passing"] <= 1
    assert f"{kept} kept of 10" in said
    assert "calibrated)" in said
    # 12 train and 2 val tiles and 10 pictures, one a tile once more; black and torn are not embedded.
    assert sum(embedder.sizes) == 21


def test_test_tiles_are_never_looked_at(prepared: tuple[Workspace, Config]) -> None:
    shutil.rmtree(prepared[0].stage("prepare").path / "tiles" / "test")
    run(prepared)


def test_val_tiles_say_how_good_the_set_is_and_decide_nothing(
    prepared: tuple[Workspace, Config],
) -> None:
    workspace, config = prepared
    lenient = ("filter.copy_threshold=1", "filter.duplicate_threshold=null")
    run(prepared, None, *lenient)
    told = (workspace.stage("filter").lock() or {})["counts"]
    assert told["quality"] is None  # two val tiles say nothing
    decisions = decisions_of(workspace)
    scores = read_records(workspace.stage("filter").path / "scores.jsonl", Score)
    shutil.rmtree(workspace.root)
    workspace, config = make_run(workspace.root, filter={"batch_size": 3, "model": "fake"})
    tiles = make_tiles(workspace, val=(1,) * 8)
    images, _ = make_images(workspace, ASKED + ((0,),) * 6)
    spoil(workspace, images, workspace.root / tiles[0].path)
    said = run((workspace, config), None, *lenient)
    told = (workspace.stage("filter").lock() or {})["counts"]
    assert told["quality"]["num_real"] == 8
    low, value, high = (told["quality"]["cmmd"][key] for key in ("low", "value", "high"))
    assert 0 <= low <= value <= high
    assert "kept pictures against 8 real val tiles: CMMD" in said
    again = {one.image_id: one for one in decisions_of(workspace)}
    assert {one.threshold for one in decisions} == {one.threshold for one in again.values()}
    raw = read_records(workspace.stage("filter").path / "scores.jsonl", Score)
    assert [one.similarity for one in scores] == [one.similarity for one in raw[: len(scores)]]


def test_twice_opens_no_model_and_changes_nothing(prepared: tuple[Workspace, Config]) -> None:
    workspace, config = prepared
    said = run(prepared)
    before = file_bytes(workspace.root, but=())
    reporter, again = quiet()
    filter_stage.run(workspace, config, reporter, open_embedder=no_model)
    assert again.getvalue().splitlines()[-1] == said.splitlines()[-1]
    assert file_bytes(workspace.root, but=()) == before


@pytest.mark.parametrize("setting", ["filter.threshold=0.999", "filter.copy_threshold=0.5"])
def test_a_new_threshold_opens_no_model_and_keeps_raw_scores(
    prepared: tuple[Workspace, Config], setting: str
) -> None:
    workspace, config = prepared
    run(prepared)
    folder = workspace.stage("filter").path
    before, output = file_bytes(folder), workspace.stage("filter").output()
    written = (folder / "scores.jsonl").stat().st_mtime_ns
    reporter, said = quiet()
    changed = set_values(config, [setting, "filter.batch_size=7"])
    filter_stage.run(workspace, changed, reporter, open_embedder=no_model)
    after = file_bytes(folder)
    assert {name for name in after if after[name] != before[name]} == {
        "decisions.jsonl",
        "report.png",
    }
    assert (folder / "scores.jsonl").stat().st_mtime_ns == written
    assert workspace.stage("filter").output() != output
    if "copy" not in setting:
        assert "(threshold 1.00, given)" in said.getvalue()
    # And back: the same bytes as at first.
    filter_stage.run(workspace, config, reporter, open_embedder=no_model)
    assert file_bytes(folder) == before


def test_another_model_is_refused_by_name(prepared: tuple[Workspace, Config]) -> None:
    run(prepared)
    with pytest.raises(SynthdetError, match=r"filter\.model was 'fake'"):
        run(prepared, None, "filter.model=other")


@pytest.mark.parametrize("call", [1, 3, 7])
def test_killed_in_a_batch_and_resumed(prepared: tuple[Workspace, Config], call: int) -> None:
    workspace, _ = prepared
    folder = workspace.stage("filter").path
    embedder = FakeEmbedder()
    run(prepared, embedder)
    whole = file_bytes(folder)
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        run(prepared, FakeEmbedder(fail_at=call, error=KeyboardInterrupt))
    assert not (folder / "scores.jsonl").exists()
    resumed = FakeEmbedder()
    run(prepared, resumed)
    assert resumed.calls == embedder.calls - (call - 1)
    assert file_bytes(folder) == whole


@pytest.mark.parametrize(
    "name", ["_write_centroid", "_write_scores", "_write_decisions", "draw_report"]
)
def test_killed_between_files_and_resumed(
    prepared: tuple[Workspace, Config], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    workspace, config = prepared
    folder = workspace.stage("filter").path
    run(prepared)
    whole = file_bytes(folder)
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise PlannedError(name)

        patch.setattr(filter_stage, name, stop)
        with pytest.raises(PlannedError):
            run(prepared)
    (folder / ".tmp-1-report.png").write_bytes(b"left over")
    reporter, _ = quiet()
    filter_stage.run(workspace, config, reporter, open_embedder=no_model)
    assert file_bytes(folder) == whole


@pytest.mark.parametrize("name", filter_stage.PROMISED)
def test_a_promised_file_that_is_gone_is_made_again(
    prepared: tuple[Workspace, Config], name: str
) -> None:
    workspace, config = prepared
    run(prepared)
    whole = file_bytes(workspace.stage("filter").path)
    (workspace.stage("filter").path / name).unlink()
    reporter, _ = quiet()
    filter_stage.run(workspace, config, reporter, open_embedder=no_model)
    assert file_bytes(workspace.stage("filter").path) == whole


def test_a_missing_picture_is_named_before_a_model_is_opened(
    prepared: tuple[Workspace, Config],
) -> None:
    workspace, config = prepared
    (workspace.root / "3-generate/images/syn-000002.png").unlink()
    reporter, _ = quiet()
    with pytest.raises(SynthdetError, match=r"syn-000002\.png is missing.*synthdet generate"):
        filter_stage.run(workspace, config, reporter, open_embedder=no_model)


def test_a_torn_shard_is_made_again(prepared: tuple[Workspace, Config]) -> None:
    workspace, _ = prepared
    run(prepared)
    whole = file_bytes(workspace.stage("filter").path)
    shards = sorted((workspace.stage("filter").path / "embeddings").glob("*.npz"))
    shards[0].write_bytes(shards[0].read_bytes()[:50])
    embedder = FakeEmbedder()
    run(prepared, embedder, "filter.threshold=0.5")
    assert sum(embedder.sizes) == 21
    run(prepared)
    assert file_bytes(workspace.stage("filter").path) == whole


def test_embeddings_of_another_model_are_not_used(prepared: tuple[Workspace, Config]) -> None:
    workspace, _ = prepared
    run(prepared, None, "filter.model=other")
    shards = workspace.root / "shards"
    shutil.copytree(workspace.stage("filter").path / "embeddings", shards)
    shutil.rmtree(workspace.stage("filter").path)
    embedder = FakeEmbedder()
    shutil.copytree(shards, workspace.stage("filter").path / "embeddings")
    run(prepared, embedder)
    assert sum(embedder.sizes) == 21


def test_a_batch_on_which_the_model_throws(prepared: tuple[Workspace, Config]) -> None:
    """It throws whenever it sees the red picture: that one gets a reason, its batch their scores."""

    class Picky(FakeEmbedder):
        def embed_shrunk(self, pictures: Any) -> Any:
            if any(picture[:, 0].mean() > 1.5 * picture[:, 1].mean() for picture in pictures):
                raise RuntimeError("red")
            return super().embed_shrunk(pictures)

    workspace, _ = prepared
    run(prepared, Picky())
    reasons = {one.image_id: one.reason for one in decisions_of(workspace)}
    assert reasons[f"syn-{RED:06d}"] == "the model failed on it"
    scores = read_records(workspace.stage("filter").path / "scores.jsonl", Score)
    assert sum(score.similarity is not None for score in scores) == len(ASKED) - 3


def test_a_model_that_never_works_is_no_fault_of_the_pictures(
    prepared: tuple[Workspace, Config],
) -> None:
    class Broken(FakeEmbedder):
        def embed_shrunk(self, pictures: Any) -> Any:
            raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        run(prepared, Broken())


def test_a_near_duplicate_goes_and_the_better_one_stays(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", filter={"model": "fake"})
    make_tiles(workspace)
    images, _ = make_images(workspace, ((0,),) * 4 + ((),) * 2)
    for twin, of in ((2, 1), (5, 4)):  # the same but for a pixel; backgrounds are left alone
        path = workspace.root / images[twin].path
        with Image.open(workspace.root / images[of].path) as image:
            image.putpixel((0, 0), (200, 30, 30))
            image.save(path)
        images[twin] = images[twin].model_copy(update={"sha256": hash_file(path)})
    folder = workspace.stage("generate")
    write_records(folder.path / "images.jsonl", images)
    finish(folder, ["images.jsonl"])
    given = ("filter.threshold=0", "filter.copy_threshold=1")
    run((workspace, config), None, *given, "filter.duplicate_threshold=0.95")
    scores = read_records(workspace.stage("filter").path / "scores.jsonl", Score)
    better, worse = sorted((1, 2), key=lambda n: -(scores[n].similarity or 0))
    reasons = [one.reason for one in decisions_of(workspace)]
    assert [n for n, reason in enumerate(reasons) if reason] == [worse]
    assert reasons[worse] == "near-duplicate"
    assert scores[worse].twin == f"syn-{better:06d}"
    assert scores[4].twin is None
    run((workspace, config), None, *given, "filter.duplicate_threshold=null")
    assert all(one.kept for one in decisions_of(workspace))


def test_two_animals_set_into_one_water_are_two_pictures(tmp_path: Path) -> None:
    """Of three in one water, among others, one repeats the first and one has another place."""
    workspace, config = make_run(tmp_path / "run", filter={"model": "fake"})
    make_tiles(workspace)
    images, _ = make_images(workspace, ((0,),) * 9)
    first, again, elsewhere = 1, 4, 7
    places = {first: (4.0, 4.0), again: (5.0, 4.0), elsewhere: (40.0, 30.0)}
    for number, (x, y) in places.items():
        path = workspace.root / images[number].path
        with Image.open(workspace.root / images[first].path) as image:
            image.putpixel((number, 0), (200, 30, 30))
            image.save(path)
        placed = PlacedBox(
            xyxy=(x, y, x + 16, y + 8), class_id=0, animal_tile="t", animal_xyxy=(0, 0, 16, 8)
        )
        images[number] = images[number].model_copy(
            update={"sha256": hash_file(path), "source_image": "sea", "placed": (placed,)}
        )
    folder = workspace.stage("generate")
    write_records(folder.path / "images.jsonl", images)
    finish(folder, ["images.jsonl"])
    given = ("filter.threshold=0", "filter.copy_threshold=1", "filter.duplicate_threshold=0.95")
    run((workspace, config), None, *given)
    reasons = [one.reason for one in decisions_of(workspace)]
    assert sorted([reasons[first], reasons[again]], key=str) == [None, "near-duplicate"]
    assert Counter(reasons) == {None: 8, "near-duplicate": 1}
    scores = read_records(workspace.stage("filter").path / "scores.jsonl", Score)
    assert scores[elsewhere].twin not in {f"syn-{number:06d}" for number in places}


def test_a_placed_picture_may_be_near_real_tiles(
    prepared: tuple[Workspace, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = prepared
    folder = workspace.stage("generate")
    images = read_records(folder.path / "images.jsonl", SyntheticImage)
    placed = PlacedBox(xyxy=(4.0, 4.0, 20.0, 12.0), class_id=0)
    images[1] = images[1].model_copy(update={"placed": (placed,)})
    write_records(folder.path / "images.jsonl", images)
    finish(folder, ["images.jsonl"])
    told: dict[str, bool] = {}

    def judge(score: Score, *rest: Any, is_placed: bool, **more: Any) -> Decision:
        told[score.image_id] = is_placed
        return filter_judge(score, *rest, is_placed=is_placed, **more)

    filter_judge = filter_stage.judge
    monkeypatch.setattr(filter_stage, "judge", judge)
    run(prepared)
    assert [image_id for image_id, is_placed in told.items() if is_placed] == ["syn-000001"]


def test_a_raised_threshold_is_told_with_what_the_percentile_alone_would_be(
    tmp_path: Path,
) -> None:
    workspace, config = make_run(tmp_path / "run", filter={"model": "fake"})
    make_tiles(workspace)
    make_images(workspace, ((0,),) * 3)
    run((workspace, config))
    told = (workspace.stage("filter").lock() or {})["counts"]
    assert told["threshold_percentile"] <= told["threshold"] <= told["threshold_fence"]
    run((workspace, config), None, "filter.threshold=0.4")
    told = (workspace.stage("filter").lock() or {})["counts"]
    assert (told["threshold"], told["threshold_from"]) == (0.4, "given")
    assert told["threshold_percentile"] is told["threshold_fence"] is None


def test_named_negatives_are_checked_and_cost_no_other_picture(
    prepared: tuple[Workspace, Config], tmp_path: Path
) -> None:
    workspace, _ = prepared
    run(prepared)
    before = decisions_of(workspace)
    place = tmp_path / "negatives" / "deep"
    place.mkdir(parents=True)
    shutil.copyfile(workspace.root / "1-prepare/tiles/train/train-003.png", place / "a.png")
    for number in range(3):
        rng = np.random.default_rng(10 + number)
        red = (np.array([220, 30, 20]) + rng.normal(0, 9, (48, 72, 3))).clip(0, 255)
        Image.fromarray(red.astype(np.uint8)).save(place / f"{number}.png")
    (place / "notes.txt").write_text("no picture")
    embedder = FakeEmbedder()
    said = run(prepared, embedder, f"filter.negatives={place.parent}", "filter.batch_size=1")
    assert sum(embedder.sizes) == 3  # the fourth is a real tile
    told = (workspace.stage("filter").lock() or {})["counts"]
    assert (told["named_negatives"], told["named_negatives_passing"]) == (4, 0.25)
    assert "25% of the 4 pictures in filter.negatives would pass" in said
    assert decisions_of(workspace) == before
    with pytest.raises(SynthdetError, match=r"filter\.negatives: there is no picture"):
        run(prepared, None, f"filter.negatives={tmp_path / 'nowhere'}")


def test_new_centroids_open_no_model(prepared: tuple[Workspace, Config]) -> None:
    workspace, config = prepared
    run(prepared)
    whole = file_bytes(workspace.stage("filter").path)
    reporter, _ = quiet()
    several = set_values(config, ["filter.per_class=true", "filter.clusters=2"])
    filter_stage.run(workspace, several, reporter, open_embedder=no_model)
    centroids = np.load(workspace.stage("filter").path / "centroid.npy")
    assert centroids.ndim == 2
    assert 2 < len(centroids) <= 4
    assert file_bytes(workspace.stage("filter").path)["scores.jsonl"] != whole["scores.jsonl"]
    filter_stage.run(workspace, config, reporter, open_embedder=no_model)
    assert file_bytes(workspace.stage("filter").path) == whole


def test_a_damaged_real_tile_is_an_error(prepared: tuple[Workspace, Config]) -> None:
    workspace, _ = prepared
    (workspace.root / "1-prepare/tiles/train/train-001.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(SynthdetError, match=r"train-001\.png cannot be read"):
        run(prepared)


def test_an_embedding_that_is_not_finite_is_an_error(prepared: tuple[Workspace, Config]) -> None:
    class Broken(FakeEmbedder):
        def embed_shrunk(self, pictures: Any) -> Any:
            return super().embed_shrunk(pictures) * np.float32("nan")

    with pytest.raises(SynthdetError, match=r"filter\.model gives no finite embedding"):
        run(prepared, Broken())


def test_nothing_generated_is_nothing_kept(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    make_tiles(workspace)
    make_images(workspace, ())
    said = run((workspace, config))
    assert "0 kept of 0" in said
    assert decisions_of(workspace) == []


def test_without_animals_among_the_real_tiles(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    make_tiles(workspace, train=(0, 0, 0))
    make_images(workspace, ((0,),))
    with pytest.raises(SynthdetError, match="no real train tile holds an animal"):
        run((workspace, config))


def test_few_backgrounds_and_groups_are_said(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    make_tiles(workspace, train=(1, 1, 1, 1, 0), groups=2)
    make_images(workspace, ((0,), ()))
    said = run((workspace, config))
    assert "fewer than 3 groups" in said
    assert "1 pictures asked to be background" in said
    assert decisions_of(workspace)[1].kept


def test_records_are_plain_json(prepared: tuple[Workspace, Config]) -> None:
    run(prepared)
    for line in (prepared[0].stage("filter").path / "scores.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def give_prompts(workspace: Workspace) -> list[SyntheticImage]:
    """Every picture a prompt of its own, but for two that share one."""
    folder = workspace.stage("generate")
    images = read_records(folder.path / "images.jsonl", SyntheticImage)
    images = [
        one.model_copy(update={"prompt": f"whale {max(number, 1)} · {'á' * number}"})
        for number, one in enumerate(images)
    ]
    images[0] = images[0].model_copy(update={"prompt": images[1].prompt})
    write_records(folder.path / "images.jsonl", images)
    finish(folder, ["images.jsonl"])
    return images


def test_pictures_are_held_against_their_prompts_where_asked(
    prepared: tuple[Workspace, Config],
) -> None:
    workspace, config = prepared
    images = give_prompts(workspace)
    lenient = ("filter.threshold=-1", "filter.copy_threshold=1", "filter.duplicate_threshold=null")
    plain, asked = FakeEmbedder(), FakeEmbedder()
    run(prepared, plain, *lenient)
    path = workspace.stage("filter").path / "scores.jsonl"
    before = read_records(path, Score)
    assert plain.texts == []
    assert all(one.prompt_agreement is None for one in before)
    assert "prompt_agreement" not in path.read_text()

    said = run(prepared, asked, *lenient, "filter.prompt_agreement=true")
    assert asked.calls == 0, "a picture was embedded once more"
    assert sorted(asked.texts) == sorted({one.prompt for one in images})
    assert "agreement of pictures with their prompts" in said
    scores = read_records(path, Score)
    assert [one.model_copy(update={"prompt_agreement": None}) for one in scores] == before
    for image, score in zip(images, scores, strict=True):
        if score.fault is not None:
            assert score.prompt_agreement is None
            continue
        with Image.open(workspace.root / image.path) as opened:
            picture = FakeEmbedder().embed_shrunk([FakeEmbedder().shrink(np.asarray(opened))])
        expected = float((picture @ FakeEmbedder().embed_texts([image.prompt]).T)[0, 0])
        assert score.prompt_agreement == pytest.approx(expected, abs=0.02)

    sound = [one.prompt_agreement for one in scores if one.prompt_agreement is not None]
    limit = sorted(sound)[len(sound) // 2]
    changed = set_values(
        config,
        [*lenient, "filter.prompt_agreement=true", f"filter.prompt_threshold={limit}"],
    )
    written = path.stat().st_mtime_ns
    reporter, _ = quiet()
    filter_stage.run(workspace, changed, reporter, open_embedder=no_model)
    assert path.stat().st_mtime_ns == written
    dropped = {one.image_id: one.reason for one in decisions_of(workspace) if one.reason}
    low = {one.image_id for one in scores if (one.prompt_agreement or 1) < limit}
    unlike = {name for name, reason in dropped.items() if reason == "unlike its prompt"}
    assert unlike == low - {images[COPY].image_id}  # of which something worse is said
    assert len(unlike) > 1


def test_prompts_once_read_are_kept_whatever_comes_in_between(
    prepared: tuple[Workspace, Config],
) -> None:
    workspace, config = prepared
    give_prompts(workspace)

    class Ended(FakeEmbedder):
        def embed_texts(self, texts: Any) -> Any:
            if self.texts:
                raise KeyboardInterrupt
            return super().embed_texts(texts)

    ended, again = Ended(), FakeEmbedder()
    with pytest.raises(KeyboardInterrupt):
        run(prepared, ended, "filter.prompt_agreement=true")
    run(prepared, again, "filter.prompt_agreement=true")
    assert ended.texts
    assert not set(again.texts) & set(ended.texts)
    scores = workspace.stage("filter").path / "scores.jsonl"
    first = scores.read_bytes()
    scores.unlink()
    reporter, _ = quiet()
    both = set_values(config, ["filter.prompt_agreement=true"])
    filter_stage.run(workspace, both, reporter, open_embedder=no_model)
    assert scores.read_bytes() == first


def test_a_picture_without_a_prompt_is_not_unlike_it(prepared: tuple[Workspace, Config]) -> None:
    workspace, _ = prepared
    folder = workspace.stage("generate")
    without = 3
    images = give_prompts(workspace)
    images[without] = images[without].model_copy(update={"prompt": ""})
    write_records(folder.path / "images.jsonl", images)
    finish(folder, ["images.jsonl"])
    asked = ("filter.threshold=-1", "filter.prompt_agreement=true", "filter.prompt_threshold=1")
    embedder = FakeEmbedder()
    run(prepared, embedder, *asked)
    assert "" not in embedder.texts
    path = workspace.stage("filter").path / "scores.jsonl"
    first, scores = path.read_bytes(), read_records(path, Score)
    found = [one.prompt_agreement for one in scores if one.fault is None]
    assert scores[without].prompt_agreement is None
    assert found.count(None) == 1
    assert decisions_of(workspace)[without].reason != "unlike its prompt"
    assert decisions_of(workspace)[0].reason == "unlike its prompt"
    # Scores of before, which held it against the empty text, are put right; others are left as they are.
    scores[without] = scores[without].model_copy(update={"prompt_agreement": -0.9})
    write_records(path, scores)
    run(prepared, embedder, *asked[:2])
    assert path.read_bytes() == first
    counts = (workspace.stage("filter").lock() or {})["counts"]["prompt_agreement"]
    assert counts["percentile_2"] > -0.9
    written = path.stat().st_mtime_ns
    run(prepared, embedder, *asked)
    assert path.stat().st_mtime_ns == written


def test_no_prompt_at_all(prepared: tuple[Workspace, Config]) -> None:
    workspace, _ = prepared
    folder = workspace.stage("generate")
    images = [one.model_copy(update={"prompt": ""}) for one in give_prompts(workspace)]
    write_records(folder.path / "images.jsonl", images)
    finish(folder, ["images.jsonl"])
    embedder = FakeEmbedder()
    run(prepared, embedder, "filter.prompt_agreement=true")
    assert embedder.texts == []
    assert (workspace.stage("filter").lock() or {})["counts"]["prompt_agreement"] is None


def test_a_model_that_reads_no_texts_is_refused_before_the_pictures(
    prepared: tuple[Workspace, Config],
) -> None:
    class Mute(FakeEmbedder):
        def embed_texts(self, texts: Any) -> Any:
            raise SynthdetError("no text tower")

    mute = Mute()
    with pytest.raises(SynthdetError, match="no text tower"):
        run(prepared, mute, "filter.prompt_agreement=true")
    assert mute.calls == 0


def test_a_prompt_whose_embedding_is_not_finite_is_an_error(
    prepared: tuple[Workspace, Config],
) -> None:
    class Broken(FakeEmbedder):
        def embed_texts(self, texts: Any) -> Any:
            return super().embed_texts(texts) * np.float32("nan")

    give_prompts(prepared[0])
    with pytest.raises(SynthdetError, match="no finite embedding of the prompt 'whale 1"):
        run(prepared, Broken(), "filter.prompt_agreement=true")
    assert not list(prepared[0].root.rglob("prompts/*.npz"))


def test_a_prompt_threshold_needs_the_score() -> None:
    with pytest.raises(SynthdetError, match="prompt_agreement: true"):
        set_values(Config(), ["filter.prompt_threshold=0.2"])
