"""The run folder's reference names every record, every field, every section and every stage."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from synthdet.config import RUN_FOLDER_VERSION, Config
from synthdet.core import records
from synthdet.core.records import Record
from synthdet.workspace import STAGES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
KINDS = [
    kind
    for _, kind in inspect.getmembers(records, inspect.isclass)
    if issubclass(kind, Record) and kind is not Record
]


def section_of(kind: type[Record]) -> str:
    """The part of the page between the record's heading and the next one."""
    found = re.search(rf"^###[^\n]*`{kind.__name__}`.*?(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no heading names the record {kind.__name__}"
    return found.group()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_record_is_explained(kind: type[Record]) -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", "".join(
        line.split("|")[1] for line in section_of(kind).splitlines() if line.startswith("| `")
    )))  # fmt: skip
    assert named == set(kind.model_fields), f"{kind.__name__} and its table differ"


def test_there_are_records() -> None:
    assert len(KINDS) >= 10


def test_every_stage_and_section_is_named() -> None:
    for number, stage in enumerate(STAGES, start=1):
        assert f"## {number}-{stage}" in TEXT
    for section in Config.model_fields:
        assert f"`{section}`" in TEXT


def test_the_version_is_the_codes() -> None:
    assert f"Version {RUN_FOLDER_VERSION}." in TEXT


def test_decisions_are_numbered_pages_of_one_shape() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    assert pages
    for page in pages:
        headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], page.name
