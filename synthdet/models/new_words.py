"""A word that SDXL does not know, learned as new tokens of both text encoders beside a LoRA.

The file is diffusers' own for this, so other programs read it too: `clip_l` and `clip_g`, a row a token,
the tokens being ``<s0>``, ``<s1>`` ... In captions and prompts people go on to write the word.

Source: Gal et al., "An Image is Worth One Word", 2022 (textual inversion); Roich et al., "Pivotal
Tuning", 2021; cloneofsimo's lora (both at once).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from synthdet.errors import SynthdetError
from synthdet.models.lora_file import sort_metadata

WORDS_NAME: Final = "embeddings.safetensors"
_PARTS: Final = {
    "clip_l": ("tokenizer", "text_encoder"),
    "clip_g": ("tokenizer_2", "text_encoder_2"),
}
_EOS_BY_HIGHEST: Final = 2
"""What old CLIP configs say, SDXL's among them: "the end is the highest id", true without new tokens."""


@dataclass(frozen=True, slots=True)
class NewWord:
    """A word and the number of tokens that stand for it."""

    word: str
    num_tokens: int

    @property
    def tokens(self) -> list[str]:
        """As the tokenizers know them."""
        return [f"<s{number}>" for number in range(self.num_tokens)]

    def spell(self, text: str) -> str:
        """A text as the text encoders are to read it: the word, and its plural, in new tokens.

        Examples:
            >>> NewWord("dugong", 2).spell("two dugongs, no dugongida, a Dugong")
            'two <s0><s1>s, no dugongida, a <s0><s1>'
        """
        return re.sub(
            rf"\b{re.escape(self.word)}(?=(?:e?s)?\b)",
            "".join(self.tokens),
            text,
            flags=re.IGNORECASE,
        )


class NewRows(nn.Module):
    """Token embeddings of which the last rows are learned and all others stay as they were.

    Args:
        known: The text encoder's own, frozen.
        rows: ``(tokens, width)``, float32, of the ids from ``first`` on.
        first: The first new id.
    """

    def __init__(self, known: nn.Module, rows: Tensor, first: int) -> None:
        super().__init__()
        self.known, self.first = known, first
        self.rows = nn.Parameter(rows)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings ``(n, tokens, width)`` of ids ``(n, tokens)``, in the encoder's precision."""
        known: Tensor = self.known(ids.clamp(max=self.first - 1))
        new = nn.functional.embedding((ids - self.first).clamp(min=0), self.rows).to(known.dtype)
        return torch.where((ids >= self.first)[..., None], new, known)


def add_word(
    pipeline: Any, word: NewWord, rows: Mapping[str, Tensor] | None = None
) -> dict[str, nn.Parameter]:
    """Teach a pipeline's tokenizers and text encoders the tokens of a word.

    Args:
        pipeline: A `StableDiffusionXLPipeline`; changed in place.
        word: The word.
        rows: Learned ones by the file's names; None to begin with the pieces that the encoders read
            the word in now, in turn.

    Returns:
        The rows by the file's names, float32, to be learned.

    Raises:
        SynthdetError: The rows are of another model.
    """
    made = {}
    for name, (tokenizer_name, encoder_name) in _PARTS.items():
        tokenizer, encoder = getattr(pipeline, tokenizer_name), getattr(pipeline, encoder_name)
        known = encoder.get_input_embeddings()
        width = int(known.weight.shape[1])
        if rows is None:
            pieces = tokenizer(word.word, add_special_tokens=False).input_ids
            chosen = [pieces[number % len(pieces)] for number in range(word.num_tokens)]
            start = known.weight.detach()[chosen].float().clone()
        else:
            start = rows[name].float()
        if start.shape != (word.num_tokens, width):
            raise SynthdetError(
                f"the new words of the LoRA do not fit the base model: {name} has rows of "
                f"{start.shape[-1]} numbers, its text encoder has {width}"
            )
        tokenizer.add_tokens(word.tokens)
        first = int(tokenizer.convert_tokens_to_ids(word.tokens[0]))
        module = NewRows(known, start.to(known.weight.device), first)
        encoder.set_input_embeddings(module)
        for part in encoder.modules():
            if getattr(part, "eos_token_id", None) == _EOS_BY_HIGHEST:
                part.eos_token_id = tokenizer.eos_token_id
        made[name] = module.rows
    return made


def serialise_word(word: NewWord, rows: Mapping[str, Tensor]) -> bytes:
    """The file's bytes: the rows, and in the header the word."""
    header = {"format": "pt", "synthdet.word": word.word}
    tensors = {name: row.detach().cpu().contiguous() for name, row in rows.items()}
    return sort_metadata(save(tensors, header))


def load_word(pipeline: Any, path: Path) -> NewWord:
    """Add the word of a file to a pipeline.

    Raises:
        SynthdetError: The file is not what `serialise_word` writes, or is of another model.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            rows = {name: tensors.get_tensor(name) for name in _PARTS}
            word = NewWord(tensors.metadata()["synthdet.word"], len(rows["clip_l"]))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise SynthdetError(
            f"{path} cannot be read as new words ({error}): `synthdet finetune --redo`"
        ) from error
    add_word(pipeline, word, rows)
    return word
