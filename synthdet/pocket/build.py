"""Build the embedded default models: `python -m synthdet.pocket.build --device cpu`.

Reads   nothing: every picture is rendered from a seed.
Writes  checkpoints, metrics and samples under `--cache`; finished products there under `products/`,
        and with `--install` in the package's `weights/`.
Resume  every part goes on from its newest checkpoint, on the same path as if never interrupted
        (same bits on the same machine with the same threads). `--steps unet=30000` lengthens the training.

Order: vae, clip, yolo, unet; each in a process of its own. The VAE, the UNet and the YOLO never see a
humpback; the CLIP does, in scenes whose seeds nothing else uses.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthdet.errors import SynthdetError
from synthdet.pocket.build_plan import BuildPlan, tiny_plan

PARTS = ("vae", "clip", "yolo", "unet")
EXTRA_WORDS = (
    "a",
    "an",
    "and",
    "drone",
    "from",
    "image",
    "no",
    "picture",
    "sea",
    "the",
    "view",
    "water",
    "with",
)


@dataclass(frozen=True)
class Build:
    """One run of the builder."""

    plan: BuildPlan
    cache: Path
    device: str = "cpu"
    threads: int = 2
    max_minutes: float | None = None
    install_into: Path | None = None
    """Folder of the shipped weights, or None to leave them alone."""
    checkpoint_minutes: float = 5.0


def build_part(build: Build, part: str) -> dict[str, Any]:
    """Build one part in this process; returns its figures.

    Raises:
        SynthdetError: A part that this one needs is not built yet.
    """
    import torch

    torch.set_num_threads(build.threads)
    (build.cache / part).mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Build], dict[str, Any]]] = {
        "vae": _build_vae,
        "clip": _build_clip,
        "yolo": _build_yolo,
        "unet": _build_unet,
    }
    return makers[part](build)


def _place(build: Build, part: str) -> Any:
    import torch

    from synthdet.pocket.build_training import Workplace

    return Workplace(
        build.cache / part,
        torch.device(build.device),
        dataclasses.asdict(getattr(build.plan, part)),
        build.max_minutes,
        build.checkpoint_minutes,
    )


def _scenes(build: Build, name: Any) -> Any:
    from synthdet.pocket.build_scenes import load_scenes

    return load_scenes(name, build.plan.scenes, build.cache, workers=build.threads)


def _tokenizer(build: Build) -> Any:
    from synthdet.pocket.build_text import make_tokenizer
    from synthdet.pocket.sea import caption_vocabulary

    words = sorted({*caption_vocabulary(), *EXTRA_WORDS})
    return make_tokenizer(words, build.plan.text.max_length)


def _made(build: Build, part: str, trained: Any, num_scenes: int) -> dict[str, Any]:
    from synthdet.pocket.build_scenes import scene_code_hash

    return {
        "seed": build.plan.seed,
        "steps": trained.step,
        "settings_from_step": _changes(build.cache / part),
        "train_scenes": num_scenes,
        "scene_code": scene_code_hash(),
    }


def _changes(folder: Path) -> str:
    """The steps from which on the settings in `history.json` held, the first one included."""
    history = json.loads((folder / "history.json").read_text())
    return ", ".join(str(line["from_step"]) for line in history)


def _publish(build: Build, product: str, partial: Path, figures: dict[str, Any]) -> None:
    """Card and history into a finished folder, folder into its places."""
    from synthdet.pocket.build_card import write_card
    from synthdet.pocket.build_training import replace_folder

    for part in {"sdxl": ("vae", "unet")}.get(product, (product,)):
        shutil.copy(build.cache / part / "history.json", partial / f"history-{part}.json")
        # Of what the part was given: text encoders that were trained beside an earlier UNet.
        for given in (build.cache / part).glob("history-*.json"):
            shutil.copy(given, partial / given.name)
    write_card(product, partial, figures)
    if build.install_into is not None:
        staged = build.install_into / f".{product}.new"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(partial, staged)
        replace_folder(staged, build.install_into / product)
    replace_folder(partial, build.cache / "products" / product)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _build_vae(build: Build) -> dict[str, Any]:
    from synthdet.pocket import build_vae
    from synthdet.pocket.build_training import replace_folder

    place, scenes = _place(build, "vae"), _scenes(build, "base_train")
    vae, trained = build_vae.train_vae(build.plan, scenes, place)
    test = _scenes(build, "base_test")
    build_vae.whiten(vae, test, place.device)
    count = min(500, len(test))
    figures = {
        **_made(build, "vae", trained, len(scenes)),
        "vae_psnr_db": round(build_vae.psnr_db(vae, test, place.device, count), 2),
        "vae_psnr_humpback_db": round(
            build_vae.psnr_db(vae, _scenes(build, "humpback_test"), place.device, count), 2
        ),
    }
    partial = _fresh(place.folder / "vae.part")
    build_vae.save_vae(vae, partial)
    (partial / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    replace_folder(partial, place.folder / "vae")
    return figures


def _open_vae(build: Build) -> Any:
    from diffusers import AutoencoderKL

    folder = build.cache / "vae" / "vae"
    if not folder.is_dir():
        raise SynthdetError(f"{folder} is missing: build the part vae first (--only vae,unet)")
    return AutoencoderKL.from_pretrained(folder).to(build.device).eval()


def _build_clip(build: Build) -> dict[str, Any]:
    from synthdet.pocket import build_clip

    place, tokenizer = _place(build, "clip"), _tokenizer(build)
    base, humpbacks = _scenes(build, "base_train"), _scenes(build, "humpback_train")
    model, trained = build_clip.train_clip(build.plan, base, humpbacks, tokenizer, place)
    seen = build_clip.embed(model, _scenes(build, "humpback_test"), place.device)
    known = max(1, min(16, len(seen) // 2))
    others = build_clip.embed(model, _scenes(build, "base_test"), place.device)
    figures = {
        **_made(build, "clip", trained, len(base) + len(humpbacks)),
        "clip_auc": round(build_clip.centroid_auc(seen[:known], seen[known:], others), 4),
        "caption_accuracy": round(
            build_clip.caption_accuracy(
                model, tokenizer, _scenes(build, "base_test"), place.device
            ),
            4,
        ),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    partial = _fresh(place.folder / "product.part")
    build_clip.save_clip(model, tokenizer, build.plan.scenes.size, partial)
    _publish(build, "clip", partial, figures)
    return figures


def _build_yolo(build: Build) -> dict[str, Any]:
    from synthdet.pocket import build_yolo

    place, scenes = _place(build, "yolo"), _scenes(build, "base_train")
    model, trained = build_yolo.train_yolo(build.plan, scenes, place, build.threads)
    measured = build_yolo.map50(model, _scenes(build, "base_test"), place.device)
    figures = {
        **_made(build, "yolo", trained, len(scenes)),
        **{name: round(value, 4) for name, value in measured.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    partial = _fresh(place.folder / "product.part")
    build_yolo.save_yolo(model, build.plan.yolo, build.plan.scenes.size, partial)
    _publish(build, "yolo", partial, figures)
    return figures


def _build_unet(build: Build) -> dict[str, Any]:
    from synthdet.pocket import build_unet

    place, tokenizer = _place(build, "unet"), _tokenizer(build)
    _refuse_other_latents(build, place.folder)
    data, test = (
        build_unet.latent_scenes(
            _latents(build, name, _open_vae(build)),
            _scenes(build, name),
            tokenizer,
            build.plan.scenes.size,
        )
        for name in ("base_train", "base_test")
    )
    vae = _open_vae(build)
    figures: dict[str, Any] = {}

    def hand_over(model: build_unet.Denoiser, trained: Any) -> None:
        pipeline = build_unet.make_pipeline(build.plan.unet, model, vae, tokenizer)
        seconds = _draw_samples(build, pipeline, trained.step)
        figures.update(_made(build, "unet", trained, len(data.latents)))
        figures.update(
            unet_parameters=sum(p.numel() for p in model.unet.parameters()),
            loss=round(
                build_unet.validation_loss(build.plan, model, test, tokenizer, place.device), 5
            ),
            seconds_a_picture_12_steps=round(seconds, 3),
            threads=build.threads,
            **_vae_figures(build),
        )
        with (place.folder / "validation.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")
        partial = _fresh(place.folder / "product.part")
        build_unet.save_pipeline(pipeline, partial)
        _publish(build, "sdxl", partial, figures)

    build_unet.train_unet(build.plan, data, tokenizer, place, hand_over)
    return figures


def _vae_figures(build: Build) -> dict[str, Any]:
    figures = json.loads((build.cache / "vae" / "vae" / "figures.json").read_text())
    return {
        "vae_steps": figures["steps"],
        "vae_settings_from_step": figures["settings_from_step"],
        "vae_psnr_db": figures["vae_psnr_db"],
        "vae_psnr_humpback_db": figures["vae_psnr_humpback_db"],
    }


def _latents_key(build: Build) -> str:
    """Changes with the VAE and the scene code."""
    from synthdet.pocket.build_scenes import scene_code_hash

    weights = build.cache / "vae" / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes() if weights.exists() else b""
    return hashlib.sha256(content + scene_code_hash().encode()).hexdigest()[:12]


def _refuse_other_latents(build: Build, folder: Path) -> None:
    """A UNet knows the latents it has learned from.

    Raises:
        SynthdetError: The checkpoint was trained on others.
    """
    from synthdet.pocket.build_training import write_text

    mark, key = folder / "latents.txt", _latents_key(build)
    if (folder / "checkpoint.pt").exists() and not (mark.exists() and mark.read_text() == key):
        raise SynthdetError(
            f"{folder} was trained on the latents of another VAE: move it away to begin anew"
        )
    write_text(mark, key)


def _latents(build: Build, name: str, vae: Any) -> Any:
    """Latents of a set, encoded once for every VAE and scene code."""
    import numpy as np
    import torch

    from synthdet.pocket import build_vae

    scenes = _scenes(build, name)
    path = build.cache / "unet" / f"latents-{name}-{len(scenes)}-{_latents_key(build)}.npy"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.save(file, build_vae.encode(vae, scenes, torch.device(build.device)))
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def _draw_samples(build: Build, pipeline: Any, step: int) -> float:
    """A sheet of pictures of fixed prompts and seeds; returns the seconds a picture took."""
    import cv2
    import numpy as np

    from synthdet.pocket import build_unet

    annotations = _scenes(build, "base_test").annotations
    # One prompt a subject first, then what comes: the sheet shows every kind.
    firsts = {a.caption.split(" in a ")[0].split()[-1]: a.caption for a in reversed(annotations)}
    prompts = (list(firsts.values()) + [a.caption for a in annotations])[:16]
    pictures, seconds = build_unet.draw(pipeline, prompts, size=build.plan.scenes.size)
    rows = [
        np.concatenate(list(pictures[i : i + 8]), axis=1) for i in range(0, len(prompts) - 7, 8)
    ]
    folder = build.cache / "unet" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    if rows:
        sheet = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"step-{step:06d}.png"), sheet)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    return seconds


def _plan_from(options: argparse.Namespace) -> BuildPlan:
    """The plan, with the steps that were asked for.

    Raises:
        SynthdetError: `--steps` is not of the form part=number.
    """
    plan = tiny_plan() if options.tiny else BuildPlan()
    for assignment in options.steps:
        part, _, number = assignment.partition("=")
        if part not in PARTS or not number.isdigit():
            raise SynthdetError(f"--steps {assignment}: write it as part=number, like unet=20000")
        section = getattr(plan, part)
        schedule = dataclasses.replace(section.schedule, steps=int(number))
        changes: dict[str, Any] = {part: dataclasses.replace(section, schedule=schedule)}
        plan = dataclasses.replace(plan, **changes)
    return plan


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m synthdet.pocket.build", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--max-minutes", type=float, help="stop each part's training after so long")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/synthdet/pocket-build"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--steps", action="append", default=[], help="steps of a part in all, like unet=20000"
    )
    parser.add_argument(
        "--install",
        type=Path,
        nargs="?",
        const=Path(__file__).parent / "weights",
        help="put products into the package too, or into another folder",
    )
    parser.add_argument("--tiny", action="store_true", help="toy size, to try the builder")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Build the parts asked for, in order; more than one in processes of their own."""
    options = _parse(arguments)
    parts = [part for part in PARTS if part in options.only.split(",")]
    if not parts or set(options.only.split(",")) - set(PARTS):
        print(f"--only {options.only}: choose from {', '.join(PARTS)}", file=sys.stderr)
        return 1
    if len(parts) > 1:
        for part in parts:
            command = [sys.executable, "-m", "synthdet.pocket.build", *arguments, "--only", part]
            if code := subprocess.run(command, check=False).returncode:  # noqa: S603
                return code
        return 0
    try:
        build = Build(
            _plan_from(options),
            options.cache.expanduser(),
            options.device,
            options.threads,
            options.max_minutes,
            options.install,
        )
        figures = build_part(build, parts[0])
    except SynthdetError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{parts[0]:5} done  {json.dumps(figures)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
