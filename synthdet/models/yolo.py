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
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg
from ultralytics.data.build import seed_worker
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, img2label_paths, verify_image_label
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.torch_utils import ModelEMA, init_seeds, intersect_dicts

from synthdet.core.differences import LatestNotWorse
from synthdet.core.records import DetectedBox
from synthdet.errors import SynthdetError
from synthdet.models.detector import Start
from synthdet.models.detector_pictures import (
    MAX_BOXES,
    NMS_IOU,
    Dataset,
    LabelledPicture,
    draw_boxes,
    label_path,
    read_dataset,
    read_labelled,
)
from synthdet.models.detector_training import (
    NUM_VALIDATIONS,
    VAL_CONFIDENCE,
    WHOLE_FROM,
    Training,
    Validation,
    learning_rate_share,
    plan_batches,
    validation_steps,
)

_HEADS: Final = ("Detect", "v10Detect")
"""Last layers of the networks that learn from boxes alone and draw upright ones."""
LEARNING_RATE = 1e-3
"""Where none was asked for."""
CHANNELS_LAST = torch.channels_last
"""Order in memory: a seventh faster in training and detection, on a CPU too (measured)."""
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


def open_network(start: Start, device: str) -> tuple[DetectionModel, list[str]]:
    """A trained network, ready to look, and its class names.

    Raises:
        SynthdetError: As `load_network`.
    """
    network = load_network(start)
    names = [str(name) for name in network.names.values()]
    return network.fuse().to(device, memory_format=CHANNELS_LAST), names


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
    head = architecture["head"][-1][2]
    if head not in _HEADS:
        raise SynthdetError(
            f"a network that ends in {head} draws no plain boxes in training: name one of ultralytics' "
            "detectors (like yolo11n), or transformers' RT-DETR (like PekingU/rtdetr_r18vd)"
        )
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


class _Pictures(YOLODataset):  # type: ignore[misc]
    """ultralytics' dataset, without the cache it writes beside the labels and without its repairs."""

    def get_img_files(self, img_path: list[str]) -> list[str]:
        return img_path

    def get_labels(self) -> list[dict[str, Any]]:
        self.label_files = [label_path(path) for path in self.im_files]
        return [_to_ultralytics(read_labelled(path)) for path in self.im_files]


def _to_ultralytics(labelled: LabelledPicture) -> dict[str, Any]:
    width, height = labelled.size_wh
    return {
        "im_file": labelled.path,
        "shape": (height, width),
        "cls": labelled.class_ids,
        "bboxes": labelled.cxcywh,
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
    with found.open("w", encoding="utf-8") as handle, _any_size():
        for picture, label in zip(pictures, img2label_paths(pictures), strict=True):
            asked = (picture, label, "", False, len(data["names"]), 0, 0, False)
            _, rows, shape, _, _, missing, _, _, _, complaint = verify_image_label(asked)
            complaint = complaint or ("it has no label file" if missing else "")
            height, width = shape or (0, 0)
            boxes = [] if rows is None else rows.tolist()
            line = [Path(picture).name, int(width), int(height), boxes, complaint]
            handle.write(json.dumps(line) + "\n")


@contextmanager
def _any_size() -> Iterator[None]:
    """Let PIL open what the export wrote: whole frames are larger than it takes from strangers."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


# --- training ----------------------------------------------------------------------------------


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
    learning_rate = training.learning_rate or LEARNING_RATE
    optimizer = _make_optimizer(network, learning_rate)
    average = ModelEMA(network)
    choice = LatestNotWorse()
    kept: dict[str, Tensor] = {}
    validation = Validation(dataset)
    draw = partial(
        detect,
        image_size=training.image_size,
        batch_size=training.train_batch_size,
        device=device,
        min_confidence=VAL_CONFIDENCE,
    )
    validate_at = validation_steps(training.max_train_steps)
    network.train()
    for step, batch in enumerate(_batches(dataset, training, options, device)):
        share = learning_rate_share(step, training.max_train_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share
        loss = _step(network, batch, optimizer, device)
        average.update(network)
        if step + 1 in validate_at:
            if not torch.isfinite(loss):
                raise SynthdetError(
                    f"the detector's loss is no number at step {step + 1}: lower learning_rate"
                )
            if choice.keeps(validation.look(partial(draw, average.ema))):
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
    whole_from = round(WHOLE_FROM * training.max_train_steps)
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


# --- detection ---------------------------------------------------------------------------------


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
    """As `draw_boxes`. Of boxes of a class that overlap by more than `NMS_IOU` the best stays.

    Raises:
        SynthdetError: A file is not a picture that OpenCV reads; names it.
    """
    network.eval()
    return draw_boxes(
        paths,
        lambda pixels: _suppress(network, network(pixels), min_confidence),
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        num_views=num_views,
        side_by_side=torch.get_num_threads(),
    )


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
