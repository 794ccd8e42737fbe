from __future__ import annotations

import contextlib
import doctest
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from synthdet.core import comparison
from synthdet.core.boxes import area
from synthdet.core.comparison import (
    average_precision,
    best_operating_point,
    match_detections,
    of_class,
    operating_point,
    precision_recall_curve,
    precision_without_groups,
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
    truths: list[list[Box]],
    detections: list[list[DetectedBox]],
    num_classes: int,
    areas: tuple[float, float] = (0, 1e10),
) -> np.ndarray:
    """Average precision at the ten IoU thresholds, by pycocotools; for animals of a range of areas."""

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
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(areas)], ["asked"]
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


@pytest.mark.parametrize("areas", [(0, 200), (200.5, 600), (600.5, 1e10)])
def test_precision_by_size_is_that_of_pycocotools(areas: tuple[float, float]) -> None:
    compared = 0
    for seed in range(100):
        truths, detections = draw_study(seed)
        if not any(detections) or not any(
            areas[0] <= area(box.xyxy) <= areas[1] for boxes in truths for box in boxes
        ):
            continue
        ours = average_precision(match_detections(truths, detections, num_classes=2, areas=areas))
        theirs = coco_precision(truths, detections, 2, areas)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        compared += 1
    assert compared > 50


def test_a_box_on_an_animal_of_another_size_is_neither_right_nor_wrong() -> None:
    small, large = (0, 0, 10, 10), (30, 0, 70, 40)
    true = [[Box(xyxy=small, class_id=0), Box(xyxy=large, class_id=0)]]
    drawn = [
        [
            DetectedBox(xyxy=large, class_id=0, confidence=0.9),  # on the large animal
            DetectedBox(xyxy=small, class_id=0, confidence=0.8),
            DetectedBox(xyxy=(80, 0, 120, 40), class_id=0, confidence=0.7),  # wrong, but not small
            DetectedBox(xyxy=(80, 60, 88, 68), class_id=0, confidence=0.6),  # wrong and small
        ]
    ]
    matches = match_detections(true, drawn, num_classes=1, areas=(0, 500))
    assert matches.counted[:, 0].tolist() == [False, True, False, True]
    assert average_precision(matches)[0] == pytest.approx(1)
    point = operating_point(matches, 0.5)
    assert (point.precision, point.recall) == (0.5, 1.0)
    best = best_operating_point(matches)
    assert best is not None
    assert best.f1 == 1


def test_the_table_without_groups_is_the_measure_without_their_pictures() -> None:
    truths, detections = draw_study(7)
    groups = ["b", "a", *"b" * (len(truths) - 2)]
    table = precision_without_groups(match_detections(truths, detections, num_classes=2), groups)
    assert table.shape == (3, 10)
    whole = match_detections(truths, detections, num_classes=2)
    without_a = match_detections(
        [truths[0], *truths[2:]], [detections[0], *detections[2:]], num_classes=2
    )
    np.testing.assert_allclose(table[0], average_precision(whole), atol=1e-12)
    np.testing.assert_allclose(table[1], average_precision(without_a), atol=1e-12)


def test_the_mean_over_classes_is_that_of_each_class_alone() -> None:
    truths, detections = draw_study(7)
    matches = match_detections(truths, detections, num_classes=2)
    alone = [average_precision(of_class(matches, class_id)) for class_id in (0, 1)]
    np.testing.assert_allclose(np.mean(alone, axis=0), average_precision(matches), atol=1e-12)
    assert not np.allclose(*alone)


def test_the_curve_ends_where_all_boxes_are_taken() -> None:
    truths, detections = draw_study(7)
    matches = match_detections(truths, detections, num_classes=2)
    curve = precision_recall_curve(matches)
    point = operating_point(matches, 0.0)
    assert curve.recall[-1] == pytest.approx(point.recall)
    assert curve.precision[-1] == pytest.approx(point.precision)
    assert (np.diff(curve.recall) >= 0).all()


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
