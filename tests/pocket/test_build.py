"""The builder at toy size: seconds on one core, pictures of noise, but the ordinary formats."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from synthdet.core.boxes import turn_box
from synthdet.errors import SynthdetError
from synthdet.models.symmetries import turn
from synthdet.pocket import build_scenes, sea, weights_dir
from synthdet.pocket.build import Build, build_part, main
from synthdet.pocket.build_plan import ScenesPlan, Schedule, tiny_plan
from synthdet.pocket.build_text import learn_merges, make_tokenizer, token_ids
from synthdet.pocket.build_training import Optimizers
from synthdet.pocket.build_unet import (
    Denoiser,
    DenoisingLoss,
    LatentScenes,
    draw_side,
    draw_timesteps,
)

PLAN = tiny_plan()
CAPTION = "aerial photo of two humpback whales in a deep blue sea, whitecaps"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tiny products; YOLO in a child process, as ultralytics changes its process."""
    cache = tmp_path_factory.mktemp("cache")
    for part in ("vae", "clip", "unet"):
        build_part(Build(PLAN, cache, threads=1, install_into=cache / "installed"), part)
    subprocess.run(
        [sys.executable, "-m", "synthdet.pocket.build", "--tiny", "--only", "yolo", "--threads", "1",
         "--cache", str(cache)],
        check=True, capture_output=True, env={**os.environ, "YOLO_CONFIG_DIR": str(cache)},
    )  # fmt: skip
    return cache


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("figures.json", "MODEL_CARD.md")  # seconds differ
    }


def test_sdxl_is_an_ordinary_pipeline_that_draws(built: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(built / "products" / "sdxl")
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    assert pipeline.config.force_zeros_for_empty_prompt
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(CAPTION, height=64, width=96, num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 64, 96, 3)
    assert np.isfinite(made).all()


def test_the_installed_copy_is_the_product(built: Path) -> None:
    assert files_of(built / "installed" / "sdxl") == files_of(built / "products" / "sdxl")
    assert not list((built / "installed").glob(".*"))


def test_clip_is_an_ordinary_clip(built: Path) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = built / "products" / "clip"
    model, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    assert model.dtype == torch.float32
    scene = sea.render_scene(1, size_wh=(128, 96))
    pixels = processor(scene.image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 96, 96)
    for kind in (CLIPTokenizer, AutoTokenizer):
        ids = token_ids(kind.from_pretrained(folder), [CAPTION])
        assert ids.shape == (1, PLAN.text.max_length)
        made = model(input_ids=ids, pixel_values=pixels)
        assert torch.isfinite(made.logits_per_image).all()


def test_the_builders_normalisation_is_the_processors(built: Path) -> None:
    from transformers import CLIPImageProcessor

    from synthdet.pocket.build_clip import normalise

    image = sea.render_scene(2, size_wh=(96, 96)).image
    processor = CLIPImageProcessor.from_pretrained(built / "products" / "clip")
    theirs = processor(image, return_tensors="pt").pixel_values
    assert torch.allclose(normalise(image[None], torch.device("cpu")), theirs, atol=1e-5)


def test_yolo_is_a_state_dict_with_names(built: Path) -> None:
    from safetensors.torch import load_file

    folder = built / "products" / "yolo"
    state = load_file(folder / "model.safetensors")
    assert all(name.startswith("model.") for name in state)
    names = json.loads((folder / "names.json").read_text())
    assert tuple(names) == sea.BASE_CLASSES
    assert state["model.23.cv3.0.2.weight"].shape[0] == len(names)
    assert not list(folder.glob("*.pt"))


@pytest.mark.parametrize("product", ["sdxl", "clip", "yolo"])
def test_a_card_gives_the_figures(built: Path, product: str) -> None:
    folder = built / "products" / product
    figures = json.loads((folder / "figures.json").read_text())
    card = (folder / "MODEL_CARD.md").read_text()
    assert figures["steps"] == 2
    assert all(f"| {name} | {value} |" in card for name, value in figures.items())


def test_nothing_says_on_which_machine_it_was_made(built: Path) -> None:
    for folder in (built / "products", weights_dir()):
        texts = [path for path in folder.rglob("*") if path.suffix in (".json", ".md")]
        assert len(texts) > 10
        assert [path for path in texts if re.search(r'"/\w', path.read_text())] == []


def test_interrupted_and_gone_on_gives_the_same_bits(tmp_path: Path) -> None:
    schedule = Schedule(3, 2, 1e-3, warmup=1)
    vae = dataclasses.replace(PLAN.vae, schedule=schedule)
    plan = dataclasses.replace(PLAN, vae=vae)
    whole, broken = (Build(plan, tmp_path / name, threads=1) for name in ("whole", "broken"))
    build_part(whole, "vae")
    steps = []
    for _ in range(3):  # no minutes left: one step a call
        steps.append(build_part(dataclasses.replace(broken, max_minutes=0.0), "vae")["steps"])
        (broken.cache / "vae" / "checkpoint.part").write_bytes(b"cut off by kill -9")
    assert steps == [1, 2, 3]
    assert json.loads((broken.cache / "vae" / "history.json").read_text())[0]["from_step"] == 0
    assert files_of(broken.cache / "vae" / "vae") == files_of(whole.cache / "vae" / "vae")


def test_the_unet_goes_on_too(tmp_path: Path, built: Path) -> None:
    folders = []
    for name, minutes in (("whole", (None,)), ("broken", (0.0, 0.0))):
        cache = tmp_path / name
        cache.mkdir()
        (cache / "vae").symlink_to(built / "vae")
        (cache / "scenes").symlink_to(built / "scenes")
        (cache / "unet").mkdir()
        (cache / "unet" / "history-text.json").write_text("of text encoders it was given")
        for limit in minutes:
            build_part(Build(PLAN, cache, threads=1, max_minutes=limit), "unet")
        folders.append(cache / "products" / "sdxl" / "unet")
    assert files_of(folders[0]) == files_of(folders[1])
    product = folders[0].parent
    assert (product / "history-text.json").read_text() == "of text encoders it was given"


def test_muon_moves_kernels_by_orthogonal_matrices_and_adamw_all_else() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("conv_in", torch.nn.Conv2d(3, 8, 3))
    model.add_module("conv", torch.nn.Conv2d(8, 8, 3))
    model.add_module("unused", torch.nn.Linear(4, 4))
    rate = 0.01
    optimizers = Optimizers(model, Schedule(1, 1, rate, weight_decay=0.0, optimizer="muon"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.conv(model.conv_in(torch.randn(2, 3, 9, 7))).square().mean().backward()
    optimizers.step()
    moved = {name: (before[name] - p.detach()) for name, p in model.named_parameters()}
    singular = torch.linalg.svdvals(moved["conv.weight"].flatten(1))
    assert singular.min() > 0.5 * rate * 0.2 * 72**0.5, (
        "all directions alike, which AdamW's are not"
    )
    assert singular.max() < 1.5 * rate * 0.2 * 72**0.5
    for name in ("conv_in.weight", "conv_in.bias", "conv.bias"):
        assert moved[name].abs().median() == pytest.approx(rate, rel=0.01), "AdamW's first step"
    assert moved["unused.weight"].abs().max() == 0
    assert all(p.grad is None for p in model.parameters())


def test_crops_first_then_whole_scenes_too() -> None:
    plan = dataclasses.replace(
        PLAN.unet, schedule=Schedule(100, 2, 1e-3), crops_until=0.4, crop_fraction=0.25
    )
    generator = torch.Generator().manual_seed(0)
    early, late = ([draw_side(plan, step, 24, generator) for _ in range(400)] for step in (39, 40))
    assert set(early) == {12}
    assert set(late) == {12, 24}
    assert late.count(12) / 400 == pytest.approx(0.25, abs=0.06)


def test_words_are_learned_for_a_while_and_then_read_once() -> None:
    tokenizer = make_tokenizer([*CAPTION.replace(",", "").split(), "sky"], 16)
    model = Denoiser(PLAN, tokenizer)
    ids = token_ids(tokenizer, [CAPTION, "photo of a deep sky", CAPTION]).view(3, 1, -1)
    data = LatentScenes(
        np.random.default_rng(0).normal(size=(3, 4, 24, 24)).astype(np.float16),
        [build_scenes.Annotation(CAPTION, (), ())] * 3,
        ids.expand(3, 3, -1),
        np.zeros((3, 24, 24), dtype=bool),
    )
    loss = DenoisingLoss(PLAN, model, data, tokenizer, torch.device("cpu"))
    read: list[int] = []
    model.read = lambda ids, read_all=model.read: (read.append(len(ids)), read_all(ids))[1]  # type: ignore[method-assign]
    words = [p for name, p in model.named_parameters() if name.startswith("text")]
    learned = []
    for learn_words in (True, False, False):
        generator = torch.Generator().manual_seed(1)
        model.zero_grad()
        value = loss.of(np.arange(3), 12, generator, learn_words=learn_words)
        value.backward()
        learned.append((value.item(), any(p.grad is not None for p in words)))
    assert read == [3, 1, 1], "all of a step, then each caption once and never again"
    assert [with_gradient for _, with_gradient in learned] == [True, False, False]
    assert learned[0][0] == pytest.approx(learned[1][0], rel=1e-4) == learned[2][0]


def test_a_unet_does_not_go_on_with_the_latents_of_another_vae(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "vae", tmp_path / "vae")
    shutil.copytree(built / "unet", tmp_path / "unet")
    (tmp_path / "scenes").symlink_to(built / "scenes")
    weights = tmp_path / "vae" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(SynthdetError, match="unet was trained on the latents of another VAE"):
        build_part(Build(PLAN, tmp_path, threads=1), "unet")


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    states = Optimizers(model, Schedule(1, 1, 1e-3, optimizer="muon")).state()
    with pytest.raises(SynthdetError, match="another optimizer"):
        Optimizers(model, Schedule(1, 1, 1e-3)).load(states)


def test_the_unet_needs_the_vae(tmp_path: Path) -> None:
    with pytest.raises(SynthdetError, match="vae is missing: build the part vae first"):
        build_part(Build(PLAN, tmp_path, threads=1), "unet")


def test_no_humpback_enters_the_base_world(built: Path, monkeypatch: pytest.MonkeyPatch,
                                           tmp_path: Path) -> None:  # fmt: skip
    asked: list[tuple[int, str | None]] = []
    real = sea.render_scene

    def spy(seed: int, *, size_wh: tuple[int, int], subject: str | None) -> sea.Scene:
        asked.append((seed, subject))
        return real(seed, size_wh=size_wh, subject=subject)

    monkeypatch.setattr(sea, "render_scene", spy)
    base = build_scenes.load_scenes("base_train", PLAN.scenes, tmp_path)
    test = build_scenes.load_scenes("base_test", PLAN.scenes, tmp_path)
    assert {subject for _, subject in asked} == {None}
    assert len({seed for seed, _ in asked}) == len(base) + len(test)
    for annotation in base.annotations + test.annotations:
        assert "humpback" not in annotation.caption
        assert set(annotation.class_names) <= set(sea.BASE_CLASSES)


def test_a_humpback_in_the_base_world_stops_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = sea.render_scene
    monkeypatch.setattr(
        sea, "render_scene", lambda seed, *, size_wh, subject: real(seed, size_wh=size_wh,
                                                                    subject=sea.HUMPBACK)
    )  # fmt: skip
    with pytest.raises(ValueError, match="scene 10000000 of the base world holds a humpback"):
        build_scenes.load_scenes("base_train", PLAN.scenes, tmp_path)


def test_scenes_come_back_as_rendered(tmp_path: Path) -> None:
    plan = ScenesPlan(base_train=3, size=96)
    build_scenes.load_scenes("base_train", plan, tmp_path)
    scenes = build_scenes.load_scenes("base_train", plan, tmp_path)  # from disk
    scene = sea.render_scene(build_scenes.FIRST_SEED["base_train"] + 2, size_wh=(96, 96))
    assert np.array_equal(scenes.pictures(np.array([2]))[0], scene.image)
    assert scenes.annotations[2].caption == scene.caption
    assert scenes.annotations[2].boxes == tuple(box.xyxy for box in scene.boxes)


def test_every_word_is_one_token() -> None:
    words = sea.caption_vocabulary()
    assert {"humpback", "whale", "whales"} <= set(words)
    tokenizer = make_tokenizer(words, 16)
    assert [len(tokenizer.tokenize(word)) for word in words] == [1] * len(words)
    assert len(tokenizer.tokenize("submarine")) > 1
    assert learn_merges(["ab", "abb"])[0] == ("a", "b")


def test_every_scene_once_an_epoch() -> None:
    steps = [build_scenes.batch_indices(0, "vae", step, 3, 7) for step in range(7)]
    assert sorted(np.concatenate(steps)[:7]) == list(range(7))
    assert sorted(np.concatenate(steps)) == sorted(list(range(7)) * 3)
    again = build_scenes.batch_indices(0, "vae", 5, 3, 7)
    assert np.array_equal(steps[5], again)
    assert not np.array_equal(again, build_scenes.batch_indices(0, "unet", 5, 3, 7))


@pytest.mark.parametrize("symmetry", range(8))
def test_boxes_turn_with_the_picture(symmetry: int) -> None:
    picture = torch.zeros(12, 12)
    picture[2:5, 1:8] = 1
    x1, y1, x2, y2 = turn_box((1, 2, 8, 5), symmetry, 12)
    turned = torch.zeros(12, 12)
    turned[int(y1) : int(y2), int(x1) : int(x2)] = 1
    assert torch.equal(turn(picture, symmetry), turned)


def test_the_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(100, 1, 1.0, warmup=10, decay_fraction=0.2)
    assert [schedule.rate(step) for step in (0, 9, 50, 80, 90, 99)] == pytest.approx(
        [0.1, 1, 1, 1, 0.5, 0.05]
    )


@pytest.mark.parametrize("focus", [0.0, 1.0])
def test_timesteps_are_spread_or_focused(focus: float) -> None:
    drawn = draw_timesteps(4000, focus, torch.Generator().manual_seed(0))
    middle = ((drawn >= 450) & (drawn < 800)).float().mean().item()
    assert middle == pytest.approx(0.68 if focus else 0.35, abs=0.03)
    assert drawn.min() >= 0
    assert drawn.max() <= 999


def test_whitened_latents_are_those_the_decoder_learned_from(built: Path) -> None:
    from synthdet.pocket import build_vae

    cpu = torch.device("cpu")
    vae = build_vae.make_vae(PLAN.vae, 96, 3)
    scenes = build_scenes.load_scenes("base_test", PLAN.scenes, built)
    pixels = build_vae.to_pixels(scenes.pictures(np.arange(len(scenes))), cpu)
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist.mean
    build_vae.whiten(vae, scenes, cpu)
    with torch.no_grad():
        after = vae.encode(pixels).latent_dist
    torch.testing.assert_close(after.mean, build_vae._normalise(before), atol=0.02, rtol=0)
    assert after.std.max() < 1e-6
    latents = build_vae.encode(vae, scenes, cpu).astype(np.float32)
    assert np.abs(latents.mean((0, 2, 3))).max() < 0.01
    assert np.abs(latents.std((0, 2, 3)) - 1).max() < 0.01


def test_crops_of_pictures_lie_where_the_windows_are() -> None:
    from synthdet.pocket import build_vae

    pictures = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    pixels = build_vae._take_pixels(pictures, [(0, 2), (5, 1)], 4, torch.device("cpu"))
    wanted = np.stack([pictures[0, 8:24, 0:16], pictures[1, 4:20, 20:36]])
    torch.testing.assert_close(pixels, build_vae.to_pixels(wanted, torch.device("cpu")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "vae,gan"], "--only vae,gan: choose from vae, clip, yolo, unet"),
        (["--only", "vae", "--steps", "vae"], "--steps vae: write it as part=number"),
    ],
)
def test_a_wrong_option_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--tiny"]) == 1
    assert message in capsys.readouterr().err
