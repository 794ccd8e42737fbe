"""Tiny networks with random weights, saved in the ordinary formats: real loaders, no downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    AutoModelForObjectDetection,
    BertConfig,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DFineConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    HGNetV2Config,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    RTDetrConfig,
    RTDetrResNetConfig,
    RTDetrV2Config,
    SwinConfig,
)

TINY_MAX_TOKENS = 77


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells: every letter is a token of its own."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.-"]
    symbols = [*letters, *(letter + "</w>" for letter in letters)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TINY_MAX_TOKENS)


def tiny_text_config(tokenizer: CLIPTokenizer, *, width: int) -> CLIPTextConfig:
    """A text encoder of two layers."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TINY_MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_vae(seed: int = 0) -> AutoencoderKL:
    """A VAE of factor 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=64,
            scaling_factor=0.5,
            force_upcast=False,
        )


def tiny_sdxl(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Save an ordinary SDXL pipeline with random weights that sees and draws 64 px.

    Returns:
        The folder, ready for ``StableDiffusionXLPipeline.from_pretrained``.
    """
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(tiny_text_config(tokenizer, width=8))
        text_encoder_2 = CLIPTextModelWithProjection(tiny_text_config(tokenizer, width=12))
        unet = UNet2DConditionModel(
            sample_size=32,
            in_channels=4,
            out_channels=4,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 2),  # the number of heads, as in SDXL's own config
            transformer_layers_per_block=1,
            cross_attention_dim=8 + 12,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 12,
            norm_num_groups=2,
        )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        steps_offset=1,
        timestep_spacing="leading",
    )
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(seed),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_detr(
    folder: Path, *, kind: str = "rt_detr", class_names: Sequence[str] = ("thing", "other")
) -> Path:
    """Save an ordinary transformers detector with random weights that can learn in seconds.

    Args:
        folder: Where it goes.
        kind: ``rt_detr``, ``rt_detr_v2`` or ``d_fine``.
        class_names: Its classes.

    Returns:
        The folder, ready for ``AutoModelForObjectDetection.from_pretrained``.
    """
    widths = [8, 16, 24, 32]
    stages = ["stage2", "stage3", "stage4"]
    resnet = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=widths,
        depths=[1] * 4,
        layer_type="basic",
        out_features=stages,
    )
    hgnet = HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, *widths[:-1]], stage_mid_channels=[8] * 4,
        stage_out_channels=widths, stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4,
        hidden_sizes=widths, depths=[1] * 4, out_features=stages,
    )  # fmt: skip
    configs = {"rt_detr": RTDetrConfig, "rt_detr_v2": RTDetrV2Config, "d_fine": DFineConfig}
    config = configs[
        kind
    ](
        backbone_config=hgnet if kind == "d_fine" else resnet,
        freeze_backbone_batch_norms=False,  # they have not learned anything
        encoder_in_channels=widths[1:],
        encoder_hidden_dim=32,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=32,
        num_queries=24,
        decoder_in_channels=[32] * 3,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_n_points=[2] * 3 if kind == "d_fine" else 2,
        num_denoising=10,
        initializer_range=0.1,
        id2label=dict(enumerate(class_names)),
        label2id={name: number for number, name in enumerate(class_names)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForObjectDetection.from_config(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # transformers starts them at next to nothing
            torch.nn.init.ones_(module.weight)
    network.save_pretrained(folder)
    return folder


def tiny_owlv2(folder: Path, *, side: int = 64) -> Path:
    """Save an ordinary OWLv2 with random weights, patches of 8 px.

    Returns:
        The folder, ready for ``AutoModelForZeroShotObjectDetection.from_pretrained``.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 24
    small = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    config = Owlv2Config(
        text_config={
            **small,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**small, "image_size": side, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Owlv2ForObjectDetection(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Owlv2ImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def tiny_grounding_dino(folder: Path, *, side: int = 96) -> Path:
    """Save an ordinary Grounding DINO with random weights, whose tokenizer spells.

    Returns:
        The folder, ready for ``AutoModelForZeroShotObjectDetection.from_pretrained``.
    """
    vocabulary = {f"[unused{number}]": number for number in range(1100)}
    words = {
        "[PAD]": 0,
        "[UNK]": 100,
        "[CLS]": 101,
        "[SEP]": 102,
        "[MASK]": 103,
        ".": 1012,
        "?": 1029,
    }
    letters = "abcdefghijklmnopqrstuvwxyz"
    words |= {letter: 200 + number for number, letter in enumerate(letters)}
    words |= {f"##{letter}": 300 + number for number, letter in enumerate(letters)}
    numbers = set(words.values())
    vocabulary = {word: number for word, number in vocabulary.items() if number not in numbers}
    tokenizer = BertTokenizer(vocab=vocabulary | words)
    small = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=side, embed_dim=8, depths=[1] * 4, num_heads=[2] * 4, window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(**small, vocab_size=1100, max_position_embeddings=64),
        num_queries=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, d_model=32, max_text_len=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GroundingDinoForObjectDetection(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": side, "longest_edge": 2 * side}
    GroundingDinoImageProcessor(size=size).save_pretrained(folder)
    return folder
