"""The pocket CLIP: pictures and captions meet in one space, and pictures of one kind in one place.

Symmetric InfoNCE in which every pair with the same words is a positive. Most captions are cut down to
what is in the picture ("two dolphins"), and those pictures change their colours at random: a CLIP that
looks at the sea's colour first would tell seas apart, not animals. Beside it pictures of one kind, in
whatever sea and number, attract each other: the filter holds pictures against pictures, which the
captions alone leave loose.
Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021;
Khosla et al., "Supervised Contrastive Learning", 2020, equation 2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from synthdet.pocket.build_plan import BuildPlan, TextPlan
from synthdet.pocket.build_scenes import Scenes, batch_indices
from synthdet.pocket.build_text import read_as_float32, save_tokenizer, text_config, token_ids
from synthdet.pocket.build_training import Trained, Workplace, train

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's own image processor, for pictures in 0..1, RGB."""
_WHOLE_CAPTION = 0.25
"""Share of captions that keep the sea and the whitecaps."""
NUMBER_WORDS = ("one", "two", "three")


def make_clip(plan: BuildPlan, tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP."""
    torch.manual_seed(plan.seed)  # The builder owns its process.
    clip = plan.clip
    heads = max(2, clip.text_width // 32)
    text = TextPlan(clip.text_width, clip.text_layers, heads, plan.text.max_length)
    vision = CLIPVisionConfig(
        hidden_size=clip.vision_width,
        intermediate_size=clip.vision_width * 4,
        num_hidden_layers=clip.vision_layers,
        num_attention_heads=max(2, clip.vision_width // 32),
        image_size=plan.scenes.size,
        patch_size=clip.patch,
        hidden_act="gelu",
    )
    config = CLIPConfig(
        text_config=text_config(tokenizer, text).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=clip.projection,
    )
    return CLIPModel(config)


def subject_of(caption: str) -> str:
    """The part of a caption that says what is in the picture.

    >>> subject_of("aerial photo of two dolphins in a grey sea, whitecaps")
    'aerial photo of two dolphins'
    """
    return caption.split(" in a ")[0].split(",")[0]


def normalise(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pictures `(n, height, width, 3)` as the image processor makes them, at the same size."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2) / 255
    return (pixels - _channels(MEAN, device)) / _channels(STD, device)


def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def augment(pixels: Tensor, recolour: Tensor, generator: torch.Generator) -> Tensor:
    """Turned, mirrored, enlarged, shifted; recoloured and blurred where `recolour` is true.

    Args:
        pixels: `(n, 3, height, width)`, normalised.
        recolour: `(n,)` of bool.
        generator: On the CPU.
    """
    count, device = len(pixels), pixels.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    angle, scale = uniform(0, 2 * np.pi, count), uniform(0.7, 1.1, count)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = uniform(-0.12, 0.12, count, 2)
    matrix = torch.stack(
        [cosine * mirror, -sine, shift[:, 0], sine * mirror, cosine, shift[:, 1]], dim=1
    ).view(count, 2, 3)
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False).to(device)
    pixels = functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    gain = torch.exp(0.25 * torch.randn(count, 3, 1, 1, generator=generator))
    bias = 0.4 * torch.randn(count, 1, 1, 1, generator=generator)
    bias = bias + 0.25 * torch.randn(count, 3, 1, 1, generator=generator)
    chosen = recolour.view(-1, 1, 1, 1).to(device)
    pixels = torch.where(chosen, pixels * gain.to(device) + bias.to(device), pixels)
    soft = functional.avg_pool2d(pixels, 3, 1, 1)
    blurred = (torch.rand(count, generator=generator) < 0.25).view(-1, 1, 1, 1).to(device)
    noise = 0.08 * torch.randn(pixels.shape, generator=generator).to(device)
    return torch.where(blurred, soft, pixels) + noise


def train_clip(
    plan: BuildPlan, base: Scenes, humpbacks: Scenes, tokenizer: CLIPTokenizer, place: Workplace
) -> tuple[CLIPModel, Trained]:
    """Train; the model comes back with its averages in it."""
    model = make_clip(plan, tokenizer).to(place.device)
    captions = [a.caption for a in base.annotations] + [a.caption for a in humpbacks.annotations]
    words = sorted({*captions, *map(subject_of, captions)})
    place_of = {caption: i for i, caption in enumerate(words)}
    ids = token_ids(tokenizer, words)
    whole = torch.tensor([place_of[caption] for caption in captions])
    subject = torch.tensor([place_of[subject_of(caption)] for caption in captions])
    kinds = sorted({kind_of(caption) for caption in captions})
    kind = torch.tensor([kinds.index(kind_of(caption)) for caption in captions])
    batch = plan.clip.schedule.batch
    rare = max(1, round(batch * plan.clip.humpback_fraction))

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        here = batch_indices(plan.seed, "clip-base", step, batch - rare, len(base))
        there = batch_indices(plan.seed, "clip-humpback", step, rare, len(humpbacks))
        pictures = np.concatenate([base.pictures(here), humpbacks.pictures(there)])
        rows = torch.from_numpy(np.concatenate([here, there + len(base)]))
        keeps_all = torch.rand(batch, generator=generator) < _WHOLE_CAPTION
        labels = torch.where(keeps_all, whole[rows], subject[rows])
        pixels = augment(normalise(pictures, place.device), ~keeps_all, generator)
        # Each caption once: a batch holds few different ones.
        unique, position = torch.unique(labels, return_inverse=True)
        made = model(input_ids=ids[unique].to(place.device), pixel_values=pixels, return_loss=False)
        matched = _caption_loss(made.logits_per_image.float(), position.to(place.device))
        gathered = kind_loss(made.image_embeds.float(), kind[rows].to(place.device))
        return matched + plan.clip.kind_weight * gathered

    trained = train("clip", model, loss_of, plan.clip.schedule, place, seed=plan.seed)
    trained.averages.give(model)
    return model, trained


def _caption_loss(logits: Tensor, caption: Tensor) -> Tensor:
    """Picture to caption, and caption to all of its pictures; logits `(pictures, captions)`."""
    same = functional.one_hot(caption, logits.shape[1]).float()
    to_pictures = -(same * logits.log_softmax(dim=0)).sum(0) / same.sum(0)
    return 0.5 * (
        functional.cross_entropy(logits, caption, label_smoothing=0.05) + to_pictures.mean()
    )


def kind_loss(embeddings: Tensor, kind: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss: every picture among the others looks for those of its kind.

    Args:
        embeddings: `(n, dimensions)`, each of length 1.
        kind: `(n,)`, a number a kind. A picture alone of its kind has nothing to look for.
        temperature: Of the cosines.

    Examples:
        >>> apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> right = kind_loss(apart, torch.tensor([0, 0, 1, 1]))
        >>> bool(right < kind_loss(apart, torch.tensor([0, 1, 0, 1])))
        True
    """
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    cosines = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    chances = cosines.log_softmax(dim=1)
    fellows = (kind[:, None] == kind[None, :]) & ~itself
    counted = fellows.any(dim=1)
    sums = chances.masked_fill(~fellows, 0.0).sum(dim=1)[counted]
    return -(sums / fellows.sum(dim=1)[counted]).mean() if len(sums) else embeddings.sum() * 0


@torch.no_grad()
def embed(model: CLIPModel, scenes: Scenes, device: torch.device) -> NDArray[np.float32]:
    """Embeddings of all scenes, each of length 1."""
    parts = []
    for _, pictures in scenes.batches(64):
        seen = model.vision_model(pixel_values=normalise(pictures, device)).pooler_output
        parts.append(functional.normalize(model.visual_projection(seen), dim=-1).cpu().numpy())
    return np.concatenate(parts).astype(np.float32)


def centroid_auc(
    known: NDArray[np.float32], humpbacks: NDArray[np.float32], base: NDArray[np.float32]
) -> float:
    """ROC AUC of the similarity to the centroid of `known`: unseen humpbacks against base scenes."""
    centroid = known.mean(0)
    centroid /= np.linalg.norm(centroid)
    wanted, others = humpbacks @ centroid, np.sort(base @ centroid)
    # The area is the share of pairs in the right order (Mann-Whitney), ties for half.
    below = np.searchsorted(others, wanted, "left") + np.searchsorted(others, wanted, "right")
    return float(below.mean() / 2 / len(others))


@torch.no_grad()
def caption_accuracy(
    model: CLIPModel, tokenizer: CLIPTokenizer, scenes: Scenes, device: torch.device
) -> float:
    """Share of scenes whose nearest caption, of all kinds and numbers in the set, is of their kind."""
    captions = [annotation.caption for annotation in scenes.annotations]
    choices = sorted({subject_of(caption) for caption in captions})
    text = model.text_model(input_ids=token_ids(tokenizer, choices).to(device)).pooler_output
    words = functional.normalize(model.text_projection(text), dim=-1).cpu().numpy()
    nearest = (embed(model, scenes, device) @ words.T).argmax(axis=1).tolist()
    hits = [kind_of(choices[i]) == kind_of(of) for i, of in zip(nearest, captions, strict=True)]
    return float(np.mean(hits))


def kind_of(caption: str) -> str:
    """What a caption or its subject names, whatever the number and the sea.

    >>> kind_of("aerial photo of two whale sharks in a grey sea"), kind_of("aerial photo of one orca")
    ('whale shark', 'orca')
    """
    words = subject_of(caption).removeprefix("aerial photo of ").split()
    name = " ".join(words[1:] if words[0] in NUMBER_WORDS else words)
    return name[:-1] if name.endswith("s") else name


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, size: int, folder: Path) -> None:
    """Ordinary CLIP folder; weights in float16 that load as float32."""
    model.cpu().half().save_pretrained(folder, safe_serialization=True)
    read_as_float32(folder)
    CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
