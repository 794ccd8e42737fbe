"""What a person sees of a stage: one bar with rate and time left, then one closing line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        columns = (
            TextColumn("[bold]{task.fields[stage]:<9}[/] {task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/]"),
            TimeRemainingColumn(),
        )
        hidden = not self.console.is_terminal  # in a log file a bar is only noise
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            task = progress.add_task(doing, total=total, completed=done, stage=stage, unit=unit)
            yield lambda units: progress.advance(task, units)

    def note(self, stage: str, text: str) -> None:
        """A line worth knowing in the middle of a stage."""
        self.console.print(
            f"[bold]{stage:<9}[/] [yellow]{text}[/]", highlight=False, soft_wrap=True
        )

    def close(self, stage: str, text: str) -> None:
        """The one closing line of a stage."""
        self.console.print(f"[bold]{stage:<9}[/] {text}", highlight=False, soft_wrap=True)


def many(number: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun, like ``1 photo`` or ``1,200 photos``; ``nouns`` where no ``s`` will do."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
