"""The facts of an export's data card: gathered from the locks of the stages before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthdet import __version__
from synthdet.config import OWN_WEIGHTS
from synthdet.core.datacard import CardFacts, ModelFact, licence_of
from synthdet.core.records import SPLITS, ManifestEntry
from synthdet.workspace import Workspace, hash_file, read_json

Identify = Callable[[str, str], str | None]
"""``(name, part) -> hash or revision``; the part is sdxl, clip or yolo."""
LORA_NAME = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the entries, why pictures were left out, and what lies beside the datasets."""

    class_names: Sequence[str]
    entries: Sequence[ManifestEntry]
    left_out: Mapping[str, int]
    num_copies: int
    num_frames: int
    manifest: Path


def gather_facts(
    workspace: Workspace, exported: Exported, mix: Mapping[str, Any], identify: Identify | None
) -> CardFacts:
    """Everything the card tells, as the stages recorded it.

    Args:
        workspace: The run.
        exported: What was written.
        mix: Settings of the export.
        identify: Finds out which weights a name stood for.
    """
    locks = {
        name: workspace.stage(name).lock() or {}
        for name in ("finetune", "generate", "filter", "label")
    }
    has_synthetic = any(entry.source == "synthetic" for entry in exported.entries)
    rejected = read_json(workspace.stage("prepare").path / "dataset.json").get("num_rejected", {})
    groups: dict[str, set[str]] = {split: set() for split in SPLITS}
    for entry in exported.entries:
        if entry.source == "real" and "group" in entry.provenance:
            groups[entry.split].add(entry.provenance["group"])
    return CardFacts(
        class_names=exported.class_names,
        entries=exported.entries,
        left_out=exported.left_out,
        filter_counts=locks["filter"].get("counts", {}),
        label_counts=locks["label"].get("counts", {}),
        models=_models(workspace, locks, identify) if has_synthetic else (),
        rejected=rejected,
        mix=mix,
        num_copies=exported.num_copies,
        num_frames=exported.num_frames,
        groups={split: len(names) for split, names in groups.items() if names},
        num_shared_groups=sum(map(len, groups.values())) - len(set().union(*groups.values())),
        fingerprint=hash_file(exported.manifest),
        version=__version__,
    )


def _models(
    workspace: Workspace, locks: Mapping[str, Mapping[str, Any]], identify: Identify | None
) -> list[ModelFact]:
    """The networks that made the synthetic part, as the stages that used them recorded it."""
    settings = {name: lock.get("settings", {}) for name, lock in locks.items()}

    def fact(what: str, name: str | None, part: str) -> list[ModelFact]:
        return [] if name is None else [_network(what, name, part, identify)]

    models = []
    if settings["generate"].get("pictures"):
        models.append(ModelFact("synthetic pictures", "made elsewhere, brought in by the user"))
    else:
        models += fact("base model", settings["finetune"].get("base_model"), "sdxl")
        models += fact("its VAE, changed", settings["finetune"].get("vae"), "sdxl")
        lora = workspace.stage("finetune").path / LORA_NAME
        if lora.exists():
            own = settings["finetune"].get("lora")
            name = f"{_public(own)}, the user's own" if own else "trained on the real train tiles"
            models.append(ModelFact("LoRA", name, f"SHA-256 {hash_file(lora)}", "the user's"))
    models += fact("filter", settings["filter"].get("model"), "clip")
    return models + _detectors(workspace, settings["label"], identify)


def _detectors(
    workspace: Workspace, settings: Mapping[str, Any], identify: Identify | None
) -> list[ModelFact]:
    """Who drew the boxes: the run's own detector, the user's, or several."""
    named = settings.get("weights") or OWN_WEIGHTS
    facts = []
    for name in [named] if isinstance(named, str) else named:
        if name != OWN_WEIGHTS:
            facts.append(_network("boxes", name, "yolo", identify))
        elif settings.get("detector"):
            own = _public(settings["detector"])
            weights = workspace.stage("label").path / "weights" / "model.safetensors"
            identity = f"SHA-256 {hash_file(weights)}" if weights.exists() else None
            is_transformers = weights.with_name("config.json").exists()
            licence = licence_of(own if is_transformers else "yolo")
            facts.append(
                ModelFact("boxes", f"{own}, trained on the real train tiles", identity, licence)
            )
    return facts


def _network(what: str, name: str, part: str, identify: Identify | None) -> ModelFact:
    """A network that was named in a setting."""
    identity = identify(name, part) if identify else None
    return ModelFact(what, _public(name), identity, licence_of(_public(name)))


def _public(model: str) -> str:
    """A hub id as it is; of a path the name alone: where it lay on one's disk is nobody's business."""
    if model.startswith(("/", "~", ".")) or model.count("/") > 1 or "\\" in model:
        return Path(model.replace("\\", "/")).name
    return model
