from __future__ import annotations

import contextlib
import doctest
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from synthdet.core import comparison
from synthdet.core.comparison import (
    Difference,
    average_precision,
    best_operating_point,
    judge,
    match_detections,
    operating_point,
    paired_difference,
)
from synthdet.core.records import Box, DetectedBox


def test_doctests() -> None:
    assert doctest.testmod(comparison).failed == 0


def draw_boxes(rng: np.random.Generator, number: int) -> list[tuple[float, float, float, float]]:
    corner = rng.uniform(0, 60, size=(number, 2))
    side = rng.uniform(4, 40, size=(number, 2))
    return [tuple(row) for row in np.concatenate([corner, corner + side], axis=1).round(2).tolist()]


def draw_study(seed: int, num_classes: int = 2) -> tuple[list[list[Box]], list[list[DetectedBox]]]:
    """Pictures with true boxes, and detections that are jittered truths and inventions."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(int(rng.integers(1, 9))):
        true = [
            Box(xyxy=xyxy, class_id=int(rng.integers(num_classes)))
            for xyxy in draw_boxes(rng, int(rng.integers(0, 5)))
        ]
        drawn = [
            (tuple((np.array(box.xyxy) + rng.normal(0, 2.5, 4)).round(2).tolist()), box.class_id)
            for box in true
            for _ in range(int(rng.integers(0, 3)))
        ]
        drawn += [(xyxy, int(rng.integers(num_classes))) for xyxy in draw_boxes(rng, 2)]
        truths.append(true)
        detections.append(
            [
                # One decimal: equal confidences are common.
                DetectedBox(xyxy=xyxy, class_id=c, confidence=round(float(rng.uniform()), 1))
                for xyxy, c in drawn
                if xyxy[2] > xyxy[0] and xyxy[3] > xyxy[1]
            ]
        )
    return truths, detections


def coco_precision(
    truths: list[list[Box]], detections: list[list[DetectedBox]], num_classes: int
) -> np.ndarray:
    """Average precision at the ten IoU thresholds, by pycocotools."""

    def xywh(box: Box | DetectedBox) -> list[float]:
        x1, y1, x2, y2 = box.xyxy
        return [x1, y1, x2 - x1, y2 - y1]

    true = [(picture, box) for picture, boxes in enumerate(truths) for box in boxes]
    drawn = [(picture, box) for picture, boxes in enumerate(detections) for box in boxes]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": picture + 1} for picture in range(len(truths))],
            "categories": [{"id": c + 1, "name": str(c)} for c in range(num_classes)],
            "annotations": [
                {
                    "id": number + 1, "image_id": picture + 1, "category_id": box.class_id + 1,
                    "bbox": xywh(box), "area": xywh(box)[2] * xywh(box)[3], "iscrowd": 0,
                }
                for number, (picture, box) in enumerate(true)
            ],
        }  # fmt: skip
        coco.createIndex()
        found = coco.loadRes(
            [
                {
                    "image_id": picture + 1, "category_id": box.class_id + 1,
                    "bbox": xywh(box), "score": box.confidence,
                }
                for picture, box in drawn
            ]
        )  # fmt: skip
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return np.array([row[row > -1].mean() for row in precision])


def test_precision_is_that_of_pycocotools() -> None:
    compared = 0
    for seed in range(200):
        truths, detections = draw_study(seed)
        if not any(truths) or not any(detections):
            continue
        ours = average_precision(match_detections(truths, detections, num_classes=2))
        np.testing.assert_allclose(ours, coco_precision(truths, detections, 2), atol=1e-6)
        compared += 1
    assert compared > 150


def test_only_the_hundred_most_confident_boxes_of_a_picture_count() -> None:
    rng = np.random.default_rng(3)
    true = [Box(xyxy=(0, 0, 10, 5), class_id=0)]
    wrong = [DetectedBox(xyxy=xyxy, class_id=0, confidence=0.5) for xyxy in draw_boxes(rng, 130)]
    right = DetectedBox(xyxy=(0, 0, 10, 5), class_id=0, confidence=0.1)
    matches = match_detections([true], [[*wrong, right]], num_classes=1)
    assert len(matches.confidence) == 100
    np.testing.assert_allclose(
        average_precision(matches), coco_precision([true], [[*wrong, right]], 1), atol=1e-6
    )


def test_weights_are_the_same_as_repeating_and_leaving_out_pictures() -> None:
    truths, detections = draw_study(7)
    weights = np.arange(len(truths)) % 3
    chosen = [index for index, weight in enumerate(weights) for _ in range(weight)]
    repeated = match_detections(
        [truths[i] for i in chosen], [detections[i] for i in chosen], num_classes=2
    )
    weighted = average_precision(match_detections(truths, detections, num_classes=2), weights)
    # Equal confidences of different pictures stand in another order, so nearly the same.
    np.testing.assert_allclose(weighted, average_precision(repeated), atol=0.02)
    left_out = np.arange(len(truths)) != 0
    rest = match_detections(truths[1:], detections[1:], num_classes=2)
    np.testing.assert_allclose(
        average_precision(match_detections(truths, detections, num_classes=2), left_out * 1),
        average_precision(rest),
        atol=1e-12,
    )


def test_nothing_to_find_is_no_number_and_nothing_found_is_zero() -> None:
    true = [[Box(xyxy=(0, 0, 4, 2), class_id=0)]]
    assert np.isnan(average_precision(match_detections([[]], [[]], num_classes=1))).all()
    assert (average_precision(match_detections(true, [[]], num_classes=1)) == 0).all()


def test_best_operating_point_takes_all_boxes_of_equal_confidence() -> None:
    true = [[Box(xyxy=(0, 0, 10, 5), class_id=0), Box(xyxy=(20, 0, 30, 5), class_id=0)]]
    drawn = [
        [
            DetectedBox(xyxy=(0, 0, 10, 5), class_id=0, confidence=0.8),
            DetectedBox(xyxy=(20, 0, 30, 5), class_id=0, confidence=0.4),
            DetectedBox(xyxy=(50, 0, 60, 5), class_id=0, confidence=0.4),
            DetectedBox(xyxy=(70, 0, 80, 5), class_id=0, confidence=0.2),
        ]
    ]
    matches = match_detections(true, drawn, num_classes=1)
    best = best_operating_point(matches)
    assert best is not None
    assert (best.confidence, best.precision, best.recall) == (0.4, pytest.approx(2 / 3), 1.0)
    assert best.f1 == pytest.approx(0.8)
    assert operating_point(matches, 0.5).f1 == pytest.approx(2 / 3)
    assert best_operating_point(match_detections(true, [[]], num_classes=1)) is None


def simulate(
    rng: np.random.Generator,
    seeds: int,
    groups: int,
    spread: tuple[float, float, float],
    mean: float,
) -> Difference:
    """A study whose difference is made of seed, group and rest; the measure is a mean over groups."""
    values = mean + rng.normal(0, spread[0], (seeds, 1)) + rng.normal(0, spread[1], (1, groups))
    values = values + rng.normal(0, spread[2], (seeds, groups))
    without = (values.sum(axis=1, keepdims=True) - values) / (groups - 1)
    return paired_difference(values.mean(axis=1), without)


@pytest.mark.parametrize("spread", [(1, 0.3, 0.3), (0.3, 1, 0.3), (0.5, 1, 1)])
@pytest.mark.parametrize("groups", [6, 12])
def test_interval_covers_the_truth(spread: tuple[float, float, float], groups: int) -> None:
    rng = np.random.default_rng(groups)
    found = [simulate(rng, 3, groups, spread, mean=1.0) for _ in range(1000)]
    covered = np.mean([one.low <= 1.0 <= one.high for one in found])  # type: ignore[operator]
    assert 0.92 <= covered <= 0.99


def test_without_a_difference_gain_is_rarely_said() -> None:
    rng = np.random.default_rng(5)
    said = [judge(simulate(rng, 3, 8, (1, 1, 1), mean=0.0)) for _ in range(1000)]
    assert said.count("gain") <= 50
    assert said.count("loss") <= 50


@pytest.mark.parametrize(
    ("full", "without"),
    [
        ([0.2], [[0.1, 0.3]]),  # one seed
        ([0.2, 0.1], [[0.1], [0.3]]),  # one group
        ([0.2, 0.1], [[0.1, np.nan], [0.3, np.nan]]),  # all the animals are in the second group
    ],
)
def test_no_interval_from_too_little(full: list[float], without: list[list[float]]) -> None:
    difference = paired_difference(np.array(full), np.array(without))
    assert difference.low is None
    assert difference.mean == pytest.approx(np.mean(full))
    assert judge(difference) == "not shown"


def test_judge_loss() -> None:
    assert judge(Difference(-0.1, -0.2, -0.01, 3, 5)) == "loss"
