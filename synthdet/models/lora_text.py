"""SDXL's two text encoders in a LoRA's training: frozen and kept on disk, or with gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from synthdet.models.sdxl import Embedding, encode_prompt
from synthdet.workspace import write_bytes

TEXT_PARTS: Final = ("text_encoder", "text_encoder_2")
TEXT_MODULES: Final = ("q_proj", "k_proj", "v_proj", "out_proj")


class EmbeddingCache:
    """What frozen text encoders make of captions, a file each, named by the caption's hash.

    Args:
        folder: Of the files; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, captions: Sequence[str], pipeline: Any, device: str) -> None:
        """Encode the captions that are not there yet; where all are, nothing goes to the device."""
        missing = [caption for caption in captions if self._try_read(caption) is None]
        for part in TEXT_PARTS if missing else ():
            getattr(pipeline, part).to(device)
        for caption in missing:
            embedding = encode_prompt(pipeline, caption, device)
            tensors = {name: one.cpu() for name, one in embedding._asdict().items()}
            write_bytes(self._path(caption), save(tensors))

    def read(self, caption: str) -> Embedding:
        """A caption's embedding, on the CPU."""
        found = self._try_read(caption)
        if found is None:
            raise RuntimeError(f"{caption!r} was not encoded")
        return found

    def _try_read(self, caption: str) -> Embedding | None:
        try:
            return Embedding(**load_file(self._path(caption)))
        except (OSError, SafetensorError):
            return None

    def _path(self, caption: str) -> Path:
        return self._folder / f"{hashlib.sha256(caption.encode()).hexdigest()}.safetensors"


class TextSide:
    """Tokenizers and text encoders of a pipeline.

    What comes out is what the pipeline's own ``encode_prompt`` gives (a test holds the two together),
    but captions are cut into tokens once, and gradients flow.

    Attributes:
        encoders: By the pipeline's names.

    Args:
        pipeline: A `StableDiffusionXLPipeline`.
        device: Where the encoders go.
    """

    def __init__(self, pipeline: Any, device: str) -> None:
        self.encoders: dict[str, Any] = {
            part: getattr(pipeline, part).requires_grad_(False).to(device) for part in TEXT_PARTS
        }
        self._tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
        self._device = device
        self._tokens: dict[str, tuple[Tensor, Tensor]] = {}

    def encode(self, captions: Sequence[str]) -> Embedding:
        """Embeddings of captions, one a row.

        Returns:
            States ``(n, tokens, width)`` and pooled ``(n, width)``.
        """
        rows = [self._tokenize(caption) for caption in captions]
        states, pooled = [], None
        for encoder, tokens in zip(self.encoders.values(), zip(*rows, strict=True), strict=True):
            answer = encoder(torch.cat(tokens), output_hidden_states=True)
            states.append(answer.hidden_states[-2])
            pooled = answer[0]  # of the second encoder: the projected text
        if pooled is None:
            raise ValueError("captions: there is none")
        return Embedding(torch.cat(states, dim=-1), pooled)

    def _tokenize(self, caption: str) -> tuple[Tensor, Tensor]:
        if caption not in self._tokens:
            one, two = (
                tokenizer(
                    caption,
                    padding="max_length",
                    max_length=tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids.to(self._device)
                for tokenizer in self._tokenizers
            )
            self._tokens[caption] = (one, two)
        return self._tokens[caption]
