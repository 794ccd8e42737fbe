"""A tiny CLIP with random weights, saved and loaded as a real one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthdet.errors import SynthdetError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from synthdet.models.clip import ClipEmbedder  # noqa: E402


def save_tiny_clip(folder: Path, **processor: Any) -> Any:
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        text_config={
            **tower,
            "vocab_size": 20,
            "max_position_embeddings": 8,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**(sizes | processor)).save_pretrained(folder)
    return model


def smooth_picture(seed: int, height: int, width: int) -> Any:
    """Blobs, not noise: resizing noise only compares how two libraries treat aliasing."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / rng.uniform(4, 20) + y / rng.uniform(4, 20) + n) for n in range(3)]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, save_tiny_clip(folder)


PICTURES = [smooth_picture(seed, 50 + 7 * seed, 91 - 9 * seed) for seed in range(5)]


def test_embeddings_are_those_of_transformers(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    ours = ClipEmbedder(folder, batch_size=2, device="cpu").embed(PICTURES)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        pixels = processor(images=PICTURES, return_tensors="pt")["pixel_values"]
        theirs = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert ours.dtype == np.float32
    assert ours.shape == (5, 12)
    assert np.linalg.norm(ours, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.abs(ours - theirs).max() < 2e-3
    # Other pictures are further away than the two ways of resizing.
    assert np.abs(ours[0] - ours[1]).max() > 2e-2


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        {"resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]},
        {"do_normalize": False},
        {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 37}},
        {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 24}},
    ],
)
def test_pictures_are_prepared_as_the_checkpoint_says(tmp_path: Path, processor: Any) -> None:
    save_tiny_clip(tmp_path, **processor)
    embedder = ClipEmbedder(tmp_path, batch_size=2, device="cpu")
    reference = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    scale = 1 / (255 * min(getattr(reference, "image_std", None) or [1]))
    for picture in PICTURES:
        theirs = reference(images=[picture], return_tensors="pt")["pixel_values"][0].numpy()
        pixels = torch.from_numpy(embedder.shrink(picture)[None].copy())
        ours = embedder.normalise(pixels)[0].numpy()
        assert ours.shape == theirs.shape == (3, 32, 32)
        assert np.abs(ours - theirs).max() <= 1.6 * scale, "more than rounding to 1 of 255 apart"


def test_the_image_tower_alone_gives_the_same(clip: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = clip
    config = transformers.CLIPConfig.from_pretrained(folder).vision_config
    config.projection_dim = 12
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, config=config)
    tower.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes(
        (folder / "preprocessor_config.json").read_bytes()
    )
    whole = ClipEmbedder(folder, batch_size=8, device="cpu").embed(PICTURES)
    alone = ClipEmbedder(tmp_path, batch_size=8, device="cpu").embed(PICTURES)
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("whole", [True, False])
def test_a_siglip_gives_what_transformers_gives(tmp_path: Path, whole: bool) -> None:
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.SiglipConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        text_config={**tower, "vocab_size": 20, "max_position_embeddings": 8},
    )
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    (model if whole else model.vision_model).save_pretrained(tmp_path)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    ours = ClipEmbedder(tmp_path, batch_size=2, device="cpu").embed(PICTURES)
    with torch.inference_mode():
        pixels = processor(images=PICTURES, return_tensors="pt")["pixel_values"]
        theirs = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert ours.shape == (5, 16)
    assert np.abs(ours - theirs).max() < 2e-3


def test_loading_says_nothing(clip: tuple[Path, Any], capfd: pytest.CaptureFixture[str]) -> None:
    ClipEmbedder(clip[0], batch_size=2, device="cpu")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_no_pictures_are_no_embeddings(clip: tuple[Path, Any]) -> None:
    assert len(ClipEmbedder(clip[0], batch_size=2, device="cpu").embed([])) == 0


def test_what_is_not_a_clip_is_refused_in_a_line(clip: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(SynthdetError, match=r"filter\.model: .*nowhere") as caught:
        ClipEmbedder(tmp_path / "nowhere", batch_size=2, device="cpu")
    assert "\n" not in str(caught.value)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip[0] / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(SynthdetError, match=r"filter\.model") as caught:
        ClipEmbedder(tmp_path, batch_size=2, device="cpu")
    assert "\n" not in str(caught.value)


WORDS = ["aerial", "photo", "of", "one", "whale", "in", "a", "green", "sea"]
TEXTS = ["aerial photo of one whale", "a green sea", "whale in a sea " * 9, ""]


def save_tokenizer(folder: Path) -> Any:
    """A tokenizer of whole words, as small as the tiny towers' vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<pad>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_texts_are_embedded_as_by_transformers(tmp_path: Path) -> None:
    model = save_tiny_clip(tmp_path)
    tokenizer = save_tokenizer(tmp_path)
    ours = ClipEmbedder(tmp_path, batch_size=3, device="cpu").embed_texts(TEXTS)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=8, return_tensors="pt")
    with torch.inference_mode():
        theirs = model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output.numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(ours[0] - ours[1]).max() > 1e-2


def test_texts_of_a_siglip_are_filled_up(tmp_path: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.SiglipConfig(
        vision_config={**tower, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        text_config={
            **tower, "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 8
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    tokenizer = save_tokenizer(tmp_path)
    ours = ClipEmbedder(tmp_path, batch_size=3, device="cpu").embed_texts(TEXTS)
    tokens = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=8, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output.numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(ours[0] - ours[1]).max() > 1e-3


def test_texts_without_a_text_tower_are_refused(clip: tuple[Path, Any]) -> None:
    embedder = ClipEmbedder(clip[0], batch_size=3, device="cpu")  # it has no tokenizer
    with pytest.raises(SynthdetError, match=r"filter\.prompt_agreement: .* set it to false"):
        embedder.embed_texts(["a sea"])


def test_the_pocket_clip_reads_prompts() -> None:
    """Its text tower and tokenizer are shipped: other animals are other directions."""
    from synthdet.pocket import weights_dir

    embedder = ClipEmbedder(weights_dir() / "clip", batch_size=8, device="cpu")
    texts = [f"aerial photo of one {kind} in a blue sea" for kind in ("boat", "manta ray", "seal")]
    rows = embedder.embed_texts(texts)
    assert rows.shape == (3, 128)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert (rows @ rows.T)[~np.eye(3, dtype=bool)].max() < 0.95
