"""Pictures made elsewhere, taken in as if they had been generated here (``generate.pictures``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from synthdet.core.pictures import is_blank
from synthdet.core.prompts import make_image_id
from synthdet.core.records import Rejected
from synthdet.errors import SynthdetError
from synthdet.stages.generate_made import Made

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def list_pictures(folder: Path) -> list[Path]:
    """Picture files in a folder, by name.

    Raises:
        SynthdetError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise SynthdetError(f"generate.pictures: there is no folder {folder}")
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise SynthdetError(
            f"generate.pictures: there is no picture in {folder} "
            f"(looked for {', '.join(PICTURE_SUFFIXES)})"
        )
    return files


def take_in(made: Made, files: Sequence[Path], size_wh: tuple[int, int]) -> list[str]:
    """Add the files that are not there yet, each in the size of a tile.

    Args:
        made: The pictures of the run; what cannot be read is in its `rejected`.
        files: In their order.
        size_wh: Width and height in pixels.

    Returns:
        The picture ids, one a file.

    Raises:
        SynthdetError: The disk is full.
    """
    ids = {path: make_image_id(index) for index, path in enumerate(files)}
    done = sum(made.has(image_id) for image_id in ids.values())
    made.rejected.clear()
    with made.reporter.bar("generate", len(files), done=done, doing="taking in") as advance:
        for index, (path, image_id) in enumerate(ids.items()):
            if made.has(image_id):
                continue
            picture = _read_picture(path, size_wh)
            if isinstance(picture, str):
                made.rejected[path.name] = Rejected(path=path.name, reason=picture)
            else:
                fields = _describe_own(path, image_id, index)
                if is_blank(picture):
                    fields["fault"] = "blank"
                made.add([made.write(picture, fields)])
            advance(1)
    if made.rejected:
        first = next(iter(made.rejected.values()))
        made.reporter.note(
            "generate",
            f"{len(made.rejected)} files could not be taken in, such as {first.path}: {first.reason}",
        )
    return list(ids.values())


def _read_picture(path: Path, size_wh: tuple[int, int]) -> NDArray[np.uint8] | str:
    """The user's picture, upright, RGB, in the size of a tile; or why it cannot be read."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            if upright.size != size_wh:
                upright = ImageOps.fit(upright, size_wh, method=Image.Resampling.LANCZOS)
            return np.array(upright)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__


def _describe_own(path: Path, image_id: str, index: int) -> dict[str, Any]:
    sidecar = path.with_suffix(".txt")
    prompt = ""
    if sidecar.is_file():
        prompt = sidecar.read_text(encoding="utf-8", errors="replace").strip()
    return {
        "image_id": image_id,
        "prompt": prompt,
        "negative_prompt": "",
        "seed": 0,
        "scheduler": "unknown",
        "num_inference_steps": 0,
        "guidance_scale": 0.0,
        "lora_scale": 0.0,
        "batch": index,
        "batch_shape": 1,
        "asked_for": None,
        "file_name": path.name,
    }
