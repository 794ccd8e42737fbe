"""Model cards, written from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_GROWN_UP = 10_000
"""UNet steps below which the card warns of blobs."""
_TEXTS: dict[str, tuple[str, str, str]] = {
    "sdxl": (
        "Pocket SDXL",
        "An ordinary diffusers `StableDiffusionXLPipeline` in pocket size: a VAE at factor 4, two small\n"
        "CLIP text encoders and a UNet with SDXL's `text_time` conditioning. It draws the rendered sea of\n"
        "`synthdet/pocket/sea.py` from captions such as `aerial photo of two dolphins in a grey sea,\n"
        "whitecaps`. It is what `synthdet demo` fine-tunes a LoRA on.",
        "- It has never seen a humpback: asked for one, it draws something else. That is its purpose.\n"
        "- It knows the words of its captions and nothing else, and pictures of about 128 x 128 pixels.\n"
        "- It has seen rendered pictures only. It is no model of real photos.",
    ),
    "clip": (
        "Pocket CLIP",
        "An ordinary transformers `CLIPModel` with its image processor and tokenizer, trained on the rendered\n"
        "sea. Unlike the other two it has seen humpbacks, in scenes of its own seeds.",
        "- It sorts rendered pictures of about 128 x 128 pixels. For real photos use a CLIP trained on them.\n"
        "- Its text half knows the words of the captions only.",
    ),
    "yolo": (
        "Pocket YOLO",
        "YOLO11n, trained from scratch on the rendered base world's classes: what COCO weights are to a user,\n"
        "a start for detectors of other animals. `model.safetensors` holds the `state_dict` of ultralytics'\n"
        "`DetectionModel` (architecture in `model.json`, classes in `names.json`).",
        "- It knows no humpback; fine-tune it.\n- It has seen rendered pictures of 128 x 128 pixels only.\n"
        "- Using it needs ultralytics, which is AGPL-3.0.",
    ),
}


def write_card(product: str, folder: Path, figures: dict[str, Any]) -> None:
    """Write `MODEL_CARD.md` and the same figures as `figures.json` into a product's folder."""
    title, what, limits = _TEXTS[product]
    if product == "sdxl" and figures["steps"] < _GROWN_UP:
        limits += (
            "\n- It is young: it draws the sea and whitecaps that were asked for, and animals as mere blobs."
            "\n  A longer training goes on from its checkpoint."
        )
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    text = (
        f"# {title}\n\n{what}\n\n"
        "Made by `python -m synthdet.pocket.build` from pictures rendered by this project alone; no other\n"
        "data, no other weights. Apache-2.0, as the rest.\n\n"
        f"## How it was made, and what was measured\n\n| | |\n|---|---|\n{rows}\n\n"
        "The settings of every stretch of the training are in `history-*.json`: where more than one is named,\n"
        "the builder's present settings alone do not give these very bits. `history-text.json`, where it is there,\n"
        "is that of text encoders which were trained beside an earlier UNet. Held-out figures are on scenes\n"
        "whose seeds no training saw.\n\n"
        f"## What it cannot do\n\n{limits}\n"
    )
    (folder / "MODEL_CARD.md").write_text(text)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
