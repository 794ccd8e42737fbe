"""The generator on a tiny SDXL with random weights, against diffusers' own call."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file

from synthdet.errors import SynthdetError
from synthdet.models import sdxl
from synthdet.models.devices import memory_errors, resolve_device, resolve_dtype
from synthdet.models.protocols import PictureRequest
from synthdet.models.sdxl import SdxlGenerator
from synthdet.models.sdxl_batch import _to_pictures, decode, give_detail_back
from tests.tiny import tiny_vae

WIDTH, HEIGHT = 64, 48
SIZE = {"width": WIDTH, "height": HEIGHT}
OPTIONS: dict[str, Any] = {
    "vae": None,
    "lora": None,
    "lora_scale": 1.0,
    "scheduler": "DPMSolverMultistepScheduler",
    "mixed_precision": "no",
    "device": "cpu",
}
REQUESTS = (
    PictureRequest("two whales", "", 7),
    PictureRequest("open water", "blurred", 8),
    PictureRequest("two whales", "", 9),
)


def draw(
    generator: SdxlGenerator, *requests: PictureRequest, guidance: float = 4.0, rescale: float = 0.0
) -> Any:
    return generator.generate(
        requests, **SIZE, num_inference_steps=3, guidance_scale=guidance, guidance_rescale=rescale
    )


@pytest.mark.parametrize(("guidance", "rescale"), [(1.0, 0.0), (4.0, 0.0), (4.0, 0.7)])
def test_draws_what_diffusers_draws(base: Path, guidance: float, rescale: float) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, use_karras_sigmas=True
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = SdxlGenerator(base, **OPTIONS)
    for request in REQUESTS[:2]:
        expected = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt or None,
            generator=torch.Generator().manual_seed(request.seed),
            num_inference_steps=3,
            guidance_scale=guidance,
            guidance_rescale=rescale,
            output_type="np",
            **SIZE,
        ).images[0]
        (picture,) = draw(generator, request, guidance=guidance, rescale=rescale)
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert picture.dtype == np.uint8
        # Channels last: convolutions add up in another order.
        assert np.abs(picture.astype(int) - (expected * 255).round().astype(int)).max() <= 1


def test_a_seed_fixes_its_picture_whatever_else_is_in_the_batch(base: Path) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    first = draw(generator, *REQUESTS)
    again = draw(SdxlGenerator(base, **OPTIONS), *REQUESTS)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    turned = draw(generator, *reversed(REQUESTS))
    for a, b in zip(first, reversed(turned), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2
    assert not np.array_equal(first[0], first[2]), "another seed, another picture"


def test_guidance_is_switched_off_for_whole_batches(base: Path) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    seen: list[int] = []
    unet = generator._pipeline.unet
    unet.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))

    def draw_until(share: float) -> Any:
        return generator.generate(
            REQUESTS, **SIZE, num_inference_steps=4, guidance_scale=4.0, guidance_end=share
        )

    half = draw_until(0.5)
    assert seen == [6, 6, 3, 3]
    whole = draw_until(1.0)
    assert seen[4:] == [6] * 4
    assert not np.array_equal(half[0], whole[0])
    (alone,) = generator.generate(
        REQUESTS[:1], **SIZE, num_inference_steps=4, guidance_scale=4.0, guidance_end=0.5
    )
    assert np.abs(alone.astype(int) - half[0]).max() <= 2, "each picture keeps its own prompt"


def test_attention_is_torch_s_own_and_channels_come_last(base: Path, tmp_path: Path) -> None:
    pipeline = SdxlGenerator(base, **{**OPTIONS, "lora": write_lora(tmp_path, base)})._pipeline
    kinds = {type(one) for one in pipeline.unet.attn_processors.values()}
    assert kinds == {AttnProcessor2_0}, "sliced or written out, it is slower"
    for part in (pipeline.unet, pipeline.vae):
        weights = [one for one in part.parameters() if one.ndim == 4 and min(one.shape[:2]) > 1]
        assert any(not one.is_contiguous() for one in weights)
        for weight in weights:
            assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("vae_batch_size", [1, 2, 8])
def test_the_vae_has_a_batch_size_of_its_own(base: Path, vae_batch_size: int) -> None:
    generator = SdxlGenerator(base, **OPTIONS, vae_batch_size=vae_batch_size)
    sizes: list[int] = []
    decoder = generator._pipeline.vae.decoder
    decoder.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    pictures = draw(generator, *REQUESTS)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 8: [3]}[vae_batch_size]
    expected = draw(SdxlGenerator(base, **OPTIONS), *REQUESTS)
    assert np.abs(np.array(pictures, int) - np.array(expected, int)).max() <= 1


def test_a_picture_with_a_nan_is_black_and_the_others_are_not(base: Path) -> None:
    vae = sdxl.load_pipeline(base, vae=None, dtype=torch.float32).vae
    latents = torch.randn(2, 4, 24, 32, generator=torch.Generator().manual_seed(0))
    latents[1, 0, 0, 0] = torch.nan
    with torch.inference_mode():
        whole, torn = decode(vae, latents, batch_size=2)
    assert whole.shape == (HEIGHT, WIDTH, 3)
    assert whole.any()
    assert not torn.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_pixel_that_overflows_is_enough(value: float) -> None:
    """Else it is a white or black spot that no look at the whole picture finds."""
    drawn = torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.float16)
    drawn[0, 1, 5, 7] = value
    torn, whole = _to_pictures(drawn)
    assert not torn.any()
    assert (whole == 128).all()


def test_a_vae_that_overflows_draws_in_float32(base: Path) -> None:
    generator = SdxlGenerator(base, **{**OPTIONS, "mixed_precision": "bf16"})
    vae = generator._pipeline.vae

    def overflow(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output if inputs[0].dtype == torch.float32 else output * torch.nan

    vae.decoder.register_forward_hook(overflow)
    options: dict[str, Any] = {**SIZE, "num_inference_steps": 2, "guidance_scale": 3.0}
    assert not np.any(generator.generate(REQUESTS, **options))
    again = generator.generate(REQUESTS, **options, precise_vae=True)
    assert all(picture.any() for picture in again)
    assert vae.dtype == torch.bfloat16, "as it was"


SOURCE = np.random.default_rng(4).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
BOX = (16.0, 8.0, 40.0, 32.0)


def from_source(*, placed: bool, seed: int = 7) -> PictureRequest:
    return PictureRequest("two whales", "", seed, SOURCE, (BOX,) if placed else ())


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_starts_from_a_source_as_diffusers_does(base: Path, placed: bool, strength: float) -> None:
    kind = StableDiffusionXLInpaintPipeline if placed else StableDiffusionXLImg2ImgPipeline
    pipeline = kind.from_pretrained(base, add_watermarker=False)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, use_karras_sigmas=True
    )
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"image": Image.fromarray(SOURCE)}
    if placed:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[8:32, 16:40] = 255
        options |= {"mask_image": Image.fromarray(mask), **SIZE}
    expected = pipeline(
        "two whales", generator=torch.Generator().manual_seed(7), num_inference_steps=4,
        guidance_scale=4.0, strength=strength, output_type="np", **options,
    ).images[0]  # fmt: skip
    (picture,) = SdxlGenerator(base, **OPTIONS).generate(
        [from_source(placed=placed)], **SIZE, num_inference_steps=4, guidance_scale=4.0,
        strength=strength,
    )  # fmt: skip
    assert np.abs(picture.astype(int) - (expected * 255).round().astype(int)).max() <= 1


def test_only_the_box_is_painted(base: Path) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    options: dict[str, Any] = {**SIZE, "num_inference_steps": 4, "guidance_scale": 4.0}
    first, second = generator.generate(
        [from_source(placed=True), from_source(placed=True, seed=8)], **options
    )
    changed = np.abs(first.astype(int) - second).max(axis=2)
    inside = changed[8:32, 16:40].mean()
    assert inside > 4 * (changed.sum() - changed[8:32, 16:40].sum()) / (changed.size - 24 * 24)


def test_the_detail_that_the_vae_loses_is_given_back(base: Path) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    options: dict[str, Any] = {**SIZE, "num_inference_steps": 4, "guidance_scale": 4.0}
    plain = from_source(placed=True)
    kept = replace(plain, keep_detail=True)
    (without,) = generator.generate([plain], strength=0.5, **options)
    (made,) = generator.generate([kept], strength=0.5, **options)
    assert np.abs(made.astype(int) - SOURCE).mean() < np.abs(without.astype(int) - SOURCE).mean()
    pixels = torch.from_numpy(SOURCE).permute(2, 0, 1)[None] / 127.5 - 1
    vae = generator._pipeline.vae
    with torch.no_grad():
        back = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    lost = ((pixels - back) * 127.5)[0].permute(1, 2, 0).numpy()
    share = np.ones((HEIGHT, WIDTH, 1))
    share[8:32, 16:40] = 1 - 0.5**2
    expected = (without + share * lost).round().clip(0, 255)
    assert np.abs(made - expected).max() <= 1


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_a_picture_of_one_colour_stays_so_to_be_made_again(base: Path, colour: int) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    vae = generator._pipeline.vae
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    flat = np.full((HEIGHT, WIDTH, 3), colour, np.uint8)
    shares = torch.ones(2, 1, HEIGHT, WIDTH)
    changed, kept = give_detail_back([noise, flat], [SOURCE, SOURCE], shares, vae, batch_size=1)
    assert not np.array_equal(changed, noise)
    assert np.array_equal(kept, flat)


@pytest.mark.parametrize("placed", [False, True])
def test_guidance_ends_early_in_every_mode(base: Path, placed: bool) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    seen: list[int] = []
    generator._pipeline.unet.register_forward_pre_hook(
        lambda _module, inputs: seen.append(len(inputs[0]))
    )
    generator.generate(
        [from_source(placed=placed), from_source(placed=placed, seed=8)], **SIZE,
        num_inference_steps=8, guidance_scale=4.0, strength=0.5, guidance_end=0.5,
    )  # fmt: skip
    assert seen == [4, 4, 2, 2]


def test_a_batch_that_starts_in_two_ways_is_refused(base: Path) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    kept = replace(from_source(placed=False), keep_detail=True)
    for other in (REQUESTS[0], from_source(placed=True), kept):
        with pytest.raises(ValueError, match="start in different ways"):
            draw(generator, from_source(placed=False), other)


def test_few_embeddings_are_kept(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdxl, "_MAX_EMBEDDINGS", 3)
    generator = SdxlGenerator(base, **OPTIONS)
    for number in range(5):
        draw(generator, PictureRequest(f"whale {number}", "", number))
    assert len(generator._embeddings) == 3


def test_each_prompt_is_encoded_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = sdxl.encode_prompt

    def count(pipeline: Any, prompt: str, device: str) -> Any:
        encoded.append(prompt)
        return encode(pipeline, prompt, device)

    monkeypatch.setattr(sdxl, "encode_prompt", count)
    generator = SdxlGenerator(base, **OPTIONS)
    draw(generator, *REQUESTS)
    draw(generator, *REQUESTS)
    assert sorted(encoded) == ["blurred", "open water", "two whales"]


def test_a_prompt_that_is_cut_is_noted_once(base: Path) -> None:
    notes: list[str] = []
    generator = SdxlGenerator(base, **OPTIONS, note=notes.append)
    request = PictureRequest("whale " * 20, "", 1)
    draw(generator, request)
    draw(generator, request)
    assert len(notes) == 1
    assert "does not read the last 25 tokens" in notes[0]


def write_lora(folder: Path, base: Path, *, prefix: str = "unet.", second: str = "lora_B") -> Path:
    """A LoRA of rank 2 on one attention layer, in peft's names."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{prefix}{layer}.lora_A.weight": torch.randn(2, 8, generator=generator),
        f"{prefix}{layer}.{second}.weight": torch.randn(8, 2, generator=generator),
    }
    path = folder / "lora.safetensors"
    save_file(weights, path)
    return path


def test_a_lora_is_fused_at_its_scale(base: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path, base)
    pipeline = sdxl.load_pipeline(base, vae=None, dtype=torch.float32)
    layer = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    before = layer.weight.detach().clone()
    sdxl.fuse_lora(pipeline, lora, 0.5)
    weights = sdxl.safe_open(lora, framework="pt")
    down, up = (weights.get_tensor(name) for name in sorted(weights.keys()))
    layer = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    assert type(layer) is torch.nn.Linear, "no adapter is left to slow the pipeline"
    torch.testing.assert_close(layer.weight, before + 0.5 * up @ down)


def test_a_lora_at_scale_nought_is_the_base_model(base: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path, base)
    plain, none, full = (
        draw(SdxlGenerator(base, **{**OPTIONS, **options}), REQUESTS[0])[0]
        for options in ({}, {"lora": lora, "lora_scale": 0.0}, {"lora": lora})
    )
    assert np.array_equal(plain, none)
    assert not np.array_equal(plain, full)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": "transformer."}, "has nothing for this base model"),
        ({"second": "lora.down"}, "named in two ways"),
        (None, "is missing"),
    ],
)
def test_a_lora_that_does_not_fit_is_named(
    base: Path, tmp_path: Path, change: dict[str, str] | None, message: str
) -> None:
    lora = tmp_path / "lora.safetensors" if change is None else write_lora(tmp_path, base, **change)
    with pytest.raises(SynthdetError, match=rf"lora\.safetensors .*{message}"):
        SdxlGenerator(base, **{**OPTIONS, "lora": lora})


def test_a_few_step_lora_is_fused_beside_the_own_one(base: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path, base)

    def weight(**options: Any) -> torch.Tensor:
        generator = SdxlGenerator(base, **{**OPTIONS, **options})
        block = generator._pipeline.unet.mid_block.attentions[0].transformer_blocks[0]
        return block.attn1.to_q.weight.detach()  # type: ignore[no-any-return]

    none, own, both = (
        weight(**options) for options in ({}, {"lora": lora}, {"lora": lora, "few_step_lora": lora})
    )
    torch.testing.assert_close(both - none, 2 * (own - none))
    assert not torch.equal(own, none)


def test_the_batch_size_follows_from_what_one_and_two_pictures_take(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = SdxlGenerator(base, **OPTIONS)
    assert generator.find_batch_size(width=256, height=256) == 2
    # No GPU is needed to see that its figures are put together rightly.
    generator._device = "cuda"
    drawn: list[int] = []
    monkeypatch.setattr(generator, "generate", lambda requests, **_: drawn.append(len(requests)))
    figures = {
        "memory_allocated": lambda: 10,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 10 + 20 + 10 * drawn[-1],
        "mem_get_info": lambda: (150, 200),
        "empty_cache": lambda: None,
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)
    assert generator.find_batch_size(width=256, height=256) == 8, "20 + 10 a picture, of 120"
    assert drawn == [1, 2]


def test_compiled_networks_draw_the_same(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(SdxlGenerator(base, **OPTIONS), *REQUESTS)
    compiled: list[str] = []
    make = torch.nn.Module.compile

    def capture(module: torch.nn.Module, **options: Any) -> None:
        compiled.append(type(module).__name__)
        make(module, **options, backend="eager")  # graphs are captured whole; no compiler needed

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    drawn = draw(SdxlGenerator(base, **OPTIONS, compile_networks=True), *REQUESTS)
    assert compiled == ["UNet2DConditionModel", "Decoder"]
    assert np.abs(np.array(drawn, int) - np.array(expected, int)).max() <= 1


def test_a_scheduler_is_told_options_it_knows(base: Path) -> None:
    own = sdxl.load_pipeline(base, vae=None, dtype=torch.float32).scheduler
    made = sdxl.make_scheduler("EulerDiscreteScheduler", own, {"timestep_spacing": "trailing"})
    assert made.config.timestep_spacing == "trailing"
    assert made.config.beta_schedule == own.config.beta_schedule
    with pytest.raises(SynthdetError, match=r"scheduler_options: Euler.* knows no spacing$"):
        sdxl.make_scheduler("EulerDiscreteScheduler", own, {"spacing": "trailing"})


def test_another_vae_is_used(base: Path, tmp_path: Path) -> None:
    tiny_vae(seed=1).save_pretrained(tmp_path / "vae")
    own, other = (
        draw(SdxlGenerator(base, **{**OPTIONS, "vae": vae}), REQUESTS[0])[0]
        for vae in (None, str(tmp_path / "vae"))
    )
    assert not np.array_equal(own, other)


SCHEDULERS = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and sdxl._can_draw_sdxl(getattr(diffusers, name))
)


def test_the_schedulers_that_people_name_are_there() -> None:
    known = {
        "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
        "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
        "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler",
        "TCDScheduler", "UniPCMultistepScheduler",
    }  # fmt: skip
    assert known <= set(SCHEDULERS)


# Some of diffusers' schedulers hand tensors to numpy 2 in the way of numpy 1.
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", [one for one in SCHEDULERS if one != "UnCLIPScheduler"])
def test_every_scheduler_draws_from_the_seed_alone(base: Path, name: str) -> None:
    generator = SdxlGenerator(base, **{**OPTIONS, "scheduler": name})
    placed = (from_source(placed=True), from_source(placed=True, seed=8))
    for requests in (REQUESTS[:2], placed):
        drawn = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            drawn.append(
                generator.generate(
                    requests, **SIZE, num_inference_steps=4, guidance_scale=4.0, guidance_end=0.5,
                    strength=0.5 if requests is placed else 1.0,
                )
            )  # fmt: skip
        assert np.array_equal(*drawn), (
            "nothing of the first picture, or of elsewhere, is in the second"
        )
        first, second = drawn[0]
        assert first.std() > 1
        assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    "name",
    [
        "Nope", "FlowMatchEulerDiscreteScheduler", "UNet2DModel", "RePaintScheduler",
        "DDIMInverseScheduler", "CogVideoXDPMScheduler", "DPMSolverSDEScheduler", "UnCLIPScheduler",
    ],
)  # fmt: skip
def test_an_unknown_scheduler_is_named_with_the_known_ones(base: Path, name: str) -> None:
    known = "squaredcos" if name == "UnCLIPScheduler" else "EulerDiscrete"
    with pytest.raises(SynthdetError, match=rf"generate\.scheduler: {name}.*{known}") as caught:
        SdxlGenerator(base, **{**OPTIONS, "scheduler": name})
    assert "\n" not in str(caught.value)


def test_a_scheduler_whose_noise_no_seed_decides_is_refused() -> None:
    class WithNoiseOfItsOwn(DPMSolverMultistepScheduler):
        def __init__(self, beta_schedule: str = "linear", noise_sampler_seed: int | None = None):
            raise NotImplementedError

    assert not sdxl._can_draw_sdxl(WithNoiseOfItsOwn)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "there is no folder or file"),
        ("/nowhere/model.safetensors", "there is no folder or file"),
        ("EMPTY", "cannot be loaded as an SDXL model"),
        ("CKPT", r"is not a \.safetensors file"),
    ],
)
def test_a_base_model_that_is_not_there_is_one_line(
    tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.ckpt").write_bytes(b"x")
    names = {"EMPTY": str(tmp_path / "empty"), "CKPT": str(tmp_path / "model.ckpt")}
    with pytest.raises(SynthdetError, match=message) as caught:
        SdxlGenerator(names.get(source, source), **OPTIONS)
    assert "\n" not in str(caught.value)
    assert "finetune.base_model" in str(caught.value)


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("long\ntext") from LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(StableDiffusionXLPipeline, "from_pretrained", fail)
    with pytest.raises(SynthdetError, match="owner/name is not in the cache, and the hub cannot"):
        SdxlGenerator("owner/name", **OPTIONS)


def test_running_out_of_memory_is_a_memory_error_that_holds_no_tensor() -> None:
    class Held:
        pass

    held_until: list[weakref.ref[Held]] = []

    def overflow() -> None:
        held = Held()
        held_until.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    with pytest.raises(MemoryError, match=r"^CUDA out of memory$") as caught, memory_errors():
        overflow()
    assert caught.value.__cause__ is not None
    assert held_until[0]() is None
    with pytest.raises(RuntimeError, match="shape"), memory_errors():
        raise RuntimeError("shape mismatch")


def test_devices_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_dtype("no", "cpu") == torch.float32
    assert resolve_dtype("bf16", "cpu") == torch.bfloat16
    with pytest.raises(SynthdetError, match="fp16 needs a GPU"):
        resolve_dtype("fp16", "cpu")
    for native, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert resolve_dtype("auto", "cpu") == wanted
    for native, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert resolve_dtype("auto", "cuda") == wanted
    if not torch.cuda.is_available():
        assert resolve_device("auto") == "cpu"
        with pytest.raises(SynthdetError, match="cuda was asked for"):
            resolve_device("cuda")


def test_a_lora_in_kohya_s_format_is_fused_with_its_alpha(base: Path, tmp_path: Path) -> None:
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0))
    weights = {
        f"{layer}.lora_down.weight": down.clone(),
        f"{layer}.lora_up.weight": up.T.contiguous(),
        f"{layer}.alpha": torch.tensor(1.0),
    }
    save_file(weights, tmp_path / "kohya.safetensors")
    pipeline = sdxl.load_pipeline(base, vae=None, dtype=torch.float32)

    def read() -> torch.Tensor:
        block = pipeline.unet.mid_block.attentions[0].transformer_blocks[0]
        return block.attn1.to_q.weight.detach().clone()  # type: ignore[no-any-return]

    before = read()
    sdxl.fuse_lora(pipeline, tmp_path / "kohya.safetensors", 1.0)
    torch.testing.assert_close(read(), before + 0.5 * up.T @ down)
