from __future__ import annotations

import doctest

import pytest

from synthdet.core import labelling
from synthdet.core.labelling import (
    FALLBACK_CONFIDENCE,
    LabelRules,
    calibrate_confidence,
    decide_label,
    map_classes,
)
from synthdet.core.records import Box, DetectedBox
from synthdet.errors import SynthdetError

RULES = LabelRules(confidence=0.5, review_confidence=0.1, negatives=True)


def test_doctests() -> None:
    assert doctest.testmod(labelling).failed == 0


def drawn(confidence: float, left: float = 0, class_id: int = 0) -> DetectedBox:
    return DetectedBox(xyxy=(left, 0, left + 10, 6), class_id=class_id, confidence=confidence)


WHOLE = DetectedBox(xyxy=(0, 1, 96, 64), class_id=0, confidence=0.9)


@pytest.mark.parametrize(
    ("boxes", "asked_for", "status", "reason"),
    [
        ([drawn(0.9)], (0,), "accept", None),
        ([drawn(0.9), drawn(0.05, 20)], (0,), "accept", None),  # noise is no ambiguous box
        ([drawn(0.9), drawn(0.3, 20)], (0,), "review", "one unsure box"),
        ([drawn(0.3), drawn(0.2, 20)], (0,), "review", "two unsure boxes"),
        ([drawn(0.9)], (0, 0), "review", "asked for two, found one"),
        ([drawn(0.9), drawn(0.8, 20)], (0,), "review", "asked for one, found two"),
        ([drawn(0.9), drawn(0.8, 20)], (0, 0), "accept", None),
        ([drawn(0.9, class_id=1)], (0,), "review", "found another kind than asked for"),
        ([], (0,), "review", "nothing found"),
        ([drawn(0.05)], (0,), "review", "nothing found"),
        ([], (), "negative", None),
        ([drawn(0.05)], (), "negative", None),
        ([drawn(0.3)], (), "review", "one unsure box"),
        ([drawn(0.9)], (), "review", "asked for none, found one"),
        ([drawn(0.9), drawn(0.8, 20)], None, "accept", None),
        ([], None, "review", "nothing found"),
        ([WHOLE], (0,), "review", "a box over the whole picture"),
    ],
)
def test_decisions(
    boxes: list[DetectedBox], asked_for: tuple[int, ...] | None, status: str, reason: str | None
) -> None:
    label = decide_label("syn-1", boxes, size_wh=(96, 64), asked_for=asked_for, rules=RULES)
    assert (label.status, label.reason) == (status, reason)


def test_one_animal_drawn_twice_is_one() -> None:
    def label(*boxes: tuple[float, ...], asked_for: tuple[int, ...] = (0,)) -> str:
        drawn = [
            DetectedBox(xyxy=box[:4], class_id=0, confidence=box[4])  # type: ignore[arg-type]
            for box in boxes
        ]
        return decide_label(
            "syn-1", drawn, size_wh=(96, 64), asked_for=asked_for, rules=RULES
        ).status

    whale = (10, 10, 40, 30, 0.9)
    assert label(whale, (11, 10, 41, 31, 0.8)) == "accept"  # as sure, and nearly the same box
    assert label(whale, (12, 12, 24, 28, 0.3)) == "accept"  # its head alone
    assert label(whale, (5, 5, 60, 40, 0.3)) == "accept"  # with its wake
    assert label(whale, (38, 10, 70, 30, 0.3)) == "review"  # a second whale that touches it?
    assert label(whale, (12, 12, 24, 28, 0.8), asked_for=(0, 0)) == "accept"  # a calf above her


def test_boxes_of_each_status() -> None:
    def label(*boxes: DetectedBox, asked_for: tuple[int, ...]) -> list[float]:
        found = decide_label("syn-1", boxes, size_wh=(96, 64), asked_for=asked_for, rules=RULES)
        return [box.confidence for box in found.boxes]

    assert label(drawn(0.9), drawn(0.05, 20), asked_for=(0,)) == [0.9]
    assert label(drawn(0.9), drawn(0.2, 20), drawn(0.05, 40), asked_for=(0,)) == [0.9, 0.2]
    assert label(drawn(0.05), asked_for=()) == []


def test_negatives_can_be_switched_off() -> None:
    rules = LabelRules(confidence=0.5, review_confidence=0.1, negatives=False)
    label = decide_label("syn-1", [], size_wh=(96, 64), asked_for=(), rules=rules)
    assert (label.status, label.reason) == ("review", "negatives are switched off")


def test_a_confidence_below_the_review_confidence_leaves_nothing_unsure() -> None:
    rules = LabelRules(confidence=0.05, review_confidence=0.1, negatives=True)
    label = decide_label("syn-1", [drawn(0.06)], size_wh=(96, 64), asked_for=(0,), rules=rules)
    assert label.status == "accept"


def test_calibration() -> None:
    truths = [[Box(xyxy=(0, 0, 10, 6), class_id=0)], [], [Box(xyxy=(40, 0, 50, 6), class_id=0)]]
    found = [[drawn(0.7), drawn(0.3, 60)], [drawn(0.2)], [drawn(0.4, 40)]]
    calibration = calibrate_confidence(truths, found, num_classes=1)
    assert calibration.confidence == 0.4
    assert (calibration.f1, calibration.precision, calibration.recall) == (1.0, 1.0, 1.0)
    assert (calibration.num_pictures, calibration.num_boxes) == (3, 2)
    given = calibrate_confidence(truths, found, num_classes=1, given=0.5)
    assert (given.confidence, given.recall) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("truths", "found"),
    [
        ([[]], [[drawn(0.9)]]),  # no animal
        ([], []),  # no val tile
        ([[Box(xyxy=(0, 0, 10, 6), class_id=0)]], [[drawn(0.9, 70)]]),  # none is right
    ],
)
def test_what_cannot_be_calibrated_falls_back(
    truths: list[list[Box]], found: list[list[DetectedBox]]
) -> None:
    calibration = calibrate_confidence(truths, found, num_classes=1)
    assert calibration.confidence == FALLBACK_CONFIDENCE
    assert calibration.f1 is None


def test_class_map() -> None:
    mapped = map_classes(["boat", "whale", "calf"], ["seal", "humpback"], {"whale": "humpback"})
    assert mapped == {1: 1}


@pytest.mark.parametrize(
    ("detector", "run", "class_map", "message"),
    [
        (["boat", "whale"], ["seal", "pup"], None, "label.class_map"),
        (["boat"], ["seal"], {"whale": "seal"}, "the detector has no class 'whale', only boat"),
        (["boat"], ["seal"], {"boat": "pup"}, "this run has no class 'pup', only seal"),
    ],
)
def test_class_names_that_do_not_meet(
    detector: list[str], run: list[str], class_map: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(SynthdetError, match=message):
        map_classes(detector, run, class_map)
