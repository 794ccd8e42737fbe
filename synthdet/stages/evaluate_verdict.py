"""What `evaluate` concludes: ``verdict.json``, with the verdict in one word and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthdet.config import Arm, Config
from synthdet.core.differences import Difference, Verdict, judge, needed_to_settle
from synthdet.core.measures import SizeRange
from synthdet.progress import many
from synthdet.stages.evaluate_measures import COMPARED, Results, compare, sizes_of, to_fields
from synthdet.stages.evaluate_sweep import Curve, SweepName, curve_to_fields
from synthdet.stages.evaluate_units import Study

DIFFERENCES: dict[str, tuple[Arm, Arm]] = {
    "differences": ("real_plus_synthetic", "real"),
    "augmented_differences": ("real_plus_augmented", "real"),
    "synthetic_over_augmented": ("real_plus_synthetic", "real_plus_augmented"),
    "synthetic_alone_differences": ("synthetic", "real"),
}
"""Name in ``verdict.json`` -> the arm, and the one that is taken off it. The first is the verdict."""


def conclude(
    study: Study, config: Config, results: Results, curves: Mapping[SweepName, Curve]
) -> dict[str, Any]:
    """What ``verdict.json`` holds."""
    arms = study.trained(config)
    means = {arm: mean_measures(results, arm, config.evaluate.seeds) for arm in arms}
    compared = {
        key: {name: compare(results, name, *pair, seeds=config.evaluate.seeds) for name in COMPARED}
        if {*pair} <= {*arms}
        else {}
        for key, pair in DIFFERENCES.items()
    }
    needed = _needed(study, compared["differences"].get("map50"))
    kind, sentence = _sentence(study, means, compared, needed)
    return {
        "verdict": kind,
        "sentence": sentence,
        "measures": means,
        **{
            key: {name: to_fields(one) for name, one in differences.items()}
            for key, differences in compared.items()
        },
        "would_settle": needed,
        "sweeps": {
            name: curve_to_fields(curve, config.evaluate.seeds) for name, curve in curves.items()
        },
        "seeds": list(config.evaluate.seeds),
        "max_train_steps": config.evaluate.max_train_steps,
        "train_pictures": {
            arm: len(entries)
            for arm, entries in study.train.items()
            if arm in config.evaluate.arms or arm in ("real", "real_plus_synthetic")
        },
        "val_pictures": len(study.val),
        "test_pictures": len(study.test),
        "test_boxes": sum(len(entry.boxes) for entry in study.test),
        "test_groups": len(set(study.test_groups)),
        "test_photos": len(set(study.test_photos)),
        "sizes": [_to_size(size) for size in sizes_of(study)],
    }


def mean_measures(results: Results, name: str, seeds: Sequence[int]) -> dict[str, float]:
    """Every measure of an arm, or of a point of a sweep: the mean over its seeds."""
    keys = results[name, seeds[0]].measures
    return {
        key: round(float(np.mean([results[name, seed].measures[key] for seed in seeds])), 6)
        for key in keys
    }


def _to_size(size: SizeRange) -> dict[str, Any]:
    """A range as lengths, which people can picture: of a square box with that area."""
    low, high = (float(np.sqrt(area)) for area in size.areas)
    return {
        "size": size.name,
        "from": round(low, 2),
        "to": round(high, 2) if np.isfinite(high) else None,
        "boxes": size.num_boxes,
    }


def _needed(study: Study, difference: Difference | None) -> dict[str, int | None] | None:
    """What would show a difference of the present size, in photos too; None where that is no question."""
    needed = None if difference is None else needed_to_settle(difference)
    if difference is None or needed is None:
        return None
    photos = None
    if needed.num_groups is not None:
        a_group = len(set(study.test_photos)) / difference.num_groups
        photos = _roughly(needed.num_groups * a_group)
    return {
        "test_photos": photos,
        "test_groups": needed.num_groups,
        "seeds": needed.num_seeds,
    }


def _roughly(number: float) -> int:
    """Two figures, rounded up: an estimate does not know more."""
    step = 10 ** max(0, int(np.log10(number)) - 1)
    return int(np.ceil(number / step) * step)


def _sentence(
    study: Study,
    means: Mapping[Arm, Mapping[str, float]],
    compared: Mapping[str, Mapping[str, Difference]],
    needed: Mapping[str, int | None] | None,
) -> tuple[Verdict, str]:
    """The verdict in one word and in one sentence."""
    if not study.test:
        return "cannot be measured", "Cannot be measured: there is no real test picture."
    if not study.can_be_measured:
        return "cannot be measured", (
            f"Cannot be measured: there is no animal in the {many(len(study.test), 'real test picture')}."
        )
    where = f"on {many(len(study.test), 'real test picture')}"
    if not study.differs:
        told = (
            f": the detector has mAP50 {means['real']['map50']:.2f} {where}"
            if "real" in means
            else ""
        )
        return "nothing was added", (
            f"Nothing was added: no synthetic picture is in the training set{told}."
        )
    augmented = compared["augmented_differences"].get("map50")
    if not compared["differences"]:
        told = " and ".join(f"{arm}, with mAP50 {one['map50']:.2f}" for arm, one in means.items())
        return "cannot be measured", (
            f"No verdict on synthetic pictures: evaluate.arms names only {told} {where}."
            f"{_augmented_sentence(study, augmented, 'mAP50')}"
        )
    difference = compared["differences"]["map50"]
    kind = judge(difference)
    before, after = means["real"]["map50"], means["real_plus_synthetic"]["map50"]
    number = len(study.train["synthetic"])
    heading = {"gain": "Gain", "loss": "Loss"}.get(kind, "Not shown with this test set")
    change = (
        f"with {many(number, 'synthetic picture')} mAP50 {where} went from {before:.2f} to {after:.2f} "
        f"({_signed(difference.mean)}"
    )
    seeds = many(difference.num_seeds, "seed")
    groups = many(difference.num_groups, "group")
    beside = _augmented_sentence(study, augmented, "instead it")
    if difference.low is None or difference.high is None:
        return kind, (
            f"{heading}: {change}), but {seeds} and {groups} of test photos give no interval, so neither gain nor "
            f"loss can be claimed.{beside}"
        )
    ending = "" if kind != "not shown" else ", so neither gain nor loss can be claimed"
    return kind, (
        f"{heading}: {change}, {_interval(difference)}; {seeds}, {groups} of test photos){ending}."
        f"{_needed_sentence(study, difference, needed)}{beside}"
    )


def _needed_sentence(
    study: Study, difference: Difference, needed: Mapping[str, int | None] | None
) -> str:
    """How many test photos would settle it, or else seeds."""
    if needed is None:
        return ""
    if needed["test_photos"] is not None:
        photos = len(set(study.test_photos))
        return (
            f" If the difference stays as it is, about {needed['test_photos']} test photos in {needed['test_groups']} "
            f"groups would settle it; now there are {photos} in {difference.num_groups}."
        )
    if needed["seeds"] is not None:
        return (
            f" More test photos alone would not settle it, as the seeds disagree: about {needed['seeds']} seeds "
            f"would; now there are {difference.num_seeds}."
        )
    return " A difference as small as this would stay unsettled with many times the test photos or seeds."


def _augmented_sentence(study: Study, difference: Difference | None, what: str) -> str:
    """What ordinary augmentation did, where that arm and `real` were trained."""
    if difference is None:
        return ""
    number = len(study.train["real_plus_augmented"]) - len(study.train["real"])
    interval = _interval(difference)
    return (
        f" With {number} augmented copies of the real pictures {what} changed by {_signed(difference.mean)}"
        f"{f' ({interval})' if interval else ''}."
    )


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return ""
    return f"95 % interval {_signed(difference.low)} to {_signed(difference.high)}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
