"""The README's commands exist, take these arguments, and do what they are said to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from click.testing import Result

from synthdet.cli import app
from synthdet.config import Config, set_values
from synthdet.pipeline import shipped_configs
from synthdet.stages import curate
from synthdet.workspace import STAGES, Workspace
from tests.builders import make_yolo_survey
from tests.stages.test_curate import free_port, needs_mongodb
from tests.test_cli import SMALL, Opened, call, opened, sets

__all__ = ["opened"]  # a fixture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    [shlex.split(line) for line in block.strip().splitlines()]
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
]
COMMANDS = [command[1:] for block in BLOCKS for command in block if command[0] == "synthdet"]
CONFIG_COMMANDS = [
    shlex.split(command)[1:]
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.startswith("# synthdet ")
    for command in line.removeprefix("# ").split("&&")
]


def values_of(command: list[str], option: str) -> list[str]:
    return [command[n + 1] for n, word in enumerate(command) if word == option]


def test_there_are_commands() -> None:
    assert {command[0] for block in BLOCKS for command in block} == {"make", "synthdet"}
    assert len(COMMANDS) >= 8
    assert len(CONFIG_COMMANDS) >= 8


def test_make_knows_its_targets() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = {command[1] for block in BLOCKS for command in block if command[0] == "make"}
    assert named == {"demo", "test"}
    assert named <= set(targets)


@pytest.mark.parametrize("command", [*COMMANDS, *CONFIG_COMMANDS], ids=" ".join)
def test_a_command_parses(command: list[str]) -> None:
    root = typer.main.get_command(app)
    with root.make_context("synthdet", list(command)) as context:
        name, chosen, rest = root.resolve_command(context, list(command))  # type: ignore[attr-defined]
        assert chosen is not None
        chosen.make_context(name, rest, parent=context).close()
    set_values(Config(), values_of(command, "--set"))
    assert set(values_of(command, "--config")) <= set(shipped_configs())


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_a_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_settings_and_stages_named_in_the_text_exist() -> None:
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)`", README):
        if section in Config.model_fields:
            assert key in getattr(Config(), section).model_dump(), f"{section}.{key}"
    for number, stage in enumerate(STAGES, start=1):
        assert f"| `{stage}` |" in README
        assert f"`{number}-{stage}/`" in README


@needs_mongodb
def test_the_commands_do_their_work(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the page, on a small survey, with fakes in the place of the networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curate, "_wait", lambda seconds: None)
    make_yolo_survey(tmp_path / "my-photos", names=("whale",))
    make_yolo_survey(tmp_path / "new-survey", num_photos=2)
    for command in COMMANDS:
        run_one(command, opened)
    for run in ("humpbacks", "seals"):
        workspace = Workspace(tmp_path / "runs" / run)
        assert all(workspace.stage(stage).output() for stage in STAGES)
    assert Workspace(tmp_path / "runs" / "seals").read_config().filter.threshold == 0.7


def run_one(command: list[str], opened: Opened) -> Result:
    further: list[str] = []
    if command[0] == "init":
        further = sets(SMALL)
    if command[0] == "app":
        further = ["--port", str(free_port())]
    if len(command) > 1:
        opened.run = Path(command[1])
    result = call(*command, *further)
    assert result.exit_code == 0, f"{command}: {result.output} {result.exception}"
    return result
