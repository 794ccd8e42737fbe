"""A run written by hand up to its labels, with a picture of every fate: to look at and to judge."""

from __future__ import annotations

from pathlib import Path

from synthdet.config import Config
from synthdet.core.records import Decision, DetectedBox, Detections, Label, Score
from synthdet.workspace import Workspace, write_records
from tests.handmade import finish, make_images, make_labels, make_run, make_tiles

NASTY = "</script><img src=x onerror=alert(1)>&amp;'\"\u2028 ${1}$$"
WHALE = (10.0, 8.0, 34.0, 26.0)
FAINT = (40.0, 20.0, 60.0, 40.0)


def make_labelled(root: Path) -> tuple[Workspace, Config]:
    """Numbers 0 and 5 in review, 1 near the threshold, 2 accepted, 3 background, 4 dropped, 6 faulty."""
    workspace, config = make_run(root)
    make_tiles(workspace)
    finish(workspace.stage("finetune"), [], settings={"base_model": "pocket"})
    images, _ = make_images(workspace, [(1,), (0,), (0,), (), (1,), (0,), (0,)])
    images[0] = images[0].model_copy(update={"prompt": NASTY})
    write_records(workspace.stage("generate").path / "images.jsonl", images)
    finish(workspace.stage("generate"), ["images.jsonl"])
    ids = [image.image_id for image in images]
    similarities = (0.8, 0.71, 0.9, 0.4, 0.5, 0.85)
    scores = [
        Score(image_id=i, similarity=s, background_similarity=0.8, nearest_real="train-000", nearest_real_similarity=0.61)
        for i, s in zip(ids, similarities, strict=False)
    ]  # fmt: skip
    reasons = [None, None, None, None, "far from real", None, "blank"]
    decisions = [
        Decision(image_id=i, kept=reason is None, threshold=0.7, reason=reason)
        for i, reason in zip(ids, reasons, strict=True)
    ]
    folder = workspace.stage("filter")
    write_records(folder.path / "scores.jsonl", [*scores, Score(image_id=ids[6], fault="blank")])
    write_records(folder.path / "decisions.jsonl", decisions)
    finish(folder, ["scores.jsonl", "decisions.jsonl"])
    whale = DetectedBox(xyxy=WHALE, class_id=1, confidence=0.9)
    faint = DetectedBox(xyxy=FAINT, class_id=0, confidence=0.2)
    make_labels(
        workspace,
        [
            Label(image_id=ids[0], status="review", boxes=(whale, faint), reason="confidence 0.20"),
            Label(image_id=ids[1], status="accept", boxes=(whale,)),
            Label(image_id=ids[2], status="accept", boxes=(whale,)),
            Label(image_id=ids[3], status="negative", boxes=()),
            Label(image_id=ids[5], status="review", boxes=(), reason="nothing found"),
        ],
    )
    raw = [Detections(image_id=ids[4], boxes=(faint,)), Detections(image_id=ids[0], boxes=(whale,))]
    write_records(workspace.stage("label").path / "detections.jsonl", raw)
    return workspace, config
