"""transformers' detectors of DETR's kind: opened, trained, run, and kept as its own folders.

RT-DETR, RT-DETRv2, D-FINE and what else `AutoModelForObjectDetection` opens; Apache-2.0 throughout.
Networks and losses (matching, denoising) are transformers' own. The loop is ours, as `yolo`'s: optimizer
steps and not epochs, one seed for one result, weights chosen on val by the same rule. Only
`detector_worker` imports this module: a training draws from torch's global generator.

Sources: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024 (section 5.1: AdamW, a
tenth of the rate for the backbone, gradients clipped at 0.1, averaged weights); Lv et al., "RT-DETRv2",
2024; Peng et al., "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement", 2024.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.ops import batched_nms
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
)

from synthdet.core.boxes import turn_box
from synthdet.core.differences import LatestNotWorse
from synthdet.core.fusion import NUM_VIEWS, turn_picture
from synthdet.core.records import DetectedBox
from synthdet.errors import SynthdetError
from synthdet.models.detector import Start
from synthdet.models.detector_pictures import (
    MAX_BOXES,
    NMS_IOU,
    PADDING,
    Dataset,
    draw_boxes,
    read_dataset,
    read_labelled,
    read_picture,
)
from synthdet.models.detector_training import (
    VAL_CONFIDENCE,
    WHOLE_FROM,
    Training,
    Validation,
    learning_rate_share,
    plan_batches,
    validation_steps,
)

LEARNING_RATE = 1e-4
"""Where none was asked for; its backbone gets a tenth of it."""
BACKBONE_SHARE = 0.1
WEIGHT_DECAY = 1e-4
MAX_GRADIENT = 0.1
CLASS_PRIOR = 0.01
"""What a class head that starts afresh gives everything. transformers' own 1 / (classes + 1) would be 0.5
for one class: hundreds of false boxes to unlearn first."""

SCALE, SHIFT, HUE, SATURATION, VALUE = 0.5, 0.1, 0.015, 0.7, 0.4
"""How far a training picture is changed, at most: share of its size, of the square's side, and of its
colours. As ultralytics' defaults in `yolo.AUGMENTATIONS`; no mosaic, which none of the papers has."""
_MIN_SIDE, _MIN_VISIBLE = 2.0, 0.1
"""Of an animal that a shift cuts: pixels and share of its area that must be left for a box."""


# --- on disk -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """A network, and its picture processor, which says what pixels it wants."""

    network: Any
    processor: Any

    def class_names(self) -> list[str]:
        """In the order of their ids."""
        config = self.network.config
        return [str(config.id2label[number]) for number in range(config.num_labels)]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels as the network wants them.

        Args:
            pixels: ``(n, 3, height, width)``, RGB, 0..1.
        """
        if not self.processor.do_normalize:
            return pixels
        mean, deviation = (
            torch.tensor(some, device=pixels.device).view(1, 3, 1, 1)
            for some in (self.processor.image_mean, self.processor.image_std)
        )
        return (pixels - mean) / deviation


def finds_by_text(where: str) -> bool:
    """Whether a transformers detector is told in words what to look for: then `text_detector` opens it.

    Args:
        where: Folder or hub name.

    Raises:
        SynthdetError: There is none.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise SynthdetError(explain(where, error)) from error
    return config.model_type in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES


def load_network(where: str, class_names: Sequence[str] | None = None) -> Opened:
    """Load a network on the CPU, in float32, from safetensors alone.

    Args:
        where: Folder or hub name.
        class_names: Its classes; the class heads start afresh, from torch's global generator, where their
            number is another one. None: the classes it has.

    Raises:
        SynthdetError: There is none, or it is damaged, or no detector.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        for sized in ("anchor_image_size", "eval_size"):  # tables for one picture size alone
            if hasattr(config, sized):
                setattr(config, sized, None)
        if class_names is not None:
            config.id2label = dict(enumerate(class_names))
            config.label2id = {name: number for number, name in enumerate(class_names)}
            if getattr(config, "initializer_bias_prior_prob", 0) is None:
                config.initializer_bias_prior_prob = CLASS_PRIOR
        network, report = transformers.AutoModelForObjectDetection.from_pretrained(
            where,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=class_names is not None,
            output_loading_info=True,
        )
        processor = _load_processor(where)
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError,
    ) as error:  # fmt: skip
        raise SynthdetError(explain(where, error)) from error
    if lacking := sorted(report["missing_keys"]):
        raise SynthdetError(f"{where} holds no usable detector: it lacks {lacking[0]} and others")
    return Opened(network, processor)


def _load_processor(where: str) -> Any:
    """The folder's own; without one RT-DETR's, which takes 0..1 as it is."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError):
        return transformers.RTDetrImageProcessor()


def explain(where: str, error: Exception) -> str:
    """Why a detector cannot be opened, in a line."""
    reason = str(error).strip().split("\n", maxsplit=1)[0][:200]
    if Path(where).is_absolute():
        return f"{where} holds no usable detector: {reason}"
    return (
        f"there is no detector {where}: no folder is called so, and transformers cannot get it from the "
        f"hub or its cache ({reason})"
    )


def write_folder(opened: Opened, image_size: int, folder: Path) -> None:
    """Write what ``save_pretrained`` writes: whole or not at all."""
    partial_folder = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    partial_folder.mkdir(parents=True)
    opened.processor.size = {"height": image_size, "width": image_size}
    opened.network.save_pretrained(partial_folder)
    opened.processor.save_pretrained(partial_folder)
    for path in partial_folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    os.rename(partial_folder, folder)


# --- pictures in -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """How a training picture is seen.

    Attributes:
        zoom: Times the size at which it fits whole.
        shift: Right and down, as shares of the square's side.
        view: One of the eight symmetries: from above there is no up.
        gains: Of hue, saturation and value.
    """

    zoom: float
    shift: tuple[float, float]
    view: int
    gains: tuple[float, float, float]


def draw_change(generator: np.random.Generator, *, whole: bool) -> Change:
    """A random change; a ``whole`` picture is turned and coloured alone."""
    zoom = 1 + SCALE * generator.uniform(-1, 1)
    right, down = SHIFT * generator.uniform(-1, 1, size=2)
    view = int(generator.integers(NUM_VIEWS))
    hue, saturation, value = 1 + np.array([HUE, SATURATION, VALUE]) * generator.uniform(-1, 1, 3)
    return Change(
        1.0 if whole else float(zoom),
        (0.0, 0.0) if whole else (float(right), float(down)),
        view,
        (float(hue), float(saturation), float(value)),
    )


def change_picture(
    picture: NDArray[np.uint8], xyxy: NDArray[np.float64], change: Change, image_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_]]:
    """A training picture as the network sees it.

    Args:
        picture: RGB ``(height, width, 3)``.
        xyxy: ``(n, 4)`` boxes in its pixels.
        change: What is done to it.
        image_size: Side of the square.

    Returns:
        RGB ``(image_size, image_size, 3)``; the boxes that are left, ``(m, 4)`` in its pixels; and
        which of the ``n`` they are.
    """
    height, width = picture.shape[:2]
    scale = change.zoom * min(image_size / width, image_size / height)
    left = (image_size - width * scale) / 2 + change.shift[0] * image_size
    top = (image_size - height * scale) / 2 + change.shift[1] * image_size
    # OpenCV counts from the middle of the first pixel, boxes from its corner.
    half = (scale - 1) / 2
    square = cv2.warpAffine(
        picture,
        np.array([[scale, 0, left + half], [0, scale, top + half]]),
        (image_size, image_size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PADDING, PADDING, PADDING),
    )
    moved = xyxy * scale + np.array([left, top, left, top])
    cut = moved.clip(0, image_size)
    sides, before = cut[:, 2:] - cut[:, :2], moved[:, 2:] - moved[:, :2]
    kept = (sides.min(axis=1, initial=np.inf) >= _MIN_SIDE) & (
        sides.prod(axis=1) >= _MIN_VISIBLE * before.prod(axis=1)
    )
    turned = [turn_box(tuple(row), change.view, image_size) for row in cut[kept].tolist()]
    coloured = _colour(np.asarray(square, dtype=np.uint8), change.gains)
    return (
        np.ascontiguousarray(turn_picture(coloured, change.view)),
        np.array(turned, dtype=np.float64).reshape(-1, 4),
        kept,
    )


def _colour(picture: NDArray[np.uint8], gains: tuple[float, float, float]) -> NDArray[np.uint8]:
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).astype(np.float32) * np.array(gains, np.float32)
    hsv[..., 0] %= 180  # OpenCV's half degrees
    return np.asarray(
        cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB), dtype=np.uint8
    )


class _Pictures(TorchDataset[tuple[Tensor, dict[str, Tensor]]]):
    """Training pictures. An index is a step, a place in its batch and a picture: what seeds the change."""

    def __init__(self, dataset: Dataset, training: Training) -> None:
        self._labelled = [read_labelled(path) for path in dataset.train]
        self._training = training
        self._whole_from = round(WHOLE_FROM * training.max_train_steps)

    def __getitem__(self, index: tuple[int, int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        step, place, number = index
        labelled, side = self._labelled[number], self._training.image_size
        generator = np.random.default_rng([self._training.seed, step, place])
        change = draw_change(generator, whole=step >= self._whole_from)
        boxes = labelled.boxes()
        square, xyxy, kept = change_picture(
            read_picture(Path(labelled.path)),
            np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4),
            change,
            side,
        )
        cxcywh = np.concatenate(
            [(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1
        )
        class_ids = np.array([box.class_id for box in boxes], dtype=np.int64)[kept]
        return torch.from_numpy(square), {
            "class_labels": torch.from_numpy(class_ids),
            "boxes": torch.from_numpy((cxcywh / side).astype(np.float32)),
        }


def _batches(
    dataset: Dataset, training: Training, device: str
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Pixels ``(n, 3, side, side)``, 0..1, on the device, with their labels."""
    plan = plan_batches(
        len(dataset.train),
        batch_size=training.train_batch_size,
        num_batches=training.max_train_steps,
        seed=training.seed,
    )
    loader: DataLoader[Any] = DataLoader(
        _Pictures(dataset, training),
        batch_sampler=[
            [(step, place, number) for place, number in enumerate(numbers)]
            for step, numbers in enumerate(plan)
        ],
        num_workers=0 if device == "cpu" else min(8, os.cpu_count() or 1),
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(training.seed),
        pin_memory=device != "cpu",
    )
    for squares, labels in loader:
        pixels = squares.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        moved = [{name: value.to(device) for name, value in one.items()} for one in labels]
        yield pixels.float() / 255, moved


def _collate(
    items: Sequence[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    return torch.stack([square for square, _label in items]), [label for _square, label in items]


# --- training ----------------------------------------------------------------------------------


def train(start: Start, training: Training, device: str, on_step: Callable[[int], None]) -> None:
    """Train and write the latest averaged weights that are not clearly worse than others on val.

    By map50_95 and one standard error, as float32; the last ones where val has no box.

    Raises:
        SynthdetError: No picture to train on, no such start weights, or a loss that is no number.
    """
    dataset = read_dataset(training.data_yaml)
    if finds_by_text(start.where):
        raise SynthdetError(
            f"{start.where} finds by text and is not trained here: name it in label.weights, and in detector "
            "one that learns"
        )
    torch.manual_seed(training.seed)
    opened = load_network(start.where, dataset.class_names)
    check_size(opened.network.config, training.image_size)
    network = opened.network.to(device)
    average = Opened(copy.deepcopy(network).requires_grad_(False), opened.processor)
    optimizer = _make_optimizer(network, training.learning_rate or LEARNING_RATE)
    rates = [group["lr"] for group in optimizer.param_groups]
    choice = LatestNotWorse()
    kept: dict[str, Tensor] = {}
    validation = Validation(dataset)
    draw = partial(
        detect,
        average,
        image_size=training.image_size,
        batch_size=training.train_batch_size,
        device=device,
        min_confidence=VAL_CONFIDENCE,
    )
    validate_at = validation_steps(training.max_train_steps)
    network.train()
    torch.manual_seed(training.seed)  # the denoising queries draw from it
    for step, (pixels, labels) in enumerate(_batches(dataset, training, device)):
        share = learning_rate_share(step, training.max_train_steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        loss = _step(opened, pixels, labels, optimizer, device)
        if not math.isfinite(loss):  # costs nothing: the matching waits for the device anyway
            raise SynthdetError(
                f"the detector's loss is no number at step {step + 1}: lower learning_rate"
            )
        update_average(average.network, network, step + 1)
        if step + 1 in validate_at and choice.keeps(validation.look(draw)):
            kept = {name: value.clone() for name, value in average.network.state_dict().items()}
        on_step(step + 1)
    average.network.load_state_dict(kept)
    write_folder(average, training.image_size, training.weights_dir)


def check_size(config: Any, image_size: int) -> None:
    """See that pictures are large enough for the number of boxes that the network always draws.

    Raises:
        SynthdetError: They are too small; says from which size they are not.
    """
    queries, strides = getattr(config, "num_queries", 0), getattr(config, "feat_strides", None)
    if not strides or _num_places(strides, image_size) >= queries:
        return
    enough = next(side for side in range(32, 1 << 20, 32) if _num_places(strides, side) >= queries)
    raise SynthdetError(
        f"image_size {image_size}: this detector draws {queries} boxes, more than there are places in "
        f"such a picture: set image_size to {enough} or more"
    )


def _num_places(strides: Sequence[int], image_size: int) -> int:
    return sum((image_size // stride) ** 2 for stride in strides)


def _make_optimizer(network: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and filters alone, a tenth of the rate for the backbone."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = ("backbone" in name, parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": learning_rate * (BACKBONE_SHARE if is_backbone else 1),
                "weight_decay": WEIGHT_DECAY if is_matrix else 0.0,
            }
            for (is_backbone, is_matrix), parameters in groups.items()
        ]
    )


def _step(
    opened: Opened,
    pixels: Tensor,
    labels: list[dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    device: str,
) -> float:
    half = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = opened.network(pixel_values=opened.normalise(pixels), labels=labels).loss
    except ValueError as error:  # transformers looks whether a box's corners are in order
        if "corner" not in str(error):
            raise
        return math.nan
    loss.backward()
    nn.utils.clip_grad_norm_(opened.network.parameters(), max_norm=MAX_GRADIENT)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move averaged weights on: slowly, but for the first steps, as all three papers do.

    Args:
        average: Of the same shape; changed in place.
        network: After the step.
        step: Steps done.
    """
    share = 1 - 0.9999 * (1 - math.exp(-step / 2000))
    both = (
        chain(one.parameters(), one.buffers()) for one in (average, network)
    )  # shared ones once
    for slow, now in zip(*both, strict=True):
        if slow.is_floating_point():
            slow.lerp_(now, share)
        else:
            slow.copy_(now)


# --- detection ---------------------------------------------------------------------------------


def open_network(start: Start, device: str) -> tuple[Opened, list[str]]:
    """A trained network, ready to look, and its class names.

    Raises:
        SynthdetError: As `load_network`.
    """
    opened = load_network(start.where)
    opened.network.to(device).requires_grad_(False)
    return opened, opened.class_names()


def detect(
    opened: Opened,
    paths: Sequence[Path],
    *,
    image_size: int,
    batch_size: int,
    device: str,
    min_confidence: float,
    num_views: int = 1,
) -> list[list[DetectedBox]]:
    """As `draw_boxes`. Of boxes of a class that overlap by more than `NMS_IOU` the best stays.

    Such a network learns to draw an animal once; after a short training it does not always.

    Raises:
        SynthdetError: A file is not a picture that OpenCV reads, or pictures are too small.
    """
    check_size(opened.network.config, image_size)
    opened.network.eval()

    def look(pixels: Tensor) -> list[Tensor]:
        output = opened.network(pixel_values=opened.normalise(pixels))
        scores = output.logits.sigmoid()
        if (
            scores.shape[-1] > opened.network.config.num_labels
        ):  # older kinds: one more class, for nothing
            scores = output.logits.softmax(dim=-1)[..., :-1]
        return to_rows(scores, output.pred_boxes * image_size, min_confidence)

    return draw_boxes(
        paths,
        look,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        num_views=num_views,
    )


def to_rows(scores: Tensor, cxcywh: Tensor, min_confidence: float) -> list[Tensor]:
    """Rows of x1, y1, x2, y2, confidence, class of each picture: the most confident `MAX_BOXES`.

    Args:
        scores: ``(pictures, queries, classes)``, 0..1.
        cxcywh: ``(pictures, queries, 4)``, in pixels.
        min_confidence: Less sure boxes are left out.
    """
    num_classes = scores.shape[-1]
    corners = torch.cat(
        [cxcywh[..., :2] - cxcywh[..., 2:] / 2, cxcywh[..., :2] + cxcywh[..., 2:] / 2], dim=-1
    )
    rows = []
    for picture_scores, picture_corners in zip(scores, corners, strict=True):
        flat = picture_scores.flatten()
        best, places = flat.topk(min(MAX_BOXES, len(flat)))
        best, places = best[best >= min_confidence], places[best >= min_confidence]
        class_ids = (places % num_classes).to(best.dtype)
        boxes = picture_corners[places // num_classes]
        found = torch.cat([boxes, best[:, None], class_ids[:, None]], dim=1)
        rows.append(found[batched_nms(boxes, best, class_ids, NMS_IOU)])
    return rows
