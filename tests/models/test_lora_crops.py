"""Steps on windows of the cached latents: what they hold, what SDXL is told, what they cost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synthdet.config import make_config, parse_config
from synthdet.errors import SynthdetError
from synthdet.models import lora_step
from synthdet.models.forecast import forecast
from synthdet.models.lora import METRICS_NAME, WEIGHTS_NAME
from synthdet.models.lora_data import Draw, LatentCache, Material, count_anew, draw_step
from synthdet.models.protocols import TrainTile
from synthdet.models.sdxl import Embedding
from synthdet.models.symmetries import turn
from tests.builders import make_tiles
from tests.models.test_lora import PASS, KilledError, files, train
from tests.tiny import tiny_vae

CELL = 4
SIZE = 12
TWO_SEALS = TrainTile(
    "tile", Path("tile.png"), "two seals on ice", "0" * 64,
    ((10.0, 3.0, 21.0, 9.0), (30.0, 33.0, 45.0, 40.0)), ("seal", "seal"),
)  # fmt: skip
EMPTY = TrainTile("empty", Path("empty.png"), "open water", "1" * 64)
CROPS = {"crop_fraction": 0.75, "crop_sides": (0.5, 0.75)}
INDEX = torch.arange(2.0 * SIZE * SIZE).reshape(2, SIZE, SIZE)
"""Latents that say where they are."""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[TrainTile]:
    one, two, water = make_tiles(tmp_path_factory.mktemp("tiles"))
    return [
        replace(one, boxes=((4.0, 8.0, 12.0, 14.0),), names=("seal",)),
        replace(
            two, boxes=((1.0, 2.0, 8.0, 9.0), (20.0, 22.0, 30.0, 27.0)), names=("seal", "seal")
        ),
        water,
    ]


def make_material(*tiles: TrainTile) -> Material:
    """Of tiles of 48 pixels whose latents are `INDEX`, without any deviation."""

    def read(
        _tile: TrainTile, symmetry: int, window: tuple[int, int], shape: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor]:
        left, top = window
        width, height = shape or (SIZE, SIZE)
        seen = turn(INDEX, symmetry)[:, top : top + height, left : left + width]
        return seen, torch.zeros_like(seen)

    cache: Any = SimpleNamespace(read=read, read_shape=lambda _tile: tuple(INDEX.shape))
    none = Embedding(torch.zeros(1), torch.zeros(1))
    return Material(
        tiles=tiles, latents=cache, embeddings={}, no_caption=none, scaling_factor=1.0,
        pixels_per_latent=CELL,
    )  # fmt: skip


def draw_windows(seed: int, num_tiles: int, shape: tuple[int, int]) -> Draw:
    shapes = {**PASS, "latent_shape": tuple(INDEX.shape), "num_tiles": num_tiles}
    return draw_step(seed, 0, **shapes, crop_fraction=1.0, crop_shapes=(shape,))


# --- what is drawn ---------------------------------------------------------------------------------


def test_the_share_of_steps_and_both_sides_come_up_and_nothing_else_changes() -> None:
    plain = [draw_step(1, index, **PASS) for index in range(300)]
    draws = [
        draw_step(1, index, **PASS, crop_fraction=0.75, crop_shapes=((2, 2), (4, 3)))
        for index in range(300)
    ]
    shapes = [draw.window for draw in draws]
    assert shapes.count(None) == pytest.approx(75, abs=25)
    assert shapes.count((2, 2)) == pytest.approx(shapes.count((4, 3)), abs=50)
    for one, other in zip(plain, draws, strict=True):
        assert (one.tiles, one.symmetries) == (other.tiles, other.symmetries)
        assert torch.equal(one.timesteps, other.timesteps)
        assert torch.equal(one.dropped, other.dropped)
        if other.window is None:
            assert torch.equal(one.noise, other.noise)
        else:
            width, height = other.window
            assert other.noise.shape == other.sampling.shape == (4, 4, height, width)
    again = draw_step(1, 7, **PASS, crop_fraction=0.75, crop_shapes=((2, 2), (4, 3)))
    assert (again.window, again.places) == (draws[7].window, draws[7].places)
    assert len({draw.places for draw in draws if draw.window}) == 300 - shapes.count(None)


def test_the_passes_of_a_step_share_its_windows() -> None:
    draw = draw_windows(3, 1, (8, 6))
    one, two = draw.split(2)
    assert one.window == two.window == (8, 6)
    assert one.places + two.places == draw.places


# --- what a window holds ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (10, 10), (12, 8), (6, 10)])
@pytest.mark.parametrize("seed", range(6))
def test_latents_mask_size_ids_and_caption_are_those_of_the_window(
    seed: int, shape: tuple[int, int]
) -> None:
    material = make_material(TWO_SEALS)
    alone = [make_material(replace(TWO_SEALS, boxes=(box,))) for box in TWO_SEALS.boxes]
    draw = draw_windows(seed, 1, shape)
    draw = replace(draw, symmetries=tuple((seed + at) % 8 for at in range(4)))
    # Where the window lies is taken from what SDXL is told; all else is held against it.
    ids = (material.size_ids(draw) / CELL).int().tolist()
    latents, covered = material.sample_latents(draw), material.find_animals(draw)
    captions, whole = material.find_captions(draw), replace(draw, window=None)
    for at, symmetry in enumerate(draw.symmetries):
        height, width, top, left, seen_height, seen_width = ids[at]
        assert (height, width) == (SIZE, SIZE), "the picture as it was"
        assert (seen_width, seen_height) == shape, "what is seen of it"
        window = (slice(None), slice(top, top + seen_height), slice(left, left + seen_width))
        assert latents[at].shape[1:] == (seen_height, seen_width), "and no less"
        assert torch.equal(latents[at], turn(INDEX, symmetry)[window])
        assert torch.equal(covered[at], material.find_animals(whole)[at][window])
        seals = [one.find_animals(whole)[at] for one in alone]
        shares = [float(seal[window].sum() / seal.sum()) for seal in seals]
        assert max(shares) == pytest.approx(1), "one of them is whole"
        number = "one seal" if min(shares) < 0.5 else "two seals"
        assert captions[at] == f"{number} on ice"


def test_whole_tiles_are_told_as_before() -> None:
    material = make_material(TWO_SEALS)
    draw = replace(draw_windows(0, 1, (6, 6)), window=None)
    assert material.size_ids(draw).tolist() == [[48, 48, 0, 0, 48, 48]] * 4
    assert material.find_captions(draw) == ["two seals on ice"] * 4
    assert (
        material.sample_latents(replace(draw, sampling=torch.zeros(4, 2, 12, 12))).shape[-1] == 12
    )


def test_open_water_is_seen_everywhere_and_called_the_same() -> None:
    material = make_material(EMPTY)
    windows = set()
    for seed in range(40):
        draw = draw_windows(seed, 1, (6, 6))
        windows |= set(material.find_windows(draw))
        assert set(material.find_captions(draw)) == {"open water"}
    assert len(windows) > 40


def test_an_animal_larger_than_the_window_is_still_one() -> None:
    giant = replace(
        TWO_SEALS, boxes=((0.0, 2.0, 48.0, 46.0),), names=("whale",), caption="one whale"
    )
    draw = draw_windows(0, 1, (6, 6))
    assert make_material(giant).find_captions(draw) == ["one whale"] * 4
    assert set(make_material(giant).find_windows(draw)) == {(3, 3)}


def test_captions_that_windows_may_have() -> None:
    assert set(count_anew(TWO_SEALS)) == {"one seal on ice", "two seals on ice"}
    mixed = replace(TWO_SEALS, names=("seal", "pup"), caption="one seal and one pup")
    assert set(count_anew(mixed)) == {"one seal and one pup", "one seal", "one pup"}
    assert count_anew(EMPTY) == ["open water"]
    own = replace(TWO_SEALS, caption="a colony near the twenty-two seals")
    assert set(count_anew(own)) == {own.caption}
    many = replace(TWO_SEALS, names=("a", "b", "c") * 9, boxes=TWO_SEALS.boxes[:1] * 27)
    assert count_anew(many) == [many.caption]


def test_windows_are_read_from_the_cache(tiles: list[TrainTile], tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, 8)
    cache.fill(tiles, tiny_vae(), "cpu")
    for whole, part in zip(
        cache.read(tiles[0], 3), cache.read(tiles[0], 3, (5, 2), (8, 6)), strict=True
    ):
        assert torch.equal(part, whole[:, 2:8, 5:13])
    assert cache.read_shape(tiles[0]) == (4, 16, 16)


def test_tiles_of_two_sizes_are_refused(base: Path, tiles: list[TrainTile], tmp_path: Path) -> None:
    (tmp_path / "larger").mkdir()
    other = make_tiles(tmp_path / "larger", (48, 48))[1]
    with pytest.raises(SynthdetError, match="differ in size"):
        train(base, [tiles[0], other], tmp_path / "run", crop_fraction=1.0)


# --- a training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill_at", [1, 4, 7])
def test_goes_on_with_the_same_bits(
    base: Path, tiles: list[TrainTile], tmp_path: Path, kill_at: int
) -> None:
    options: dict[str, Any] = {**CROPS, "animal_weight": 2.0}
    train(base, tiles, tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=kill_at, **options)
    assert train(base, tiles, tmp_path / "torn", **options)[0] == kill_at // 3 * 3
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
    train(base, tiles, tmp_path / "plain", animal_weight=2.0)
    weights = [(tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("whole", "plain")]
    assert weights[0] != weights[1]


def test_the_held_out_loss_is_of_whole_tiles(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    losses = []
    for name, options in (("plain", {}), ("crops", {"crop_fraction": 1.0})):
        train(base, tiles, tmp_path / name, val_tiles=tiles[1:2], max_train_steps=1, **options)
        (first, *_) = (tmp_path / name / METRICS_NAME).read_text().splitlines()
        losses.append(json.loads(first)["val_loss"])
    assert losses[0] == losses[1]


def test_captions_are_recounted_where_the_text_encoders_are_trained(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    train(base, tiles, tmp_path / "run", crop_fraction=1.0, train_text_encoder=True)
    assert (tmp_path / "run" / WEIGHTS_NAME).exists()


def test_a_window_of_half_the_side_costs_a_quarter(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = []
    learn = lora_step.Training.learn

    def count(*arguments: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            losses = learn(*arguments)
        operations.append(counter.get_total_flops())
        return losses

    monkeypatch.setattr(lora_step.Training, "learn", count)
    for name, fraction in (("whole", 0.0), ("half", 1.0)):
        train(
            base, tiles, tmp_path / name, max_train_steps=1, crop_fraction=fraction,
            crop_sides=(0.5,),
        )  # fmt: skip
    assert operations[1] < 0.4 * operations[0]


def test_sides_are_what_the_unet_can_halve(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    # 0.45 of 16 cells is 7.2; the tiny UNet halves once.
    train(base, tiles, tmp_path / "run", crop_fraction=1.0, crop_sides=(0.45, 0.01))
    assert (tmp_path / "run" / WEIGHTS_NAME).exists()


# --- windows that are not square -------------------------------------------------------------------

BUCKETS: dict[str, Any] = {
    "crop_fraction": 1.0, "crop_sides": (1.0, 0.5), "crop_ratios": ((1, 1), (4, 3), (3, 4)),
}  # fmt: skip


def test_a_step_is_of_one_shape_and_sdxl_is_told_which(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, Tensor, Tensor]] = []
    steps: list[int] = [0]
    forward = UNet2DConditionModel.forward

    def listen(self: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            passes.append((len(steps), sample, named["added_cond_kwargs"]["time_ids"]))
        return forward(self, sample, *rest, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", listen)
    train(
        base, tiles, tmp_path / "run", max_train_steps=40, train_batch_size=1, **BUCKETS,
        on_step=lambda step, _figures: steps.append(step),
    )  # fmt: skip
    shapes_of_steps: dict[int, set[tuple[int, int]]] = {}
    for step, sample, ids in passes:
        width, height = sample.shape[-1], sample.shape[-2]
        shapes_of_steps.setdefault(step, set()).add((width, height))
        for original_height, original_width, top, left, target_height, target_width in ids.tolist():
            assert (original_width, original_height) == (32, 32)
            assert (target_width, target_height) == (2 * width, 2 * height)
            assert 0 <= left <= 32 - target_width
            assert 0 <= top <= 32 - target_height
    assert {len(shapes) for shapes in shapes_of_steps.values()} == {1}
    seen = Counter(next(iter(shapes)) for shapes in shapes_of_steps.values())
    assert set(seen) == {(16, 16), (16, 12), (12, 16), (8, 8), (8, 6), (6, 8)}


@pytest.mark.parametrize("kill_at", [2, 5])
def test_buckets_go_on_with_the_same_bits(
    base: Path, tiles: list[TrainTile], tmp_path: Path, kill_at: int
) -> None:
    train(base, tiles, tmp_path / "whole", **BUCKETS)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=kill_at, **BUCKETS)
    train(base, tiles, tmp_path / "torn", **BUCKETS)
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_ratios_are_read_as_yaml_gives_them() -> None:
    text = (
        "finetune:\n  crop_fraction: 1\n  crop_sides: [1]\n  crop_shapes: [1:1, 4:3, '3:4', 16:9]\n"
    )
    settings = parse_config(text, where="here").finetune
    assert settings.crop_shapes == ("1:1", "4:3", "3:4", "16:9")
    assert settings.crop_ratios() == ((1, 1), (4, 3), (3, 4), (16, 9))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["4x3"], "no width to height, such as 4:3"),
        (["0:3"], "no width to height"),
        ([1.5], "no width to height"),
        (["5:1"], "more than 4 times the other"),
        ([], "at least 1 item"),
    ],
)
def test_a_ratio_that_is_none_is_refused(shapes: list[Any], message: str) -> None:
    with pytest.raises(SynthdetError, match=message):
        make_config({"finetune": {"crop_fraction": 1, "crop_shapes": shapes}}, where="here")


def test_shapes_without_windows_are_refused() -> None:
    with pytest.raises(SynthdetError, match="crop_fraction is 0: raise it"):
        make_config({"finetune": {"crop_shapes": ["4:3"]}}, where="here")


def test_a_bucket_costs_its_area() -> None:
    def tflop(**finetune: Any) -> float:
        made = make_config({"finetune": {"crop_fraction": 1, **finetune}}, where="here")
        return forecast(made, num_tiles=0).tflop

    whole, flat = tflop(crop_sides=[1]), tflop(crop_sides=[1], crop_shapes=["2:1"])
    assert 0.45 * whole < flat < 0.5 * whole, "attention falls faster than the area"
