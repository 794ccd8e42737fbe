"""transformers' detectors that are told in words what to look for: OWL-ViT, OWLv2, Grounding DINO.

For users who have no boxes to train on. Nothing is trained here. From the air they are weak: OWLv2
reaches an F1 of 27.6 % there, with 69 % of its boxes false (arXiv:2601.22164), so what they draw is a
draft. Only `detector_worker` imports this module.

transformers' own processors pad or stretch a picture that is not square and give boxes that must be
undone in the same way; which size that is was got wrong more than once (transformers issues 27205,
30131). Here pictures go in as for every other detector, fitted whole into a square of which we know
where the picture lies (`detector_pictures.letterbox`), and the networks' boxes are shares of that square.

Sources: Minderer et al., "Scaling Open-Vocabulary Object Detection" (OWLv2), NeurIPS 2023; Liu et al.,
"Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", ECCV 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from synthdet.core.records import DetectedBox
from synthdet.errors import SynthdetError
from synthdet.models.detector import Start, Wanted
from synthdet.models.detector_pictures import draw_boxes
from synthdet.models.detr import Opened, explain, to_rows

_OWL = ("owlvit", "owlv2")
_GROUNDING_DINO = ("grounding-dino", "mm-grounding-dino")
_SHORTEST_SIDE = 800
"""What Grounding DINO was trained to see, where its processor does not say."""

MAX_BATCH = 4
"""Pictures at once, at most: they are large, and one alone fills a GPU."""


@dataclass(frozen=True, slots=True)
class TextDetector:
    """A network with its questions.

    Attributes:
        opened: Network and picture processor.
        queries: Phrases by class name, in the order of the class ids.
        image_size: Side in pixels of the square that it sees.
        look: Pixels ``(n, 3, image_size, image_size)``, RGB, 0..1, to scores ``(n, boxes, classes)``,
            0..1, and boxes ``(n, boxes, 4)``, cxcywh as shares of the square.
    """

    opened: Opened
    queries: dict[str, list[str]]
    image_size: int
    look: Callable[[Tensor], tuple[Tensor, Tensor]]


def open_network(start: Start, device: str, wanted: Wanted | None) -> TextDetector:
    """A network, ready to look for what is wanted.

    Raises:
        SynthdetError: There is none, or it is damaged; nobody says what to look for, a class that the
            run does not have, or more words than it reads.
    """
    if wanted is None:
        raise SynthdetError(f"{start.where} finds by text, and nothing says what to look for")
    opened, tokenizer = _load(start.where)
    kind = opened.network.config.model_type
    if kind not in (*_OWL, *_GROUNDING_DINO):
        known = ", ".join((*_OWL, *_GROUNDING_DINO))
        raise SynthdetError(f"{start.where} is a {kind}: of those that find by text {known} open")
    opened.network.to(device).requires_grad_(False).eval()
    queries = ask(wanted, in_sentences=kind in _OWL)
    if kind in _OWL:
        side = _fit_owl(opened.network.config.vision_config, wanted.image_size)
        look = _look_owl(opened, tokenizer, queries, side)
    else:
        side = _fit_grounding_dino(opened, wanted.image_size)
        look = _look_grounding_dino(opened, tokenizer, queries)
    return TextDetector(opened, queries, side, look)


def _load(where: str) -> tuple[Opened, Any]:
    """Network in float32 from safetensors alone, its picture processor, and its tokenizer."""
    try:
        network, report = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
            where,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        processor = transformers.AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError,
    ) as error:  # fmt: skip
        raise SynthdetError(explain(where, error)) from error
    if lacking := sorted(report["missing_keys"]):
        raise SynthdetError(f"{where} holds no usable detector: it lacks {lacking[0]} and others")
    return Opened(network, processor), tokenizer


def ask(wanted: Wanted, *, in_sentences: bool) -> dict[str, list[str]]:
    """What to look for, in words, by class in the run's order.

    Args:
        wanted: Where it has phrases, only for their classes.
        in_sentences: Whether the network has learned captions; else names, every word of which it
            looks for.

    Raises:
        SynthdetError: Phrases for a class that the run does not have.

    Examples:
        >>> ask(Wanted(("seal", "orca")), in_sentences=True)
        {'seal': ['an aerial photo of a seal'], 'orca': ['an aerial photo of an orca']}
        >>> ask(Wanted(("seal", "orca"), {"orca": ["killer whale"]}), in_sentences=True)
        {'orca': ['killer whale']}
    """
    if wanted.phrases is None:
        return {
            name: [f"an aerial photo of {_article(name)} {name}" if in_sentences else name]
            for name in wanted.class_names
        }
    for name in wanted.phrases:
        if name not in wanted.class_names:
            raise SynthdetError(
                f"label.queries: this run has no class {name!r}, only {', '.join(wanted.class_names)}"
            )
    return {
        name: list(wanted.phrases[name]) for name in wanted.class_names if name in wanted.phrases
    }


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def detect(
    network: TextDetector,
    paths: Sequence[Path],
    *,
    image_size: int,
    batch_size: int,
    device: str,
    min_confidence: float,
    num_views: int = 1,
) -> list[list[DetectedBox]]:
    """As `detr.detect`; a box's confidence is that of its class's best phrase.

    Raises:
        SynthdetError: A file is not a picture that OpenCV reads.
    """

    def look(pixels: Tensor) -> list[Tensor]:
        scores, shares = network.look(network.opened.normalise(pixels))
        return to_rows(scores, shares * image_size, min_confidence)

    return draw_boxes(
        paths,
        look,
        image_size=image_size,
        batch_size=min(batch_size, MAX_BATCH),
        device=device,
        num_views=num_views,
    )


# --- OWL ---------------------------------------------------------------------------------------


def _fit_owl(config: Any, image_size: int | None) -> int:
    """The size it was trained with; another one in whole patches."""
    side = image_size or int(config.image_size)
    return side - side % int(config.patch_size)


def _look_owl(
    opened: Opened, tokenizer: Any, queries: Mapping[str, Sequence[str]], side: int
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    config = opened.network.config
    phrases = [phrase for said in queries.values() for phrase in said]
    most = int(config.text_config.max_position_embeddings)
    for phrase in phrases:
        if len(tokenizer(phrase)["input_ids"]) > most:
            raise SynthdetError(
                f"label.queries: {phrase!r} is too long, the detector reads {most} tokens"
            )
    text = tokenizer(phrases, padding="max_length", max_length=most, return_tensors="pt")
    text = text.to(opened.network.device)
    begins = _begins([len(said) for said in queries.values()])

    def look(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = opened.network(
            input_ids=text["input_ids"].repeat(len(pixels), 1),
            attention_mask=text["attention_mask"].repeat(len(pixels), 1),
            pixel_values=pixels,
            interpolate_pos_encoding=side != config.vision_config.image_size,
        )
        scores = output.logits.sigmoid()
        best = [scores[..., begin:end].amax(dim=-1) for begin, end in begins]
        return torch.stack(best, dim=-1), output.pred_boxes

    return look


def _begins(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """First and last but one place of each of several rows that lie one after the other."""
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return [(end - length, end) for length, end in zip(lengths, ends, strict=True)]


# --- Grounding DINO ----------------------------------------------------------------------------


def _fit_grounding_dino(opened: Opened, image_size: int | None) -> int:
    """The shorter side that it was trained with, or another.

    Raises:
        SynthdetError: Too small for the boxes that it always draws.
    """
    sizes = opened.processor.size
    side = image_size or int(dict(sizes).get("shortest_edge") or _SHORTEST_SIDE)
    config = opened.network.config
    places = sum(max(1, side // (8 * 2**level)) ** 2 for level in range(config.num_feature_levels))
    if config.two_stage and places < config.num_queries:
        raise SynthdetError(
            f"label.image_size {side}: this detector draws {config.num_queries} boxes, more than there are "
            f"places in such a picture: raise it, or set it to null"
        )
    return side


def _look_grounding_dino(
    opened: Opened, tokenizer: Any, queries: Mapping[str, Sequence[str]]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """All phrases in one line, ``seal. grey seal.``; a phrase's score is the mean over its tokens.

    Source: the paper's evaluation (positive maps of the phrases' tokens).
    """
    line, places = join_phrases(tokenizer, queries)
    most = int(opened.network.config.max_text_len)
    if len(line) > most:
        raise SynthdetError(
            f"label.queries: {len(line)} tokens, and the detector reads {most}: shorten the phrases"
        )
    ids = torch.tensor([line], device=opened.network.device)

    def look(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = opened.network(pixel_values=pixels, input_ids=ids.repeat(len(pixels), 1))
        scores = output.logits.sigmoid()
        best = [
            torch.stack([scores[..., begin:end].mean(dim=-1) for begin, end in own]).amax(dim=0)
            for own in places
        ]
        return torch.stack(best, dim=-1), output.pred_boxes

    return look


def join_phrases(
    tokenizer: Any, queries: Mapping[str, Sequence[str]]
) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """All phrases as one line of token ids, each ended by a full stop, which keeps them apart.

    Args:
        tokenizer: BERT's, in small letters.
        queries: Phrases by class.

    Returns:
        The ids, and for each class the first and the last but one place of each of its phrases.

    Raises:
        SynthdetError: A phrase without a word, or with a full stop in it.
    """
    stop = tokenizer.convert_tokens_to_ids(".")
    line, places = [tokenizer.cls_token_id], []
    for name, said in queries.items():
        own = []
        for phrase in said:
            ids = tokenizer(phrase.lower(), add_special_tokens=False)["input_ids"]
            if not ids or stop in ids:
                raise SynthdetError(
                    f"label.queries.{name}: {phrase!r} must be words without a full stop"
                )
            own.append((len(line), len(line) + len(ids)))
            line += [*ids, stop]
        places.append(own)
    return [*line, tokenizer.sep_token_id], places
