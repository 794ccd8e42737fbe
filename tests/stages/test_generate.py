from __future__ import annotations

import errno
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthdet.config import Config, make_config
from synthdet.core.fusion import turn_picture
from synthdet.core.records import SyntheticImage, Tile
from synthdet.errors import SynthdetError
from synthdet.stages import generate
from synthdet.workspace import Workspace, hash_file, read_json, read_records
from tests.fakes import FakeGenerator, PlannedError
from tests.handmade import HEIGHT, WIDTH, file_bytes, finish, make_run, make_tiles, quiet

SETTINGS = {
    "num_images": 10,
    "batch_size": 4,
    "background_fraction": 0.2,
    "negative_prompt": "text",
}


def start(root: Path, **settings: Any) -> tuple[Workspace, Config]:
    workspace, config = make_run(root, generate={**SETTINGS, **settings})
    make_tiles(workspace, train=(1, 2), val=(1,), test=(1,))
    weights = workspace.stage("finetune").path / "pytorch_lora_weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    finish(workspace.stage("finetune"), [weights.name])
    return workspace, config


def make(
    workspace: Workspace, config: Config, generator: FakeGenerator | None = None, **options: Any
) -> str:
    """Run the stage; without a generator, opening one fails the test."""
    reporter, said = quiet()

    def open_generator(lora_scale: float) -> FakeGenerator:
        assert generator is not None, "a model was opened"
        generator.lora_scales.append(lora_scale)
        return generator

    generate.run(workspace, config, reporter, open_generator=open_generator, **options)
    return said.getvalue()


def records(workspace: Workspace) -> list[SyntheticImage]:
    return read_records(workspace.root / "3-generate" / "images.jsonl", SyntheticImage)


def test_makes_every_planned_picture_with_its_record(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    generator = FakeGenerator()
    said = make(workspace, config, generator)
    made = records(workspace)
    assert [record.image_id for record in made] == [f"syn-{i:06d}" for i in range(10)]
    assert generator.calls == 3
    assert [record.batch_shape for record in made] == [4] * 8 + [2] * 2
    assert len({record.seed for record in made}) == 10
    assert sum(record.asked_for == () for record in made) == 2
    for record, request in zip(made, generator.requests, strict=True):
        path = workspace.root / record.path
        assert hash_file(path) == record.sha256
        assert (record.prompt, record.negative_prompt, record.seed) == (
            request.prompt,
            "text",
            request.seed,
        )
        with Image.open(path) as image:
            assert image.size == (WIDTH, HEIGHT) == (record.width, record.height)
            assert image.text["prompt"] == record.prompt  # type: ignore[attr-defined]
            for name in ("seed", "guidance_end", "batch_shape", "scheduler", "num_inference_steps"):
                assert image.text[name] == str(getattr(record, name))  # type: ignore[attr-defined]
    assert "generate  10 pictures of" in said


def test_a_second_run_opens_no_model(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeGenerator())
    before = file_bytes(workspace.root / "3-generate")
    assert "10 pictures of" in make(workspace, config, None)
    assert file_bytes(workspace.root / "3-generate") == before


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_goes_on_after_a_crash_with_the_same_bytes(tmp_path: Path, fail_at: int) -> None:
    whole, config = start(tmp_path / "whole")
    make(whole, config, FakeGenerator())
    torn, _ = start(tmp_path / "torn")
    with pytest.raises(PlannedError):
        make(torn, config, FakeGenerator(fail_at=fail_at))
    rest = FakeGenerator()
    make(torn, config, rest)
    assert rest.calls == 4 - fail_at
    assert file_bytes(torn.root / "3-generate") == file_bytes(whole.root / "3-generate")


def test_a_kill_between_picture_and_record_loses_the_batch_alone(tmp_path: Path) -> None:
    whole, config = start(tmp_path / "whole")
    make(whole, config, FakeGenerator())
    torn, _ = start(tmp_path / "torn")
    with pytest.raises(PlannedError):
        make(torn, config, FakeGenerator(fail_at=3))
    folder = torn.root / "3-generate"
    lines = (folder / "images.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "images.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:20])
    (folder / "images" / ".tmp-1-syn-000007.png").write_bytes(b"half")
    rest = FakeGenerator()
    make(torn, config, rest)
    assert rest.calls == 2
    assert file_bytes(folder) == file_bytes(whole.root / "3-generate")


@pytest.mark.parametrize("missing", ["images/syn-000005.png", "images.jsonl"])
def test_a_promised_file_that_is_missing_is_made_again(tmp_path: Path, missing: str) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeGenerator())
    folder = workspace.root / "3-generate"
    before = file_bytes(folder)
    (folder / missing).unlink()
    generator = FakeGenerator()
    make(workspace, config, generator)
    assert generator.calls == (1 if missing.endswith("png") else 3)
    assert file_bytes(folder) == before


def test_a_batch_too_large_is_halved_and_that_is_kept(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    generator = FakeGenerator(max_batch=2, fail_at=4)
    with pytest.raises(PlannedError):
        make(workspace, config, generator)
    said = make(workspace, config, rest := FakeGenerator(max_batch=2))
    assert rest.calls == 3, "the restart knows the shape that fits"
    assert "halved" not in said
    assert read_json(workspace.root / "3-generate" / "plan.json")["batch_shapes"] == [2] * 5
    assert [record.batch_shape for record in records(workspace)] == [2] * 10

    whole, _ = start(tmp_path / "whole")
    assert "out of memory with 4 pictures" in make(whole, config, FakeGenerator(max_batch=2))
    assert file_bytes(whole.root / "3-generate") == file_bytes(workspace.root / "3-generate")


def test_one_picture_that_does_not_fit_is_a_one_line_error(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    with pytest.raises(SynthdetError, match="one picture alone does not fit"):
        make(workspace, config, FakeGenerator(max_batch=0))


def test_the_seed_and_the_batch_shape_decide_the_pixels(tmp_path: Path) -> None:
    hashes = []
    for name, batch_size in (("a", 4), ("b", 4), ("c", 5)):
        workspace, config = start(tmp_path / name, batch_size=batch_size)
        make(workspace, config, FakeGenerator())
        hashes.append([record.sha256 for record in records(workspace)])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("changed", [{"num_images": 12}, {"seed": 1}, {"prompts": ["{animals}"]}])
def test_a_changed_setting_is_refused_by_name(tmp_path: Path, changed: dict[str, Any]) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeGenerator())
    other = make_config({"generate": {**SETTINGS, **changed}}, where="the test")
    with pytest.raises(SynthdetError, match=rf"generate\.{next(iter(changed))} was"):
        make(workspace, other, FakeGenerator())
    assert "old folder is kept" in make(workspace, other, FakeGenerator(), redo=True)


def test_a_refused_prompt_leaves_nothing_that_a_mended_one_would_find(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", prompts=["a photo of {animal}"])
    with pytest.raises(SynthdetError, match="animal"):
        make(workspace, config, FakeGenerator())
    assert not (workspace.root / "3-generate" / "stage.json").exists()
    mended = make_config({"generate": {**SETTINGS, "prompts": ["{animals}"]}}, where="the test")
    assert "10 pictures of" in make(workspace, mended, FakeGenerator())


def test_a_refused_mode_leaves_nothing_either(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", mode="placed")
    with pytest.raises(SynthdetError, match="tiles without animals"):
        make(workspace, config, FakeGenerator())
    assert not (workspace.root / "3-generate" / "stage.json").exists()
    mended = make_config({"generate": {**SETTINGS, "mode": "text"}}, where="the test")
    assert "10 pictures of" in make(workspace, mended, FakeGenerator())


def test_a_finished_run_of_an_earlier_version_stays_finished(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", negative_prompt="text x")
    make(workspace, config, FakeGenerator())
    path = workspace.root / "3-generate" / "stage.json"
    lock = read_json(path)
    for name in ("guidance_rescale", "background_negative_prompt", "placed_lora_scale"):
        del lock["settings"][name]
    lock["settings"]["negative_prompt"] = "text {x}"  # braces were letters then
    path.write_text(json.dumps(lock))
    before = make_config(
        {"generate": {**SETTINGS, "negative_prompt": "text {x}"}}, where="the test"
    )
    assert "10 pictures of" in make(workspace, before, None)


def test_the_batch_size_is_found_once_and_kept(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", batch_size="auto")
    generator = FakeGenerator(fitting=3, fail_at=2)
    with pytest.raises(PlannedError):
        make(workspace, config, generator)
    said = make(workspace, config, FakeGenerator(fitting=8))
    assert "fit here" not in said
    assert [record.batch_shape for record in records(workspace)] == [3] * 9 + [1]


def test_where_two_do_not_fit_it_is_one_at_a_time(tmp_path: Path) -> None:
    class Small(FakeGenerator):
        def find_batch_size(self, *, width: int, height: int) -> int:
            raise MemoryError

    workspace, config = start(tmp_path / "run", batch_size="auto")
    assert "1 pictures at once fit here" in make(workspace, config, Small())
    assert [record.batch_shape for record in records(workspace)] == [1] * 10


def test_out_of_memory_at_eight_and_four_ends_with_two(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", batch_size="auto")
    said = make(workspace, config, FakeGenerator(fitting=8, max_batch=2))
    assert "8 pictures at once fit here" in said
    for size in (8, 4):
        assert f"out of memory with {size} pictures at once: halved" in said
    assert read_json(workspace.root / "3-generate" / "plan.json")["batch_shapes"] == [2] * 5
    assert len(records(workspace)) == 10


def test_the_number_of_writers_changes_no_byte(tmp_path: Path) -> None:
    contents = []
    for workers in (1, 5):
        workspace, config = start(tmp_path / str(workers), workers=workers)
        make(workspace, config, FakeGenerator())
        contents.append(file_bytes(workspace.root / "3-generate"))
    assert contents[0] == contents[1]


def test_how_fast_it_was_is_in_the_lock(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeGenerator())
    runtime = read_json(workspace.root / "3-generate" / "stage.json")["runtime"]
    assert runtime["pictures_per_second"] > 0
    assert 0 <= runtime["save_stall_share"] <= 1


def test_another_few_step_lora_under_the_same_name_is_seen(tmp_path: Path) -> None:
    lora = tmp_path / "lightning.safetensors"
    workspace, config = start(tmp_path / "run", few_step_lora=str(lora))
    with pytest.raises(
        SynthdetError, match=r"generate\.few_step_lora: there is no file .*lightning"
    ):
        make(workspace, config, None)
    lora.write_bytes(b"one")
    make(workspace, config, FakeGenerator())
    lora.write_bytes(b"two")
    assert "few_step_lora changed" in make(workspace, config, FakeGenerator())


def test_no_pictures_is_a_set_too(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", num_images=0)
    make(workspace, config, None)
    assert records(workspace) == []
    assert workspace.stage("generate").output()


def test_pictures_of_one_colour_are_kept_and_noted(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    said = make(workspace, config, FakeGenerator(constant=True))
    assert "10 pictures are of one colour, such as syn-000000" in said
    assert [record.fault for record in records(workspace)] == ["blank"] * 10


def test_a_black_picture_is_found_and_made_again_with_its_batch_as_it_was(tmp_path: Path) -> None:
    whole, config = start(tmp_path / "whole")
    make(whole, config, FakeGenerator())
    workspace, _ = start(tmp_path / "run")
    generator = FakeGenerator(overflows=(5,))
    said = make(workspace, config, generator)
    assert "1 pictures came out blank and were made again" in said
    assert generator.calls == 4, "one batch twice"
    assert [record.vae for record in records(workspace)] == [None] * 5 + ["float32"] + [None] * 4
    for before, after in zip(records(whole), records(workspace), strict=True):
        assert (before.sha256 == after.sha256) == (after.vae is None), (
            "the others stay as they were"
        )
    counts = read_json(workspace.root / "3-generate" / "stage.json")["counts"]
    assert (counts["made_again"], counts["blank"]) == (1, 0)


def test_making_again_that_does_not_fit_leaves_the_picture_and_says_so(tmp_path: Path) -> None:
    class Small(FakeGenerator):
        def generate(self, *arguments: Any, **options: Any) -> list[Any]:
            if options["precise_vae"]:
                raise MemoryError("float32")
            return super().generate(*arguments, **options)

    workspace, config = start(tmp_path / "run")
    said = make(workspace, config, Small(overflows=(5,)))
    assert "1 pictures are of one colour, such as syn-000005" in said
    assert [record.batch_shape for record in records(workspace)] == [4] * 8 + [2] * 2


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, config = start(tmp_path / "run")
    real_write: Callable[[Path, bytes], int] = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.suffix == ".png" and path.stem[-6:] >= "000005":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(SynthdetError, match="the disk is full"):
        make(workspace, config, FakeGenerator())
    assert len(records(workspace)) == 4
    monkeypatch.undo()
    make(workspace, config, FakeGenerator())
    whole, _ = start(tmp_path / "whole")
    make(whole, config, FakeGenerator())
    assert file_bytes(whole.root / "3-generate") == file_bytes(workspace.root / "3-generate")


# --- from real tiles ------------------------------------------------------------------------------

MODES = {"text": 1, "image": 1, "placed": 1}


def start_modes(root: Path, **settings: Any) -> tuple[Workspace, Config]:
    workspace, config = make_run(root, generate={**SETTINGS, **settings})
    make_tiles(workspace)
    weights = workspace.stage("finetune").path / "pytorch_lora_weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    finish(workspace.stage("finetune"), [weights.name])
    return workspace, config


def test_records_say_which_tile_and_which_box(tmp_path: Path) -> None:
    workspace, config = start_modes(tmp_path / "run", mode=MODES, num_images=18)
    generator = FakeGenerator()
    said = make(workspace, config, generator)
    tiles = {
        tile.tile_id: tile
        for tile in read_records(workspace.root / "1-prepare" / "tiles.jsonl", Tile)
    }
    by_seed = {request.seed: request for request in generator.requests}
    made, views = records(workspace), set[int]()
    assert [record.image_id for record in made] == [f"syn-{i:06d}" for i in range(18)]
    for record in made:
        request = by_seed[record.seed]
        boxes = tuple(box.xyxy for box in record.placed or ())
        assert len(request.placed) == len(boxes)
        if record.mode == "text":
            assert (record.source_tile, record.strength, request.source) == (None, None, None)
            continue
        assert record.source_tile is not None
        tile = tiles[record.source_tile]
        with Image.open(workspace.root / tile.path) as image:
            assert record.source_view is not None
            views.add(record.source_view)
            source = turn_picture(np.array(image), record.source_view)
            differs = (source != request.source).any(axis=2)
        for (x1, y1, x2, y2), painted in zip(boxes, request.placed, strict=True):
            assert differs[int(y1) : int(y2), int(x1) : int(x2)].any(), "the real animal is set in"
            differs[int(y1) : int(y2), int(x1) : int(x2)] = False
            assert painted[0] <= x1 < x2 <= painted[2]
            assert painted[1] <= y1 < y2 <= painted[3]
        assert not differs.any(), "and nothing else"
        assert record.strength == (0.6 if record.mode == "image" else 0.5)
        if record.mode == "placed":
            assert tile.boxes == ()
            assert len(boxes) == len(record.asked_for or ()) > 0
            with Image.open(workspace.root / record.path) as image:
                assert image.text["source_tile"] == tile.tile_id  # type: ignore[attr-defined]
                assert '"class_id"' in image.text["placed"]  # type: ignore[attr-defined]
    assert len(views) > 2
    counts = read_json(workspace.root / "3-generate" / "stage.json")["counts"]["modes"]
    assert counts["placed"] == 4
    assert " · 4 placed" in said


def test_drawn_water_is_a_picture_of_the_same_run(tmp_path: Path) -> None:
    workspace, config = start_modes(
        tmp_path / "run", mode={"text": 1, "placed": 2}, placed_water="drawn", num_images=18
    )
    generator = FakeGenerator()
    make(workspace, config, generator)
    made = {record.image_id: record for record in records(workspace)}
    by_seed = {request.seed: request for request in generator.requests}
    placed = [record for record in made.values() if record.mode == "placed"]
    assert len(placed) > 4
    for record in placed:
        assert record.source_image is not None
        assert record.source_tile is None
        assert made[record.source_image].asked_for == ()
        with Image.open(workspace.root / made[record.source_image].path) as image:
            water = turn_picture(np.array(image), record.source_view or 0)
        request = by_seed[record.seed]
        assert request.source is not None
        assert request.keep_detail
        assert all(-1 <= (box.correlation or 0) < 0.5 for box in record.placed or ()), "fake noise"
        differs = (water != request.source).any(axis=2)
        for box in record.placed or ():
            x1, y1, x2, y2 = (int(value) for value in box.xyxy)
            assert differs[y1:y2, x1:x2].any()
            differs[y1:y2, x1:x2] = False
        assert not differs.any()
        with Image.open(workspace.root / record.path) as image:
            assert image.text["source_image"] == record.source_image  # type: ignore[attr-defined]


@pytest.mark.parametrize("fail_at", [0, 6])
def test_water_of_one_colour_is_not_placed_into(tmp_path: Path, fail_at: int) -> None:
    options: dict[str, Any] = {"mode": "placed", "placed_water": "drawn", "num_images": 18}
    options |= {"batch_size": 2, "background_fraction": 0.3}
    plain, config = start_modes(tmp_path / "plain", **options)
    make(plain, config, FakeGenerator())
    waters = [record for record in records(plain) if record.asked_for == ()]
    used = {record.source_image for record in records(plain)}
    blank = next(record for record in waters if record.image_id in used)
    workspace, _ = start_modes(tmp_path / "run", **options)
    if fail_at:
        with pytest.raises(PlannedError):
            make(workspace, config, FakeGenerator(blanks=(blank.seed,), fail_at=fail_at))
    generator = FakeGenerator(blanks=(blank.seed,))
    said = make(workspace, config, generator)
    assert f"1 pictures are of one colour, such as {blank.image_id}" in said
    made = {record.image_id: record for record in records(workspace)}
    assert made[blank.image_id].fault == "blank"
    for record in records(plain):
        own = made[record.image_id]
        if record.source_image == blank.image_id:
            assert own.source_image in {one.image_id for one in waters} - {blank.image_id}
            assert own.placed is not None
            assert [box.xyxy for box in own.placed] == [box.xyxy for box in record.placed or ()]
        else:
            assert own.source_image == record.source_image
    assert all(request.source is None or request.source.any() for request in generator.requests)
    again, _ = start_modes(tmp_path / "again", **options)
    make(again, config, FakeGenerator(blanks=(blank.seed,)))
    assert file_bytes(again.root / "3-generate") == file_bytes(workspace.root / "3-generate")


def test_no_water_but_of_one_colour_is_one_line(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": "placed", "placed_water": "drawn"}
    workspace, config = start_modes(tmp_path / "run", **options)
    with pytest.raises(SynthdetError, match=r"placed_water: every background picture .*--redo"):
        make(workspace, config, FakeGenerator(constant=True))


def test_from_noise_no_detail_of_the_water_is_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {"placed_start": "noise", "placed_strength": 1.0}
    workspace, config = start_modes(tmp_path / "run", mode="placed", **options)
    generator = FakeGenerator()
    make(workspace, config, generator)
    placed = [request for request in generator.requests if request.placed]
    assert placed
    assert not any(request.keep_detail for request in placed)


def test_water_that_is_gone_is_drawn_again_first(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": "placed", "placed_water": "drawn", "num_images": 18}
    whole, config = start_modes(tmp_path / "whole", **options)
    make(whole, config, FakeGenerator())
    expected = file_bytes(whole.root / "3-generate")
    record = next(record for record in records(whole) if record.source_image)
    for image_id in (record.image_id, record.source_image):
        (whole.root / "3-generate" / "images" / f"{image_id}.png").unlink()
    make(whole, config, FakeGenerator())
    assert file_bytes(whole.root / "3-generate") == expected


@pytest.mark.parametrize("fail_at", [0, 2, 6, 8])
def test_placed_animals_and_their_water_have_a_lora_strength_of_their_own(
    tmp_path: Path, fail_at: int
) -> None:
    options: dict[str, Any] = {"mode": {"text": 1, "placed": 2}, "num_images": 18, "batch_size": 2}
    options |= {"placed_water": "drawn", "background_fraction": 0.3, "lora_scale": 1.25}
    workspace, config = start_modes(tmp_path / "run", **options, placed_lora_scale=0.5)
    if fail_at:
        with pytest.raises(PlannedError):
            make(workspace, config, FakeGenerator(fail_at=fail_at))
    make(workspace, config, rest := FakeGenerator())
    assert rest.lora_scales == ([1.25, 0.5] if fail_at < 3 else [0.5]), "opened once for each"
    for record in records(workspace):
        animals_from_text = record.mode == "text" and record.asked_for != ()
        assert record.lora_scale == (1.25 if animals_from_text else 0.5)
    whole, _ = start_modes(tmp_path / "whole", **options, placed_lora_scale=0.5)
    make(whole, config, FakeGenerator())
    assert file_bytes(whole.root / "3-generate") == file_bytes(workspace.root / "3-generate")

    one, config = start_modes(tmp_path / "one", **options)
    make(one, config, generator := FakeGenerator())
    assert generator.lora_scales == [1.25]
    real, config = start_modes(
        tmp_path / "real", **{**options, "placed_water": "real"}, placed_lora_scale=0.5
    )
    make(real, config, FakeGenerator())
    for record in records(real):
        assert record.lora_scale == (0.5 if record.mode == "placed" else 1.25)


def test_one_pipeline_at_a_time(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": {"text": 1, "placed": 2}, "num_images": 18, "batch_size": 2}
    options |= {"placed_water": "drawn", "background_fraction": 0.3, "placed_lora_scale": 0.5}
    workspace, config = start_modes(tmp_path / "run", **options)
    opened: list[weakref.ref[FakeGenerator]] = []

    def open_generator(_lora_scale: float) -> FakeGenerator:
        assert not any(one() for one in opened), "the one before is still there"
        generator = FakeGenerator()
        opened.append(weakref.ref(generator))
        return generator

    generate.run(workspace, config, quiet()[0], open_generator=open_generator)
    assert len(opened) == 2


def test_a_batch_starts_in_one_way(tmp_path: Path) -> None:
    workspace, config = start_modes(tmp_path / "run", mode=MODES, num_images=18)
    made_in: dict[int, set[str | None]] = {}
    make(workspace, config, FakeGenerator())
    for record in records(workspace):
        made_in.setdefault(record.batch, set()).add(record.mode)
    assert all(len(modes) == 1 for modes in made_in.values())


@pytest.mark.parametrize("water", ["real", "drawn"])
@pytest.mark.parametrize("fail_at", [2, 5])
def test_all_modes_go_on_after_a_crash_with_the_same_bytes(
    tmp_path: Path, fail_at: int, water: str
) -> None:
    options: dict[str, Any] = {"mode": MODES, "num_images": 18, "placed_water": water}
    whole, config = start_modes(tmp_path / "whole", **options)
    make(whole, config, FakeGenerator())
    torn, _ = start_modes(tmp_path / "torn", **options)
    with pytest.raises(PlannedError):
        make(torn, config, FakeGenerator(fail_at=fail_at))
    make(torn, config, FakeGenerator())
    assert file_bytes(torn.root / "3-generate") == file_bytes(whole.root / "3-generate")


def test_a_tile_that_is_gone_is_one_line(tmp_path: Path) -> None:
    workspace, config = start_modes(tmp_path / "run", mode="image")
    for path in (workspace.root / "1-prepare" / "tiles" / "train").iterdir():
        path.unlink()
    with pytest.raises(SynthdetError, match=r"cannot be read: .*synthdet prepare .*--redo"):
        make(workspace, config, FakeGenerator())


# --- the user's own pictures ----------------------------------------------------------------------


def own_pictures(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in {"b.png": (WIDTH, HEIGHT), "a.jpg": (90, 40)}.items():
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "b.txt").write_text("a whale, from above\n")
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def test_own_pictures_are_taken_in_without_a_model_or_a_lora(tmp_path: Path) -> None:
    pictures = own_pictures(tmp_path / "own")
    before = file_bytes(pictures)
    workspace, config = make_run(tmp_path / "run", generate={"pictures": str(pictures)})
    make_tiles(workspace, train=(1, 2), val=(1,), test=(1,))
    said = make(workspace, config, None)
    assert "2 pictures taken in" in said
    assert "c.png" in said
    first, second = records(workspace)
    assert [first.image_id, second.image_id] == ["syn-000000", "syn-000001"]
    assert (first.prompt, second.prompt) == ("", "a whale, from above")
    assert first.asked_for is None
    assert (first.width, first.height) == (WIDTH, HEIGHT)
    with Image.open(pictures / "b.png") as own, Image.open(workspace.root / second.path) as taken:
        assert np.array_equal(np.array(own), np.array(taken))
    rejected = (workspace.root / "3-generate" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in rejected] == ["c.png"]
    assert "2 pictures taken in" in make(workspace, config, None)
    assert file_bytes(pictures) == before


def test_a_change_in_the_own_folder_is_seen(tmp_path: Path) -> None:
    pictures = own_pictures(tmp_path / "own")
    workspace, config = make_run(tmp_path / "run", generate={"pictures": str(pictures)})
    make_tiles(workspace, train=(1, 2), val=(1,), test=(1,))
    make(workspace, config, None)
    (pictures / "c.png").write_bytes((pictures / "b.png").read_bytes())
    assert "pictures changed" in make(workspace, config, None)
    assert len(records(workspace)) == 3


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_own_pictures_is_a_one_line_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    workspace, config = make_run(tmp_path / "run", generate={"pictures": str(tmp_path / name)})
    make_tiles(workspace, train=(1, 2), val=(1,), test=(1,))
    with pytest.raises(SynthdetError, match=rf"generate\.pictures: .*{name}"):
        make(workspace, config, None)
