"""The whole real test photos beside the tiles, for a test by tiled inference.

A detector learns and is compared on tiles at one ground scale; on a survey it will look at whole
photos, tile by tile. These are the photos to try that on: none of them was in train.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from synthdet.core.metadata import strip_metadata
from synthdet.core.records import ManifestEntry, Photo
from synthdet.errors import SynthdetError
from synthdet.stages._photos import large_frames, read_upright, to_png
from synthdet.stages.export_write import DatasetWriter

_ORIENTATION = 0x0112
_AS_IT_IS = (".jpg", ".jpeg", ".png")


def plan_frames(photos: Sequence[Photo], photos_dir: Path) -> list[tuple[Photo, Path]]:
    """The test photos, each with its file.

    Args:
        photos: What prepare made of the survey.
        photos_dir: Where they lie.

    Raises:
        SynthdetError: One is gone.
    """
    frames = [(photo, photos_dir / photo.path) for photo in photos if photo.split == "test"]
    for _photo, path in frames:
        if not path.is_file():
            raise SynthdetError(
                f"{path} is missing, and export keeps whole test photos: put it back, or set export.whole_frames=false"
            )
    return frames


def add_frame(writer: DatasetWriter, photo: Photo, path: Path) -> None:
    """Copy a whole photo in.

    Its bytes without the metadata; or, where it is no plain upright JPEG or PNG, its upright pixels
    as PNG, so that readers that know EXIF and those that do not see the same.

    Raises:
        SynthdetError: It was changed since prepare, or the disk is full.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != photo.sha256:
        raise SynthdetError(
            f"{path} is not the photo that prepare read: put that one back, or run `synthdet prepare ... --redo`"
        )
    with large_frames():
        is_plain = _is_plain(path, content)
    name = photo.image_id + (path.suffix.lower() if is_plain else ".png")
    entry = ManifestEntry(
        image_id=photo.image_id,
        source="real",
        split="test",
        yolo_path=f"6-export/frames/yolo/images/test/{name}",
        coco_path=f"6-export/frames/coco/images/test/{name}",
        sha256=photo.sha256,
        width=photo.width,
        height=photo.height,
        boxes=photo.boxes,
        provenance={"photo": photo.image_id, "group": photo.group},
    )
    if is_plain:
        writer.add(entry, path)
    else:
        with large_frames():
            writer.add_bytes(entry, to_png(read_upright(path)))


def _is_plain(path: Path, content: bytes) -> bool:
    """Whether all readers show it alike: a JPEG or PNG by name and content, 8 bits, upright, whole."""
    if path.suffix.lower() not in _AS_IT_IS or strip_metadata(content) is None:
        return False
    with Image.open(io.BytesIO(content)) as image:
        named = "PNG" if path.suffix.lower() == ".png" else "JPEG"
        is_upright = image.getexif().get(_ORIENTATION, 1) == 1
        return bool(image.format == named and image.mode in ("RGB", "L") and is_upright)
