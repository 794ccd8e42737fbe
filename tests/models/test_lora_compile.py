"""Compiled steps: where they are taken, that a training that goes on repeats it, and without a compiler."""

from __future__ import annotations

import doctest
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from torch._inductor import config as inductor

from synthdet.config import make_config
from synthdet.models import lora, lora_compile, lora_step
from synthdet.models.lora import COMPILE_NAME, METRICS_NAME, WEIGHTS_NAME
from synthdet.models.lora_compile import Compiling, compile_errors, tell_failure, weigh
from synthdet.models.lora_team import Team
from synthdet.models.protocols import TrainTile
from tests.models.test_lora import KilledError, files, train

STEPS: dict[str, Any] = {
    "max_train_steps": 27, "validation_steps": 10, "checkpointing_steps": 23,
}  # fmt: skip


class Coarse:
    """A compiler whose networks answer a little otherwise, as compiled ones do; fails for some shapes."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.graphs = fails_at, 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.graphs += 1
        if self.graphs == self.fails_at:
            raise RuntimeError("no compiler\nwas found")

        def answer(*inputs: Any) -> Any:
            return tuple(one * 1.01 for one in graph(*inputs))

        return answer


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> Coarse:
    made = Coarse()
    monkeypatch.setattr(lora_compile, "_BACKEND", made)
    return made


def read_choice(folder: Path) -> dict[str, Any]:
    choice: dict[str, Any] = json.loads((folder / COMPILE_NAME).read_text())
    return choice


def read_val_losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / METRICS_NAME).read_text().splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line]


def open_compiling(folder: Path, setting: str, start: int, *, writes: bool = True) -> Compiling:
    return Compiling(
        setting, folder, device="cpu", num_shapes=1, num_steps=40, blocked=None, start=start,
        writes=writes, note=lambda _text: None,
    )  # fmt: skip


def compile_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where it may pay."""
    monkeypatch.setitem(lora_compile._SAVED, "cpu", 0.5)
    monkeypatch.setattr(lora_compile, "weigh", lambda *_some, **_named: (True, "it pays"))


def test_doctests() -> None:
    assert doctest.testmod(lora_compile).failed == 0


def test_a_gain_must_pay_twice_for_every_shape() -> None:
    assert weigh("cuda", 1.0, 1200, num_shapes=1)[0]
    assert not weigh("cuda", 1.0, 1200, num_shapes=2)[0]
    assert not weigh("cuda", 1.0, 700, num_shapes=1)[0]


def test_what_was_decided_is_repeated_bit_for_bit(
    base: Path,
    tiles: list[TrainTile],
    tmp_path: Path,
    coarse: Coarse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_somewhere(monkeypatch)
    said: list[str] = []
    train(base, tiles, tmp_path / "whole", compile="auto", note=said.append, **STEPS)
    assert said == ["compiled from step 21 on: it pays"]
    assert coarse.graphs
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", compile="auto", kill_at=26, **STEPS)
    # It stands by what it began, whatever it would find now.
    monkeypatch.setattr(lora_compile, "weigh", lambda *_some, **_named: (False, "no"))
    said.clear()
    train(base, tiles, tmp_path / "torn", compile="auto", note=said.append, **STEPS)
    assert said == ["compiled from step 21 on, as this training began: it pays"]
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
    train(base, tiles, tmp_path / "plain", **STEPS)
    weights = [(tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("whole", "plain")]
    assert weights[0] != weights[1], "the compiled steps did count"


def test_from_the_first_step_on(
    base: Path, tiles: list[TrainTile], tmp_path: Path, coarse: Coarse
) -> None:
    options: dict[str, Any] = {
        "compile": "always", "crop_fraction": 0.6, "crop_ratios": ((1, 1), (4, 3)),
        "gradient_checkpointing": True,
    }  # fmt: skip
    train(base, tiles, tmp_path / "whole", val_tiles=tiles[:1], **options)
    assert read_choice(tmp_path / "whole")["from_step"] == 1
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=5, val_tiles=tiles[:1], **options)
    said: list[str] = []
    train(
        base, tiles, tmp_path / "torn", val_tiles=tiles[:1], note=said.append,
        **{**options, "compile": "never"},
    )  # fmt: skip
    assert len(said) == 1
    assert "finetune.compile is now never, but this training goes on as it began" in said[0]
    assert "compiled from step 1 on" in said[0]
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_the_held_out_loss_is_measured_as_it_always_is(
    base: Path, tiles: list[TrainTile], tmp_path: Path, coarse: Coarse
) -> None:
    for setting in ("always", "never"):
        train(
            base, tiles, tmp_path / setting, val_tiles=tiles[:1], compile=setting, learning_rate=1e-9,
            max_train_steps=1,
        )  # fmt: skip
    one, other = (read_val_losses(tmp_path / setting)[0] for setting in ("always", "never"))
    assert one == other
    assert coarse.graphs


def test_never_is_kept_too(
    base: Path, tiles: list[TrainTile], tmp_path: Path, coarse: Coarse
) -> None:
    train(base, tiles, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=5)
    said: list[str] = []
    train(base, tiles, tmp_path / "torn", compile="always", note=said.append)
    assert len(said) == 1
    assert "goes on as it began, with never (not compiled)" in said[0]
    assert not coarse.graphs
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


@pytest.mark.parametrize("fails_at", [1, 2])
def test_where_it_fails_the_training_goes_on_without(
    base: Path,
    tiles: list[TrainTile],
    tmp_path: Path,
    fails_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"crop_fraction": 0.5, "compile": "always", "note": said.append}
    monkeypatch.setattr(lora_compile, "_BACKEND", Coarse(fails_at))
    train(base, tiles, tmp_path / "run", **options)
    choice = read_choice(tmp_path / "run")
    assert "it failed at step" in said[-1]
    assert "no compiler was found" in said[-1]
    assert len(said) == 2
    if fails_at == 1:
        assert choice["from_step"] is None
        train(base, tiles, tmp_path / "plain", crop_fraction=0.5)
        weights = [(tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("run", "plain")]
        assert weights[0] == weights[1]


def test_a_failure_is_not_held_against_a_training_that_starts_again(
    base: Path,
    tiles: list[TrainTile],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lora_compile, "_BACKEND", Coarse(1))
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run", compile="always", kill_at=2)  # no checkpoint yet
    assert read_choice(tmp_path / "run")["from_step"] is None
    monkeypatch.setattr(lora_compile, "_BACKEND", Coarse())
    train(base, tiles, tmp_path / "run", compile="always", max_train_steps=2)
    assert read_choice(tmp_path / "run")["from_step"] == 1


def test_the_memory_of_a_step_that_failed_is_free_before_it_is_made_anew(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    square_error = lora_step.Training._square_error
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Activations:
        pass

    def hold(self: Any, *arguments: Any) -> Any:
        alive.append(sum(one() is not None for one in held))
        activations = Activations()
        held.append(weakref.ref(activations))
        error = square_error(self, *arguments)
        del activations
        return error

    monkeypatch.setattr(lora_step.Training, "_square_error", hold)
    monkeypatch.setattr(lora_compile, "_BACKEND", Coarse(1))
    train(base, tiles, tmp_path / "run", compile="always", max_train_steps=1)
    assert "it failed" in read_choice(tmp_path / "run")["reason"]
    assert len(alive) == 3, "the pass that failed, and the two of the step"
    assert alive == [0, 0, 0]


def test_a_failure_behind_a_failure_lets_go_too() -> None:
    class Activations:
        pass

    seen: list[weakref.ref[Any]] = []

    def fail() -> None:
        activations = Activations()
        seen.append(weakref.ref(activations))
        raise ValueError("within")

    def wrap() -> None:
        try:
            fail()
        except ValueError as error:
            raise RuntimeError("no\ncompiler") from error

    with pytest.raises(RuntimeError) as caught:
        wrap()
    assert tell_failure(caught.value) == "RuntimeError: no compiler"
    assert seen[0]() is None


class Steps:
    """A training that says what is asked of it, and that cannot be compiled."""

    def __init__(self, *, fails: bool) -> None:
        self.fails, self.asked = fails, list[str]()

    def compile(self, on: bool) -> None:
        self.asked.append(f"compile {on}")

    def learn(self, *_some: Any) -> list[Any]:
        self.asked.append("learn")
        if self.fails and self.asked.count("learn") == 1:
            raise compile_errors()[0]("no compiler")
        return []

    def forget(self) -> None:
        self.asked.append("forget")

    def update(self, *_some: Any) -> None:
        self.asked.append("update")


@pytest.mark.parametrize("fails", [False, True])
def test_what_one_process_cannot_compile_none_does(
    tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []

    def agree(_self: Team, flag: bool) -> bool:
        heard.append(flag)
        return True  # one of the others says so

    monkeypatch.setattr(Team, "agree", agree)
    compiling = open_compiling(tmp_path, "always", 0)
    steps: Any = Steps(fails=fails)
    lora._make_step(steps, 1, {"tiles": None}, compiling, Team(0, 2))  # type: ignore[dict-item]
    anew = ["compile True", "learn", "forget", "compile False", "learn", "update"]
    assert steps.asked == anew
    assert heard == [fails]
    assert read_choice(tmp_path)["from_step"] is None
    lora._make_step(steps, 2, {"tiles": None}, compiling, Team(0, 2))  # type: ignore[dict-item]
    assert heard == [fails], "a step that is not compiled asks nobody"


def test_a_failure_later_on_keeps_what_was_set(tmp_path: Path) -> None:
    open_compiling(tmp_path, "always", 0)
    open_compiling(tmp_path, "never", 3).give_up(5, "no compiler")
    choice = read_choice(tmp_path)
    assert (choice["from_step"], choice["to_step"], choice["setting"]) == (1, 4, "always")


def test_only_ten_steps_on_end_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_somewhere(monkeypatch)
    for paused_at, expected in ((None, 21), (20, 21), (15, 31)):
        compiling = open_compiling(tmp_path, "auto", 0)
        for step in range(1, 41):
            if step % 10 == 0 or step == paused_at:
                compiling.look(step)
            compiling.mark(step, paused=step == paused_at)
        assert compiling.choice is not None
        assert compiling.choice.from_step == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"crop_fraction": 0.0}, 1),
        # 64 and 48 tokens of windows, the second in two shapes, and 256 of the whole
        ({"crop_fraction": 0.5, "crop_sides": (0.5,), "crop_ratios": ((1, 1), (4, 3), (3, 4))}, 3),
        ({"crop_fraction": 1.0, "crop_sides": (0.5,), "crop_ratios": ((4, 3), (3, 4))}, 1),
        ({"crop_fraction": 0.5, "crop_sides": (1.0,), "crop_ratios": ((1, 1),)}, 1),
    ],
)
def test_shapes_are_counted_as_the_blocks_see_them(
    base: Path,
    tiles: list[TrainTile],
    tmp_path: Path,
    options: dict[str, Any],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    count = lora_step.Training.count_shapes

    def listen(self: Any, *arguments: Any, **named: Any) -> int:
        counted.append(count(self, *arguments, **named))
        return counted[-1]

    monkeypatch.setattr(lora_step.Training, "count_shapes", listen)
    train(base, tiles, tmp_path / "run", max_train_steps=1, **options)
    assert counted == [expected]


def test_on_a_cpu_it_is_not_done_by_itself(
    base: Path, tiles: list[TrainTile], tmp_path: Path, coarse: Coarse
) -> None:
    said: list[str] = []
    train(base, tiles, tmp_path / "run", compile="auto", note=said.append)
    assert said == ["not compiled: on a CPU compiled steps are no faster"]
    assert not coarse.graphs


def test_layers_that_are_not_plain_are_left_as_they_are(
    base: Path, tiles: list[TrainTile], tmp_path: Path, coarse: Coarse
) -> None:
    said: list[str] = []
    train(
        base, tiles, tmp_path / "run", compile="always", use_dora=True, note=said.append,
        max_train_steps=2,
    )  # fmt: skip
    assert "those of a DoRA are left as they are" in said[0]
    assert not coarse.graphs


def test_another_setting_counts_where_nothing_is_done_yet(tmp_path: Path) -> None:
    def choose(setting: str, start: int) -> int | None:
        choice = open_compiling(tmp_path, setting, start).choice
        assert choice is not None
        return choice.from_step

    assert choose("always", 0) == 1
    assert choose("never", 3) == 1
    assert choose("never", 0) is None
    assert choose("always", 3) is None
    assert choose("always", 0) == 1


def test_a_process_that_does_not_write_does_not_look_at_what_another_drops(tmp_path: Path) -> None:
    open_compiling(tmp_path, "always", 3)
    before = files(tmp_path)
    late = open_compiling(tmp_path, "always", 0, writes=False)
    assert late.choice is not None
    assert late.choice.from_step == 1
    assert files(tmp_path) == before


def test_it_is_no_making_setting() -> None:
    settings = make_config({"finetune": {"compile": "always"}}, where="here").finetune
    assert "compile" not in settings.settings("making")
    assert settings.settings("runtime")["compile"] == "always"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_with_torchs_own_compiler(base: Path, tiles: list[TrainTile], tmp_path: Path) -> None:
    options: dict[str, Any] = {"compile": "always", "max_train_steps": 5}
    train(base, tiles, tmp_path / "whole", **options)
    assert read_choice(tmp_path / "whole")["reason"] == "finetune.compile is always", "it failed"
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=4, **options)
    train(base, tiles, tmp_path / "torn", **options)
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_without_a_compiler(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        train(base, tiles, tmp_path / "run", compile="always", note=said.append)
    assert "it failed at step 1" in said[-1]
    train(base, tiles, tmp_path / "plain")
    weights = [(tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("run", "plain")]
    assert weights[0] == weights[1]
    assert read_choice(tmp_path / "run")["from_step"] is None
