"""What a stage asks of a network. Adapters fulfil it; tests fulfil it in a line.

No torch here: pictures cross this border as ``uint8`` arrays ``(height, width, 3)`` in RGB order,
embeddings as ``float32`` arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synthdet.core.records import XYXY, DetectedBox, Split

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """One picture to make. The seed fixes its noise, whatever else is in the batch.

    Attributes:
        prompt: What to draw.
        negative_prompt: What not to draw.
        seed: Of its noise.
        source: A picture of the same size to start from; None for noise alone.
        placed: Boxes in pixels of the source, where alone it is painted; empty for everywhere.
        keep_detail: Whether the picture keeps what the VAE alone would lose of the source, fins and
            flippers of a few pixels: where it is painted the less, the higher the strength.
    """

    prompt: str
    negative_prompt: str
    seed: int
    source: Picture | None = None
    placed: tuple[XYXY, ...] = ()
    keep_detail: bool = False


class ImageGenerator(Protocol):
    """A diffusion pipeline, opened with its LoRA."""

    scheduler: str

    def generate(
        self,
        requests: Sequence[PictureRequest],
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        strength: float = 1.0,
        precise_vae: bool = False,
    ) -> list[Picture]:
        """One batch, in the order of the requests; guided in the first share of the steps.

        ``guidance_rescale`` (0..1) of the contrast that guidance adds is taken back.

        A batch starts from noise, from sources at ``strength`` (0..1), or is painted into sources: all
        its requests in the same way. With ``precise_vae`` decoded in float32, the rest as before: for
        pictures that overflow.

        Raises:
            MemoryError: The batch does not fit; the caller may try a smaller one.
        """
        ...

    def find_batch_size(self, *, width: int, height: int) -> int:
        """Pictures that fit at once, as far as can be told before."""
        ...


class ImageEmbedder(Protocol):
    """A CLIP image tower. Pictures are shrunk in any thread, and embedded in one."""

    smallest_side: int
    """A picture whose shorter side has this many pixels gives the same as a larger one, but for rounding."""

    def shrink(self, picture: Picture) -> Picture:
        """What the tower sees of a picture, all of one shape. Safe in several threads at once."""
        ...

    def embed_shrunk(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Embeddings ``(len(pictures), dimensions)``, each of length 1, in one forward pass."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings ``(len(texts), dimensions)``, each of length 1, beside those of pictures."""
        ...


class Detector(Protocol):
    """A trained detector that reads picture files."""

    names: tuple[str, ...]
    queries: Mapping[str, Sequence[str]] | None
    """What it was asked to look for: phrases by class. None for one that has learned its classes."""

    def detect(
        self, paths: Sequence[Path], *, min_confidence: float, views: bool = False
    ) -> list[tuple[DetectedBox, ...]]:
        """Boxes of each file, in the order of the paths, most confident first, in pixels of the file.

        With ``views`` all eight turns and mirrors of each picture are looked at, one after the other;
        ``source`` says in which a box was drawn (`core.fusion.view_source`).
        """
        ...


class DetectorTrainer(Protocol):
    """Trains a detector on a YOLO folder."""

    def train(
        self,
        data_yaml: Path,
        weights_dir: Path,
        *,
        seed: int,
        max_train_steps: int,
        train_batch_size: int,
        learning_rate: float | None,
        image_size: int,
        on_step: Callable[[int], None],
    ) -> None:
        """Write weights that no others beat clearly on val into ``weights_dir``, whole or not at all.

        Exactly ``max_train_steps`` optimizer steps, whatever the number of pictures; the same
        arguments give the same bits on the same machine. ``on_step`` hears how many are done. Without
        a ``learning_rate`` the detector's own is taken.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrainTile:
    """What the LoRA trainer needs of a tile: the file, its caption, its id for the caches, its boxes."""

    tile_id: str
    path: Path
    caption: str
    sha256: str
    boxes: tuple[XYXY, ...] = ()
    """Animals, in pixels of the tile."""
    names: tuple[str, ...] = ()
    """Class of each of them, in the order in which a caption counts them; empty where nobody knows."""


class LoraTrainer(Protocol):
    """Trains a LoRA, in a folder it owns, in a way that survives being killed."""

    def train(
        self,
        tiles: Sequence[TrainTile],
        folder: Path,
        *,
        on_step: Callable[[int, dict[str, Any]], None],
        on_encoded: Callable[[int, int], None],
        val_tiles: Sequence[TrainTile] = (),
        prior_tiles: Sequence[TrainTile] = (),
    ) -> None:
        """Train up to the planned number of steps, going on from the newest whole checkpoint.

        Ends with ``folder/pytorch_lora_weights.safetensors`` in diffusers' format. ``on_step`` hears
        how many optimizer steps are done and the figures of the last one (``loss``, ``lr``), ``on_encoded``
        before that how many pictures of this process's share are encoded, and of how many. The loss
        on ``val_tiles`` is logged; nothing is learned from them. ``prior_tiles`` are the base model's
        own pictures, learned beside the tiles so that it keeps drawing them.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReadPicture:
    """A picture of a YOLO dataset as a reader sees it.

    Attributes:
        name: Of its file.
        width: In pixels, as it will be shown.
        height: In pixels, as it will be shown.
        boxes: Class, centre x, centre y, width, height: shares of the picture.
        complaint: What the reader has to say about picture or label; empty: nothing.
    """

    name: str
    width: int
    height: int
    boxes: Sequence[Sequence[float]]
    complaint: str


class DatasetReader(Protocol):
    """Somebody else's reader of YOLO datasets, to check ours with."""

    def read(self, data_yaml: Path, split: Split) -> Iterator[ReadPicture]:
        """Every picture of a split."""
        ...
