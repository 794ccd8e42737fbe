"""Which weights a name stands for: the same name with other weights is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthdet.models.identity import identify


def test_files_and_folders_by_their_content(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(b"one")
    first = identify(str(folder))
    assert first is not None
    assert first.startswith("SHA-256")
    (folder / "readme.md").write_text("more")
    assert identify(folder) == first
    (folder / "unet" / "model.safetensors").write_bytes(b"two")
    assert identify(folder) != first
    assert identify(folder / "unet" / "model.safetensors") != first


def test_a_hub_id_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert identify("some/model") is None
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123")
    assert identify("some/model") == "revision abc123"
