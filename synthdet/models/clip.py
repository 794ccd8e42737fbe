"""CLIP's towers: pictures, and texts where they are asked for, to embeddings.

Any transformers CLIP or SigLIP checkpoint, by hub id or folder, whole (`CLIPModel`, `SiglipModel`) or
the image tower alone (`CLIPVisionModelWithProjection`, `SiglipVisionModel`). The text tower is
loaded with the first text.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021;
Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from synthdet.errors import SynthdetError
from synthdet.models.devices import resolve_device
from synthdet.models.protocols import Picture


class ClipEmbedder:
    """Embeds pictures with a CLIP or SigLIP image tower, in float32.

    The checkpoint's own image processor says how pictures are resized, cropped and normalised; the
    work is done here with Pillow, one picture at a time, equal to the processor's within rounding.

    Args:
        model: Hub id or folder of a transformers CLIP or SigLIP.
        batch_size: Pictures a forward pass.
        device: "auto", "cpu" or "cuda".

    Raises:
        SynthdetError: There is no such checkpoint, or it is not a whole CLIP or SigLIP.
    """

    def __init__(self, model: str | Path, *, batch_size: int, device: str) -> None:
        self._model = model
        self._batch = batch_size
        self._texts: tuple[Any, Any] | None = None
        self._device = torch.device(resolve_device(device))
        with _quiet():
            try:
                self._processor = transformers.AutoImageProcessor.from_pretrained(model)
                tower = _load_tower(model)
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise SynthdetError(
                    f"filter.model: {model} cannot be loaded as a CLIP or SigLIP ({_first_line(error)}): "
                    "name a hub id or a folder with config.json, preprocessor_config.json and model.safetensors"
                ) from error
        self._tower = tower.to(self._device).eval().requires_grad_(False)
        self.smallest_side = _smallest_side(self._processor)

    def embed(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Embed pictures that are in memory.

        Args:
            pictures: ``uint8`` arrays ``(height, width, 3)`` in RGB order, of any sizes.

        Returns:
            ``(len(pictures), dimensions)``, each row of length 1.
        """
        parts = [
            self.embed_shrunk([self.shrink(one) for one in pictures[start : start + self._batch]])
            for start in range(0, len(pictures), self._batch)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)

    def shrink(self, picture: Picture) -> Picture:
        """What the tower sees of a picture: resized and cropped. Safe in several threads at once.

        Args:
            picture: ``uint8``, ``(height, width, 3)``, RGB.

        Returns:
            ``uint8``, ``(side, side, 3)``.
        """
        processor = self._processor
        image = Image.fromarray(picture)
        if processor.do_resize:
            size = _target_size(image.size, processor.size)
            if size != image.size:
                image = image.resize(size, resample=Image.Resampling(int(processor.resample)))
        if processor.do_center_crop:
            image = _crop_centre(image, processor.crop_size)
        return np.asarray(image)

    @torch.inference_mode()
    def embed_shrunk(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """One forward pass over pictures that `shrink` made. ``(len(pictures), dimensions)``."""
        pixels = torch.from_numpy(np.stack(pictures)).to(self._device)
        output = self._tower(pixel_values=self.normalise(pixels))
        # SigLIP's tower ends in its pooling head, CLIP's in a projection.
        embeddings = output.image_embeds if "image_embeds" in output else output.pooler_output
        normalised = torch.nn.functional.normalize(embeddings, dim=-1)
        return np.asarray(normalised.cpu().numpy(), dtype=np.float32)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts, each cut to what the text tower reads.

        Returns:
            ``(len(texts), dimensions)``, each row of length 1, to be held against those of pictures.

        Raises:
            SynthdetError: The checkpoint has no text tower, or no tokenizer.
        """
        if self._texts is None:
            self._texts = self._open_texts()
        tokenizer, tower = self._texts
        # SigLIP has learned from texts filled up to their full length, and sees what they are filled with.
        is_siglip = tower.config.model_type.startswith("siglip")
        parts = []
        for start in range(0, len(texts), self._batch):
            tokens = tokenizer(
                list(texts[start : start + self._batch]),
                padding="max_length" if is_siglip else True,
                truncation=True,
                max_length=tower.config.max_position_embeddings,
                return_tensors="pt",
            )
            names = ["input_ids"] if is_siglip else ["input_ids", "attention_mask"]
            output = tower(**{name: tokens[name].to(self._device) for name in names})
            embeddings = output.pooler_output if is_siglip else output.text_embeds
            parts.append(torch.nn.functional.normalize(embeddings, dim=-1).cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)

    def _open_texts(self) -> tuple[Any, Any]:
        with _quiet():
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(self._model)
                tower = _load_text_tower(self._model)
                if len(tokenizer) < 0.5 * tower.config.vocab_size:
                    # What transformers makes up where there is none: it reads every word as the same.
                    raise ValueError("there is no tokenizer beside it")
            except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
                raise SynthdetError(
                    f"filter.prompt_agreement: {self._model} cannot be asked about texts ({_first_line(error)}): "
                    "name a whole CLIP or SigLIP with its tokenizer in filter.model, or set it to false"
                ) from error
        return tokenizer, tower.to(self._device).eval().requires_grad_(False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels as the tower wants them.

        Args:
            pixels: ``uint8``, ``(n, side, side, 3)``, on the tower's device.

        Returns:
            ``float32``, ``(n, 3, side, side)``.
        """
        processor = self._processor
        values = pixels.permute(0, 3, 1, 2).contiguous().float()
        if processor.do_rescale:
            values *= processor.rescale_factor
        if processor.do_normalize:
            mean, deviation = (
                torch.tensor(some, device=values.device).view(1, -1, 1, 1)
                for some in (processor.image_mean, processor.image_std)
            )
            values = (values - mean) / deviation
        return values


def _load_tower(model: str | Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(model)
    kind = transformers.CLIPVisionModelWithProjection
    if config.model_type == "clip":
        # The width of the embedding stands on the whole model; its image part has a default of its own.
        vision = config.vision_config
        vision.projection_dim = config.projection_dim
    elif config.model_type == "clip_vision_model":
        vision = config
    elif config.model_type in ("siglip", "siglip_vision_model"):
        kind = transformers.SiglipVisionModel
        vision = getattr(config, "vision_config", config)
    else:
        raise ValueError(f"its config.json says {config.model_type}")
    tower, report = kind.from_pretrained(
        model, config=vision, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"weights are missing: {sorted(report['missing_keys'])[0]} and others")
    return tower


def _load_text_tower(model: str | Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(model)
    if config.model_type not in ("clip", "siglip"):
        raise ValueError(f"its config.json says {config.model_type}")
    text, kind = config.text_config, transformers.SiglipTextModel
    if config.model_type == "clip":
        kind = transformers.CLIPTextModelWithProjection
        text.projection_dim = config.projection_dim
    tower, report = kind.from_pretrained(
        model, config=text, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"weights are missing: {sorted(report['missing_keys'])[0]} and others")
    return tower


def _smallest_side(processor: Any) -> int:
    """The shorter side of a picture after resizing; a large number where nothing is resized."""
    if not processor.do_resize:
        return 1 << 20
    return max(_target_size((1, 1), processor.size))


def _target_size(size_wh: tuple[int, int], wanted: Any) -> tuple[int, int]:
    """Size after resizing: both sides given, or the shorter one."""
    if wanted.get("shortest_edge") is None:
        return int(wanted["width"]), int(wanted["height"])
    side = int(wanted["shortest_edge"])
    width, height = size_wh
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _crop_centre(image: Image.Image, wanted: Any) -> Image.Image:
    """Cut the middle out; what lies outside the picture is black."""
    width, height = int(wanted["width"]), int(wanted["height"])
    # Rounded towards zero, as transformers does for pictures on either side of the size.
    left, top = int((image.width - width) / 2), int((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from listing the text tower's weights as unexpected."""
    verbosity = transformers_logging.get_verbosity()
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".:")
