"""SDXL's two text encoders as part of a LoRA's training: captions to embeddings, with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from synthdet.models.sdxl import Embedding

TEXT_PARTS: Final = ("text_encoder", "text_encoder_2")
TEXT_MODULES: Final = ("q_proj", "k_proj", "v_proj", "out_proj")


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
            part: getattr(pipeline, part).to(device) for part in TEXT_PARTS
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
