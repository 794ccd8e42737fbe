from __future__ import annotations

import io

import pytest
from rich.console import Console

from synthdet import progress
from synthdet.progress import Reporter


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def log() -> tuple[Reporter, io.StringIO]:
    said = io.StringIO()
    return Reporter(Console(file=said, width=80)), said


def test_a_log_hears_once_a_minute_how_far_it_is_and_how_long_it_takes(clock: Clock) -> None:
    reporter, said = log()
    with reporter.bar("generate", 1_200, done=200) as advance:
        for _ in range(10):
            clock.now += 30
            advance(20)
    # 200 pictures in 300 seconds: of the 200 that were there before nothing is concluded.
    lines = said.getvalue().splitlines()
    assert lines[0] == "generate  240 of 1,200 pictures · about 24 minutes left"
    assert lines[-1] == "generate  400 of 1,200 pictures · about 20 minutes left"
    assert len(lines) == 5


def test_a_log_hears_nothing_of_what_takes_no_minute(clock: Clock) -> None:
    reporter, said = log()
    with reporter.bar("label", 3, doing="drawing boxes") as advance:
        for _ in range(3):
            clock.now += 59 / 3
            advance(1)
        clock.now += 600
        advance(0)
    assert said.getvalue() == "", "and nothing when all is done"


def test_one_bar_follows_the_other(clock: Clock) -> None:
    reporter, said = log()
    with reporter.bars("finetune") as move:
        for number in (1, 2, 3):
            clock.now += 61
            move(number, 4, "encoding", "picture")
        for step in (100, 150, 200):
            clock.now += 90
            move(step, 2_000, "", "step")
    assert said.getvalue().splitlines() == [
        "finetune  encoding: 2 of 4 pictures · about 3 minutes left",
        "finetune  encoding: 3 of 4 pictures · about 2 minutes left",
        "finetune  150 of 2,000 steps · about 56 minutes left",
        "finetune  200 of 2,000 steps · about 54 minutes left",
    ]


def test_a_terminal_shows_one_bar_at_a_time() -> None:
    shown = io.StringIO()
    reporter = Reporter(Console(file=shown, width=100, force_terminal=True))
    with reporter.bars("finetune") as move:
        move(1, 2, "encoding", "picture")
        move(2, 2, "encoding", "picture")
        move(0, 5, "", "step")
        move(5, 5, "", "step")
    assert "encoding" in shown.getvalue()
    assert "5/5" in shown.getvalue()
