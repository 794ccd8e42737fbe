"""Which weights a name stood for, found without loading them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from synthdet.workspace import hash_file

_MOST_BYTES = 4 << 30
"""A folder with more weights than this is not read for its hash."""


def identify(model: str | Path) -> str | None:
    """Hash of local weights, or the revision that the hub's cache holds.

    Args:
        model: A file, a folder of safetensors, or a hub id.

    Returns:
        In words; None where there is nothing to go by.
    """
    path = Path(model)
    if path.is_file():
        return f"SHA-256 {hash_file(path)}"
    if path.is_dir():
        files = sorted(path.rglob("*.safetensors"))
        if not files or sum(file.stat().st_size for file in files) > _MOST_BYTES:
            return None
        whole = hashlib.sha256()
        for file in files:
            whole.update(f"{file.relative_to(path).as_posix()} {hash_file(file)}\n".encode())
        return f"SHA-256 of its weights {whole.hexdigest()}"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub")  # fmt: skip
    revision = cache / f"models--{str(model).replace('/', '--')}" / "refs" / "main"
    return f"revision {revision.read_text().strip()}" if revision.is_file() else None
