"""Can the verdict be believed? mAP against pycocotools, and the interval against studies whose truth is known.

    python benchmarks/evaluate.py [--quick] [--studies 500]

- *map*: on 200 sets of random boxes of two classes, `map_error_vs_pycocotools` is the largest difference
  to pycocotools in any of the ten IoU thresholds, over all animals and over those of a range of sizes.
- *interval*: simulated studies. Animals in photos in groups of photos, hard ones and easy ones; detectors
  of two arms and several seeds that all look at the same photos; their boxes, sure or not, tight or
  loose, and false alarms. From them the stage's own way: average precision, each group left out in turn,
  the paired difference and its interval. `interval_coverage` is the share of studies, with a true
  difference, whose 95 % interval holds it, `interval_missed` of the others; `false_gain_rate` and `false_loss_rate` the shares of studies
  without one that say gain or loss; `power` the share with one that say gain. Besides by number of seeds
  and groups, as in `coverage_3_seeds_6_groups`.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from report import make_report, measure_parts, say

from synthdet.core.boxes import area
from synthdet.core.comparison import (
    IOU_THRESHOLDS,
    Areas,
    Matches,
    average_precision,
    match_detections,
    precision_without_groups,
)
from synthdet.core.differences import Difference, judge, paired_difference
from synthdet.core.records import XYXY, Box, DetectedBox

TARGETS: dict[str, tuple[str, float]] = {
    "map_error_vs_pycocotools": ("<=", 1e-6),
    "interval_coverage": (">=", 0.92),
    "interval_missed": (">=", 0.02),
    "false_gain_rate": ("<=", 0.05),
}
DESIGNS = ((3, 6), (3, 12), (3, 24), (5, 12))
"""Seeds and groups of the simulated studies, in turn."""
AREAS: Sequence[Areas] = ((0.0, 1e10), (0.0, 200.0), (200.5, 600.0), (600.5, 1e10))
Floats = NDArray[np.float64]


# --- mAP ---------------------------------------------------------------------------------------


def random_boxes(rng: np.random.Generator, number: int) -> list[XYXY]:
    """Boxes in a picture of about 100 pixels."""
    corner = rng.uniform(0, 60, size=(number, 2))
    side = rng.uniform(4, 40, size=(number, 2))
    rows = np.concatenate([corner, corner + side], axis=1).round(2).tolist()
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in rows]


def random_set(seed: int) -> tuple[list[list[Box]], list[list[DetectedBox]]]:
    """Pictures with animals of two classes, and detections: shaken truths and inventions."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(int(rng.integers(2, 12))):
        true = [
            Box(xyxy=xyxy, class_id=int(rng.integers(2)))
            for xyxy in random_boxes(rng, int(rng.integers(0, 6)))
        ]
        drawn: list[tuple[XYXY, int]] = [
            (xyxy, int(rng.integers(2))) for xyxy in random_boxes(rng, 3)
        ]
        for box in true:
            for _ in range(int(rng.integers(0, 3))):
                x1, y1, x2, y2 = np.round(np.array(box.xyxy) + rng.normal(0, 2, 4), 2).tolist()
                if x2 > x1 and y2 > y1:
                    drawn.append(((x1, y1, x2, y2), box.class_id))
        truths.append(true)
        detections.append(
            [
                # One decimal, so that equal confidences are common.
                DetectedBox(xyxy=xyxy, class_id=c, confidence=round(float(rng.uniform()), 1))
                for xyxy, c in drawn
            ]
        )
    return truths, detections


def coco_precision(
    truths: Sequence[Sequence[Box]], detections: Sequence[Sequence[DetectedBox]]
) -> Floats:
    """Average precision by pycocotools, ``(ranges of `AREAS`, 10)``; NaN where there is no animal."""

    def xywh(box: Box | DetectedBox) -> list[float]:
        x1, y1, x2, y2 = box.xyxy
        return [x1, y1, x2 - x1, y2 - y1]

    true = [(picture, box) for picture, boxes in enumerate(truths) for box in boxes]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": picture + 1} for picture in range(len(truths))],
            "categories": [{"id": 1, "name": "seal"}, {"id": 2, "name": "whale"}],
            "annotations": [
                {"id": number + 1, "image_id": picture + 1, "category_id": box.class_id + 1,
                 "bbox": xywh(box), "area": area(box.xyxy), "iscrowd": 0}
                for number, (picture, box) in enumerate(true)
            ],
        }  # fmt: skip
        coco.createIndex()
        found = coco.loadRes(
            [
                {"image_id": picture + 1, "category_id": box.class_id + 1, "bbox": xywh(box),
                 "score": box.confidence}
                for picture, boxes in enumerate(detections)
                for box in boxes
            ]
        )  # fmt: skip
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.params.areaRng = [list(areas) for areas in AREAS]
        evaluation.params.areaRngLbl = [str(number) for number in range(len(AREAS))]
        evaluation.evaluate()
        evaluation.accumulate()
    table = np.full((len(AREAS), len(IOU_THRESHOLDS)), np.nan)
    for number in range(len(AREAS)):
        for threshold in range(len(IOU_THRESHOLDS)):
            values = evaluation.eval["precision"][threshold, :, :, number, -1]
            if (values > -1).any():
                table[number, threshold] = values[values > -1].mean()
    return table


def measure_map(num_sets: int) -> dict[str, Any]:
    """The largest difference to pycocotools."""
    worst, compared = 0.0, 0
    for seed in range(num_sets):
        truths, detections = random_set(seed)
        if not any(truths):
            continue
        theirs = coco_precision(truths, detections)
        for number, areas in enumerate(AREAS):
            matches = match_detections(truths, detections, num_classes=2, areas=areas)
            ours = average_precision(matches)
            assert np.isnan(ours).tolist() == np.isnan(theirs[number]).tolist()
            if not np.isnan(ours).any():
                worst = max(worst, float(np.abs(ours - theirs[number]).max()))
                compared += 1
    return {"map_error_vs_pycocotools": worst, "map_sets_compared": compared}


# --- the interval ------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What the simulated detectors and photos are like: spreads of how well an animal is seen.

    Attributes:
        gain: How much better the second arm sees; 0: both arms are alike.
        seed: Between seeds of an arm.
        group: Between groups of photos, for all detectors alike.
        arm_in_group: Between groups, for an arm: it is good in one place and bad in another.
        animal: Between animals, for all detectors alike.
        chance: What is left.
        clarity: How well an animal is seen on the whole.
        alarms: False alarms a photo.
    """

    gain: float
    seed: float = 0.25
    group: float = 0.6
    arm_in_group: float = 0.35
    animal: float = 1.0
    chance: float = 0.7
    clarity: float = 0.9
    alarms: float = 0.5


def simulate_tables(
    world: World, rng: np.random.Generator, *, seeds: int, groups: int, whole: bool = False
) -> Floats:
    """A study's average precision, ``(2 arms, seeds, 1 + groups, 10)``; ``whole``: nothing left out."""
    photos = rng.integers(3, 8, groups)
    group_of_photo = np.repeat(np.arange(groups), photos)
    animals = rng.poisson(1.2, len(group_of_photo))
    photo_of = np.repeat(np.arange(len(group_of_photo)), animals)
    group_of = group_of_photo[photo_of]
    seen_by_all = (
        world.clarity
        + rng.normal(0, world.group, groups)[group_of]
        + rng.normal(0, world.animal, len(photo_of))
    )
    alarming = world.alarms * np.exp(rng.normal(0, 0.5, groups))[group_of_photo]
    tables = []
    for arm in (0, 1):
        own = seen_by_all + arm * world.gain
        own = own + rng.normal(0, world.arm_in_group, groups)[group_of]
        for _ in range(seeds):
            clear = own + rng.normal(0, world.seed) + rng.normal(0, world.chance, len(own))
            matches = draw_matches(rng, clear, photo_of, alarming, animals)
            names = [] if whole else [f"{group:04d}" for group in group_of_photo]
            tables.append(
                average_precision(matches)[None]
                if whole
                else precision_without_groups(matches, names)
            )
    return np.array(tables).reshape(2, seeds, *tables[0].shape)


def draw_matches(
    rng: np.random.Generator,
    clear: Floats,
    photo_of: NDArray[np.int64],
    alarming: Floats,
    animals: NDArray[np.int64],
) -> Matches:
    """What a detector draws: an animal seen clearly has a sure and tight box, others none."""
    found = clear > 0
    tight = 1 / (1 + np.exp(-0.9 - 0.8 * clear - rng.normal(0, 0.6, len(clear))))
    alarms = np.repeat(np.arange(len(alarming)), rng.poisson(alarming))
    sure = np.concatenate([clear[found], rng.normal(0.3, 0.8, len(alarms))])
    sure = sure + rng.normal(0, 0.4, len(sure))
    correct = np.zeros((len(sure), len(IOU_THRESHOLDS)), dtype=bool)
    correct[: found.sum()] = tight[found, None] >= IOU_THRESHOLDS
    order = np.argsort(-sure, kind="stable")
    return Matches(
        picture=np.concatenate([photo_of[found], alarms])[order],
        class_id=np.zeros(len(sure), dtype=np.int64),
        confidence=(1 / (1 + np.exp(-sure)))[order],
        correct=correct[order],
        num_true=animals[:, None],
        counted=np.ones_like(correct),
    )


def true_difference(world: World, measure: slice, *, seeds: int = 160, groups: int = 400) -> float:
    """The difference that endless seeds and photos would show, near enough."""
    if world.gain == 0:
        return 0.0  # the arms are alike
    found = []
    for part in range(4):
        rng = np.random.default_rng([part, 99])
        tables = simulate_tables(world, rng, seeds=seeds // 4, groups=groups, whole=True)
        found.append((tables[1] - tables[0])[:, 0, measure].mean())
    return float(np.mean(found))


def simulate_study(
    world: World, rng: np.random.Generator, measure: slice, *, seeds: int, groups: int
) -> Difference:
    """A study from its boxes to its interval, as the stage works it out."""
    tables = simulate_tables(world, rng, seeds=seeds, groups=groups)
    differences = (tables[1] - tables[0])[:, :, measure].mean(axis=2)
    return paired_difference(differences[:, 0], differences[:, 1:])


MAP50, MAP50_95 = slice(0, 1), slice(None)


def measure_interval(num_studies: int, *, truth_groups: int = 400) -> dict[str, Any]:
    """Coverage with a difference, false claims without one, over `DESIGNS` in turn."""
    gaining, alike = World(gain=0.5), World(gain=0.0)
    truth = true_difference(gaining, MAP50, groups=truth_groups)
    say(f"the true difference in mAP50 is {truth:+.3f}")
    held: dict[tuple[int, int], list[bool]] = {design: [] for design in DESIGNS}
    said: list[str] = []
    said_alike: list[str] = []
    for number in range(num_studies):
        seeds, groups = design = DESIGNS[number % len(DESIGNS)]
        study = simulate_study(
            gaining, np.random.default_rng([number, 1]), MAP50, seeds=seeds, groups=groups
        )
        assert study.low is not None
        assert study.high is not None
        held[design].append(study.low <= truth <= study.high)
        said.append(judge(study))
        nothing = simulate_study(
            alike, np.random.default_rng([number, 2]), MAP50, seeds=seeds, groups=groups
        )
        said_alike.append(judge(nothing))
        if (number + 1) % 100 == 0:
            say(f"{number + 1} studies of either kind")
    coverage = round(float(np.mean([one for row in held.values() for one in row])), 4)
    return {
        "interval_coverage": coverage,
        "interval_missed": round(1 - coverage, 4),
        "false_gain_rate": round(said_alike.count("gain") / num_studies, 4),
        "false_loss_rate": round(said_alike.count("loss") / num_studies, 4),
        "power": round(said.count("gain") / num_studies, 4),
        "true_difference": round(truth, 4),
        "studies": num_studies,
        **{
            f"coverage_{seeds}_seeds_{groups}_groups": round(float(np.mean(row)), 4)
            for (seeds, groups), row in held.items()
            if row
        },
    }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a try of the script, in seconds")
    parser.add_argument("--studies", type=int, default=500, help="simulated studies of either kind")
    options = parser.parse_args()
    studies = 120 if options.quick else options.studies
    figures = measure_parts(
        {
            "map": lambda: measure_map(20 if options.quick else 200),
            "interval": lambda: measure_interval(
                studies, truth_groups=100 if options.quick else 400
            ),
        }
    )
    report = make_report("evaluate", figures, TARGETS)
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
