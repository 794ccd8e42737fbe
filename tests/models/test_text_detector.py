"""Detectors by text: tiny OWLv2 and Grounding DINO with random weights, saved as the real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from synthdet.core.fusion import NUM_VIEWS, view_source
from synthdet.core.records import DetectedBox
from synthdet.errors import SynthdetError
from synthdet.models.detector import ChildDetector, ChildTrainer, DetectorProcess, Start, Wanted
from synthdet.models.detr import finds_by_text
from synthdet.models.text_detector import TextDetector, detect, join_phrases, open_network
from tests.tiny import tiny_detr, tiny_grounding_dino, tiny_owlv2

CLASSES = ("seal", "orca")
SIDE, PATCH = 64, 8
BLOB = (36, 21, 48, 33)
"""In a picture of 96 x 40: in the square of 64 px, 18 px below its upper edge, one patch of 8 px."""


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_owlv2(tmp_path_factory.mktemp("owl") / "owlv2", side=SIDE)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_grounding_dino(tmp_path_factory.mktemp("dino") / "grounding-dino")


def opened(where: Path, wanted: Wanted | None = None) -> TextDetector:
    return open_network(Start("transformers", str(where)), "cpu", wanted or Wanted(CLASSES))


def draw(network: TextDetector, *paths: Path, **changes: Any) -> list[list[DetectedBox]]:
    settings = {"batch_size": 2, "device": "cpu", "min_confidence": 0.0} | changes
    return detect(network, paths, image_size=network.image_size, **settings)


def with_blob(path: Path, *, portrait: bool = False) -> Path:
    """Grey water with one black animal."""
    picture = np.full((40, 96, 3), 114, dtype=np.uint8)
    x1, y1, x2, y2 = BLOB
    picture[y1:y2, x1:x2] = 0
    cv2.imwrite(str(path), picture.swapaxes(0, 1) if portrait else picture)
    return path


def noise(path: Path, size_wh: tuple[int, int]) -> Path:
    width, height = size_wh
    rng = np.random.default_rng(3)
    cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    return path


def darkness(pixels: Tensor, patch: int) -> Tensor:
    """``(n, patches)``: how dark each patch is, row by row."""
    return -torch.nn.functional.avg_pool2d(pixels.mean(dim=1, keepdim=True), patch).flatten(1)


def fire_where_dark(network: TextDetector, class_id: int) -> None:
    """The darkest patch shows the class, surely; no other patch shows anything."""

    def change(_module: Any, _arguments: Any, given: dict[str, Tensor], output: Any) -> Any:
        dark = darkness(given["pixel_values"], PATCH)
        output.logits = torch.full_like(output.logits, -20.0)
        output.logits[torch.arange(len(dark)), dark.argmax(dim=1), class_id] = 20.0
        return output

    network.opened.network.register_forward_hook(change, with_kwargs=True)


@pytest.mark.parametrize("portrait", [False, True])
def test_owl_boxes_are_in_pixels_of_a_picture_that_is_not_square(
    owl: Path, tmp_path: Path, portrait: bool
) -> None:
    """A known patch fires: its box must lie on the animal, in every view of the picture."""
    network = opened(owl)
    fire_where_dark(network, class_id=1)
    owlv2 = network.opened.network
    for parameter in owlv2.box_head.dense2.parameters():
        parameter.zero_()  # a patch's box is the patch

    # transformers' own grid puts a patch's box half a patch to the right of it and below.
    (boxes,) = draw(network, with_blob(tmp_path / "a.png", portrait=portrait), min_confidence=0.5)
    aside = (27, 42, 39, 54) if portrait else (42, 27, 54, 39)
    assert [(box.class_id, box.source) for box in boxes] == [(1, "detector")]
    assert boxes[0].xyxy == pytest.approx(aside, abs=0.05)

    centres = (torch.stack(torch.meshgrid(*[torch.arange(8)] * 2, indexing="xy"), -1) + 0.5) / 8
    owlv2.box_bias[:, :2] = torch.logit(centres.view(-1, 2))
    (boxes,) = draw(network, tmp_path / "a.png", min_confidence=0.5, num_views=NUM_VIEWS)
    assert [box.source for box in boxes] == [view_source("detector", n) for n in range(NUM_VIEWS)]
    x1, y1, x2, y2 = BLOB
    for box in boxes:
        assert box.xyxy == pytest.approx((y1, x1, y2, x2) if portrait else BLOB, abs=0.05)


def test_owl_draws_what_transformers_draws(owl: Path, tmp_path: Path) -> None:
    """In a square picture of its size; transformers gives each patch its best phrase alone."""
    path = noise(tmp_path / "a.png", (SIDE, SIDE))
    network = opened(owl, Wanted(("seal",), {"seal": ["a seal on ice"]}))
    processor = AutoProcessor.from_pretrained(owl)
    theirs = AutoModelForZeroShotObjectDetection.from_pretrained(owl)
    with Image.open(path) as picture, torch.no_grad():
        inputs = processor(text=[["a seal on ice"]], images=picture, return_tensors="pt")
        output = theirs(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        output, threshold=0.0, target_sizes=torch.tensor([(SIDE, SIDE)])
    )
    (found,) = draw(network, path)
    inside = expected["boxes"].clip(0, SIDE)
    visible = (inside[:, 2:] - inside[:, :2]).amin(dim=1) > 0.5  # of random ones many lie outside
    best = int(torch.where(visible, expected["scores"], 0).argmax())
    assert found[0].confidence == pytest.approx(float(expected["scores"][best]), abs=1e-4)
    assert found[0].xyxy == pytest.approx(inside[best].tolist(), abs=0.02)


def test_owl_takes_the_best_phrase_of_a_class_and_other_sizes(owl: Path, tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", (90, 60))
    phrases = {"orca": ["orca"], "seal": ["seal", "grey pup"]}
    each = [opened(owl, Wanted(("seal",), {"seal": [phrase]})).look for phrase in phrases["seal"]]
    network = opened(owl, Wanted(CLASSES, phrases))
    assert list(network.queries) == ["seal", "orca"]  # as the run's ids are
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    scores, _boxes = network.look(pixels)
    best = torch.stack([look(pixels)[0][..., 0] for look in each]).amax(dim=0)
    assert torch.allclose(scores[..., 0], best, atol=1e-6)
    larger = opened(owl, Wanted(CLASSES, image_size=100))
    assert larger.image_size == 96  # whole patches
    (found,) = draw(larger, path)
    assert found
    assert max(box.xyxy[2] for box in found) <= 90
    assert max(box.xyxy[3] for box in found) <= 60


def test_grounding_dino_reads_the_line_that_transformers_writes(dino: Path) -> None:
    processor = AutoProcessor.from_pretrained(dino)
    line, places = join_phrases(
        processor.tokenizer, {"seal": ["Seal", "grey pup"], "orca": ["orca"]}
    )
    theirs = processor(text=[["Seal", "grey pup", "orca"]], return_tensors="pt")["input_ids"][0]
    assert line == theirs.tolist()
    said = [processor.tokenizer.decode(line[begin:end]) for own in places for begin, end in own]
    assert said == ["seal", "grey pup", "orca"]
    with pytest.raises(SynthdetError, match=r"label\.queries\.seal: 'a\. b' must be words"):
        join_phrases(processor.tokenizer, {"seal": ["a. b"]})


def test_grounding_dino_boxes_are_in_pixels_of_a_picture_that_is_not_square(
    dino: Path, tmp_path: Path
) -> None:
    """One box, around what is dark, that fits the second class's words and half of the first's."""
    network = opened(dino)
    side = network.image_size
    assert (network.queries, side) == ({"seal": ["seal"], "orca": ["orca"]}, 96)

    def change(_module: Any, _arguments: Any, given: dict[str, Tensor], output: Any) -> Any:
        dark = given["pixel_values"].mean(dim=1) < given["pixel_values"].mean() - 0.5
        output.logits = torch.full_like(output.logits, -20.0)
        for number, picture in enumerate(dark):
            ys, xs = torch.nonzero(picture, as_tuple=True)
            corners = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            x1, y1, x2, y2 = (float(corner) / side for corner in corners)
            shares = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
            output.pred_boxes[number, 5] = shares
            output.logits[number, 5, 6:10] = 20.0  # [CLS] s e a l . o r c a
            output.logits[number, 5, 1:3] = 20.0
        return output

    network.opened.network.register_forward_hook(change, with_kwargs=True)
    (boxes,) = draw(network, with_blob(tmp_path / "a.png"), min_confidence=0.3, num_views=NUM_VIEWS)
    assert [box.class_id for box in boxes] == [1, 0] * NUM_VIEWS
    assert [round(box.confidence, 3) for box in boxes[:2]] == [1.0, 0.5]
    for box in boxes:
        assert box.xyxy == pytest.approx(BLOB, abs=0.01)


def test_grounding_dino_is_not_asked_for_more_than_it_takes(dino: Path, tmp_path: Path) -> None:
    (found,) = draw(opened(dino), noise(tmp_path / "a.png", (90, 60)))
    assert {box.class_id for box in found} == {0, 1}
    with pytest.raises(SynthdetError, match="shorten the phrases"):
        opened(dino, Wanted(CLASSES, {"seal": ["a seal that swims"] * 6}))


def test_too_small_for_its_boxes(tmp_path: Path) -> None:
    where = tiny_grounding_dino(tmp_path / "dino")
    with pytest.raises(SynthdetError, match=r"label\.image_size 16: this detector draws 12 boxes"):
        opened(where, Wanted(CLASSES, image_size=16))


def test_phrases_too_long_for_owl(owl: Path) -> None:
    with pytest.raises(SynthdetError, match="is too long, the detector reads 24 tokens"):
        opened(owl, Wanted(CLASSES, {"seal": ["a seal far away on the ice of a bay"]}))


def test_in_its_process(owl: Path, tmp_path: Path) -> None:
    """Opened by what it is; never trained; and what is wrong is told in a line."""
    assert finds_by_text(str(owl))
    assert not finds_by_text(str(tiny_detr(tmp_path / "detr")))
    path = noise(tmp_path / "a.png", (90, 60))
    with DetectorProcess(threads=1) as process:
        settings: dict[str, Any] = {
            "image_size": 32, "batch_size": 2, "device": "cpu", "threads": 1, "trust": False,
            "process": process,
        }  # fmt: skip
        detector = ChildDetector(owl, **settings, wanted=Wanted(CLASSES))
        assert detector.names == CLASSES
        assert detector.queries == {
            "seal": ["an aerial photo of a seal"], "orca": ["an aerial photo of an orca"],
        }  # fmt: skip
        (found,) = detector.detect([path], min_confidence=0.0)
        assert list(found) == draw(opened(owl), path)[0]  # at its own size, not at 32
        with pytest.raises(SynthdetError, match="finds by text, and nothing says what to look for"):
            ChildDetector(owl, **settings)
        with pytest.raises(SynthdetError, match=r"label\.queries: this run has no class 'sael'"):
            ChildDetector(owl, **settings, wanted=Wanted(CLASSES, {"sael": ["seal"]}))
        data = tmp_path / "data"
        (data / "images").mkdir(parents=True)
        noise(data / "images" / "a.png", (40, 30))
        (data / "data.yaml").write_text("train: images\nval: images\nnames: [seal]\n")
        trainer = ChildTrainer(owl, device="cpu", threads=1, process=process)
        with pytest.raises(SynthdetError, match=r"is not trained here: name it in label\.weights"):
            trainer.train(
                data / "data.yaml", tmp_path / "weights", seed=0, max_train_steps=1,
                train_batch_size=1, learning_rate=None, image_size=64, on_step=lambda _step: None,
            )  # fmt: skip
