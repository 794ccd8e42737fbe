from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

from synthdet.core import labelling
from synthdet.core.labelling import (
    BLIND,
    FALLBACK_CONFIDENCE,
    LabelRules,
    SizePrior,
    calibrate_confidence,
    decide_label,
    map_classes,
    measure_accepted,
    size_prior,
)
from synthdet.core.records import XYXY, Box, DetectedBox, Label, PlacedBox
from synthdet.errors import SynthdetError

RULES = LabelRules(confidence=0.5, review_confidence=0.1, negatives=True)


def test_doctests() -> None:
    assert doctest.testmod(labelling).failed == 0


def drawn(confidence: float, left: float = 0, class_id: int = 0) -> DetectedBox:
    return DetectedBox(xyxy=(left, 0, left + 10, 6), class_id=class_id, confidence=confidence)


WHOLE = DetectedBox(xyxy=(0, 1, 96, 64), class_id=0, confidence=0.9)


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([drawn(0.9)], None),
        ([drawn(0.9, left=3)], None),  # IoU 0.54 with where it was painted
        ([drawn(0.35)], None),  # less sure, but where it should be
        ([drawn(0.25)], "one unsure box"),
        ([drawn(0.9, left=4)], "a box where no animal was painted"),  # IoU 0.43
        ([drawn(0.35, left=4)], "one unsure box"),
        ([drawn(0.9), drawn(0.45, left=10)], None),  # unsure, in water that is known to be empty
        ([drawn(0.9), drawn(0.45, left=9)], "one unsure box"),
        ([drawn(0.9), drawn(0.6, left=20)], "asked for one, found two"),
        ([drawn(0.9, class_id=1)], "found another kind than asked for"),
        ([], "nothing found"),
    ],
)
def test_a_painted_animal_has_its_box_where_it_was_painted(
    boxes: list[DetectedBox], reason: str | None
) -> None:
    rules = LabelRules(confidence=0.5, review_confidence=0.1, negatives=True, placed_confidence=0.3)
    placed = [PlacedBox(xyxy=(0, 0, 10, 6), class_id=0)]
    label = decide_label(
        "syn-1", boxes, size_wh=(96, 64), asked_for=(0,), rules=rules, placed=placed
    )
    assert (label.status, label.reason) == ("review" if reason else "accept", reason)


def test_one_box_is_not_both_of_two_painted_animals() -> None:
    placed = [PlacedBox(xyxy=(x, 0, x + 10, 6), class_id=0) for x in (2, 40)]
    label = decide_label(
        "syn-1", [drawn(0.9), drawn(0.8, left=5)], size_wh=(96, 64), asked_for=(0, 0),
        rules=RULES, placed=placed,
    )  # fmt: skip
    assert (label.status, label.reason) == ("review", "nothing found where an animal was painted")
    label = decide_label(
        "syn-1", [drawn(0.9), drawn(0.8, left=41)], size_wh=(96, 64), asked_for=(0, 0),
        rules=RULES, placed=placed,
    )  # fmt: skip
    assert label.status == "accept"


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


@pytest.mark.parametrize(
    ("boxes", "asked_for", "placed", "reason"),
    [
        ([drawn(0.3)], (0,), None, "nothing sure found"),
        ([drawn(0.3), drawn(0.2, 20)], (0,), None, "nothing sure found"),
        ([drawn(0.4)], (0,), None, "one unsure box"),
        ([drawn(0.3)], (), None, "one unsure box"),  # nothing was asked for
        ([drawn(0.3)], None, None, "one unsure box"),
        ([drawn(0.9), drawn(0.2, 20)], (0,), None, "one unsure box"),
        (
            [WHOLE.model_copy(update={"confidence": 0.3})],
            (0,),
            None,
            "a box over the whole picture",
        ),
        ([drawn(0.3)], (0,), [PlacedBox(xyxy=(2, 0, 12, 6), class_id=0)], None),
    ],
)
def test_a_picture_asked_for_an_animal_of_which_the_detector_counts_none(
    boxes: list[DetectedBox],
    asked_for: tuple[int, ...] | None,
    placed: list[PlacedBox] | None,
    reason: str | None,
) -> None:
    rules = replace(RULES, found_confidence=0.35, placed_confidence=0.1)
    label = decide_label(
        "syn-1", boxes, size_wh=(96, 64), asked_for=asked_for, rules=rules, placed=placed
    )
    assert label.reason == reason
    assert label.boxes  # what there is stays to be looked at


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


STRICT = LabelRules(
    confidence=0.5, review_confidence=0.1, negatives=True, agreement=0.6, sizes=SizePrior(8, 20, 40)
)


def sure(xyxy: XYXY, confidence: float = 0.9, agreement: float | None = 0.9) -> DetectedBox:
    return DetectedBox(xyxy=xyxy, class_id=0, confidence=confidence, agreement=agreement)


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([sure((10, 10, 30, 20))], None),
        ([sure((10, 10, 30, 20), agreement=0.5)], "the views disagree about a box"),
        ([sure((10, 10, 30, 20), agreement=None)], None),  # one look: nobody to disagree
        ([sure((10, 10, 52, 20))], "a box larger than real animals"),
        ([sure((10, 10, 16, 17))], "a box smaller than real animals"),
        ([sure((0, 10, 12, 20))], None),  # cut, but most of an animal
        ([sure((87.5, 10, 95.5, 18))], "a fragment at the border"),
        ([sure((10, 55, 18, 63))], "a fragment at the border"),
    ],
)
def test_doubts_about_a_confident_box(boxes: list[DetectedBox], reason: str | None) -> None:
    label = decide_label("syn-1", boxes, size_wh=(96, 64), asked_for=(0,), rules=STRICT)
    assert (label.status, label.reason) == ("review" if reason else "accept", reason)
    assert label.boxes == tuple(boxes)


def test_a_box_around_a_herd() -> None:
    herd, left, right = (5, 5, 45, 30), (6, 6, 22, 28), (26, 6, 44, 28)

    def judged(*boxes: DetectedBox) -> str | None:
        return decide_label("syn-1", boxes, size_wh=(96, 64), asked_for=None, rules=RULES).reason

    several = "one box around several animals"
    assert judged(sure(herd), sure(left), sure(right)) == several
    assert judged(sure(herd), sure(left, 0.48), sure(right, 0.46)) == several
    assert judged(sure(herd), sure(left, 0.2), sure(right, 0.2)) is None  # her head and her fluke
    assert judged(sure(herd), sure(left)) is None  # a calf beside its mother, in her box
    assert judged(sure(left), sure(right)) is None


def test_the_precision_to_accept_unseen_by_hand() -> None:
    """Right at 0.9, 0.8, 0.6, 0.5, 0.4; wrong at 0.7 and 0.3: precision 1, 1, 2/3, 3/4, 4/5, 5/6, 5/7."""
    confidences = {0.9: True, 0.8: True, 0.7: False, 0.6: True, 0.5: True, 0.4: True, 0.3: False}
    lefts = {confidence: 20.0 * n for n, confidence in enumerate(confidences)}
    found = [[drawn(confidence, lefts[confidence]) for confidence in confidences]]
    truths = [
        [Box(xyxy=drawn(0.5, lefts[c]).xyxy, class_id=0) for c in confidences if confidences[c]]
    ]

    def accept(wanted: float) -> tuple[float, bool]:
        calibration = calibrate_confidence(truths, found, num_classes=1, accept_precision=wanted)
        assert calibration.confidence == 0.4
        return calibration.accept_confidence, calibration.reached

    assert accept(0.0) == accept(0.83) == (0.4, True)  # not below the best F1
    assert accept(0.9) == (0.8, True)  # the lower of the two that will do
    truths[0].pop(0)
    calibration = calibrate_confidence(truths, found, num_classes=1, accept_precision=0.99)
    # Now the most confident box is wrong, and 4 of 6 is as good as it gets.
    assert (calibration.accept_confidence, calibration.reached) == (0.4, False)
    assert calibration.accept_precision == pytest.approx(4 / 6)
    assert [point.precision for point in calibration.curve][:3] == [0, 0.5, pytest.approx(1 / 3)]
    given = calibrate_confidence(truths, found, num_classes=1, given=0.3, accept_precision=0.99)
    assert (given.accept_confidence, given.reached) == (0.3, True)


def test_the_quality_of_accepted_boxes_by_hand() -> None:
    true = [[Box(xyxy=(0, 0, 10, 6), class_id=0)], [Box(xyxy=(0, 0, 10, 6), class_id=0)], []]
    half = DetectedBox(xyxy=(0, 0, 10, 3), class_id=0, confidence=0.9)
    labels = [
        Label(image_id="0", status="accept", boxes=(half, drawn(0.9, 30), drawn(0.8, 1))),
        Label(image_id="1", status="review", boxes=(drawn(0.9),)),
        Label(image_id="2", status="review", boxes=()),
    ]
    quality = measure_accepted(true, labels)
    assert (quality.precision, quality.recall) == (pytest.approx(1 / 3), 0.5)
    assert (quality.mean_iou, quality.num_boxes, quality.num_review) == (0.5, 3, 2)
    nothing = measure_accepted([[]], [Label(image_id="0", status="negative", boxes=())])
    assert (nothing.precision, nothing.recall, nothing.mean_iou) == (None, None, None)
    wrong_kind = Label(image_id="0", status="accept", boxes=(drawn(0.9, class_id=1),))
    assert measure_accepted(true[:1], [wrong_kind]).precision == 0


@pytest.mark.parametrize(
    ("boxes", "correlation", "status", "expected"),
    [
        ([], 0.95, "accept", [60]),  # a real animal that the detector does not know in such water
        ([], 0.85, "review", []),
        ([], None, "review", []),
        ([60], 0.95, "accept", [60]),  # its box is the real one, not the detector's
        ([62], 0.95, "accept", [60]),
        ([62], 0.85, "accept", [62]),
        ([62, 5], 0.95, "review", [60, 5]),
    ],
)
def test_a_real_animal_that_is_still_there_has_its_own_box(
    boxes: list[int], correlation: float | None, status: str, expected: list[int]
) -> None:
    rules = LabelRules(
        confidence=0.5, review_confidence=0.1, negatives=True, placed_correlation=0.9
    )
    placed = [PlacedBox(xyxy=(60, 20, 80, 30), class_id=0, correlation=correlation)]
    found = [
        DetectedBox(xyxy=(x, 20, x + 20, 30), class_id=0, confidence=0.8, agreement=0.9)
        for x in boxes
    ]
    label = decide_label(
        "syn-1", found, size_wh=(96, 64), asked_for=(0,), rules=rules, placed=placed
    )
    assert label.status == status
    assert [box.xyxy[0] for box in label.boxes] == expected


def test_the_detector_decides_alone_where_that_is_asked_for() -> None:
    placed = [PlacedBox(xyxy=(60, 20, 80, 30), class_id=0, correlation=1.0)]
    rules = LabelRules(confidence=0.5, review_confidence=0.1, negatives=True, placed_correlation=1)
    label = decide_label("syn-1", [], size_wh=(96, 64), asked_for=(0,), rules=rules, placed=placed)
    assert label.status == "review"


def test_in_drawn_water_an_unsure_box_elsewhere_needs_a_look() -> None:
    placed = [PlacedBox(xyxy=(60, 20, 90, 40), class_id=0)]
    sure = DetectedBox(xyxy=(60, 20, 90, 40), class_id=0, confidence=0.9)
    unsure = DetectedBox(xyxy=(5, 20, 35, 40), class_id=0, confidence=0.2)
    rules = LabelRules(confidence=0.5, review_confidence=0.1, negatives=True)
    for known_water, status in ((True, "accept"), (False, "review")):
        label = decide_label(
            "syn-1", [sure, unsure], size_wh=(96, 64), asked_for=(0,), rules=rules, placed=placed,
            known_water=known_water,
        )  # fmt: skip
        assert label.status == status


def test_the_size_of_a_painted_animal_is_known() -> None:
    rules = LabelRules(
        confidence=0.5, review_confidence=0.1, negatives=True, sizes=SizePrior(20, 30, 40)
    )
    for placed, status in (
        (None, "review"),
        ([PlacedBox(xyxy=(20, 20, 30, 26), class_id=0)], "accept"),
    ):
        box = DetectedBox(xyxy=(20, 20, 30, 26), class_id=0, confidence=0.9)
        label = decide_label(
            "syn-1", [box], size_wh=(96, 64), asked_for=(0,), rules=rules, placed=placed
        )
        assert label.status == status


def test_few_real_boxes_say_nothing_of_sizes() -> None:
    boxes = [Box(xyxy=(0, 0, 10, 6), class_id=0)] * 19
    assert size_prior(boxes) is None
    assert size_prior([*boxes, *boxes]) == SizePrior(10, 10, 10)


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


def test_silence_of_a_detector_that_finds_no_real_animal_confirms_nothing() -> None:
    rules = LabelRules(confidence=0.5, review_confidence=0.1, negatives=True, blind=True)
    label = decide_label("syn-1", [], size_wh=(96, 64), asked_for=(), rules=rules)
    assert (label.status, label.reason) == ("review", BLIND)


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
