"""ultralytics' networks: built, trained, run, and kept as safetensors.

Only `detector_worker` imports this module, in a process of its own, because importing ultralytics
changes the process (threads, environment) and its training seeds the global random generators.

The network, the loss, the averaged weights and the augmentations are ultralytics' own. The loop is
not: it counts optimizer steps and not epochs, so that arms of different size get the same training;
it writes no pickles and no caches beside somebody's labels; and one seed gives one result.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg
from ultralytics.data.build import seed_worker
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import (
    IMG_FORMATS,
    check_det_dataset,
    img2label_paths,
    verify_image_label,
)
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.torch_utils import ModelEMA, init_seeds, intersect_dicts

from synthdet.core.comparison import Floats, match_detections, precision_without_groups
from synthdet.core.differences import LatestNotWorse
from synthdet.core.fusion import turn_picture, undo_view, view_source
from synthdet.core.records import Box, DetectedBox
from synthdet.errors import SynthdetError

NMS_IOU = 0.7
"""Of two boxes of a class that overlap more than this, the less confident one goes."""
MAX_BOXES = 100
"""Boxes of a picture, at most, as COCO counts them."""
NUM_VALIDATIONS = 10
"""Times in a training that the averaged weights are tried on val."""
_MAX_FOLDS = 50
"""Parts of val that are left out in turn, to tell how much the measure there is worth."""
ONE_BY_ONE_FROM = 320
"""Side in pixels from which a CPU is faster without batches (measured with yolo11n: 22 against 40 ms
a picture at 320, 55 against 147 at 640; at 128 it is 9 against 2.7)."""
CHANNELS_LAST = torch.channels_last
"""Order in memory: a seventh faster in training and detection, on a CPU too (measured)."""
PADDING = 114
"""Grey around a picture that is not square, as ultralytics trains with."""

AUGMENTATIONS = {
    "mosaic": 1.0,
    "flipud": 0.5,
    "fliplr": 0.5,
    "degrees": 0.0,
    "translate": 0.1,
    "scale": 0.5,
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "augmentations": [],
}
"""ultralytics' defaults, and flips in both directions: from above there is no up. No turns by other
angles, whose boxes would be too large. No albumentations, which is used only where it is installed."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a network starts from: a name, a folder written by synthdet, or a .pt file."""

    kind: str
    where: str


# --- on disk -----------------------------------------------------------------------------------


def load_network(start: Start, class_names: Sequence[str] | None = None) -> DetectionModel:
    """Build a network on the CPU.

    Args:
        start: What from. A name gives random weights, from torch's global generator.
        class_names: Its classes: tensors of the same shape are taken over, so the class head starts
            afresh where the number of classes is another one. None: the classes it has.

    Raises:
        SynthdetError: No such architecture, or files that are damaged or do not fit each other.
    """
    if start.kind == "architecture":
        if class_names is None:
            raise SynthdetError(f"{start.where} is an untrained architecture: name trained weights")
        return _build(_architecture(start.where), class_names)
    if start.kind == "folder":
        source = _read_folder(Path(start.where))
    else:
        source, _checkpoint = load_checkpoint(start.where)  # ultralytics' own reader
        source.float()
    if class_names is None:
        return source
    network = _build(source.yaml, class_names)
    # Not ultralytics' own `load`: it widens the class branch beyond what the architecture says.
    network.load_state_dict(
        intersect_dicts(source.state_dict(), network.state_dict()), strict=False
    )
    return network


def _architecture(name: str) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = yaml_model_load(name if name.endswith(".yaml") else f"{name}.yaml")
    except FileNotFoundError as error:
        raise SynthdetError(
            f"there is no detector {name}: name one that ultralytics ships (like yolo11n), a folder "
            "written by synthdet, or a .pt file that exists"
        ) from error
    return fields


def _build(architecture: Mapping[str, Any], class_names: Sequence[str]) -> DetectionModel:
    fields = {**architecture, "nc": len(class_names)}
    network: DetectionModel = DetectionModel(fields, nc=len(class_names), verbose=False)
    network.names = dict(enumerate(class_names))
    network.args = get_cfg()
    return network


def _read_folder(folder: Path) -> DetectionModel:
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        names = [str(name) for name in json.loads((folder / "names.json").read_text("utf-8"))]
        architecture = description["architecture"]
        network = _build(
            _architecture(architecture) if isinstance(architecture, str) else architecture, names
        )
        state = load_file(folder / "model.safetensors")
        network.load_state_dict({name: value.float() if value.is_floating_point() else value
                                 for name, value in state.items()})  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SynthdetError(f"{folder} holds no usable detector: {reason}") from error
    return network


def write_folder(
    network: DetectionModel, state: Mapping[str, Tensor], image_size: int, folder: Path
) -> None:
    """Write ``model.safetensors``, ``model.json`` and ``names.json``: whole or not at all."""
    partial = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    partial.mkdir(parents=True)
    tensors = {name: value.contiguous().cpu() for name, value in state.items()}
    (partial / "model.safetensors").write_bytes(save(tensors))
    description = {"architecture": _describe(network.yaml), "image_size": image_size}
    names = list(network.names.values())
    for name, content in (("model.json", description), ("names.json", names)):
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (partial / name).write_text(text, encoding="utf-8")
    for path in partial.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    os.rename(partial, folder)


def _describe(fields: dict[str, Any]) -> str | dict[str, Any]:
    """The name of an architecture that ultralytics ships; another one is written out."""
    name = Path(str(fields.get("yaml_file", ""))).name
    try:
        shipped = yaml_model_load(name) if name else {}
    except FileNotFoundError:
        shipped = {}
    if all(fields.get(key) == shipped.get(key) for key in ("backbone", "head", "scale")):
        return name
    return {key: value for key, value in fields.items() if key != "yaml_file"}


# --- pictures in -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a ``data.yaml`` names: classes, and the pictures of two splits."""

    class_names: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]


def read_dataset(data_yaml: Path) -> Dataset:
    """Read a YOLO dataset. Its paths are folders, or lists of pictures in text files.

    Raises:
        SynthdetError: It has no picture to train on.
    """
    fields = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
    names = fields["names"]
    dataset = Dataset(
        tuple(str(name) for name in (names.values() if isinstance(names, dict) else names)),
        _list_pictures(data_yaml.parent / fields["train"]),
        _list_pictures(data_yaml.parent / fields["val"]),
    )
    if not dataset.train:
        raise SynthdetError(f"{data_yaml} names no picture to train on")
    return dataset


def _list_pictures(place: Path) -> tuple[str, ...]:
    if place.is_dir():
        found = [path for path in place.rglob("*") if path.suffix[1:].lower() in IMG_FORMATS]
    else:
        lines = place.read_text(encoding="utf-8").splitlines()
        found = [place.parent / line for line in lines if line.strip()]
    return tuple(sorted(os.path.normpath(path) for path in found))


class _Pictures(YOLODataset):  # type: ignore[misc]
    """ultralytics' dataset, without the cache it writes beside the labels and without its repairs."""

    def get_img_files(self, img_path: list[str]) -> list[str]:
        return img_path

    def get_labels(self) -> list[dict[str, Any]]:
        self.label_files = img2label_paths(self.im_files)
        return [_read_label(*paths) for paths in zip(self.im_files, self.label_files, strict=True)]


def _read_label(picture: str, label: str) -> dict[str, Any]:
    lines = Path(label).read_text(encoding="utf-8").splitlines() if Path(label).is_file() else []
    rows = np.array([line.split() for line in lines if line.strip()], dtype=np.float32)
    rows = rows.reshape(-1, 5)
    with Image.open(picture) as opened:
        width, height = opened.size
    return {
        "im_file": picture,
        "shape": (height, width),
        "cls": rows[:, :1],
        "bboxes": rows[:, 1:],
        "segments": [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }


class _Listing(YOLODataset):  # type: ignore[misc]
    """ultralytics' dataset before it has loaded anything: it knows which files it would take."""

    def __init__(self) -> None:
        self.prefix, self.fraction = "", 1.0


def read_as_ultralytics(data_yaml: Path, split: str, found: Path) -> None:
    """Read a split as ultralytics does before a training, and write down what it saw.

    Without the cache it leaves beside the labels; one picture at a time in memory.

    Args:
        data_yaml: The dataset.
        split: ``train``, ``val`` or ``test``.
        found: Where the lines go: name, width, height, rows of class and box, complaint.
    """
    data = check_det_dataset(str(data_yaml), autodownload=False)
    pictures = _Listing().get_img_files(data[split])
    with found.open("w", encoding="utf-8") as handle:
        for picture, label in zip(pictures, img2label_paths(pictures), strict=True):
            asked = (picture, label, "", False, len(data["names"]), 0, 0, False)
            _, rows, shape, _, _, missing, _, _, _, complaint = verify_image_label(asked)
            complaint = complaint or ("it has no label file" if missing else "")
            height, width = shape or (0, 0)
            boxes = [] if rows is None else rows.tolist()
            line = [Path(picture).name, int(width), int(height), boxes, complaint]
            handle.write(json.dumps(line) + "\n")


def _true_boxes(label: Mapping[str, Any]) -> list[Box]:
    height, width = label["shape"]
    boxes = []
    for class_id, (cx, cy, w, h) in zip(label["cls"][:, 0], label["bboxes"].tolist(), strict=True):
        xyxy = ((cx - w / 2) * width, (cy - h / 2) * height,
                (cx + w / 2) * width, (cy + h / 2) * height)  # fmt: skip
        boxes.append(Box(xyxy=xyxy, class_id=int(class_id)))
    return boxes


def plan_batches(
    num_pictures: int, *, batch_size: int, num_batches: int, seed: int
) -> list[list[int]]:
    """Pictures of every step: the whole set in one shuffled order after another.

    Every picture comes up equally often, give or take one, whatever the size of the set.

    Examples:
        >>> batches = plan_batches(3, batch_size=2, num_batches=3, seed=0)
        >>> sorted(sum(batches, []))
        [0, 0, 1, 1, 2, 2]
    """
    generator = np.random.default_rng(seed)
    wanted = batch_size * num_batches
    rounds = [generator.permutation(num_pictures) for _ in range(math.ceil(wanted / num_pictures))]
    order = np.concatenate(rounds)[:wanted].tolist()
    return [order[i : i + batch_size] for i in range(0, wanted, batch_size)]


# --- training ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that a training depends on."""

    data_yaml: Path
    weights_dir: Path
    seed: int
    max_train_steps: int
    train_batch_size: int
    learning_rate: float
    image_size: int


def learning_rate_share(step: int, max_train_steps: int) -> float:
    """Share of the learning rate at a step, 0..1: up over a tenth of the steps, down to a hundredth.

    Examples:
        >>> [round(learning_rate_share(step, 100), 2) for step in (0, 9, 10, 60, 99)]
        [0.1, 1.0, 1.0, 0.45, 0.02]
    """
    warmup = max(1, max_train_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * (max_train_steps - step) / max(1, max_train_steps - warmup)


def train(start: Start, training: Training, device: str, on_step: Callable[[int], None]) -> None:
    """Train and write the latest averaged weights that are not clearly worse than others on val.

    By map50_95 and one standard error, as float32: a few val tiles tell a network that is spoiled, and
    not which of ten good ones is best. The last ones where val has no box.

    Raises:
        SynthdetError: No picture to train on, or a loss that is no number any more.
    """
    init_seeds(training.seed, deterministic=True)
    dataset = read_dataset(training.data_yaml)
    network = load_network(start, dataset.class_names).to(device, memory_format=CHANNELS_LAST)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = ".dfl" not in name
    options = get_cfg(overrides={**AUGMENTATIONS, "imgsz": training.image_size, "plots": False})
    options.epochs = NUM_VALIDATIONS  # what the losses with a schedule of their own count in
    network.args = options
    optimizer = _make_optimizer(network, training.learning_rate)
    average = ModelEMA(network)
    choice = LatestNotWorse()
    kept: dict[str, Tensor] = {}
    validation = _Validation(dataset, training, device)
    validate_at = {
        round((i + 1) * training.max_train_steps / NUM_VALIDATIONS) for i in range(NUM_VALIDATIONS)
    }
    network.train()
    for step, batch in enumerate(_batches(dataset, training, options, device)):
        share = learning_rate_share(step, training.max_train_steps)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * share
        loss = _step(network, batch, optimizer, device)
        average.update(network)
        if step + 1 in validate_at:
            if not torch.isfinite(loss):
                raise SynthdetError(
                    f"the detector's loss is no number at step {step + 1}: lower learning_rate"
                )
            if choice.keeps(validation.look(average.ema)):
                kept = {k: v.clone() for k, v in average.ema.state_dict().items()}
            criterion = network.criterion
            if hasattr(criterion, "update"):
                criterion.update()
        on_step(step + 1)
    write_folder(network, kept, training.image_size, training.weights_dir)


def _make_optimizer(network: DetectionModel, learning_rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and filters alone, as ultralytics groups them."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in network.parameters():
        (decayed if parameter.ndim > 1 else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999))


def _batches(
    dataset: Dataset, training: Training, options: Any, device: str
) -> Iterator[dict[str, Any]]:
    """Augmented batches; the last fifth of the steps sees whole pictures, without mosaic."""
    pictures = _Pictures(
        img_path=list(dataset.train),
        imgsz=training.image_size,
        augment=True,
        hyp=options,
        batch_size=training.train_batch_size,
        data={"names": dict(enumerate(dataset.class_names)), "channels": 3},
        task="detect",
    )
    plan = plan_batches(
        len(dataset.train),
        batch_size=training.train_batch_size,
        num_batches=training.max_train_steps,
        seed=training.seed,
    )
    # Reading files and looking at the network draw from these generators too.
    random.seed(training.seed)
    np.random.seed(training.seed)  # noqa: NPY002 - ultralytics' augmentations draw from it
    torch.manual_seed(training.seed)
    whole_from = round(0.8 * training.max_train_steps)
    for part, batches in enumerate((plan[:whole_from], plan[whole_from:])):
        if part == 1:
            pictures.close_mosaic(options)
        yield from DataLoader(
            pictures,
            batch_sampler=batches,
            num_workers=0 if device == "cpu" else min(8, os.cpu_count() or 1),
            collate_fn=pictures.collate_fn,
            worker_init_fn=seed_worker,
            generator=torch.Generator().manual_seed(training.seed + part),
            pin_memory=device != "cpu",
        )


def _step(
    network: DetectionModel, batch: dict[str, Any], optimizer: torch.optim.Optimizer, device: str
) -> Tensor:
    given = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    given["img"] = given["img"].float().contiguous(memory_format=CHANNELS_LAST) / 255
    half = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
        losses, _parts = network.loss(given)
    total: Tensor = losses.sum()
    total.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), max_norm=10.0)
    optimizer.step()
    optimizer.zero_grad()
    return total.detach()


class _Validation:
    """The val pictures and their true boxes, kept in memory if there are boxes among them."""

    def __init__(self, dataset: Dataset, training: Training, device: str) -> None:
        labels = [
            _read_label(*paths)
            for paths in zip(dataset.val, img2label_paths(list(dataset.val)), strict=True)
        ]
        self._truths = [_true_boxes(label) for label in labels]
        self._paths = [Path(path) for path in dataset.val] if any(self._truths) else []
        self._num_classes = len(dataset.class_names)
        self._training = training
        self._device = device

    def look(self, network: DetectionModel) -> Floats:
        """map50_95 on val, and without each of some parts of it; all 0 where it has no box."""
        if not self._paths:
            return np.zeros(1)
        found = detect(
            network,
            self._paths,
            image_size=self._training.image_size,
            batch_size=self._training.train_batch_size,
            device=self._device,
            min_confidence=0.001,
        )
        matches = match_detections(self._truths, found, num_classes=self._num_classes)
        folds = [f"{index % _MAX_FOLDS:02d}" for index in range(len(self._paths))]
        looks: Floats = precision_without_groups(matches, folds).mean(axis=1)
        return looks


# --- detection ---------------------------------------------------------------------------------


@torch.no_grad()
def detect(
    network: DetectionModel,
    paths: Sequence[Path],
    *,
    image_size: int,
    batch_size: int,
    device: str,
    min_confidence: float,
    num_views: int = 1,
) -> list[list[DetectedBox]]:
    """Boxes of each picture file, in pixels of the file: view by view, most confident first.

    A file is read once, whatever the number of views (1, or `fusion.NUM_VIEWS`). Confidences are rounded to 1e-6 and corners to 1e-3 pixels: what is written is what is compared.

    Raises:
        SynthdetError: A file is not a picture that OpenCV reads; names it.
    """
    network.eval()
    if device == "cpu" and image_size >= ONE_BY_ONE_FROM:
        batch_size = 1
    found = []
    for begin in range(0, len(paths), batch_size):
        opened = [_letterbox(path, image_size) for path in paths[begin : begin + batch_size]]
        squares = np.stack([picture for picture, _fit in opened])
        drawn: list[list[DetectedBox]] = [[] for _ in opened]
        for view in range(num_views):
            turned = torch.from_numpy(np.ascontiguousarray(turn_picture(squares, view)))
            pixels = turned.to(device).permute(0, 3, 1, 2).float() / 255  # channels last in memory
            suppressed = _suppress(network, network(pixels), min_confidence)
            for boxes, rows, (_picture, fit) in zip(drawn, suppressed, opened, strict=True):
                boxes += _to_boxes(rows.cpu().numpy(), fit, view, image_size)
        found += drawn
    return found


@dataclass(frozen=True, slots=True)
class _Fit:
    """Where a picture lies in the square that the network sees."""

    scale: float
    left: int
    top: int
    width: int
    height: int


def _letterbox(path: Path, image_size: int) -> tuple[NDArray[np.uint8], _Fit]:
    """RGB ``(image_size, image_size, 3)``: the whole picture, in its shape, on grey."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SynthdetError(f"{path} cannot be read as a picture")
    height, width = picture.shape[:2]
    scale = min(image_size / width, image_size / height)
    fitted = round(width * scale), round(height * scale)
    if fitted != (width, height):
        picture = cv2.resize(picture, fitted, interpolation=cv2.INTER_LINEAR)
    left, top = (image_size - fitted[0]) // 2, (image_size - fitted[1]) // 2
    square = np.full((image_size, image_size, 3), PADDING, dtype=np.uint8)
    square[top : top + fitted[1], left : left + fitted[0]] = picture[..., ::-1]
    return square, _Fit(scale, left, top, width, height)


def _suppress(network: DetectionModel, output: Any, min_confidence: float) -> list[Tensor]:
    """Rows of x1, y1, x2, y2, confidence, class of each picture."""
    end_to_end = bool(getattr(network, "end2end", False))
    # Unlike ultralytics' default no time limit: a busy machine must not change what is found.
    found: list[Tensor] = non_max_suppression(
        output,
        conf_thres=min_confidence,
        iou_thres=NMS_IOU,
        max_det=MAX_BOXES,
        max_time_img=math.inf,
        end2end=end_to_end,
    )
    return found


def _to_boxes(
    rows: NDArray[np.float32], fit: _Fit, view: int, image_size: int
) -> list[DetectedBox]:
    boxes = []
    values = rows.astype(np.float64)
    values[:, :4] = undo_view(values[:, :4], view, (image_size, image_size))
    for x1, y1, x2, y2, confidence, class_id in values.tolist():
        left, right = ((x - fit.left) / fit.scale for x in (x1, x2))
        top, bottom = ((y - fit.top) / fit.scale for y in (y1, y2))
        xyxy = (max(left, 0), max(top, 0), min(right, fit.width), min(bottom, fit.height))
        if xyxy[2] - xyxy[0] > 0.5 and xyxy[3] - xyxy[1] > 0.5:
            corners = [round(value, 3) for value in xyxy]
            boxes.append(
                DetectedBox(
                    xyxy=(corners[0], corners[1], corners[2], corners[3]),
                    class_id=int(class_id),
                    confidence=round(confidence, 6),
                    source=view_source("detector", view),
                )
            )
    return sorted(boxes, key=lambda box: (-box.confidence, box.xyxy))
