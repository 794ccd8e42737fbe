"""What a person sees of a stage: one bar with rate and time left, then one closing line.

In a log, where a bar is only noise, it is a line a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Move = Callable[[int, int, str, str], None]
"""Told units done, all units, what goes on, and what is counted, in the singular."""
_LOG_EVERY: Final = 60.0
"""Seconds between two lines in a log."""


class _Rate(ProgressColumn):
    """Units a second, or seconds a unit where it is slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        unit = task.fields["unit"]
        return Text(
            f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}", style="dim"
        )


class Reporter:
    """Prints bars, notes and closing lines. Give it a quiet console to say nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @contextmanager
    def bar(
        self, stage: str, total: int, *, unit: str = "picture", done: int = 0, doing: str = ""
    ) -> Iterator[Callable[[int], None]]:
        """A progress bar; yields a function that moves it on by a number of units.

        Args:
            stage: Name at the left.
            total: All units of the stage.
            unit: What is counted, in the singular.
            done: Units an earlier start already did.
            doing: What goes on, where a stage has several bars.
        """
        if not self.console.is_terminal:
            yield self._log_lines(stage, total, unit, done, doing)
            return
        columns = (
            TextColumn("[bold]{task.fields[stage]:<9}[/] {task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/]"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(doing, total=total, completed=done, stage=stage, unit=unit)
            yield lambda units: progress.advance(task, units)

    @contextmanager
    def bars(self, stage: str) -> Iterator[Move]:
        """One bar after the other, for work that says by itself what it does and how far it is.

        Yields:
            A function that moves the bar, and opens the next one when something else goes on.
        """
        with ExitStack() as shown:
            now: tuple[str, Callable[[int], None]] | None = None
            before = 0

            def move(done: int, total: int, doing: str, unit: str) -> None:
                nonlocal now, before
                if now is None or now[0] != doing:
                    shown.close()
                    bar = self.bar(stage, total, unit=unit, done=done, doing=doing)
                    now, before = (doing, shown.enter_context(bar)), done
                now[1](done - before)
                before = done

            yield move

    def _log_lines(
        self, stage: str, total: int, unit: str, done: int, doing: str
    ) -> Callable[[int], None]:
        begun = said = time.monotonic()
        before = done

        def advance(units: int) -> None:
            nonlocal done, said
            done += units
            now = time.monotonic()
            if now - said < _LOG_EVERY or not before < done < total:
                return
            said = now
            left = (now - begun) / (done - before) * (total - done)
            what = f"{doing}: " if doing else ""
            line = f"{what}{done:,} of {many(total, unit)} · about {_in_words(left)} left"
            self.console.print(f"[bold]{stage:<9}[/] [dim]{line}[/]", highlight=False, soft_wrap=True)  # fmt: skip

        return advance

    def note(self, stage: str, text: str) -> None:
        """A line worth knowing in the middle of a stage."""
        self.console.print(
            f"[bold]{stage:<9}[/] [yellow]{text}[/]", highlight=False, soft_wrap=True
        )

    def close(self, stage: str, text: str) -> None:
        """The one closing line of a stage."""
        self.console.print(f"[bold]{stage:<9}[/] {text}", highlight=False, soft_wrap=True)


def _in_words(seconds: float) -> str:
    """A time to wait.

    Examples:
        >>> [_in_words(seconds) for seconds in (0.5, 140, 3600, 7500)]
        ['1 minute', '3 minutes', '1 h 0 min', '2 h 5 min']
    """
    minutes = max(1, math.ceil(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else many(minutes, "minute")


def many(number: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun, like ``1 photo`` or ``1,200 photos``; ``nouns`` where no ``s`` will do."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
