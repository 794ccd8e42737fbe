"""The data card: a page that tells a stranger what is in an exported dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthdet.core.records import SPLITS, ManifestEntry

_CITATION = (
    '"From Noise to Nature: Diffusion Models to Advance Wildlife Detection in Remote Sensing Data", '
    "Sun et al., 2025"
)


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card tells.

    Attributes:
        class_names: By ``class_id``.
        entries: Every exported picture.
        left_out: Reason -> number of synthetic pictures that did not go in for it.
        filter_counts: Figures of the filter stage; empty where it did not run.
        label_counts: Figures of the label stage.
        models: What it is -> name and hash of each network that had a part in it.
    """

    class_names: Sequence[str]
    entries: Sequence[ManifestEntry]
    left_out: Mapping[str, int]
    filter_counts: Mapping[str, Any]
    label_counts: Mapping[str, Any]
    models: Mapping[str, str]


def make_data_card(facts: CardFacts) -> str:
    """The card as Markdown, the same for the same facts."""
    parts = [
        "# Data card\n\nReal photos, cut into tiles, and synthetic pictures, in YOLO (`yolo/data.yaml`) and COCO "
        "(`coco/annotations/`): the same pictures and boxes. `manifest.jsonl` says of each where it is from. "
        "Synthetic pictures are in train alone; val and test are real.",
        "## Pictures and boxes\n\n" + _counts_table(facts),
        "## Synthetic pictures left out\n\n" + _list(facts.left_out, empty="None."),
        "## Thresholds\n\n" + _thresholds(facts),
        "## Models\n\n" + _list(facts.models, empty="None: all pictures are real."),
        "## Licences\n\n"
        "- Real photos and their boxes: as their owner licensed them; this tool adds nothing and takes nothing away.\n"
        "- Synthetic pictures: the base model's licence holds (Stable Diffusion XL: CreativeML Open RAIL++-M, which "
        "passes its use restrictions on). Where the tiles were learned from, the photos' licence may hold as well.\n"
        "- Boxes of synthetic pictures were drawn by a detector; one trained with Ultralytics is under AGPL-3.0.",
        "## Known limits\n\n"
        "- Synthetic boxes are a detector's, accepted by a threshold; those a person corrected say so in the manifest.\n"
        "- Synthetic pictures resemble the train photos' sites and light; they add no new places or behaviour.\n"
        "- All pictures are at one ground scale. Judge a detector on real test pictures only.",
        f"## Citing\n\nThe work this grew from: {_CITATION}.",
    ]
    return "\n\n".join(parts) + "\n"


def _counts_table(facts: CardFacts) -> str:
    rows = [
        ["split", "source", "pictures", "without animals", *map(_cell, facts.class_names)],
        ["---", "---", *["---:"] * (2 + len(facts.class_names))],
    ]
    for split in SPLITS:
        sources = dict.fromkeys(entry.source for entry in facts.entries if entry.split == split)
        for source in sources:
            members = [
                entry for entry in facts.entries if entry.split == split and entry.source == source
            ]
            classes = [box.class_id for entry in members for box in entry.boxes]
            numbers = [len(members), sum(not entry.boxes for entry in members)]
            numbers += [classes.count(class_id) for class_id in range(len(facts.class_names))]
            rows.append([split, source, *map(str, numbers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _thresholds(facts: CardFacts) -> str:
    lines = []
    chosen = facts.filter_counts
    if chosen.get("threshold") is not None:
        lines.append(
            f"- CLIP similarity to the real train tiles: at least {chosen['threshold']:.4f} ({chosen['threshold_from']})"
            + _share(chosen.get("real_lost"), "of the real tiles with an animal would be lost")
            + _share(chosen.get("negatives_passing"), "of the real background tiles would pass")
        )
    if chosen.get("copy_threshold") is not None:
        lines.append(
            f"- Copy of a real photo: more similar to one than {chosen['copy_threshold']:.4f}"
        )
    confidence = facts.label_counts.get("confidence")
    if isinstance(confidence, int | float):
        measured = [
            f"{name} {facts.label_counts[name]:.2f}"
            for name in ("precision", "recall")
            if facts.label_counts.get(name) is not None
        ]
        lines.append(
            f"- A box is accepted from confidence {confidence:.3f}"
            + (f"; on the real val tiles that gives {' and '.join(measured)}" if measured else "")
        )
    return "\n".join(lines) or "None were applied."


def _share(share: float | None, what: str) -> str:
    return "" if share is None else f"; {share:.1%} {what}"


def _list(facts: Mapping[str, Any], *, empty: str) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items()) or empty


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
