"""The real ultralytics, in its process: a random yolo11n at 64 pixels, a few steps."""

from __future__ import annotations

import contextlib
import doctest
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from synthdet.core.comparison import average_precision, match_detections
from synthdet.core.fusion import NUM_VIEWS, split_by_source, turn_picture, undo_view, view_source
from synthdet.core.records import Box
from synthdet.errors import SynthdetError
from synthdet.models import detector, detector_pictures, detector_training
from synthdet.models.detector import (
    ChildDetector,
    ChildTrainer,
    DetectorProcess,
    has_weights,
)
from synthdet.pocket import weights_dir
from synthdet.pocket.sea import render_scene
from tests.quick import skip_without_weights

SIZE = 64
STEPS = 4


@pytest.fixture(scope="module")
def process() -> Iterator[DetectorProcess]:
    with DetectorProcess(threads=1) as child:
        yield child


def draw(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(60, 120, size=(48, 64, 3), dtype=np.uint8)
    cv2.rectangle(picture, (16, 12), (40, 30), (10, 10, 20), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of 64 x 48, one without an animal, and two in val; two classes."""
    root = tmp_path_factory.mktemp("yolo")
    for split, number in (("train", 5), ("val", 2)):
        (root / "labels" / split).mkdir(parents=True)
        for index in range(number):
            draw(root / "images" / split / f"{split}-{index}.png", index)
            line = "" if index == 3 else "1 0.4375 0.4375 0.375 0.375\n"
            (root / "labels" / split / f"{split}-{index}.txt").write_text(line)
    (root / "data.yaml").write_text(
        "train: images/train\nval: images/val\nnames:\n  0: seal\n  1: whale\n"
    )
    return root / "data.yaml"


def train(
    process: DetectorProcess,
    data_yaml: Path,
    folder: Path,
    start: str | Path = "yolo11n",
    **changes: Any,
) -> list[int]:
    steps: list[int] = []
    arguments = {
        "seed": 3,
        "max_train_steps": STEPS,
        "train_batch_size": 4,
        "learning_rate": 1e-3,
        "image_size": SIZE,
    } | changes
    trainer = ChildTrainer(start, device="cpu", threads=1, process=process)
    trainer.train(data_yaml, folder, on_step=steps.append, **arguments)
    return steps


@pytest.fixture(scope="module")
def weights(
    process: DetectorProcess, data_yaml: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "weights"
    assert train(process, data_yaml, folder) == [1, 2, 3, 4]
    return folder


def opened(process: DetectorProcess, weights: Path, **changes: Any) -> ChildDetector:
    arguments = {"image_size": SIZE, "batch_size": 4, "trust": False} | changes
    return ChildDetector(weights, device="cpu", threads=1, process=process, **arguments)


def test_doctests() -> None:
    for module, number in ((detector_training, 4), (detector_pictures, 1)):
        result = doctest.testmod(module)
        assert (result.failed, result.attempted) == (0, number)


def test_weights_are_a_folder_without_a_pickle(weights: Path, data_yaml: Path) -> None:
    assert has_weights(weights)
    assert sorted(path.name for path in weights.iterdir()) == [
        "model.json", "model.safetensors", "names.json",
    ]  # fmt: skip
    assert json.loads((weights / "names.json").read_text()) == ["seal", "whale"]
    assert json.loads((weights / "model.json").read_text()) == {
        "architecture": "yolo11n.yaml", "image_size": SIZE,
    }  # fmt: skip
    assert b"F16" not in (weights / "model.safetensors").read_bytes()[:100_000]
    # Nothing is left beside the dataset, and nothing of ultralytics in this process.
    assert not list(data_yaml.parent.rglob("*.cache"))
    assert "ultralytics" not in sys.modules


def test_same_arguments_same_bits(
    process: DetectorProcess, weights: Path, data_yaml: Path, tmp_path: Path
) -> None:
    """In a process that has done other things, and in a fresh one."""
    train(process, data_yaml, tmp_path / "other", seed=4)
    train(process, data_yaml, tmp_path / "again")
    with DetectorProcess(threads=1) as fresh:
        train(fresh, data_yaml, tmp_path / "fresh")
    first = (weights / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "fresh" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != first


def test_steps_do_not_depend_on_the_number_of_pictures(
    process: DetectorProcess, data_yaml: Path, tmp_path: Path
) -> None:
    """One picture in train, none in val, lists instead of folders: as many steps."""
    picture = data_yaml.parent / "images" / "train" / "train-0.png"
    arm = tmp_path / "arm"
    arm.mkdir()
    relative = os.path.relpath(picture, arm)
    (arm / "train.txt").write_text(f"./{relative}\n")
    (arm / "val.txt").write_text("")
    names = {"train": "train.txt", "val": "val.txt", "names": ["seal", "whale"]}
    (arm / "data.yaml").write_text(json.dumps(names))
    steps = train(process, arm / "data.yaml", tmp_path / "weights", max_train_steps=3)
    assert steps == [1, 2, 3]
    (arm / "train.txt").write_text("")
    with pytest.raises(SynthdetError, match="names no picture to train on"):
        train(process, arm / "data.yaml", tmp_path / "weights")


def test_start_weights_of_other_classes(
    process: DetectorProcess, weights: Path, data_yaml: Path, tmp_path: Path
) -> None:
    """What fits is taken over, the class head starts afresh; half precision is read too."""
    fields = data_yaml.read_text().replace("  1: whale\n", "  1: whale\n  2: boat\n")
    other = data_yaml.parent / "three.yaml"
    other.write_text(fields)
    # A learning rate of next to nothing shows what the training started from.
    train(process, other, tmp_path / "three", start=weights, learning_rate=1e-9)
    assert opened(process, tmp_path / "three").names == ("seal", "whale", "boat")
    from safetensors.numpy import load_file, save_file

    before = load_file(weights / "model.safetensors")
    after = load_file(tmp_path / "three" / "model.safetensors")
    np.testing.assert_allclose(
        after["model.0.conv.weight"], before["model.0.conv.weight"], atol=1e-6
    )
    assert after["model.23.cv3.0.2.weight"].shape[0] == 3
    halves = {name: value.astype(np.float16) if value.dtype.kind == "f" else value
              for name, value in before.items()}  # fmt: skip
    save_file(halves, tmp_path / "three" / "model.safetensors")
    (tmp_path / "three" / "names.json").write_text('["seal", "whale"]')
    assert opened(process, tmp_path / "three").names == ("seal", "whale")


def test_boxes_are_in_pixels_of_the_file(
    process: DetectorProcess, weights: Path, tmp_path: Path
) -> None:
    """A picture that is not square gives what the same one gives, padded to a square by hand."""
    draw(tmp_path / "wide.png", 1)
    wide = cv2.imread(str(tmp_path / "wide.png"))
    square = np.full((64, 64, 3), 114, dtype=np.uint8)
    square[8:56] = wide
    cv2.imwrite(str(tmp_path / "square.png"), square)
    cv2.imwrite(
        str(tmp_path / "large.png"), cv2.resize(wide, (128, 96), interpolation=cv2.INTER_NEAREST)
    )
    detector = opened(process, weights)
    paths = [tmp_path / name for name in ("wide.png", "square.png", "large.png")]
    found_wide, found_square, found_large = detector.detect(paths, min_confidence=1e-6)
    assert len(found_wide) > 5
    assert all(0 <= box.xyxy[1] < box.xyxy[3] <= 48 for box in found_wide)
    assert max(box.xyxy[3] for box in found_large) > 48
    confidences = [box.confidence for box in found_wide]
    assert confidences == sorted(confidences, reverse=True)

    def moved(xyxy: tuple[float, ...]) -> tuple[float, ...]:
        return (xyxy[0], max(xyxy[1] - 8, 0), xyxy[2], min(xyxy[3] - 8, 48))

    expected = sorted(
        moved(box.xyxy) for box in found_square if moved(box.xyxy)[3] - moved(box.xyxy)[1] > 0.5
    )
    np.testing.assert_allclose(sorted(box.xyxy for box in found_wide), expected, atol=0.01)
    # One picture or three in a batch: the same boxes but for rounding.
    alone = opened(process, weights, batch_size=1).detect(paths, min_confidence=1e-6)[0]
    np.testing.assert_allclose(
        sorted(box.xyxy for box in alone), sorted(box.xyxy for box in found_wide), atol=0.05
    )
    # The first detector is asked again after another one used the same child.
    assert detector.detect(paths, min_confidence=1e-6)[0] == found_wide


def test_two_cores_draw_what_one_draws(
    process: DetectorProcess, weights: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        draw(path, seed)
    expected = opened(process, weights).detect(paths, min_confidence=1e-6)
    with DetectorProcess(threads=2) as child:
        found = opened(child, weights).detect(paths, min_confidence=1e-6)
    for some, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            sorted(box.xyxy for box in some), sorted(box.xyxy for box in others), atol=0.05
        )


def test_views_are_those_of_the_turned_file(
    process: DetectorProcess, weights: Path, tmp_path: Path
) -> None:
    """Each view's boxes, turned back, are those drawn in a file turned by hand."""
    draw(tmp_path / "wide.png", 1)
    wide = cv2.imread(str(tmp_path / "wide.png"))
    detector = opened(process, weights)
    (found,) = detector.detect([tmp_path / "wide.png"], min_confidence=1e-6, views=True)
    (plain,) = detector.detect([tmp_path / "wide.png"], min_confidence=1e-6)
    by_view = split_by_source(found, [view_source("detector", view) for view in range(NUM_VIEWS)])
    assert tuple(by_view[0]) == plain
    assert sum(map(len, by_view)) == len(found)
    for view in (1, 3, 6):
        path = tmp_path / f"turned-{view}.png"
        cv2.imwrite(str(path), np.ascontiguousarray(turn_picture(wide, view)))
        (turned,) = detector.detect([path], min_confidence=1e-6)
        back = undo_view(np.array([box.xyxy for box in turned]), view, (64, 48))
        np.testing.assert_allclose(
            sorted(back.tolist()), sorted(box.xyxy for box in by_view[view]), atol=0.01
        )


def test_the_embedded_detector_finds_what_it_was_built_for(
    process: DetectorProcess, tmp_path: Path
) -> None:
    """Names, colours and places: boats in a rendered sea, in a picture that is not square."""
    skip_without_weights()
    scenes = [render_scene(seed, size_wh=(160, 128), subject="boat") for seed in range(6)]
    for number, scene in enumerate(scenes):
        cv2.imwrite(str(tmp_path / f"{number}.png"), scene.image[..., ::-1])
    detector = opened(process, weights_dir() / "yolo", image_size=160)
    found = detector.detect([tmp_path / f"{n}.png" for n in range(6)], min_confidence=0.001)
    boat = detector.names.index("boat")
    truths = [[Box(xyxy=box.xyxy, class_id=boat) for box in scene.boxes] for scene in scenes]
    matches = match_detections(truths, found, num_classes=len(detector.names))
    assert average_precision(matches)[0] > 0.7


def test_what_cannot_be_read_is_named(
    process: DetectorProcess, weights: Path, data_yaml: Path, tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(b"torn")
    detector = opened(process, weights)
    with pytest.raises(SynthdetError, match=r"torn\.png cannot be read as a picture"):
        detector.detect([tmp_path / "torn.png"], min_confidence=0.1)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in weights.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SynthdetError, match=r"damaged holds no usable detector"):
        opened(process, damaged)
    with pytest.raises(SynthdetError, match="there is no detector yolo11z"):
        train(process, data_yaml, tmp_path / "none", start="yolo11z")
    for start, head in (
        ("yolo11n-seg", "Segment"), ("rtdetr-l", "RTDETRDecoder"), ("yolov8s-worldv2", "WorldDetect"),
    ):  # fmt: skip
        with pytest.raises(
            SynthdetError, match=f"a network that ends in {head} draws no plain boxes"
        ):
            train(process, data_yaml, tmp_path / "none", start=start)


def test_a_pickle_is_loaded_only_if_trusted(
    process: DetectorProcess, data_yaml: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt"
    script = f"from ultralytics import YOLO; YOLO('yolo11n.yaml').save({str(path)!r})"
    environment = os.environ | {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, capture_output=True)
    with pytest.raises(SynthdetError, match=r"mine\.pt: a \.pt file can run code.*label\.trust"):
        opened(process, path)
    with pytest.raises(SynthdetError, match=r"label\.trust"):
        ChildTrainer(path, device="cpu", threads=1)
    assert len(opened(process, path, trust=True).names) == 80
    trainer = ChildTrainer(path, device="cpu", threads=1, trust=True, process=process)
    trainer.train(
        data_yaml, tmp_path / "weights", seed=0, max_train_steps=1, train_batch_size=2,
        learning_rate=1e-3, image_size=SIZE, on_step=lambda _step: None,
    )  # fmt: skip
    assert opened(process, tmp_path / "weights").names == ("seal", "whale")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo11n.pt", "nothing is downloaded"),
        ("nowhere/of/yolo", "there is no detector nowhere/of/yolo"),
        (".", r"\. holds no detector: model\.safetensors is missing"),
    ],
)
def test_weights_that_are_not_there(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SynthdetError, match=message):
        ChildTrainer(name, device="cpu", threads=1)


def test_nothing_is_imported_from_the_current_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ultralytics.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with DetectorProcess(threads=1) as child:
        assert opened(child, weights).names
    assert not (tmp_path / "ran").exists()


def test_a_killed_child_is_an_error_and_leaves_no_weights(data_yaml: Path, tmp_path: Path) -> None:
    with DetectorProcess(threads=1) as child:

        def kill(step: int) -> None:
            os.kill(child._mine.child.process.pid, signal.SIGKILL)

        trainer = ChildTrainer("yolo11n", device="cpu", threads=1, process=child)
        with pytest.raises(SynthdetError, match="was killed.*train_batch_size"):
            trainer.train(
                data_yaml, tmp_path / "weights", seed=0, max_train_steps=500, train_batch_size=4,
                learning_rate=1e-3, image_size=SIZE, on_step=kill,
            )  # fmt: skip
        assert not list(tmp_path.iterdir())
        # And the next job has a new child.
        with pytest.raises(SynthdetError, match="untrained architecture"):
            opened(child, Path("yolo11n"))


def test_a_detector_whose_process_was_killed_draws_on_in_a_new_one(
    weights: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "wide.png", 1)
    with DetectorProcess(threads=1) as child:
        detector = opened(child, weights)
        before = detector.detect([tmp_path / "wide.png"], min_confidence=1e-6)
        os.kill(child._mine.child.process.pid, signal.SIGKILL)
        with pytest.raises(SynthdetError, match="was killed"):
            detector.detect([tmp_path / "wide.png"], min_confidence=1e-6)
        assert detector.detect([tmp_path / "wide.png"], min_confidence=1e-6) == before


def test_a_killed_parent_takes_its_child_along(data_yaml: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from synthdet.models.detector import DetectorProcess, ChildTrainer
child = DetectorProcess(1)
trainer = ChildTrainer("yolo11n", device="cpu", threads=1, process=child)
say = lambda step: print(child._mine.child.process.pid, flush=True)
trainer.train(Path({str(data_yaml)!r}), Path({str(tmp_path / "weights")!r}), seed=0, max_train_steps=5000,
    train_batch_size=4, learning_rate=1e-3, image_size=64, on_step=say)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            # Whoever inherits it may leave it as a zombie.
            if Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] != "Z":
                time.sleep(0.1)
                continue
        return
    raise AssertionError("the child is still running")


def test_every_thread_has_a_child_of_its_own_and_closing_ends_those_at_work(
    data_yaml: Path, tmp_path: Path
) -> None:
    begun = threading.Barrier(3, timeout=120)
    errors: list[BaseException] = []

    def train_long(name: str) -> None:
        met = False

        def on_step(_step: int) -> None:
            nonlocal met
            if not met:
                met = True
                begun.wait()

        try:
            ChildTrainer("yolo11n", device="cpu", threads=1, process=process).train(
                data_yaml, tmp_path / name, seed=0, max_train_steps=100_000, train_batch_size=4,
                learning_rate=1e-3, image_size=SIZE, on_step=on_step,
            )  # fmt: skip
        except (SynthdetError, ValueError) as error:  # its files are closed under it
            errors.append(error)

    process = DetectorProcess(threads=1)
    threads = [threading.Thread(target=train_long, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    begun.wait()  # both train at the same time
    process.close()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(errors) == 2
    assert not list(tmp_path.rglob("names.json"))


def start_parrot(_threads: int) -> detector._Child:
    """A child that answers every job at once."""
    code = "import sys\nfor line in sys.stdin: print('{\"done\": 1}', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return detector._Child(process, process.stdin, process.stdout, tempfile.TemporaryFile())


def test_children_of_threads_that_ended_are_ended_and_closed_means_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(detector, "_start", start_parrot)
    with DetectorProcess(threads=1) as process:
        for _ in range(3):
            thread = threading.Thread(target=process.ask, args=({"job": "say"},))
            thread.start()
            thread.join()
            assert len(process._stops) == 1
    with pytest.raises(SynthdetError, match="was closed"):
        process.ask({"job": "say"})
