"""The builder's scenes: rendered once, kept on disk, read at random.

Four sets, each with seeds of its own, so that no scene is in two of them. The base sets never hold
a humpback: a scene that does is a fault and stops the build.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synthdet.pocket import sea
from synthdet.pocket.build_plan import ScenesPlan

SetName = Literal["base_train", "base_test", "humpback_train", "humpback_test"]
FIRST_SEED: dict[SetName, int] = {
    "base_train": 10_000_000,
    "base_test": 20_000_000,
    "humpback_train": 30_000_000,
    "humpback_test": 40_000_000,
}
_SHARD = 500


@dataclass(frozen=True)
class Annotation:
    """What is known of a scene beside its picture."""

    caption: str
    boxes: tuple[tuple[float, float, float, float], ...]
    """xyxy in pixels."""
    class_names: tuple[str, ...]
    """One a box."""


class Scenes:
    """Rendered scenes, picture `i` beside annotation `i`."""

    def __init__(self, pictures: list[NDArray[np.uint8]], annotations: list[Annotation]) -> None:
        self._shards = pictures
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations)

    def pictures(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures `(len(indices), size, size, 3)`, RGB."""
        return np.stack([self._shards[i // _SHARD][i % _SHARD] for i in indices.tolist()])

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Every scene once, in order: indices and pictures."""
        for start in range(0, len(self), size):
            indices = np.arange(start, min(start + size, len(self)))
            yield indices, self.pictures(indices)


def scene_code_hash() -> str:
    """Changes when the scene code does: rendered scenes are kept by it."""
    folder = Path(inspect.getfile(sea)).parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith(("build", "survey", "__")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def load_scenes(name: SetName, plan: ScenesPlan, cache: Path, *, workers: int = 1) -> Scenes:
    """Scenes of one set, rendering what is not yet on disk.

    Args:
        name: Which set.
        plan: How many, and how large.
        cache: Folder the shards are kept in, by the hash of the scene code.
        workers: Processes that render.

    Raises:
        ValueError: A base scene holds a humpback.
    """
    folder = cache / "scenes" / f"{scene_code_hash()}-{plan.size}"
    folder.mkdir(parents=True, exist_ok=True)
    count = int(getattr(plan, name))
    shards = range((count + _SHARD - 1) // _SHARD)
    missing = [i for i in shards if not _shard_path(folder, name, i).with_suffix(".jsonl").exists()]
    jobs = [(name, i, min(_SHARD, count - i * _SHARD), plan.size, folder) for i in missing]
    if workers > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_render_shard, jobs))
    else:
        for job in jobs:
            _render_shard(job)
    pictures: list[NDArray[np.uint8]] = []
    annotations: list[Annotation] = []
    for i in shards:
        path = _shard_path(folder, name, i)
        pictures.append(np.load(path, mmap_mode="r"))
        annotations += [
            _annotation(json.loads(line))
            for line in path.with_suffix(".jsonl").read_text().splitlines()
        ]
    return Scenes(pictures, annotations[:count])


def _shard_path(folder: Path, name: SetName, shard: int) -> Path:
    return folder / f"{name}-{shard:04d}.npy"


def _annotation(line: dict[str, Any]) -> Annotation:
    boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in line["boxes"])
    return Annotation(line["caption"], boxes, tuple(line["class_names"]))


def _render_shard(job: tuple[SetName, int, int, int, Path]) -> None:
    name, shard, count, size, folder = job
    pictures: list[NDArray[np.uint8]] = []
    lines: list[str] = []
    for i in range(count):
        seed = FIRST_SEED[name] + shard * _SHARD + i
        subject = sea.HUMPBACK if name.startswith("humpback") else None
        scene = sea.render_scene(seed, size_wh=(size, size), subject=subject)
        class_names = [box.class_name for box in scene.boxes]
        if not name.startswith("humpback"):
            refuse_humpback(scene.caption, class_names, seed)
        pictures.append(scene.image)
        boxes = [[float(v) for v in box.xyxy] for box in scene.boxes]
        line = {"caption": scene.caption, "boxes": boxes, "class_names": class_names}
        lines.append(json.dumps(line))
    path = _shard_path(folder, name, shard)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as file:
        np.save(file, np.stack(pictures))
    os.replace(partial, path)
    # The annotations come last: their presence says that the shard is whole.
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, path.with_suffix(".jsonl"))


def refuse_humpback(caption: str, class_names: list[str], seed: int) -> None:
    """The base world has no humpback: what the LoRA is to teach must be new to the base model.

    Raises:
        ValueError: This scene has one.
    """
    if "humpback" in caption.lower() or sea.HUMPBACK in class_names:
        raise ValueError(f"scene {seed} of the base world holds a humpback: {caption!r}")


def batch_indices(seed: int, part: str, step: int, batch: int, count: int) -> NDArray[np.int64]:
    """Scenes of one step: a pure function of the step, so that a restart walks the same path.

    Every scene comes up once an epoch, in an order of its own each epoch.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    indices = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(positions // count):
        order = np.random.default_rng([seed, *part.encode(), int(epoch)]).permutation(count)
        here = positions // count == epoch
        indices[here] = order[positions[here] % count]
    return indices


def box_masks(annotations: Sequence[Annotation], size: int) -> NDArray[np.bool_]:
    """Cells of the latents inside any box, `(n, size / 4, size / 4)`."""
    masks = np.zeros((len(annotations), size // 4, size // 4), dtype=bool)
    for mask, annotation in zip(masks, annotations, strict=True):
        for x1, y1, x2, y2 in annotation.boxes:
            rows = slice(int(y1 // 4), int(np.ceil(y2 / 4)))
            mask[rows, int(x1 // 4) : int(np.ceil(x2 / 4))] = True
    return masks
