"""The pocket YOLO: YOLO11n from scratch on the base world's classes.

ultralytics' own network and loss in the builder's loop. Its import sets threads and environment, so
this module belongs in a process of its own, as `build` starts it. ultralytics is AGPL-3.0; what is
shipped are weights and names, and its architecture is read from the user's own installation.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from synthdet.core.boxes import turn_box
from synthdet.models.symmetries import turn
from synthdet.pocket.build_plan import BuildPlan, YoloPlan
from synthdet.pocket.build_scenes import Annotation, Scenes, batch_indices
from synthdet.pocket.build_training import Trained, Workplace, train
from synthdet.pocket.sea import BASE_CLASSES


def make_yolo(plan: YoloPlan, seed: int, threads: int) -> nn.Module:
    """An untrained detector with ultralytics' loss."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.set_num_threads(threads)  # The import has set its own.
    torch.manual_seed(seed)  # The builder owns its process.
    model: nn.Module = DetectionModel(plan.architecture, nc=len(BASE_CLASSES), verbose=False)
    model.args = get_cfg()
    model.names = dict(enumerate(BASE_CLASSES))  # type: ignore[assignment]
    return model


def train_yolo(
    plan: BuildPlan, scenes: Scenes, place: Workplace, threads: int
) -> tuple[nn.Module, Trained]:
    """Train; the model comes back with its averages in it."""
    model = make_yolo(plan.yolo, plan.seed, threads).to(place.device)
    batch, size = plan.yolo.schedule.batch, float(plan.scenes.size)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        indices = batch_indices(plan.seed, "yolo", step, batch, len(scenes))
        symmetry = int(torch.randint(8, (), generator=generator))
        pixels = torch.from_numpy(scenes.pictures(indices)).permute(0, 3, 1, 2) / 255
        pixels = _relight(turn(pixels, symmetry), generator)
        targets = _targets([scenes.annotations[i] for i in indices], symmetry, size)
        given = {name: value.to(place.device) for name, value in targets.items()}
        made = model(pixels.to(place.device))
        with torch.autocast(place.device.type, enabled=False):  # boxes need more than 8 bits
            total, _ = model.loss(given, preds=_to_float(made))  # type: ignore[operator]
        return total.sum() / batch  # type: ignore[no-any-return]

    trained = train("yolo", model, loss_of, plan.yolo.schedule, place, seed=plan.seed)
    trained.averages.give(model)
    return model, trained


def _to_float(made: Any) -> Any:
    """The network's nested output in float32."""
    if isinstance(made, Tensor):
        return made.float()
    if isinstance(made, dict):
        return {name: _to_float(value) for name, value in made.items()}
    return [_to_float(value) for value in made]


def _relight(pixels: Tensor, generator: torch.Generator) -> Tensor:
    count = len(pixels)
    gain = torch.exp(0.15 * torch.randn(count, 1, 1, 1, generator=generator))
    cast = torch.exp(0.05 * torch.randn(count, 3, 1, 1, generator=generator))
    return (pixels * gain * cast).clamp(0, 1)


def _targets(annotations: list[Annotation], symmetry: int, size: float) -> dict[str, Tensor]:
    """As ultralytics' loss wants them: picture, class, and cxcywh in 0..1 of every box."""
    pictures, classes, boxes = [], [], []
    for i, annotation in enumerate(annotations):
        for box, name in zip(annotation.boxes, annotation.class_names, strict=True):
            x1, y1, x2, y2 = (v / size for v in turn_box(box, symmetry, size))
            pictures.append(i)
            classes.append(BASE_CLASSES.index(name))
            boxes.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    return {
        "batch_idx": torch.tensor(pictures, dtype=torch.float32),
        "cls": torch.tensor(classes, dtype=torch.float32).view(-1, 1),
        "bboxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
    }


@torch.no_grad()
def detect(
    model: nn.Module, pictures: NDArray[np.uint8], device: torch.device
) -> list[NDArray[np.float32]]:
    """Boxes of each picture: rows of x1, y1, x2, y2 in pixels, confidence, class."""
    from ultralytics.utils.nms import non_max_suppression

    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2) / 255
    found = non_max_suppression(model(pixels)[0], conf_thres=0.001, iou_thres=0.6, max_det=50)
    return [boxes.cpu().numpy() for boxes in found]


def map50(model: nn.Module, scenes: Scenes, device: torch.device) -> dict[str, float]:
    """`map50` and `map50_95` on held-out scenes, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    model.eval()
    found: list[dict[str, Any]] = []
    for indices, pictures in scenes.batches(32):
        for i, rows in zip(indices.tolist(), detect(model, pictures, device), strict=True):
            for x1, y1, x2, y2, confidence, class_id in rows.tolist():
                found.append(
                    {
                        "image_id": i + 1,
                        "category_id": int(class_id) + 1,
                        "score": confidence,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO()
        truth.dataset = _coco(scenes)
        truth.createIndex()
        if not found:
            return {"map50": 0.0, "map50_95": 0.0}
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map50": float(evaluation.stats[1]), "map50_95": float(evaluation.stats[0])}


def _coco(scenes: Scenes) -> dict[str, Any]:
    boxes = [
        (i + 1, BASE_CLASSES.index(name) + 1, x1, y1, x2 - x1, y2 - y1)
        for i, annotation in enumerate(scenes.annotations)
        for (x1, y1, x2, y2), name in zip(annotation.boxes, annotation.class_names, strict=True)
    ]
    return {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(scenes))],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(BASE_CLASSES)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
            for n, (image, category, x, y, w, h) in enumerate(boxes)
        ],
    }


def save_yolo(model: nn.Module, plan: YoloPlan, size: int, folder: Path) -> None:
    """`model.safetensors` (float16, keys of `DetectionModel.state_dict()`), `names.json`, `model.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "names.json").write_text(json.dumps(list(BASE_CLASSES), indent=1) + "\n")
    description = {"architecture": plan.architecture, "image_size": size}
    (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n")
