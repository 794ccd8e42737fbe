"""The gallery's file: what it may say, and what is said where it cannot be followed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from synthdet.core.curation import (
    ShownRun,
    near_threshold,
    only_new,
    sort_by_kind,
    strongest,
)
from synthdet.core.formats.verdict_file import from_verdict_file
from synthdet.core.records import (
    Box,
    Decision,
    DetectedBox,
    Label,
    Score,
    SyntheticImage,
    Tile,
    Verdict,
)
from synthdet.errors import SynthdetError

WIDTH, HEIGHT = 1000, 640


def image(number: int, **more: Any) -> SyntheticImage:
    fields: dict[str, Any] = {
        "image_id": f"syn-{number}", "path": "3-generate/images/x.png", "sha256": f"hash-{number}",
        "prompt": "a seal", "negative_prompt": "", "seed": number, "scheduler": "DDIM",
        "num_inference_steps": 2, "guidance_scale": 1.0, "lora_scale": 1.0, "width": WIDTH,
        "height": HEIGHT, "batch": 0, "batch_shape": 1, "asked_for": (0,),
    }  # fmt: skip
    return SyntheticImage(**(fields | more))


def tile(name: str, split: Any) -> Tile:
    return Tile(
        tile_id=name, image_id="photo", group="g", split=split, path="t.png", sha256=f"hash-{name}",
        xyxy=(0, 0, 9, 6), scale=1, width=WIDTH, height=HEIGHT, boxes=(), caption="",
    )  # fmt: skip


def shown_run(number: int = 3, **more: Any) -> ShownRun:
    kinds = ("scores", "decisions", "detections", "labels", "verdicts")
    empty: dict[str, Any] = {kind: {} for kind in kinds}
    return ShownRun(
        root="/runs/seals",
        dataset="synthdet-seals",
        class_names=("seal", "boat"),
        tiles=[tile("t-train", "train"), tile("t-val", "val")],
        images=[image(n) for n in range(number)],
        **(empty | more),
    )


def judged(number: int, verdict: str = "accept", *boxes: list[float], **more: Any) -> Any:
    drawn = {"boxes": [{"xyxy": box, "class_id": 0} for box in boxes]} if boxes else {}
    return {"image_id": f"syn-{number}", "sha256": f"hash-{number}", "verdict": verdict} | drawn | more  # fmt: skip


def file(*verdicts: Any, **more: Any) -> str:
    content = {"synthdet_verdicts": 1, "run": "seals", "classes": ["seal", "boat"]}
    return json.dumps(content | {"verdicts": list(verdicts)} | more)


def read(text: str, shown: ShownRun | None = None) -> tuple[list[Verdict], int]:
    return from_verdict_file(text, shown or shown_run(), where="v.json", by="ann", at="now")


def test_verdicts_come_with_boxes_cut_at_the_edges() -> None:
    text = file(
        judged(0, "accept", [-5, 10.004, 20, 700]), judged(1, "reject", [1, 2, 3, 4]), judged(2)
    )
    (accepted, rejected, as_labelled), passed_over = read(text)
    assert passed_over == 0
    assert accepted == Verdict(
        image_id="syn-0", verdict="accept", boxes=(Box(xyxy=(0, 10, 20, 640), class_id=0),),
        sha256="hash-0", by="ann", at="now",
    )  # fmt: skip
    assert (rejected.verdict, rejected.boxes) == ("reject", None)
    assert as_labelled.boxes is None


def test_an_accepted_picture_may_be_empty() -> None:
    ((verdict,), _) = read(file(judged(0, "accept", boxes=[])))
    assert verdict.boxes == ()


def test_real_train_tiles_can_be_judged_too() -> None:
    on_tile = {"image_id": "t-train", "sha256": "hash-t-train", "verdict": "reject"}
    assert read(file(on_tile))[0][0].image_id == "t-train"


def test_verdicts_on_pictures_made_again_are_passed_over() -> None:
    verdicts, passed_over = read(file(judged(0), judged(1, sha256="of another")))
    assert [verdict.image_id for verdict in verdicts] == ["syn-0"]
    assert passed_over == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"synthdet_verdicts": 1,', "v.json is not readable as JSON"),
        ("[]", "v.json holds no verdicts of the gallery"),
        ('{"boxes": []}', "v.json holds no verdicts of the gallery"),
        (file(synthdet_verdicts=2), "is version 2; this synthdet reads version 1"),
        (file(judged(0, "perhaps")), "verdicts.0.verdict"),
        (file(judged(0, "accept", [1, 2, 3])), "verdicts.0.boxes.0.xyxy"),
        (file(judged(0), judged(0, "reject")), "judges 'syn-0' twice"),
        (file(judged(0), classes=["whale"]), "of another run: it has the classes whale"),
        (file(judged(7)), r"of another run \(seals\).*none of the 1"),
        (file(judged(0, sha256="other")), "of another run.*made again since"),
        (file(judged(0), judged(7)), "judges 'syn-7', which is no synthetic picture"),
        (
            file(judged(0), {"image_id": "t-val", "sha256": "hash-t-val", "verdict": "reject"}),
            "judges 't-val', which is no synthetic picture and no real train tile",
        ),
        (
            file(judged(0, boxes=[{"xyxy": [1, 2, 3, 4], "class_id": 2}])),
            "syn-0 has a box of class 2; the run has 0 to 1",
        ),
        (
            file(judged(0, "accept", [1000, 2, 1010, 4])),
            r"syn-0 has a box \[1000.0, 2.0, 1010.0, 4.0\] with nothing of it in the picture of 1000 x 640",
        ),
        (file(judged(0, "accept", [30, 30, 20, 40])), "nothing of it in the picture"),
        (file(judged(0, "accept", [1, 2, float("nan"), 4])), "v.json"),
    ],
)
def test_what_cannot_be_followed_is_one_line(text: str, message: str) -> None:
    with pytest.raises(SynthdetError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_only_new_verdicts_count_whoever_gave_the_old_ones() -> None:
    (verdicts, _) = read(file(judged(0, "accept", [1, 2, 3, 4]), judged(1, "reject")))
    known = verdicts[0].model_copy(update={"by": "bob", "at": "long ago"})
    shown = shown_run(verdicts={"syn-0": known})
    assert [verdict.image_id for verdict in only_new(shown, verdicts)] == ["syn-1"]
    moved = replace(
        shown, verdicts={"syn-0": known.model_copy(update={"boxes": (Box(xyxy=(1, 2, 3, 4.01), class_id=0),)})}
    )  # fmt: skip
    assert len(list(only_new(moved, verdicts))) == 2


# --- in which order they are looked at ------------------------------------------------------------


def filtered(similarities: list[float], reasons: dict[int, str] | None = None) -> dict[str, Any]:
    """Scores, and decisions at the threshold 0.5."""
    reasons = reasons or {}
    scores, decisions = {}, {}
    for number, similarity in enumerate(similarities):
        name = f"syn-{number}"
        reason = reasons.get(number, "far from real" if similarity < 0.5 else None)
        scores[name] = Score(image_id=name, similarity=similarity, background_similarity=0.45)
        decisions[name] = Decision(image_id=name, kept=reason is None, threshold=0.5, reason=reason)
    return {"scores": scores, "decisions": decisions}


def test_near_the_threshold_are_the_nearest_tenth_of_those_it_decides() -> None:
    similarities = [0.9, 0.52, 0.2, 0.47, 0.8, 0.7, 0.6, 0.3, 0.51, *[0.95] * 11]
    shown = shown_run(20, **filtered(similarities, {8: "copy of a real photo"}))
    assert near_threshold(shown) == {
        "syn-1": pytest.approx(0.02),
        "syn-3": pytest.approx(-0.03),
    }


def test_backgrounds_are_held_against_the_background() -> None:
    shown = replace(
        shown_run(3, **filtered([0.9, 0.9])), images=[image(0), image(1, asked_for=()), image(2)]
    )
    assert shown.margins == {"syn-0": pytest.approx(0.4), "syn-1": pytest.approx(-0.05)}


def test_every_picture_is_looked_at_once_and_the_doubtful_first() -> None:
    similarities = [0.9, 0.52, 0.2, 0.8, 0.3, 0.7, 0.6, 0.65]
    shown = shown_run(8, **filtered(similarities))
    shown.scores["syn-7"] = Score(image_id="syn-7", fault="unreadable")

    def label(number: int, status: Any, *confidences: float) -> Label:
        boxes = tuple(DetectedBox(xyxy=(1, 2, 30, 40), class_id=0, confidence=c) for c in confidences)  # fmt: skip
        return Label(image_id=f"syn-{number}", status=status, boxes=boxes)

    shown.labels.update(
        {
            "syn-0": label(0, "review", 0.4),
            "syn-5": label(5, "review", 0.9, 0.2),
            "syn-3": label(3, "accept", 0.9),
        }
    )
    order = {kind: [one.seed for one in images] for kind, images in sort_by_kind(shown).items()}
    assert order == {"review": [5, 0], "near": [1], "accepted": [6, 3], "dropped": [4, 2]}
    assert shown.describe() == "2 real and 8 synthetic pictures, 2 to review"


def test_of_raw_boxes_the_strongest_are_shown_once() -> None:
    def box(left: float, confidence: float) -> DetectedBox:
        return DetectedBox(
            xyxy=(left, 0, left + 10, 10), class_id=0, confidence=confidence
        )  # fmt: skip

    shown = strongest([box(0, 0.2), box(1, 0.9), box(50, 0.1), box(80, 0.5)], 2)
    assert [one.confidence for one in shown] == [0.9, 0.5]
