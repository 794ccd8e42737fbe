"""How lean and how fast is a training step of the LoRA? Beside another training script, if one is named.

    python benchmarks/finetune.py [--quick] [--peer SCRIPT] [--compiled] [--work FOLDER]
    python benchmarks/finetune.py --full-size-on-cpu [--work FOLDER]

The network is a small SDXL with random weights and a vocabulary of letters, written as an ordinary
pipeline folder: 32, 64 and 128 channels, but SDXL's own topology (1, 2 and 10 transformer layers, so
560 layers with a LoRA, 1,120 tensors, and as many operations a step as the real one). Counted are the
operations of two steps between two log lines; views are not counted, they do nothing. A sync is a wait
for the device: a number read from it, or a copy to the CPU.

``--peer`` names another training script with the interface of diffusers' train_dreambooth_lora_sdxl.py.
It is run on the same folder and photos with the same rank, batch, resolution, precision and optimizer
(Prodigy, with prodigyopt's own program on its side), in turns, A B A B, a process each; the median of the
rounds' ratios, each of medians of the steps after the first three. On a machine that is busy with other things
look at the ratio of processor time too. Its losses must agree with ours (other noise, the same distribution), or the
ratio says nothing. Without ``--peer`` what compares is null.

Where there is a GPU, SDXL at full size with random weights is measured too: at 512 pixels, batch 2,
Prodigy, also beside the peer; at 1024, batch 4, AdamW; the peak at 1024, batch 1, with checkpointing (and the base in 8 bits, where torchao is), and
the same with the process limited to 8 GB. Where torchao is missing, the base is in 4 bits by bitsandbytes, where that is. The limit is a bfloat16 matrix product measured in the same
run, over the 14.19 TFLOP of a picture of 1024 pixels. Without a GPU these figures are null.

``--compiled`` runs ours with its blocks compiled too, in turns with ours as it is: the ratio of processor
time (of time, on a GPU), and what the first step took, in which it compiles.

``--full-size-on-cpu`` does nothing but two training steps of SDXL at full size on the CPU, about 20
minutes on two cores, and says how much memory that took.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from PIL import Image
from report import make_report, say

TARGETS: dict[str, tuple[str, float]] = {
    "syncs_per_step": ("<=", 0.0),
    "optimizer_calls_per_step": ("<=", 60.0),
    "vae_encodes_per_step": ("<=", 0.0),
    "aten_calls_per_step": ("<=", 16_500.0),
}
PEER_TARGETS = {"speedup_vs_peer": (">=", 2.0), "loss_difference": ("<=", 0.05)}
GPU_TARGETS = {
    "steps_per_second_512": (">=", 35.0),
    "pictures_per_second_1024": (">=", 30.0),
    "peak_gb_1024": ("<=", 4.5),
    "fits_8_gb": (">=", 1.0),
}
GPU_PEER_TARGETS = {"speedup_vs_peer_512": (">=", 10.0), "speedup_vs_peer_1024": (">=", 3.0)}
CPU_TARGETS = {"peak_rss_gb": ("<=", 24.0)}
CAPTION = "aerial photo of one seal"
NUM_PHOTOS = 8
WARM_UP = 3
"""Steps that are not timed: allocations, caches, autotuning."""
COUNTED = 2
"""Steps whose operations are counted, after the warm-up and before the tenth, which logs."""
TFLOP_1024 = 14.188
"""Forward and backward of one picture of 1024 pixels, LoRA of rank 16, without checkpointing."""


@dataclass(frozen=True)
class Case:
    """One training, ours or the peer's."""

    pipeline: str
    photos: str
    resolution: int
    steps: int
    batch: int = 2
    rank: int = 16
    optimizer: str = "prodigy"
    precision: str = "no"
    checkpointing: bool = False
    base_weights: str = "full"
    compile: str = "never"
    device: str = "cpu"
    count: bool = False
    memory_limit_gb: float | None = None


def main() -> None:
    """Measure, and print one JSON object."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--quick", action="store_true", help="fewer steps")
    arguments.add_argument("--peer", type=Path, help="another training script")
    arguments.add_argument(
        "--work", type=Path, help="folder to work in; a temporary one if not told"
    )
    arguments.add_argument("--compiled", action="store_true", help="compiled steps beside others")
    arguments.add_argument("--full-size-on-cpu", action="store_true", help="two steps of real size")
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.child:
        _run_child(json.loads(chosen.child))
        return
    with tempfile.TemporaryDirectory(prefix="finetune-") as temporary:
        work = chosen.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if chosen.full_size_on_cpu:
            figures, targets = _measure_full_size_on_cpu(work)
        else:
            figures, targets = _measure(
                work, chosen.peer, quick=chosen.quick, compiled=chosen.compiled
            )
    result = make_report("finetune", figures, targets, machine=_torch())
    print(json.dumps(result))
    if not result["ok"]:
        raise SystemExit(1)


def _measure(
    work: Path, peer: Path | None, *, quick: bool, compiled: bool
) -> tuple[dict[str, Any], dict[str, tuple[str, float]]]:
    import torch

    targets = dict(TARGETS)
    pipeline = write_small_pipeline(work / "small")
    case = Case(
        pipeline=str(pipeline),
        photos=str(write_photos(work / "photos-128", 128)),
        resolution=128,
        steps=8 if quick else 20,
    )
    counted = replace(case, steps=WARM_UP + COUNTED + 1, count=True)  # the last step logs
    counts = _run(work, "ours, counted", None, counted)
    figures: dict[str, Any] = dict(counts["counts"])
    figures |= {"speedup_vs_peer": None, "loss_difference": None, "peer": None}
    if peer is not None:
        targets |= PEER_TARGETS
        theirs = _run(work, "peer, counted", peer, counted)
        figures |= _compare(work, peer, case, rounds=2 if quick else 5)
        figures["peer"] |= theirs["counts"]
    for name in (*GPU_TARGETS, *GPU_PEER_TARGETS, "share_of_limit"):
        figures[name] = None
    figures |= {"speedup_compiled": None, "compile_seconds": None}
    if compiled:
        figures |= _compare_compiled(work, case, rounds=2)
    if torch.cuda.is_available():
        targets |= GPU_TARGETS | (GPU_PEER_TARGETS if peer is not None else {})
        figures |= _measure_gpu(work, peer, steps=20 if quick else 60, compiled=compiled)
    return figures, targets


def _compare_compiled(work: Path, case: Case, *, rounds: int) -> dict[str, Any]:
    """Ours as it is and with compiled blocks, in turns."""
    plain, made = [], []
    for turn in range(1, rounds + 1):
        plain.append(_run(work, f"ours, not compiled {turn}", None, case))
        made.append(_run(work, f"ours, compiled {turn}", None, replace(case, compile="always")))
    key = "seconds" if case.device == "cuda" else "processor_seconds"
    ratios = [a[key] / b[key] for a, b in zip(plain, made, strict=True)]
    first = "first_" + key
    return {
        "speedup_compiled": round(statistics.median(ratios), 2),
        "compile_seconds": round(statistics.median(run[first] for run in made), 1),
    }


def _compare(work: Path, peer: Path, case: Case, *, rounds: int) -> dict[str, Any]:
    """Seconds a step of both sides in turns, and whether their losses agree."""
    ours, theirs = [], []
    for turn in range(1, rounds + 1):
        ours.append(_run(work, f"ours {turn}", None, case))
        theirs.append(_run(work, f"peer {turn}", peer, case))
    seconds, busy = (
        [statistics.median(run[key] for run in side) for side in (ours, theirs)]
        for key in ("seconds", "processor_seconds")
    )
    losses = [statistics.fmean(run["loss"] for run in side) for side in (ours, theirs)]
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    return {
        "speedup_vs_peer": round(statistics.median(ratios), 2),
        "speedups": [round(ratio, 2) for ratio in ratios],
        "processor_speedup_vs_peer": round(busy[1] / busy[0], 2),
        "seconds_per_step": round(seconds[0], 4),
        "loss": round(losses[0], 4),
        "loss_difference": round(abs(losses[0] - losses[1]) / losses[1], 4),
        "peer": {"seconds_per_step": round(seconds[1], 4), "loss": round(losses[1], 4)},
    }


def _measure_gpu(work: Path, peer: Path | None, *, steps: int, compiled: bool) -> dict[str, Any]:
    pipeline = str(write_full_pipeline(work / "full"))
    photos = {size: str(write_photos(work / f"photos-{size}", size)) for size in (512, 1024)}
    small = Case(pipeline, photos[512], 512, steps, precision="bf16", device="cuda")
    large = replace(small, photos=photos[1024], resolution=1024, batch=4, optimizer="adamw")
    found = [name for name in ("torchao", "bitsandbytes") if importlib.util.find_spec(name)]
    narrow = {"torchao": "int8", "bitsandbytes": "nf4"}[found[0]] if found else "full"
    lean = replace(large, batch=1, checkpointing=True, base_weights=narrow, steps=20)
    figures: dict[str, Any] = {}
    rates = {}
    for size, case in ((512, small), (1024, large)):
        rates[size] = 1 / _run(work, f"ours at {size}", None, case)["seconds"]
        if peer is not None:
            compared = _compare(work, peer, case, rounds=2)
            rates[size] = 1 / compared["seconds_per_step"]
            figures[f"speedup_vs_peer_{size}"] = compared["speedup_vs_peer"]
        if compiled:
            for name, value in _compare_compiled(work, case, rounds=2).items():
                figures[f"{name}_{size}"] = value
    peak = _run(work, "peak", None, lean)["peak_gb"]
    try:
        _run(work, "within 8 GB", None, replace(lean, memory_limit_gb=8.0))
        fits = True
    except SystemExit:
        fits = False
    ceiling = _run_matmul()
    pictures = rates[1024] * large.batch
    return figures | {
        "steps_per_second_512": round(rates[512], 2),
        "pictures_per_second_1024": round(pictures, 2),
        "matmul_tflops": round(ceiling, 1),
        "share_of_limit": round(pictures * TFLOP_1024 / ceiling, 3),
        "peak_gb_1024": round(peak, 2),
        "peak_base_weights": narrow,
        "fits_8_gb": float(fits),
    }


def _measure_full_size_on_cpu(
    work: Path,
) -> tuple[dict[str, Any], dict[str, tuple[str, float]]]:
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    case = Case(
        str(_in_child(write_full_pipeline, work / "full")),
        str(write_photos(work / "photos-512", 512)),
        512,
        steps=2,
        batch=1,
        optimizer="adamw",
        precision="bf16",
        checkpointing=True,
    )
    done = _run(work, "SDXL at full size, 512 pixels, on the CPU", None, case)
    return {"peak_rss_gb": done["peak_rss_gb"], "loss": done["loss"]}, CPU_TARGETS


# --- a training in a process of its own ------------------------------------------------------------


def _run(work: Path, name: str, peer: Path | None, case: Case) -> dict[str, Any]:
    """Train in a child process; what it measured.

    Raises:
        SystemExit: The child failed.
    """
    out = Path(tempfile.mkdtemp(prefix="run-", dir=work))
    order = {"case": asdict(case), "out": str(out), "peer": str(peer) if peer else None}
    with (out / "log.txt").open("w") as log:
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(order)],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    result = out / "result.json"
    if not result.exists():
        tail = (out / "log.txt").read_text()[-2000:]
        raise SystemExit(f"{name} failed ({done.returncode}):\n{tail}")
    measured: dict[str, Any] = json.loads(result.read_text())
    say(f"{name}: {json.dumps(measured)}")
    return measured


class Watch:
    """Hears every step; times them, or counts what some of them do."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.times: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []
        self.began = (time.perf_counter(), time.process_time())
        self.counts: dict[str, float] = {}
        self._counter = _make_counter() if case.count else None

    def hear(self, loss: float | None) -> None:
        """A step is done."""
        self.times.append(time.perf_counter())
        self.processor.append(time.process_time())
        if loss is not None:
            self.losses.append(loss)
        if self._counter is None:
            return
        if len(self.times) == WARM_UP:
            self._counter.__enter__()
        elif len(self.times) == WARM_UP + COUNTED:
            self._counter.__exit__(None, None, None)
            self.counts = {
                f"{name}_per_step": number / COUNTED
                for name, number in self._counter.counts.items()
            }

    def result(self) -> dict[str, Any]:
        """What was measured, for the parent process."""
        import torch

        on_gpu = self.case.device == "cuda"
        # A GPU runs behind: only where the log waits for it does the clock tell the truth.
        stride = 10 if on_gpu else 1
        marks = self.times[WARM_UP - 1 :: stride] if not on_gpu else self.times[9::stride]
        gaps = [(b - a) / stride for a, b in pairwise(marks)]
        busy = [b - a for a, b in pairwise(self.processor[WARM_UP - 1 :])]
        return {
            "seconds": statistics.median(gaps) if gaps else None,
            "processor_seconds": statistics.median(busy) if busy else None,
            "first_seconds": round(self.times[0] - self.began[0], 2),
            "first_processor_seconds": round(self.processor[0] - self.began[1], 2),
            "loss": statistics.fmean(self.losses) if self.losses else None,
            "counts": self.counts,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
            "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        }


def _run_child(order: dict[str, Any]) -> None:
    case, out = Case(**order["case"]), Path(order["out"])
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if case.memory_limit_gb is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(case.memory_limit_gb * 1e9 / total)
    watch = Watch(case)
    if order["peer"]:
        _train_peer(Path(order["peer"]), case, out, watch)
    else:
        _train_ours(case, out, watch)
    (out / "result.json").write_text(json.dumps(watch.result()))


def _train_ours(case: Case, out: Path, watch: Watch) -> None:
    from synthdet.models.lora import METRICS_NAME, SdxlLoraTrainer
    from synthdet.models.protocols import TrainTile
    from synthdet.workspace import hash_file

    tiles = [
        TrainTile(path.stem, path, CAPTION, hash_file(path))
        for path in sorted(Path(case.photos).glob("*.png"))
    ]

    def on_step(step: int, _figures: dict[str, Any]) -> None:
        if step:
            watch.hear(None)
        else:
            watch.began = (time.perf_counter(), time.process_time())

    SdxlLoraTrainer(
        case.pipeline,
        vae=None,
        rank=case.rank,
        lora_alpha=case.rank,
        target_modules=("to_k", "to_q", "to_v", "to_out.0"),
        optimizer=case.optimizer,
        learning_rate=1.0 if case.optimizer == "prodigy" else 1e-4,
        lr_warmup_steps=0,
        max_train_steps=case.steps,
        train_batch_size=case.batch,
        gradient_accumulation_steps=1,
        mixed_precision=case.precision,
        gradient_checkpointing=case.checkpointing,
        base_weights=case.base_weights,
        compile=case.compile,
        snr_gamma=None,
        animal_weight=0.0,
        noise_offset=0.0,
        caption_dropout=0.0,
        symmetries=False,
        checkpointing_steps=10**6,
        seed=0,
        device=case.device,
    ).train(tiles, out, on_step=on_step)
    # A logged loss is the mean since the line before.
    before = 0
    for line in (out / METRICS_NAME).read_text().splitlines():
        logged = json.loads(line)
        watch.losses += [logged["loss"]] * (logged["step"] - before)
        before = logged["step"]


def _train_peer(script: Path, case: Case, out: Path, watch: Watch) -> None:
    """Run the script as it is; its own log call, once a step, is listened to."""
    import accelerate
    import diffusers.utils

    log = accelerate.Accelerator.log

    def listen(self: Any, values: dict[str, Any], *rest: Any, **named: Any) -> None:
        if "loss" in values:
            watch.hear(float(values["loss"]))
        log(self, values, *rest, **named)

    accelerate.Accelerator.log = listen
    diffusers.utils.check_min_version = lambda _version: None
    arguments = {
        "pretrained_model_name_or_path": case.pipeline,
        "instance_data_dir": case.photos,
        "instance_prompt": CAPTION,
        "output_dir": out / "peer",
        "resolution": case.resolution,
        "train_batch_size": case.batch,
        "max_train_steps": case.steps,
        "rank": case.rank,
        "optimizer": {"prodigy": "prodigy", "adamw": "AdamW"}[case.optimizer],
        "learning_rate": 1.0 if case.optimizer == "prodigy" else 1e-4,
        "adam_weight_decay": 1e-2,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "mixed_precision": case.precision,
        "checkpointing_steps": 10**6,
        "seed": 0,
    }
    sys.argv = [str(script)]
    for name, value in arguments.items():
        sys.argv += [f"--{name}", str(value)]
    if case.checkpointing:
        sys.argv.append("--gradient_checkpointing")
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Exception as error:  # what it does after its last step is not measured
        if len(watch.times) < case.steps:
            raise
        print(f"after the last step: {error!r}")


def _make_counter() -> Any:
    """A mode that counts operations, those of the optimizer, waits, and calls of the VAE's encoder."""
    import torch
    from diffusers import AutoencoderKL
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.counts = dict.fromkeys(
                ("syncs", "optimizer_calls", "vae_encodes", "aten_calls"), 0
            )
            self.depth, self.on = 0, False

        def __enter__(self) -> Any:
            self.on = True
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            self.on = False
            super().__exit__(*error)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            answer = func(*args, **kwargs)
            name = str(func)
            fetched = (
                name.startswith("aten._to_copy")
                and args[0].is_cuda
                and str(kwargs.get("device")) == "cpu"
            )
            self.counts["syncs"] += "_local_scalar_dense" in name or fetched
            self.counts["aten_calls"] += not func.is_view
            self.counts["optimizer_calls"] += not func.is_view and self.depth > 0
            return answer

    counter = Counter()

    def enter(*_: Any) -> None:
        counter.depth += 1

    def leave(*_: Any) -> None:
        counter.depth -= 1

    register_optimizer_step_pre_hook(enter)
    register_optimizer_step_post_hook(leave)
    encode = AutoencoderKL.encode

    def count_encode(self: Any, *rest: Any, **named: Any) -> Any:
        counter.counts["vae_encodes"] += counter.on
        return encode(self, *rest, **named)

    AutoencoderKL.encode = count_encode
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return counter


def _run_matmul() -> float:
    """TFLOP/s of a bfloat16 matrix product of 8192, the best of five."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * 8192**3 / (time.perf_counter() - start) / 1e12)
    return best


# --- what is trained -------------------------------------------------------------------------------


def write_photos(folder: Path, size: int) -> Path:
    """Seeded noise in soft colours, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PHOTOS):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"photo-{number}.png")
    return folder


def write_small_pipeline(folder: Path) -> Path:
    """SDXL's topology in small, random weights."""
    return _write_pipeline(
        folder,
        unet={
            "sample_size": 16,
            "block_out_channels": (32, 64, 128),
            "attention_head_dim": (1, 2, 4),
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        },
        vae={"block_out_channels": (32, 64, 64, 64)},
        texts=(
            {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
            {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
        ),
        text_layers=(2, 2),
        half=False,
    )


def write_full_pipeline(folder: Path) -> Path:
    """SDXL base 1.0 in its own size (2.57 B parameters in the UNet), random weights in bfloat16."""
    return _write_pipeline(
        folder,
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae={"block_out_channels": (128, 256, 512, 512)},
        texts=(
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20},
        ),
        text_layers=(12, 32),
        half=True,
    )


def _write_pipeline(
    folder: Path,
    *,
    unet: dict[str, Any],
    vae: dict[str, Any],
    texts: Sequence[dict[str, Any]],
    text_layers: Sequence[int],
    half: bool,
) -> Path:
    """An ordinary pipeline folder; kept where it is there already."""
    if (folder / "model_index.json").exists():
        return folder
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    say(f"writing {folder.name}")
    dtype = torch.bfloat16 if half else torch.float32
    tokenizer = _make_tokenizer()
    symbols = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    configs = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            projection_dim=sizes["hidden_size"],
            num_hidden_layers=layers,
            bos_token_id=symbols[0],
            eos_token_id=symbols[1],
            pad_token_id=symbols[2],
            **sizes,
        )
        for sizes, layers in zip(texts, text_layers, strict=True)
    ]
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    # Made in their own precision: a UNet in float32 alone would take 10 GB.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                scaling_factor=0.13025,
                force_upcast=False,
                **vae,
            ),
            text_encoder=CLIPTextModel(configs[0]),
            text_encoder_2=CLIPTextModelWithProjection(configs[1]),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(
                in_channels=4,
                out_channels=4,
                layers_per_block=2,
                down_block_types=blocks,
                up_block_types=tuple(name.replace("Down", "Up") for name in reversed(blocks)),
                transformer_layers_per_block=(1, 2, 10),
                use_linear_projection=True,
                addition_embed_type="text_time",
                **unet,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )
    finally:
        torch.set_default_dtype(before)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _make_tokenizer() -> Any:
    """A CLIP tokenizer that spells."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.-"]
    symbols = [*letters, *(letter + "</w>" for letter in letters)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _in_child(write: Any, folder: Path) -> Path:
    """Write a folder in a process that then ends, so that its memory is not counted as ours."""
    here = str(Path(__file__).parent)
    command = f"import runpy, sys; sys.path.insert(0, {here!r}); runpy.run_path({__file__!r})[{write.__name__!r}](__import__('pathlib').Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", command], check=True)
    return folder


def _torch() -> dict[str, Any]:
    import torch

    return {
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
