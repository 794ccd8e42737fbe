from __future__ import annotations

from typing import Any

from synthdet.core.datacard import CardFacts, ModelFact, make_data_card
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
        models=[ModelFact("LoRA", "mine", "SHA-256 12", None)],
        rejected={"photo: truncated": 2},
        mix={"select": "diversity", "num_synthetic": None, "voc": True, "keep_metadata": False},
        num_copies=4,
        num_frames=7,
        groups={"train": 3, "test": 2},
        fingerprint="ab12",
        version="0.1.0",
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
    assert "| LoRA | mine | SHA-256 12 | see its model card |" in card
    assert "- photo: truncated: 2" in card
    assert "- `export.select`: diversity" in card
    assert "num_synthetic" not in card
    assert "(`voc/`)" in card
    assert "4 augmented copies" in card
    assert "the 7 whole real test photos" in card
    assert "Groups: train 3, test 2." in card
    assert "synthdet 0.1.0, manifest SHA-256 `ab12`" in card
    assert "were taken out of the pictures" in card


def test_the_card_says_when_places_were_kept() -> None:
    card = make_data_card(CardFacts((), [], {}, {}, {}, (), mix={"keep_metadata": True}))
    assert "**kept**" in card
    assert "taken out" not in card


def test_the_card_does_not_hide_a_leak() -> None:
    clean, leaking = (
        make_data_card(CardFacts((), [], {}, {}, {}, (), num_shared_groups=number))
        for number in (0, 2)
    )
    assert "none is in two splits" in clean
    assert "**2 are in more than one split" in leaking


def test_an_empty_card_still_reads_well() -> None:
    card = make_data_card(CardFacts((), [], {}, {}, {}, ()))
    assert "None were applied." in card
    assert "None: all pictures are real." in card
