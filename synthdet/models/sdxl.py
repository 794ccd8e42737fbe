"""SDXL: the ordinary diffusers pipeline, loaded from anywhere, with a LoRA, in batches.

Source: Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", 2023.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    SchedulerMixin,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from synthdet.errors import SynthdetError
from synthdet.models.devices import memory_errors, resolve_device, resolve_dtype
from synthdet.models.new_words import load_word
from synthdet.models.protocols import Picture, PictureRequest
from synthdet.models.sdxl_batch import (
    batch_for_cpu,
    batch_for_memory,
    decode,
    give_detail_back,
    guided_tensors,
    make_masks,
    stop_guidance_after,
    to_tensor,
)

_MAX_EMBEDDINGS = 256
"""Prompts whose embeddings are kept: 80 MB for SDXL, however many prompts a run has."""
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


class Embedding(NamedTuple):
    """What the UNet hears of a prompt: states ``(1, tokens, width)`` and the pooled ``(1, width)``."""

    states: Tensor
    pooled: Tensor


class SdxlGenerator:
    """Draws batches with an SDXL pipeline and, if given, a LoRA fused into it.

    Each picture's noise comes from its own seed on the CPU. The same seeds in a batch of the same
    shape give the same bytes on the same machine; in another shape rounding differs slightly.
    Attention runs through torch's scaled dot product attention.

    Args:
        base_model: Hub id, folder or single ``.safetensors`` file of an SDXL model.
        vae: Hub id, folder or file of a VAE to use instead of its own; None for its own.
        lora: LoRA to fuse, safetensors in diffusers' or kohya's format; None for the base model.
        lora_scale: Strength of the LoRA; 1 is as trained.
        scheduler: Name of a diffusers scheduler class.
        mixed_precision: "auto", "no", "fp16" or "bf16".
        device: "auto", "cpu" or "cuda".
        vae_batch_size: Pictures the VAE decodes at once.
        compile_networks: Compile UNet and VAE with torch, at the first batch of every shape.
        few_step_lora: LoRA distilled for few steps, to fuse as well; None for none.
        scheduler_options: What the scheduler is told beside the model's own noise schedule.
        words: A word that was learned beside the LoRA; None for none.
        note: Hears what a person should know, such as a prompt that is cut.

    Raises:
        SynthdetError: A model, a LoRA or a scheduler that cannot be used; names it.
        MemoryError: The model does not fit.
    """

    def __init__(
        self,
        base_model: str | Path,
        *,
        vae: str | None,
        lora: Path | None,
        lora_scale: float,
        scheduler: str,
        mixed_precision: str,
        device: str,
        vae_batch_size: int = 1,
        compile_networks: bool = False,
        few_step_lora: Path | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        words: Path | None = None,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.scheduler = scheduler
        self._device = resolve_device(device)
        pipeline = load_pipeline(
            base_model, vae=vae, dtype=resolve_dtype(mixed_precision, self._device)
        )
        pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler, scheduler_options)
        with memory_errors():
            pipeline.to(self._device)
        if few_step_lora is not None:
            fuse_lora(pipeline, few_step_lora, 1.0)
        if lora is not None and lora_scale > 0:
            fuse_lora(pipeline, lora, lora_scale)
        self._word = load_word(pipeline, words) if words is not None else None
        # Tensor cores want channels last, and so do the CPU's convolutions.
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
        if compile_networks:
            # Whole networks, a graph for each shape: parts of them, or shapes left open, gain little.
            pipeline.unet.compile(fullgraph=True, dynamic=False)
            pipeline.vae.decoder.compile(fullgraph=True, dynamic=False)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self._others: dict[Any, Any] = {}
        self._note = note
        self._vae_batch_size = vae_batch_size
        self._embeddings: dict[str, Embedding] = {}

    def generate(
        self,
        requests: Sequence[PictureRequest],
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        strength: float = 1.0,
        precise_vae: bool = False,
    ) -> list[Picture]:
        """Draw one batch.

        Args:
            requests: Prompt, negative prompt and seed of each picture; all with sources or none, all
                with boxes or none, and all to keep detail or none.
            width: In pixels, a multiple of 8.
            height: In pixels, a multiple of 8.
            num_inference_steps: Denoising steps.
            guidance_scale: Of classifier-free guidance; at most 1 is none.
            guidance_end: Share of the steps after which there is no guidance, 0..1.
            guidance_rescale: Share of the contrast that guidance adds which is taken back, 0..1.
            strength: With sources, the share of the steps that is done from there, 0..1.
            precise_vae: Decode in float32: where a VAE overflows in half precision.

        Returns:
            ``uint8`` arrays ``(height, width, 3)``, RGB, in the order of the requests. One of which any
            part is NaN is black.

        Raises:
            MemoryError: The batch does not fit; its memory is free again.
        """
        with memory_errors(), torch.inference_mode():
            pipeline, options = self._start_from(requests, strength, width=width, height=height)
            options |= self._embeddings_of(requests, guided=guidance_scale > 1)
            if guidance_end < 1:
                options["callback_on_step_end"] = stop_guidance_after(guidance_end)
                options["callback_on_step_end_tensor_inputs"] = guided_tensors(pipeline)
            latents = pipeline(
                **options,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale,
                generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
                output_type="latent",
            ).images
            vae, size = self._pipeline.vae, self._vae_batch_size
            pictures = decode(vae, latents, batch_size=size, precise=precise_vae)
            sources = [one.source for one in requests if one.source is not None and one.keep_detail]
            if len(sources) == len(pictures):
                painted = make_masks([request.placed for request in requests], width, height)
                pictures = give_detail_back(
                    pictures, sources, 1 - strength**2 * painted, vae, batch_size=size,
                    precise=precise_vae,
                )  # fmt: skip
            return pictures

    def find_batch_size(self, *, width: int, height: int) -> int:
        """Pictures that this device draws at once: on a GPU tried out with one and with two, not compiled.

        Raises:
            MemoryError: Not even two fit.
        """
        if self._device == "cpu":
            return batch_for_cpu(width, height)
        resting = torch.cuda.memory_allocated()
        peaks = []
        for number in (1, 2):
            torch.cuda.reset_peak_memory_stats()
            with torch.compiler.set_stance("force_eager"):  # shapes that are not met again
                self.generate(
                    [PictureRequest("", "", seed) for seed in range(number)],
                    width=width, height=height, num_inference_steps=1, guidance_scale=2.0,
                )  # fmt: skip
            peaks.append(torch.cuda.max_memory_allocated() - resting)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        return batch_for_memory(one=peaks[0], two=peaks[1], free=free)

    def _start_from(
        self, requests: Sequence[PictureRequest], strength: float, *, width: int, height: int
    ) -> tuple[Any, dict[str, Any]]:
        """The pipeline that starts where the requests do, and what it wants to be told for that."""
        sources = [request.source for request in requests if request.source is not None]
        if not sources:
            return self._pipeline, {"width": width, "height": height}
        placed = [request.placed for request in requests]
        kept = {request.keep_detail for request in requests}
        starts = {bool(boxes) for boxes in placed}
        if len(sources) != len(requests) or len(starts) != 1 or len(kept) != 1:
            raise ValueError("the pictures of a batch start in different ways")
        options: dict[str, Any] = {"image": to_tensor(sources), "strength": strength}
        if not placed[0]:
            return self._make_pipeline(StableDiffusionXLImg2ImgPipeline), options
        options |= {
            "mask_image": make_masks(placed, width, height),
            "width": width,
            "height": height,
        }
        return self._make_pipeline(StableDiffusionXLInpaintPipeline), options

    def _make_pipeline(self, kind: Any) -> Any:
        """Another of diffusers' pipelines, of the same networks."""
        if kind not in self._others:
            own = self._pipeline
            self._others[kind] = kind(
                **own.components,
                force_zeros_for_empty_prompt=own.config.force_zeros_for_empty_prompt,
                add_watermarker=False,
            )
            self._others[kind].set_progress_bar_config(disable=True)
        return self._others[kind]

    def _embeddings_of(self, requests: Sequence[PictureRequest], *, guided: bool) -> dict[str, Any]:
        """What a pipeline wants to hear of the prompts, by its own names."""
        wanted = _stack([self._embed(request.prompt) for request in requests])
        told = {"prompt_embeds": wanted.states, "pooled_prompt_embeds": wanted.pooled}
        if guided:
            unwanted = _stack([self._embed_negative(request, wanted) for request in requests])
            told["negative_prompt_embeds"] = unwanted.states
            told["negative_pooled_prompt_embeds"] = unwanted.pooled
        return told

    def _embed(self, prompt: str) -> Embedding:
        if prompt not in self._embeddings:
            while len(self._embeddings) >= _MAX_EMBEDDINGS:
                del self._embeddings[next(iter(self._embeddings))]
            spelt = self._word.spell(prompt) if self._word else prompt
            if (tokens := count_lost_tokens(self._pipeline, spelt)) > 0:
                self._note(f"the model does not read the last {tokens} tokens of: {prompt}")
            self._embeddings[prompt] = encode_prompt(self._pipeline, spelt, self._device)
        return self._embeddings[prompt]

    def _embed_negative(self, request: PictureRequest, like: Embedding) -> Embedding:
        if not request.negative_prompt and guides_from_zeros(self._pipeline):
            return Embedding(torch.zeros_like(like.states[:1]), torch.zeros_like(like.pooled[:1]))
        return self._embed(request.negative_prompt)


# --- shared with the LoRA trainer ------------------------------------------------------------------


def load_pipeline(
    base_model: str | Path, *, vae: str | None, dtype: torch.dtype
) -> StableDiffusionXLPipeline:
    """Load SDXL on the CPU, safetensors only, without watermark.

    Args:
        base_model: Hub id, folder in diffusers' layout, or single ``.safetensors`` file.
        vae: Another VAE, likewise; None for the model's own.
        dtype: Of all weights.

    Raises:
        SynthdetError: Not there, not readable, or not SDXL; one line that says which and why.
    """
    options: dict[str, Any] = {"dtype": dtype}
    with _quiet():
        if vae is not None:
            options["vae"] = _load(AutoencoderKL, vae, setting="finetune.vae", dtype=dtype)
        pipeline = _load(
            StableDiffusionXLPipeline,
            base_model,
            setting="finetune.base_model",
            add_watermarker=False,
            **options,
        )
    if getattr(pipeline.unet.config, "addition_embed_type", None) != "text_time":
        raise SynthdetError(
            f"finetune.base_model: {base_model} is not an SDXL base model: name one, such as "
            "stabilityai/stable-diffusion-xl-base-1.0"
        )
    return pipeline


def make_scheduler(name: str, like: Any, options: Mapping[str, Any] | None = None) -> Any:
    """A diffusers scheduler by class name, with the noise schedule of the model's own.

    `DPMSolverMultistepScheduler` is DPM-Solver++ (2M) on Karras sigmas.
    Source: Lu et al., "DPM-Solver++", 2022; Karras et al., "Elucidating the Design Space of
    Diffusion-Based Generative Models", 2022, equation 5.

    Args:
        name: Of the class.
        like: The model's own scheduler.
        options: What to set otherwise, by the names of the class.

    Raises:
        SynthdetError: No such scheduler, none for a model like SDXL, or no such option.
    """
    kind: Any = getattr(diffusers, name, None)
    if not _can_draw_sdxl(kind):
        known = sorted(other.__name__ for other in like.compatibles if _can_draw_sdxl(other))
        raise SynthdetError(
            f"generate.scheduler: {name} is no diffusers scheduler for SDXL; "
            f"there are {', '.join(known)}"
        )
    told = {"use_karras_sigmas": True} if name == "DPMSolverMultistepScheduler" else {}
    told |= options or {}
    if unknown := sorted(told.keys() - inspect.signature(kind).parameters.keys()):
        raise SynthdetError(f"generate.scheduler_options: {name} knows no {', '.join(unknown)}")
    try:
        return kind.from_config(like.config, **told)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        raise SynthdetError(f"generate.scheduler: {name}: {_one_line(error)}") from error


def _can_draw_sdxl(kind: Any) -> bool:
    """Whether a class denoises step by step what SDXL has learned, from a seed a picture.

    SDXL was not trained for flow matching and the like: a scheduler needs betas. Some with betas want to
    be told more at each step than the pipelines have, and some add noise instead of taking it away; one
    draws noise of its own that no picture's seed decides.
    """
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        return False
    options = inspect.signature(kind).parameters
    if "beta_schedule" not in options or "noise_sampler_seed" in options:
        return False
    step = inspect.signature(kind.step).parameters.values()  # type: ignore[attr-defined]
    told = [
        one.name
        for one in step
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    return told == ["self", "model_output", "timestep", "sample"] and "Inverse" not in kind.__name__


def fuse_lora(pipeline: StableDiffusionXLPipeline, lora: Path, scale: float) -> None:
    """Add a LoRA to the pipeline's weights: ``W + scale * (alpha / rank) * B A``.

    Args:
        pipeline: Changed in place.
        lora: Safetensors in diffusers' or kohya's format.
        scale: Strength.

    Raises:
        SynthdetError: Not there, not safetensors, or made for another model.
    """
    if not lora.is_file():
        raise SynthdetError(f"the LoRA {lora} is missing")
    if lora.suffix != ".safetensors":
        raise SynthdetError(f"the LoRA {lora} is not a .safetensors file")
    try:
        with safe_open(lora, framework="pt") as tensors:
            names = " ".join(tensors.keys())
        if ".lora_A." in names and ".lora.down." in names:
            # diffusers 0.42.1 judges by the first name and would drop the others without a word.
            raise ValueError("its layers are named in two ways, lora_A and lora.down")
        with _quiet():
            pipeline.load_lora_weights(
                str(lora.parent), weight_name=lora.name, use_safetensors=True
            )
    except _LOADING_ERRORS as error:
        raise SynthdetError(
            f"the LoRA {lora} does not fit the base model: {_one_line(error)}"
        ) from error
    parts = sorted(pipeline.get_list_adapters())
    if not parts:
        raise SynthdetError(f"the LoRA {lora} has nothing for this base model")
    pipeline.fuse_lora(components=parts, lora_scale=scale, safe_fusing=True)
    pipeline.unload_lora_weights()


def encode_prompt(pipeline: StableDiffusionXLPipeline, prompt: str, device: str) -> Embedding:
    """One prompt through both text encoders, as the pipeline itself does it."""
    with _quiet(), torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(
            prompt, device=device, do_classifier_free_guidance=False
        )
    return Embedding(states, pooled)


def guides_from_zeros(pipeline: StableDiffusionXLPipeline) -> bool:
    """Whether an empty negative prompt means zeros, as for SDXL base, or an encoded empty text."""
    return bool(pipeline.config.force_zeros_for_empty_prompt)


def count_lost_tokens(pipeline: StableDiffusionXLPipeline, prompt: str) -> int:
    """Tokens at the end of a prompt that do not fit into what the text encoders read (77 in SDXL)."""
    tokenizer = pipeline.tokenizer_2
    with _quiet():
        return max(0, len(tokenizer(prompt).input_ids) - int(tokenizer.model_max_length))


def _load(kind: Any, source: str | Path, *, setting: str, **options: Any) -> Any:
    path = Path(source).expanduser()
    try:
        if path.is_file():
            if path.suffix != ".safetensors":
                raise SynthdetError(f"{setting}: {path} is not a .safetensors file")
            return kind.from_single_file(str(path), **options)
        if not path.is_dir() and _is_path(str(source)):
            raise SynthdetError(f"{setting}: there is no folder or file {source}")
        where = str(path) if path.is_dir() else str(source)
        return kind.from_pretrained(where, use_safetensors=True, **options)
    except _LOADING_ERRORS as error:
        raise SynthdetError(f"{setting}: {source} {_explain(error)}") from error


def _is_path(source: str) -> bool:
    """Whether a name can only be a local path: a hub id is ``owner/name``."""
    return source.startswith((".", "/", "~")) or source.count("/") != 1


def _explain(error: BaseException) -> str:
    """Why a model could not be loaded, and what to do, in one line."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if any(isinstance(link, GatedRepoError) for link in chain):
        return "is gated: accept its licence on its page, then `hf auth login`"
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return "is not on the hub (or private): check the name, or `hf auth login`"
    if any(isinstance(link, OfflineModeIsEnabled | LocalEntryNotFoundError) for link in chain):
        return (
            "is not in the cache, and the hub cannot be reached: go online once, or name a folder"
        )
    if any(isinstance(link, ConnectionError) for link in chain):
        return "cannot be fetched: the hub cannot be reached; name a folder instead"
    return f"cannot be loaded as an SDXL model: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and warnings of the libraries between our own."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    verbosities = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in zip(libraries, verbosities, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


def _stack(embeddings: Sequence[Embedding]) -> Embedding:
    return Embedding(
        torch.cat([embedding.states for embedding in embeddings]),
        torch.cat([embedding.pooled for embedding in embeddings]),
    )
