"""The data card: a page that tells a stranger what is in an exported dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthdet.core.records import SPLITS, ManifestEntry

_CITATION = (
    '"From Noise to Nature: Diffusion Models to Advance Wildlife Detection in Remote Sensing Data", '
    "Sun et al., 2025"
)


_LICENCES = {
    "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML Open RAIL++-M",
    "openai/clip-vit-base-patch32": "MIT",
    "openai/clip-vit-base-patch16": "MIT",
    "openai/clip-vit-large-patch14": "MIT",
    "pocket": "Apache-2.0",
    "PekingU/rtdetr": "Apache-2.0",
    "ustc-community/dfine": "Apache-2.0",
    "google/owl": "Apache-2.0",
    "IDEA-Research/grounding-dino": "Apache-2.0",
    "yolo": "AGPL-3.0 (Ultralytics)",
}
"""Name of a network, or how it begins -> the licence it came with when this was written."""


@dataclass(frozen=True, slots=True)
class ModelFact:
    """A network that had a part in the dataset.

    Attributes:
        what: What it did.
        name: Hub id or file name; never a path of the user's disk.
        identity: Hash or hub revision, in words; None where it is not known.
        licence: Where that is known.
    """

    what: str
    name: str
    identity: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card tells.

    Attributes:
        class_names: By ``class_id``.
        entries: Every exported picture.
        left_out: Reason -> number of synthetic pictures that did not go in for it.
        filter_counts: Figures of the filter stage; empty where it did not run.
        label_counts: Figures of the label stage.
        models: The networks that had a part in it.
        rejected: What of the survey was not used -> how many photos or boxes.
        mix: Settings of the export.
        num_copies: Augmented copies beside the datasets.
        num_frames: Whole real test photos beside the tiles.
        groups: Split -> number of groups of photos in it.
        num_shared_groups: Groups that are in more than one split: a leak that the user allowed.
        fingerprint: SHA-256 of the manifest.
        version: Of synthdet.
    """

    class_names: Sequence[str]
    entries: Sequence[ManifestEntry]
    left_out: Mapping[str, int]
    filter_counts: Mapping[str, Any]
    label_counts: Mapping[str, Any]
    models: Sequence[ModelFact]
    rejected: Mapping[str, int] = field(default_factory=dict)
    mix: Mapping[str, Any] = field(default_factory=dict)
    num_copies: int = 0
    num_frames: int = 0
    groups: Mapping[str, int] = field(default_factory=dict)
    num_shared_groups: int = 0
    fingerprint: str = ""
    version: str = ""


def licence_of(name: str) -> str | None:
    """The licence of a network by its name, for those that are shipped or usual.

    >>> licence_of("yolo11n"), licence_of("mine.safetensors")
    ('AGPL-3.0 (Ultralytics)', None)
    """
    return next((licence for known, licence in _LICENCES.items() if name.startswith(known)), None)


def make_data_card(facts: CardFacts) -> str:
    """The card as Markdown, the same for the same facts."""
    parts = [
        "# Data card\n\nReal photos, cut into tiles, and synthetic pictures, in YOLO (`yolo/data.yaml`) and COCO "
        f"(`coco/annotations/`){' and Pascal VOC (`voc/`)' if facts.mix.get('voc') else ''}: the same pictures and "
        "boxes. `manifest.jsonl` says of each where it is from. Synthetic pictures are in train alone; val and test "
        "are real.",
        "## Pictures and boxes\n\n" + _counts_table(facts) + _beside(facts),
        "## Splits\n\n" + _splits(facts),
        "## Left out\n\nOf the survey:\n\n"
        + _list(facts.rejected, empty="- nothing")
        + "\n\nOf the synthetic pictures:\n\n"
        + _list(facts.left_out, empty="- none"),
        "## Thresholds\n\n" + _thresholds(facts),
        "## The mix\n\n" + _list(_mix(facts.mix), empty="- as it came"),
        "## Models\n\n" + _models_table(facts),
        "## Licences\n\n"
        "- Real photos and their boxes: as their owner licensed them; this tool adds nothing and takes nothing away.\n"
        "- Synthetic pictures: the base model's licence holds (Stable Diffusion XL: CreativeML Open RAIL++-M, which "
        "passes its use restrictions on). Where the tiles were learned from, the photos' licence may hold as well.\n"
        "- Boxes of synthetic pictures were drawn by a detector; one trained with Ultralytics is under AGPL-3.0.",
        "## Places and marks\n\n" + _privacy(facts),
        "## Known limits\n\n"
        "- Synthetic boxes are a detector's, accepted by a threshold; those a person corrected say so in the manifest.\n"
        "- Synthetic pictures resemble the train photos' sites and light; they add no new places or behaviour. Counts, "
        "group sizes and habitats in them say nothing about the animals.\n"
        "- All tiles are at one ground scale. Judge a detector on real test pictures only.\n"
        "- The photos are of the places, seasons and cameras of one survey: on others expect less.",
        "## Citing\n\n" + _citing(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _beside(facts: CardFacts) -> str:
    lines = []
    if facts.num_copies:
        lines.append(
            f"`augmented/` holds {facts.num_copies:,} augmented copies of real train tiles, in neither dataset."
        )
    if facts.num_frames:
        lines.append(
            f"`frames/` holds the {facts.num_frames:,} whole real test photos, for a test by tiled inference."
        )
    return "".join(f"\n\n{line}" for line in lines)


def _splits(facts: CardFacts) -> str:
    groups = ", ".join(f"{split} {number:,}" for split, number in facts.groups.items())
    told = f" Groups: {groups}." if groups else ""
    leak = (
        f"**{facts.num_shared_groups} are in more than one split: figures on test will be too good**"
        if facts.num_shared_groups
        else "none is in two splits"
    )
    return f"By group (site, flight, video, block of frames; near-duplicates count as one): {leak}.{told} The LoRA, the filter and the labels have seen train alone, and val for thresholds."


def _mix(mix: Mapping[str, Any]) -> dict[str, Any]:
    told = ("num_synthetic", "synthetic_fraction", "select", "max_background_fraction", "include_review", "augmented", "seed")  # fmt: skip
    return {f"`export.{name}`": mix[name] for name in told if mix.get(name) is not None}


def _models_table(facts: CardFacts) -> str:
    if not facts.models:
        return "None: all pictures are real."
    rows = [["what", "name", "identity", "licence"], ["---"] * 4]
    rows += [
        [one.what, one.name, one.identity or "not known", one.licence or "see its model card"]
        for one in facts.models
    ]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _privacy(facts: CardFacts) -> str:
    kept = facts.mix.get("keep_metadata")
    return (
        "- Metadata of the pictures was **kept** (`export.keep_metadata`): they may tell where and when they were taken.\n"
        if kept
        else "- GPS, times, serial numbers and all other metadata were taken out of the pictures. Group names and photo "
        "names in `manifest.jsonl` are yours: look at them before you publish.\n"
    ) + "- Synthetic pictures carry IPTC's digital source type `trainedAlgorithmicMedia` (XMP)."


def _citing(facts: CardFacts) -> str:
    manifest = f", manifest SHA-256 `{facts.fingerprint}`" if facts.fingerprint else ""
    return (
        f"- This dataset: your name and title for it, made with synthdet {facts.version}{manifest}.\n"
        "- The survey its photos are from, as its owner asks for it.\n"
        f"- The work this grew from: {_CITATION}."
    )


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
            classes = Counter(box.class_id for entry in members for box in entry.boxes)
            numbers = [len(members), sum(not entry.boxes for entry in members)]
            numbers += [classes[class_id] for class_id in range(len(facts.class_names))]
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
    confidence = facts.label_counts.get("accept_confidence", facts.label_counts.get("confidence"))
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
