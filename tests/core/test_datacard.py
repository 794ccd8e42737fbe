from __future__ import annotations

from typing import Any

from synthdet.core.datacard import CardFacts, make_data_card
from synthdet.core.records import ManifestEntry


def entry(image_id: str, split: str, source: str, class_ids: tuple[int, ...]) -> ManifestEntry:
    boxes = [{"xyxy": (1, 2, 9, 8), "class_id": class_id} for class_id in class_ids]
    fields: dict[str, Any] = {
        "image_id": image_id,
        "split": split,
        "source": source,
        "boxes": boxes,
        "yolo_path": "",
        "coco_path": "",
        "sha256": "",
        "width": 64,
        "height": 48,
        "provenance": {},
    }
    return ManifestEntry.model_validate(fields)


def test_the_card_counts_and_tells_thresholds_and_models() -> None:
    facts = CardFacts(
        class_names=("seal", "a|b"),
        entries=[
            entry("a", "train", "real", (0, 0, 1)),
            entry("b", "train", "synthetic", ()),
            entry("c", "test", "real", (1,)),
        ],
        left_out={"dropped by the filter": 3},
        filter_counts={
            "threshold": 0.71234,
            "threshold_from": "calibrated",
            "real_lost": 0.021,
            "negatives_passing": None,
            "copy_threshold": 0.98,
        },
        label_counts={"confidence": 0.4, "precision": 0.9, "recall": None},
        models={"LoRA": "SHA-256 12"},
    )
    card = make_data_card(facts)
    assert "| split | source | pictures | without animals | seal | a\\|b |" in card
    assert "| train | real | 1 | 0 | 2 | 1 |" in card
    assert "| train | synthetic | 1 | 1 | 0 | 0 |" in card
    assert "| test | real | 1 | 0 | 0 | 1 |" in card
    assert "- dropped by the filter: 3" in card
    assert (
        "at least 0.7123 (calibrated); 2.1% of the real tiles with an animal would be lost" in card
    )
    assert "from confidence 0.400; on the real val tiles that gives precision 0.90\n" in card
    assert "- LoRA: SHA-256 12" in card


def test_an_empty_card_still_reads_well() -> None:
    card = make_data_card(CardFacts((), [], {}, {}, {}, {}))
    assert "None were applied." in card
    assert "None: all pictures are real." in card
