"""A LoRA as a file: the same bytes for the same training, read back before it counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor

from synthdet.errors import SynthdetError
from synthdet.models.protocols import TrainTile

if TYPE_CHECKING:
    from synthdet.models.lora import SdxlLoraTrainer

_NOT_THE_RECIPE: Final = (
    "base_model", "vae", "device", "note", "checkpointing_steps", "validation_steps", "kohya_copy",
    "tensorboard", "gradient_checkpointing", "compile",
)  # fmt: skip
_TRIGGER_WORDS: Final = 20
_TEXT_PREFIXES: Final = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def serialise(plan: SdxlLoraTrainer, parts: Mapping[str, Any], tiles: Sequence[TrainTile]) -> bytes:
    """The LoRA in diffusers' format, with what it was made from and how in its header.

    With peft's names (``lora_A``, ``lora_B``) for all layers: diffusers' own converter renames
    those of the attention alone, and its loader, which judges by the first name it meets, then
    silently drops one kind or the other (0.42.1, read and tried).

    Args:
        plan: The training.
        parts: ``unet``, and the text encoders where they were trained, each with its adapter.
        tiles: What it was trained on.
    """
    config: dict[str, Any] = {}
    for part, network in parts.items():
        adapter = network.peft_config["default"]
        config |= {
            f"{part}.r": adapter.r,
            f"{part}.lora_alpha": adapter.lora_alpha,
            f"{part}.target_modules": sorted(adapter.target_modules),
        }
        if adapter.use_dora:
            config[f"{part}.use_dora"] = True
    metadata = {
        **describe(plan, tiles),
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(config, indent=2, sort_keys=True),
    }
    return sort_metadata(save(_read_tensors(parts), metadata=metadata))


def describe(plan: SdxlLoraTrainer, tiles: Sequence[TrainTile]) -> dict[str, str]:
    """What a LoRA's header tells: recipe, data, trigger words.

    ``modelspec`` names are those of Stability AI's model metadata standard 1.0, which programs that
    draw with LoRAs show.
    """
    recipe = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(plan).items()
        if name not in _NOT_THE_RECIPE
    }
    # A folder of this machine is nobody's business, its name may help.
    base = Path(plan.base_model)
    recipe["base_model"] = base.name if base.exists() else str(plan.base_model)
    pairs = sorted(f"{tile.sha256} {tile.caption}" for tile in tiles)
    data = {
        "num_tiles": len(tiles),
        "tiles_sha256": hashlib.sha256("\n".join(pairs).encode()).hexdigest(),
    }
    seen = Counter(tile.caption for tile in tiles)
    captions = sorted(seen, key=lambda caption: (-seen[caption], caption))[:_TRIGGER_WORDS]
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "synthdet LoRA",
        "modelspec.trigger_phrase": captions[0],
        "synthdet.data": json.dumps(data, sort_keys=True),
        "synthdet.recipe": json.dumps(recipe, sort_keys=True),
        "synthdet.trigger_words": json.dumps(captions, ensure_ascii=False),
    }


def _read_tensors(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, network in parts.items()
        for name, tensor in get_peft_model_state_dict(network).items()
    }


def sort_metadata(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order: the library writes it in a random one."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


# --- kohya's format --------------------------------------------------------------------------------


def serialise_kohya(
    plan: SdxlLoraTrainer, parts: Mapping[str, Any], tiles: Sequence[TrainTile]
) -> bytes:
    """The same weights under the names of kohya's scripts, which ComfyUI and others read.

    Layers are named as in Stability AI's own SDXL, with an ``alpha`` each. Not for a DoRA: diffusers
    drops its magnitudes on reading (0.42.1), so the copy could not be checked.

    Source: kohya-ss sd-scripts, ``networks/lora.py`` and ``library/sdxl_model_util.py`` (the names alone).
    """
    tensors: dict[str, Tensor] = {}
    layers = int(_unet_config(parts["unet"], "layers_per_block"))
    with_attention = [
        "CrossAttn" in block for block in _unet_config(parts["unet"], "up_block_types")
    ]
    for name, tensor in _read_tensors(parts).items():
        part, _, rest = name.partition(".")
        layer, kind = _split_name(rest)
        if part == "unet":
            layer = "lora_unet_" + to_stability_name(layer, layers, with_attention).replace(
                ".", "_"
            )
        else:
            layer = f"{_TEXT_PREFIXES[part]}_{_with_text_model(layer).replace('.', '_')}"
        tensors[f"{layer}.{kind}"] = tensor
        tensors[f"{layer}.alpha"] = torch.tensor(float(plan.lora_alpha))
    metadata = describe(plan, tiles) | {
        "format": "pt",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_alpha": str(plan.lora_alpha),
        "ss_network_dim": str(plan.rank),
        "ss_network_module": "networks.lora",
    }
    return sort_metadata(save(tensors, metadata=metadata))


def _unet_config(unet: Any, key: str) -> Any:
    value = unet.config[key]
    return value[0] if key == "layers_per_block" and not isinstance(value, int) else value


def _split_name(name: str) -> tuple[str, str]:
    kinds = {".lora_A.weight": "lora_down.weight", ".lora_B.weight": "lora_up.weight"}
    for ending, kind in kinds.items():
        if name.endswith(ending):
            return name.removesuffix(ending), kind
    raise RuntimeError(f"{name} is no weight of a LoRA")


def _with_text_model(layer: str) -> str:
    return layer if layer.startswith("text_model.") else f"text_model.{layer}"


def to_stability_name(name: str, layers_per_block: int, with_attention: Sequence[bool]) -> str:
    """A UNet layer's name in diffusers as it is in Stability AI's own SDXL.

    Args:
        name: Such as ``up_blocks.0.attentions.1.proj_in``.
        layers_per_block: Of the UNet, 2 in SDXL.
        with_attention: Of each block on the way up, whether it has attention.

    Examples:
        >>> sdxl = (2, (True, True, False))
        >>> to_stability_name("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", *sdxl)
        'input_blocks.4.1.transformer_blocks.0.attn1.to_q'
        >>> to_stability_name("mid_block.resnets.1.conv1", *sdxl)
        'middle_block.2.in_layers.2'
        >>> to_stability_name("up_blocks.2.resnets.2.conv_shortcut", *sdxl)
        'output_blocks.8.0.skip_connection'
        >>> to_stability_name("up_blocks.0.upsamplers.0.conv", *sdxl)
        'output_blocks.2.2.conv'
    """
    renamed = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    side, *words = name.split(".")
    if side == "mid_block":
        kind, number, *rest = words
        place = ["middle_block", str(2 * int(number) + (kind == "attentions"))]
    elif side in ("down_blocks", "up_blocks"):
        block, kind, number, *rest = words
        going_down = side == "down_blocks"
        stride = layers_per_block + 1
        at = stride * int(block) + int(number) + going_down
        inner = 1 if kind == "attentions" else 0
        if kind == "downsamplers":
            at, rest = stride * (int(block) + 1), ["op", *rest[1:]]
        elif kind == "upsamplers":
            at = stride * int(block) + layers_per_block
            inner = 2 if with_attention[int(block)] else 1
        place = ["input_blocks" if going_down else "output_blocks", str(at), str(inner)]
    else:
        return {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}.get(name, name)
    if kind == "resnets":
        rest = [renamed.get(word, word) for word in rest]
    return ".".join([*place, *rest])


# --- reading it back -------------------------------------------------------------------------------


@torch.no_grad()
def check_weights(path: Path, parts: Mapping[str, Any], autocast: Callable[[], Any]) -> None:
    """Read a written LoRA the way a generator will, and see that it does what was trained.

    Args:
        path: In diffusers' or kohya's format.
        parts: As in `serialise`; afterwards they have the adapters of the file, and are in ``eval`` mode.
        autocast: The forward pass's precision.

    Raises:
        SynthdetError: It does not change the networks' answers, or not as the trained one did.
    """
    unet = parts["unet"]
    state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        str(path.parent),
        weight_name=path.name,
        use_safetensors=True,
        unet_config=unet.config,
        return_lora_metadata=True,
    )
    named = {"network_alphas": alphas, "metadata": metadata}
    for part, network in parts.items():
        network.eval()
        with autocast():
            probe = _probe if part == "unet" else _probe_text
            trained = probe(network)
            for name in list(network.peft_config):
                _delete_adapter(network, name)
            base = probe(network)
            if part == "unet":
                StableDiffusionXLPipeline.load_lora_into_unet(state, unet=network, **named)
            else:
                StableDiffusionXLPipeline.load_lora_into_text_encoder(
                    state, text_encoder=network, prefix=part, **named
                )
            loaded = probe(network)
        if not torch.isfinite(loaded).all() or torch.equal(base, loaded):
            raise SynthdetError(
                "the trained LoRA does not change the model: raise finetune.learning_rate or "
                "finetune.max_train_steps and start again with --redo"
            )
        # A half-precision base rounds its answers; in float32 only the LoRA itself can differ.
        rounding = 0.0 if network.dtype == torch.float32 else 0.01 * float(base.norm())
        if float((loaded - trained).norm()) > 0.05 * float((trained - base).norm()) + rounding:
            raise RuntimeError(f"{path} does not hold the LoRA that was trained")


def _delete_adapter(network: Any, name: str) -> None:
    if hasattr(network, "delete_adapters"):
        network.delete_adapters(name)
    else:
        network.delete_adapter(name)


def _probe(unet: Any) -> Tensor:
    """The UNet's answer to fixed noise and words."""
    config = unet.config
    generator = torch.Generator("cpu").manual_seed(0)
    pooled_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = (
        (1, config.in_channels, 16, 16),
        (1, 8, config.cross_attention_dim),
        (1, pooled_width),
    )
    noise, states, pooled = (
        torch.randn(*shape, generator=generator).to(unet.device, unet.dtype) for shape in shapes
    )
    time_ids = torch.zeros(1, 6).to(unet.device, unet.dtype)
    answer: Tensor = unet(
        noise,
        500,
        encoder_hidden_states=states,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        return_dict=False,
    )[0]
    return answer.float()


def _probe_text(encoder: Any) -> Tensor:
    """A text encoder's last but one states for fixed tokens."""
    tokens = torch.arange(8, device=encoder.device)[None] % encoder.config.vocab_size
    states: Tensor = encoder(tokens, output_hidden_states=True).hidden_states[-2]
    return states.float()
