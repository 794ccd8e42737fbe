"""Steps on windows of the cached latents: what they hold, what SDXL is told, what they cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synthdet.errors import SynthdetError
from synthdet.models import lora_step
from synthdet.models.lora import METRICS_NAME, WEIGHTS_NAME
from synthdet.models.lora_data import Draw, LatentCache, Material, count_anew, draw_step
from synthdet.models.protocols import TrainTile
from synthdet.models.sdxl import Embedding
from synthdet.models.symmetries import turn
from tests.models.test_lora import PASS, KilledError, files, make_tiles, train
from tests.tiny import tiny_sdxl, tiny_vae

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
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


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
        _tile: TrainTile, symmetry: int, window: tuple[int, int], side: int | None
    ) -> tuple[Tensor, Tensor]:
        left, top = window
        reach = side or SIZE
        seen = turn(INDEX, symmetry)[:, top : top + reach, left : left + reach]
        return seen, torch.zeros_like(seen)

    cache: Any = SimpleNamespace(read=read, read_shape=lambda _tile: tuple(INDEX.shape))
    none = Embedding(torch.zeros(1), torch.zeros(1))
    return Material(
        tiles=tiles, latents=cache, embeddings={}, no_caption=none, scaling_factor=1.0,
        pixels_per_latent=CELL,
    )  # fmt: skip


def draw_windows(seed: int, num_tiles: int, side: int) -> Draw:
    shapes = {**PASS, "latent_shape": tuple(INDEX.shape), "num_tiles": num_tiles}
    return draw_step(seed, 0, **shapes, crop_fraction=1.0, crop_sides=(side,))


# --- what is drawn ---------------------------------------------------------------------------------


def test_the_share_of_steps_and_both_sides_come_up_and_nothing_else_changes() -> None:
    plain = [draw_step(1, index, **PASS) for index in range(300)]
    draws = [
        draw_step(1, index, **PASS, crop_fraction=0.75, crop_sides=(2, 4)) for index in range(300)
    ]
    sides = [draw.side for draw in draws]
    assert sides.count(None) == pytest.approx(75, abs=25)
    assert sides.count(2) == pytest.approx(sides.count(4), abs=50)
    for one, other in zip(plain, draws, strict=True):
        assert (one.tiles, one.symmetries) == (other.tiles, other.symmetries)
        assert torch.equal(one.timesteps, other.timesteps)
        assert torch.equal(one.dropped, other.dropped)
        if other.side is None:
            assert torch.equal(one.noise, other.noise)
        else:
            assert other.noise.shape == other.sampling.shape == (4, 4, other.side, other.side)
    again = draw_step(1, 7, **PASS, crop_fraction=0.75, crop_sides=(2, 4))
    assert (again.side, again.places) == (draws[7].side, draws[7].places)
    assert len({draw.places for draw in draws if draw.side}) == 300 - sides.count(None)


def test_the_passes_of_a_step_share_its_windows() -> None:
    draw = draw_windows(3, 1, 6)
    one, two = draw.split(2)
    assert one.side == two.side == 6
    assert one.places + two.places == draw.places


# --- what a window holds ---------------------------------------------------------------------------


@pytest.mark.parametrize("side", [6, 10])
@pytest.mark.parametrize("seed", range(6))
def test_latents_mask_size_ids_and_caption_are_those_of_the_window(seed: int, side: int) -> None:
    material = make_material(TWO_SEALS)
    alone = [make_material(replace(TWO_SEALS, boxes=(box,))) for box in TWO_SEALS.boxes]
    draw = draw_windows(seed, 1, side)
    draw = replace(draw, symmetries=tuple((seed + at) % 8 for at in range(4)))
    # Where the window lies is taken from what SDXL is told; all else is held against it.
    ids = (material.size_ids(draw) / CELL).int().tolist()
    latents, covered = material.sample_latents(draw), material.find_animals(draw)
    captions, whole = material.find_captions(draw), replace(draw, side=None)
    for at, symmetry in enumerate(draw.symmetries):
        height, width, top, left, *target = ids[at]
        assert (height, width, *target) == (SIZE, SIZE, side, side)
        window = (slice(None), slice(top, top + side), slice(left, left + side))
        assert torch.equal(latents[at], turn(INDEX, symmetry)[window])
        assert torch.equal(covered[at], material.find_animals(whole)[at][window])
        seals = [one.find_animals(whole)[at] for one in alone]
        shares = [float(seal[window].sum() / seal.sum()) for seal in seals]
        assert max(shares) == pytest.approx(1), "one of them is whole"
        number = "one seal" if min(shares) < 0.5 else "two seals"
        assert captions[at] == f"{number} on ice"


def test_whole_tiles_are_told_as_before() -> None:
    material = make_material(TWO_SEALS)
    draw = replace(draw_windows(0, 1, 6), side=None)
    assert material.size_ids(draw).tolist() == [[48, 48, 0, 0, 48, 48]] * 4
    assert material.find_captions(draw) == ["two seals on ice"] * 4
    assert (
        material.sample_latents(replace(draw, sampling=torch.zeros(4, 2, 12, 12))).shape[-1] == 12
    )


def test_open_water_is_seen_everywhere_and_called_the_same() -> None:
    material = make_material(EMPTY)
    windows = set()
    for seed in range(40):
        draw = draw_windows(seed, 1, 6)
        windows |= set(material.find_windows(draw))
        assert set(material.find_captions(draw)) == {"open water"}
    assert len(windows) > 40


def test_an_animal_larger_than_the_window_is_still_one() -> None:
    giant = replace(
        TWO_SEALS, boxes=((0.0, 2.0, 48.0, 46.0),), names=("whale",), caption="one whale"
    )
    draw = draw_windows(0, 1, 6)
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
        cache.read(tiles[0], 3), cache.read(tiles[0], 3, (5, 2), 8), strict=True
    ):
        assert torch.equal(part, whole[:, 2:10, 5:13])
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
    step = lora_step.Training.step

    def count(*arguments: Any) -> None:
        with FlopCounterMode(display=False) as counter:
            step(*arguments)
        operations.append(counter.get_total_flops())

    monkeypatch.setattr(lora_step.Training, "step", count)
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
