"""The real transformers detectors, in their process: tiny ones with random weights, a few steps."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file

from synthdet.core.comparison import pairwise_iou
from synthdet.core.fusion import NUM_VIEWS, split_by_source, turn_picture, undo_view, view_source
from synthdet.errors import SynthdetError
from synthdet.models.detector import (
    ChildDetector,
    ChildTrainer,
    DetectorProcess,
    find_start,
    has_weights,
)
from synthdet.models.detr import (
    Change,
    change_picture,
    draw_change,
    to_rows,
    update_average,
)
from tests.tiny import tiny_detr

SIZE = 96
KINDS = ("rt_detr", "rt_detr_v2", "d_fine")


@pytest.fixture(scope="module")
def process() -> Iterator[DetectorProcess]:
    with DetectorProcess(threads=1) as child:
        yield child


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_detr(tmp_path_factory.mktemp("start") / "detr")


def draw(path: Path, xyxy: tuple[int, int, int, int], seed: int) -> NDArray[np.uint8]:
    """A dark animal on noise, 96 x 72."""
    picture = np.random.default_rng(seed).integers(90, 130, size=(72, 96, 3), dtype=np.uint8)
    x1, y1, x2, y2 = xyxy
    picture[y1:y2, x1:x2] = (10, 20, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    return picture


def animal(number: int) -> tuple[int, int, int, int]:
    x, y = np.random.default_rng(number).integers((4, 4), (68, 50)).tolist()
    return x, y, x + 24, y + 16


def make_dataset(root: Path, names: tuple[str, ...] = ("seal",), *, empty: bool = False) -> Path:
    """Eight pictures in train and two in val, an animal in each, if they are not ``empty``."""
    for split, numbers in (("train", range(8)), ("val", range(8, 10))):
        for number in numbers:
            x1, y1, x2, y2 = animal(number)
            draw(root / "images" / split / f"{number}.png", animal(number), number)
            cx, cy, w, h = (x1 + x2) / 192, (y1 + y2) / 144, (x2 - x1) / 96, (y2 - y1) / 72
            label = root / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("" if empty else f"0 {cx} {cy} {w} {h}\n")
    listed = {"train": "images/train", "val": "images/val", "names": list(names)}
    (root / "data.yaml").write_text(json.dumps(listed))
    return root / "data.yaml"


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("yolo"))


def train(
    process: DetectorProcess, start: Path, data_yaml: Path, folder: Path, **changes: Any
) -> list[int]:
    steps: list[int] = []
    arguments = {
        "seed": 3,
        "max_train_steps": 4,
        "train_batch_size": 4,
        "learning_rate": 2e-3,
        "image_size": SIZE,
        "on_step": steps.append,
    } | changes
    trainer = ChildTrainer(start, device="cpu", threads=1, process=process)
    trainer.train(data_yaml, folder, **arguments)
    return steps


def opened(process: DetectorProcess, weights: Path, **changes: Any) -> ChildDetector:
    arguments = {"image_size": SIZE, "batch_size": 4, "trust": False} | changes
    return ChildDetector(weights, device="cpu", threads=1, process=process, **arguments)


@pytest.fixture(scope="module")
def learned(
    process: DetectorProcess, start: Path, data_yaml: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What has seen eight pictures often enough to know them."""
    folder = tmp_path_factory.mktemp("weights") / "weights"
    steps = train(process, start, data_yaml, folder, max_train_steps=160)
    assert steps == list(range(1, 161))
    return folder


# --- learning ----------------------------------------------------------------------------------


def test_it_learns_to_find_an_animal(
    process: DetectorProcess, learned: Path, start: Path, data_yaml: Path
) -> None:
    numbers = range(8)
    paths = [data_yaml.parent / "images" / "train" / f"{number}.png" for number in numbers]
    detector = opened(process, learned)
    assert detector.names == ("seal",)
    found = detector.detect(paths, min_confidence=0.001)
    untrained = opened(process, start).detect(paths, min_confidence=0.001)
    for number, boxes, before in zip(numbers, found, untrained, strict=True):
        assert boxes[0].confidence > 0.2
        assert 1 <= len(boxes) <= 100
        truth = np.array([animal(number)], dtype=np.float64)
        assert pairwise_iou(truth, np.array([boxes[0].xyxy]))[0, 0] > 0.5
        assert not before or pairwise_iou(truth, np.array([before[0].xyxy]))[0, 0] < 0.5


def test_weights_are_a_folder_that_transformers_opens(
    process: DetectorProcess, learned: Path, tmp_path: Path
) -> None:
    """The same boxes, by transformers' own way in and out, in a picture that is square."""
    assert has_weights(learned)
    assert sorted(path.name for path in learned.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    network = transformers.AutoModelForObjectDetection.from_pretrained(learned)
    processor = transformers.AutoImageProcessor.from_pretrained(learned)
    assert network.config.id2label == {0: "seal"}
    picture = np.random.default_rng(1).integers(90, 130, size=(SIZE, SIZE, 3), dtype=np.uint8)
    picture[30:46, 20:44] = (30, 20, 10)
    cv2.imwrite(str(tmp_path / "square.png"), picture[..., ::-1])
    with torch.no_grad():
        output = network(**processor(images=picture, return_tensors="pt"))
    (theirs,) = processor.post_process_object_detection(
        output, threshold=0.05, target_sizes=[(SIZE, SIZE)]
    )
    (ours,) = opened(process, learned).detect([tmp_path / "square.png"], min_confidence=0.05)
    best = int(theirs["scores"].argmax())
    np.testing.assert_allclose(ours[0].confidence, theirs["scores"][best], atol=1e-4)
    np.testing.assert_allclose(ours[0].xyxy, theirs["boxes"][best], atol=0.01)


def test_same_arguments_same_bits_also_after_a_kill(
    process: DetectorProcess, start: Path, data_yaml: Path, tmp_path: Path
) -> None:
    """In a process that has done other things, and in one that begins again after it was killed."""
    train(process, start, data_yaml, tmp_path / "once")
    train(process, start, data_yaml, tmp_path / "other", seed=4)
    with DetectorProcess(threads=1) as child:

        def kill(step: int) -> None:
            if step == 2:
                os.kill(child._mine.child.process.pid, signal.SIGKILL)

        with pytest.raises(SynthdetError, match="was killed.*train_batch_size"):
            train(child, start, data_yaml, tmp_path / "again", max_train_steps=400, on_step=kill)
        assert not (tmp_path / "again").exists()
        assert train(child, start, data_yaml, tmp_path / "again") == [1, 2, 3, 4]
    first, again, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "again", "other")
    )
    assert again == first
    assert other != first


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_over_what_fits(
    process: DetectorProcess, kind: str, tmp_path: Path
) -> None:
    """From two classes to three: a rate of next to nothing shows what it started from."""
    start = tiny_detr(tmp_path / "start", kind=kind)
    data_yaml = make_dataset(tmp_path / "set", ("seal", "whale", "boat"))
    train(process, start, data_yaml, tmp_path / "w", learning_rate=1e-9, max_train_steps=1)
    assert opened(process, tmp_path / "w").names == ("seal", "whale", "boat")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "w"))
    assert before.keys() == after.keys()
    others = {name for name in before if before[name].shape != after[name].shape}
    heads = ("class_embed", "enc_score_head")
    assert others
    assert all(any(head in name for head in heads) for name in others)
    for name in before.keys() - others:
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=name)
    assert float(after["model.enc_score_head.bias"].max()) < -4  # 1 in 100, not 1 in 4


def test_a_kind_with_a_class_for_nothing(
    process: DetectorProcess, data_yaml: Path, tmp_path: Path
) -> None:
    """Older kinds share confidence between their classes and none: none is never drawn."""
    config = transformers.YolosConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=[SIZE, SIZE], num_detection_tokens=5, num_labels=3,
    )  # fmt: skip
    transformers.AutoModelForObjectDetection.from_config(config).save_pretrained(tmp_path / "yolos")
    train(process, tmp_path / "yolos", data_yaml, tmp_path / "w", max_train_steps=1)
    picture = data_yaml.parent / "images" / "val" / "8.png"
    (found,) = opened(process, tmp_path / "w").detect([picture], min_confidence=0.01)
    assert {box.class_id for box in found} == {0}
    assert all(0.3 < box.confidence < 0.7 for box in found)


def test_pictures_without_animals_are_learned_from(
    process: DetectorProcess, start: Path, tmp_path: Path
) -> None:
    data_yaml = make_dataset(tmp_path / "set", empty=True)
    assert train(process, start, data_yaml, tmp_path / "w") == [1, 2, 3, 4]
    assert has_weights(tmp_path / "w")


def test_a_loss_that_is_no_number_is_an_error(
    process: DetectorProcess, start: Path, data_yaml: Path, tmp_path: Path
) -> None:
    with pytest.raises(SynthdetError, match=r"no number at step \d+: lower learning_rate"):
        train(process, start, data_yaml, tmp_path / "w", learning_rate=1e9, max_train_steps=20)
    assert not (tmp_path / "w").exists()


# --- boxes -------------------------------------------------------------------------------------


def test_boxes_are_in_pixels_of_the_file(
    process: DetectorProcess, learned: Path, tmp_path: Path
) -> None:
    """A picture that is not square gives what the same one gives, padded to a square by hand."""
    wide = draw(tmp_path / "wide.png", (50, 20, 74, 36), 1)
    square = np.full((96, 96, 3), 114, dtype=np.uint8)
    square[12:84] = wide
    cv2.imwrite(str(tmp_path / "square.png"), square)
    large = cv2.resize(wide, (192, 144), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "large.png"), large)
    paths = [tmp_path / name for name in ("wide.png", "square.png", "large.png")]
    detector = opened(process, learned)
    in_wide, in_square, in_large = (
        found[0].xyxy for found in detector.detect(paths, min_confidence=0.1)
    )
    np.testing.assert_allclose(in_wide, np.subtract(in_square, (0, 12, 0, 12)), atol=0.01)
    np.testing.assert_allclose(in_wide, np.divide(in_large, 2), atol=1)
    assert pairwise_iou(np.array([in_wide]), np.array([(50.0, 20, 74, 36)]))[0, 0] > 0.5
    # One picture or three in a batch: the same boxes but for rounding.
    (alone,) = opened(process, learned, batch_size=1).detect(paths[:1], min_confidence=0.1)
    np.testing.assert_allclose(alone[0].xyxy, in_wide, atol=0.05)


def test_views_are_those_of_the_turned_file(
    process: DetectorProcess, learned: Path, tmp_path: Path
) -> None:
    wide = draw(tmp_path / "wide.png", (50, 20, 74, 36), 1)
    detector = opened(process, learned)
    (found,) = detector.detect([tmp_path / "wide.png"], min_confidence=0.01, views=True)
    by_view = split_by_source(found, [view_source("detector", view) for view in range(NUM_VIEWS)])
    assert tuple(by_view[0]) == detector.detect([tmp_path / "wide.png"], min_confidence=0.01)[0]
    for view in (1, 3, 6):
        path = tmp_path / f"turned-{view}.png"
        cv2.imwrite(str(path), np.ascontiguousarray(turn_picture(wide, view)))
        (turned,) = detector.detect([path], min_confidence=0.01)
        back = undo_view(np.array([box.xyxy for box in turned]), view, (96, 72))
        np.testing.assert_allclose(back, [box.xyxy for box in by_view[view]], atol=0.01)


def test_rows_are_the_surest_of_every_class_and_each_animal_once() -> None:
    cxcywh = torch.tensor([[[20.0, 10, 8, 4], [20.0, 10, 8, 4.2], [50, 40, 10, 20]]])
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.3], [0.02, 0.6]]])
    (rows,) = to_rows(scores, cxcywh, 0.25)
    np.testing.assert_allclose(
        rows, [[16, 8, 24, 12, 0.9, 0], [45, 30, 55, 50, 0.6, 1], [16, 7.9, 24, 12.1, 0.3, 1]],
        atol=1e-5,
    )  # fmt: skip


# --- pictures in -------------------------------------------------------------------------------


@pytest.mark.parametrize("view", range(NUM_VIEWS))
def test_boxes_stay_on_their_animals_however_a_picture_is_changed(view: int) -> None:
    picture = np.full((60, 90, 3), 200, dtype=np.uint8)
    picture[10:30, 20:60] = 0
    change = Change(zoom=1.2, shift=(0.05, -0.04), view=view, gains=(1.0, 1.0, 1.0))
    truth = np.array([[20.0, 10, 60, 30]])
    square, boxes, kept = change_picture(picture, truth, change, 120)
    assert square.shape == (120, 120, 3)
    assert kept.tolist() == [True]
    rows, columns = np.nonzero(square[..., 0] < 60)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_allclose(boxes[0], seen, atol=1.0)


def test_an_animal_that_is_moved_out_has_no_box() -> None:
    picture = np.full((60, 90, 3), 200, dtype=np.uint8)
    truth = np.array([[0.0, 20, 8, 28], [40, 20, 50, 30]])
    change = Change(zoom=1.0, shift=(-0.1, 0.0), view=0, gains=(1.0, 1.0, 1.0))
    _square, boxes, kept = change_picture(picture, truth, change, 90)
    assert kept.tolist() == [False, True]
    np.testing.assert_allclose(boxes, [[31, 35, 41, 45]])
    nothing = change_picture(picture, np.zeros((0, 4)), change, 90)
    assert nothing[1].shape == (0, 4)


def test_the_last_pictures_are_turned_and_coloured_alone() -> None:
    seeds = [np.random.default_rng(number) for number in range(40)]
    changes = [draw_change(generator, whole=False) for generator in seeds]
    assert {change.view for change in changes} == set(range(NUM_VIEWS))
    assert min(change.zoom for change in changes) < 0.7 < 1.3 < max(c.zoom for c in changes)
    whole = draw_change(np.random.default_rng(7), whole=True)
    assert replace(whole, zoom=changes[7].zoom, shift=changes[7].shift) == changes[7]
    assert (whole.zoom, whole.shift) == (1.0, (0.0, 0.0))


def test_averaged_weights_follow_slowly_and_shared_ones_once() -> None:
    def make(value: float) -> torch.nn.Sequential:
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(layer.weight, value)
        return torch.nn.Sequential(layer, layer, torch.nn.BatchNorm1d(1))

    average, network = make(0.0), make(1.0)
    network[2].num_batches_tracked += 5
    update_average(average, network, 2000)
    expected = 1 - 0.9999 * (1 - np.exp(-1))
    np.testing.assert_allclose(average[0].weight.item(), expected, rtol=1e-6)
    assert int(average[2].num_batches_tracked) == 5


# --- what cannot be opened ---------------------------------------------------------------------


def test_what_a_name_is_is_seen_from_it(start: Path, tmp_path: Path) -> None:
    for name in (start, "PekingU/rtdetr_r18vd", "ustc-community/dfine-small-coco"):
        found = find_start(name, trust=False)
        assert (found.kind, found.library) == ("transformers", "transformers (Apache-2.0)")
    assert find_start(start, trust=False).where == str(start)
    assert "ultralytics" not in sys.modules  # nor does opening them bring it in
    assert find_start("yolo11n", trust=False).library == "ultralytics (AGPL-3.0)"
    assert find_start("yolo11n.yaml", trust=False).kind == "architecture"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SynthdetError, match=r"no weights as safetensors beside config\.json"):
        find_start(tmp_path, trust=False)


def test_what_cannot_be_opened_is_named(
    learned: Path, start: Path, data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with DetectorProcess(threads=1) as child:
        with pytest.raises(SynthdetError, match="there is no detector nobody/has-it: no folder"):
            train(child, Path("nobody/has-it"), data_yaml, tmp_path / "w")
        clip = tmp_path / "clip"
        transformers.CLIPConfig().save_pretrained(clip)
        (clip / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes())
        with pytest.raises(SynthdetError, match=r"clip holds no usable detector: .*CLIPConfig"):
            opened(child, clip)
        damaged = tmp_path / "damaged"
        damaged.mkdir()
        for path in learned.iterdir():
            (damaged / path.name).write_bytes(path.read_bytes()[:5000])
        with pytest.raises(SynthdetError, match="damaged holds no usable detector: "):
            opened(child, damaged)
        with pytest.raises(SynthdetError, match="draws 24 boxes.*set image_size to 64 or more"):
            train(child, start, data_yaml, tmp_path / "w", image_size=32)
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes())
        (theirs / "config.json").write_text(
            '{"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config"}}'
        )
        (theirs / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(SynthdetError, match=r"theirs holds no usable detector: .*custom code"):
            opened(child, theirs)  # nor does it wait for an answer whether it may
        assert not (tmp_path / "ran").exists()
        (tmp_path / "torn.png").write_bytes(b"torn")
        with pytest.raises(SynthdetError, match=r"torn\.png cannot be read as a picture"):
            opened(child, learned).detect([tmp_path / "torn.png"], min_confidence=0.1)
    assert not (tmp_path / "w").exists()
