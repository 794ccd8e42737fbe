"""The words: a CLIP tokenizer in which every word of the rendered sea is one token.

It is CLIP's own byte-pair tokenizer with merges learned from the vocabulary until every word is whole,
so `CLIPTokenizer.from_pretrained` reads it and a word it does not know falls apart into letters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTokenizer

from synthdet.pocket.build_plan import TextPlan

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def _byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes in GPT-2's and CLIP's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one symbol.

    Encoding applies merges in the same order, so each of the words ends as one token.
    Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016.
    """
    split = [(*word[:-1], word[-1] + _WORD_END) for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in split for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(word, best) for word in split]


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def make_tokenizer(words: Sequence[str], max_length: int) -> CLIPTokenizer:
    """A tokenizer for lower-case words of ASCII letters.

    Raises:
        ValueError: A word holds anything else.
    """
    for word in words:
        if not (word.isascii() and word.isalpha() and word.islower()):
            raise ValueError(f"{word!r} of the vocabulary is not a lower-case word")
    letters = _byte_letters()
    merges = learn_merges(words)
    symbols = [*letters, *(letter + _WORD_END for letter in letters)]
    symbols += ["".join(pair) for pair in merges]
    symbols += [_START, _END]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Ids `(len(captions), max_length)`, padded and cut as the SDXL pipeline does."""
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = tokens.input_ids
    return ids


def text_config(tokenizer: CLIPTokenizer, plan: TextPlan) -> CLIPTextConfig:
    """Configuration of one text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.width,
        intermediate_size=plan.width * 4,
        projection_dim=plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        max_position_embeddings=plan.max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def read_as_float32(folder: Path) -> None:
    """Let transformers load float16 weights as float32: it takes its word from `config.json`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for section in (config, config.get("text_config"), config.get("vision_config")):
        if section is not None:
            section["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Ordinary tokenizer folder."""
    tokenizer.save_pretrained(folder)
