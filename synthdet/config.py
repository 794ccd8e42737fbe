"""Every knob, once: a section a stage, in stage order.

The docstring under a field is its help text and its description in the JSON schema. A field is one of

- *making* (the default): it changes what is made; changing it after the fact is refused by name;
- *decision*: it is applied on reading raw scores; changing it re-decides in place;
- *runtime*: it changes how fast, not what; it is recorded and never compared.

No command line flag repeats a knob: ``--set generate.num_images=8`` goes through here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from synthdet.core.records import GenerateMode
from synthdet.errors import SynthdetError

RUN_FOLDER_VERSION = 1
Calibrated = Literal["calibrated"]
DETECTOR_STRIDE = 32
"""Pixels of a picture that a detector's coarsest level sees as one."""
OWN_WEIGHTS = "own"
"""Among `label.weights`: the detector that the run trains on its own tiles."""
CsvKey = Literal[
    "file", "class", "x1", "y1", "x2", "y2", "x", "y", "cx", "cy", "w", "h", "xywh",
    "image_width", "image_height",
]  # fmt: skip


def _word_for_no(value: Any) -> Any:
    """YAML reads a bare no as false."""
    return "no" if value is False else value


_MOST_LONG = 4
_SEXAGESIMAL = 60


def parse_ratio(text: str) -> tuple[int, int]:
    """Width and height of a ratio such as ``4:3``.

    Raises:
        ValueError: It is none, or one side is more than four times the other.
    """
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{text!r} is no width to height, such as 4:3")
    width, height = map(int, parts)
    if max(width, height) > _MOST_LONG * min(width, height):
        raise ValueError(f"{text!r}: one side is more than {_MOST_LONG} times the other")
    return width, height


def _read_ratio(value: Any) -> str:
    """As text; YAML 1.1 reads an unquoted 4:3 as 4 minutes and 3 seconds, 243."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = "{}:{}".format(*divmod(value, _SEXAGESIMAL))
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no width to height, such as 4:3")
    parse_ratio(value)
    return value


Ratio = Annotated[str, BeforeValidator(_read_ratio)]
Precision = Annotated[Literal["auto", "no", "fp16", "bf16"], BeforeValidator(_word_for_no)]


def _decision(default: Any, **bounds: Any) -> Any:
    return Field(default, json_schema_extra={"kind": "decision"}, **bounds)


def _runtime(default: Any, **bounds: Any) -> Any:
    return Field(default, json_schema_extra={"kind": "runtime"}, **bounds)


class Section(BaseModel):
    """What all sections share: frozen, no unknown key, docstrings as descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    def settings(self, kind: Literal["making", "decision", "runtime"]) -> dict[str, Any]:
        """The section's values of one kind, ready for JSON."""
        values = self.model_dump(mode="json")
        kinds = {
            name: _kind_of(field.json_schema_extra)
            for name, field in type(self).model_fields.items()
        }
        return {name: value for name, value in values.items() if kinds[name] == kind}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind_of(extra: Any) -> str:
    return str(extra.get("kind", "making")) if isinstance(extra, dict) else "making"


class PrepareConfig(Section):
    """Real photos in: checked, split once by group, cut into tiles."""

    photos: Path | None = None
    """Folder with the annotated photos. Read only, never changed."""
    labels: Path | None = None
    """Annotation file or folder, or a pattern like `labels/*_boxes.csv`, where it cannot be found beside the photos."""
    format: Literal["auto", "yolo", "coco", "voc", "labelme", "cvat", "csv"] = "auto"
    """How the annotations are written. `auto` recognises it and says what it found."""
    csv: dict[CsvKey, str] | None = None
    """Which column of a CSV is what, where its name does not tell: `{file: photo, class: species, x1: left, y1: top, x2: right, y2: bottom}`, or `x, y, w, h`, `cx, cy, w, h`, or `xywh` for one column with four numbers."""
    classes: dict[str, str | None] | None = None
    """Class name in the annotations -> name to use; two to one name merges, null drops, `'*'` is every name not listed. Names that are not mentioned are kept."""
    unlabelled: Literal["error", "ignore", "negative"] = "error"
    """A photo without an annotation file: stop, leave it out, or take it as a photo without animals."""
    split: Literal["auto", "given", "new"] = "auto"
    """`auto` keeps the given splits if no group crosses them and else makes clean ones; `given` refuses a leak; `new` ignores them."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the photos, by whole groups, for val, where new splits are made."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Share of the photos, by whole groups, for test, where new splits are made."""
    group_by: Literal["auto", "names", "folder"] = "auto"
    """What is a group, where no metadata and no `group_pattern` says so: `auto`, the flight, by time and place in EXIF or else by file names; `names` leaves EXIF aside (a camera whose clock was wrong); `folder`, the folder a photo lies in. Near-duplicates are joined in any case."""
    group_pattern: str | None = None
    """Regular expression on the photo's path; its first capture (or the whole match) is the group."""
    frames_per_group: int = Field(20, ge=1)
    """Consecutive frames of one flight that form a group, where file names carry frame numbers: neighbours overlap."""
    few_groups: Literal["error", "allow"] = "error"
    """With fewer than three groups no clean split exists: stop, or split by photo all the same."""
    max_train_photos: int | None = Field(None, ge=1)
    """Use at most this many real train photos (whole groups first, seeded); the others are left out of the run."""
    resolution: int = Field(1024, ge=32, multiple_of=8)
    """Side of a tile in pixels: what the LoRA is trained on, and what is generated."""
    scale: Literal["auto"] | float = "auto"
    """Tile pixels a photo pixel, the same for every photo. `auto` gives the median animal `animal_fraction` of the tile, and never enlarges more than twice."""
    animal_fraction: float = Field(0.25, gt=0, le=1)
    """With `scale: auto`: the median animal's longer side as a share of the tile."""
    views: int = Field(2, ge=1)
    """Train tiles cut around an animal, each at another offset. Val and test have one."""
    zoom: float = Field(1.5, ge=1, le=4)
    """Further train tiles around an animal are cut up to so many times larger or smaller, as far as the animal stays within the sizes that the survey shows (5th to 95th percentile) and no pixel is blown up. 1: all at one scale. Val and test always are."""
    background_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of background tiles (no animal) among all the tiles of a split, where the photos have room."""
    caption: str = "aerial photo of {animals}"
    """Caption of a tile whose photo has none of its own (`caption` or `text` in metadata.jsonl, or a text file of its name beside it). `{animals}` is what is in the tile ("two humpback whales", or `background_caption`); other names are looked up in metadata.jsonl."""
    background_caption: str = "open water"
    """What stands for `{animals}` where there is none."""
    seed: int = 0
    """Seed of the splits and of the tiles' offsets."""
    workers: int = _runtime(0, ge=0)
    """Threads that decode photos and cut tiles (decoders let go of the interpreter's lock). 0: one a core."""


class FinetuneConfig(Section):
    """Train tiles -> SDXL LoRA."""

    base_model: str = "stabilityai/stable-diffusion-xl-base-1.0"
    """Hub id, local folder, or `pocket` (the embedded default). An ordinary diffusers SDXL pipeline."""
    vae: str | None = "madebyollin/sdxl-vae-fp16-fix"
    """Hub id or folder of a VAE to use instead of the base model's. null: the base model's own."""
    lora: Path | None = None
    """Your own LoRA (safetensors, diffusers or kohya format): used as it is, nothing is trained."""
    rank: int = Field(16, ge=1)
    """Rank of the LoRA matrices."""
    lora_alpha: float = Field(16, gt=0)
    """Scale of the LoRA: its update is multiplied by lora_alpha / rank."""
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Names of the UNet's layers that get a LoRA (endings of module names)."""
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    """`adamw` (fused); `adamw8bit`, whose state is a quarter as large (needs bitsandbytes); `prodigy`, which finds its own rate: set `learning_rate` to 1."""
    learning_rate: float = Field(1e-4, gt=0)
    """After the warm-up. With `optimizer: prodigy` the factor on the rate that it finds: 1."""
    lr_warmup_steps: int = Field(50, ge=0)
    """Optimizer steps over which the learning rate rises to its value."""
    max_train_steps: int = Field(1200, ge=1)
    """Optimizer steps."""
    train_batch_size: int = Field(1, ge=1)
    """Tiles a forward pass."""
    gradient_accumulation_steps: int = Field(4, ge=1)
    """Forward passes an optimizer step."""
    mixed_precision: Precision = "auto"
    """Precision of the frozen base and of the forward pass: `no` (float32), `fp16`, `bf16`, or `auto`: bf16 where the device multiplies it, else fp16 on a GPU, float32 on a CPU. LoRA weights are always float32."""
    base_weights: Literal["full", "int8", "nf4"] = "full"
    """The frozen UNet's linear layers while a LoRA is trained: `int8`, in 8 bits (needs torchao and `gradient_checkpointing`), 2.9 GB instead of 5.1; `nf4`, in 4 bits (needs bitsandbytes), 1.8 GB, less true."""
    compile: Literal["auto", "never", "always"] = _runtime("auto")
    """Compile the UNet's blocks while it trains: `auto`, where ten timed steps say that the steps that are left pay for it twice; `always`, from the first step on. What was decided is said and kept, and repeated by a training that goes on, whatever is set by then."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third slower."""
    snr_gamma: float | None = Field(5.0, gt=0)
    """Min-SNR loss weighting (Hang et al., 2023). null: none."""
    animal_weight: float = Field(0.0, ge=0)
    """Added weight of the loss inside the animals' boxes, times the share of the signal in the noise (alpha bar). From the air animals are small: without it most of what a LoRA learns is water."""
    noise_offset: float = Field(0.0, ge=0)
    """Added per-channel noise, for very dark or bright pictures."""
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of steps with an empty caption, which classifier-free guidance needs."""
    symmetries: bool = True
    """Train on the eight turns and mirrors of every tile: from above there is no up."""
    crop_fraction: float = Field(0.0, ge=0, le=1)
    """Share of steps on windows of the tiles, around an animal where there is one, drawn anew every time from the cached latents. Bodies are what is hard to learn, and half a side costs a quarter of the operations. SDXL is told that it sees a crop (original size, corner and size), and captions that count the animals count those in the window."""
    crop_sides: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.5, 0.75), min_length=1)
    """Longer sides of those windows as shares of the tile's, each as likely; rounded to what the UNet can halve."""
    crop_shapes: tuple[Ratio, ...] = Field(("1:1",), min_length=1)
    """Width to height of those windows, each as likely, like `1:1, 4:3, 3:4`: aspect buckets. All of a step have one shape, and SDXL is told it. With `crop_sides: [1]` and `crop_fraction: 1` they are cut from nearly the whole tile."""
    prior_pictures: int = Field(0, ge=0)
    """Class pictures that the base model draws before the training (prior preservation, Ruiz et al., 2023): every step sees as many of them as tiles, so that the model does not forget what it knew. Twice the work. 0: none."""
    prior_prompt: str = ""
    """What they show, like `aerial photo of a whale`: the nearest that the base model knows."""
    prior_weight: float = Field(1.0, ge=0)
    """Weight of their loss beside that of the tiles."""
    composites: int = Field(0, ge=0)
    """Further pictures to train on: train animals, cut out along their outline and set into background pictures that the base model draws (a quarter as many, from `generate.background_prompts`; they are learned too), with `generate.prompts` as captions. For animals that few photos show in few seas: without them a LoRA draws those seas, whatever it is asked for. 0: none."""
    checkpointing_steps: int = Field(100, ge=1)
    """Optimizer steps between two checkpoints, from which a killed training goes on."""
    validation_steps: int = Field(100, ge=1)
    """Optimizer steps between two losses on the val tiles (fixed noise and timesteps), which train nothing."""
    use_dora: bool = False
    """Learn a magnitude beside each direction (Liu et al., 2024): slower, often closer to full training at a low rank."""
    train_text_encoder: bool = False
    """Both text encoders get a LoRA too, in their attention: for words that SDXL does not know. They then stay in memory (1.6 GB) and run at every step."""
    new_word: str | None = Field(None, min_length=1)
    """A word of the captions that SDXL does not know, like `dugong`: learned as new tokens of both text encoders, beside the LoRA (pivotal tuning). Prompts go on to use the word. The text encoders then stay in memory and run at every step."""
    new_tokens: int = Field(2, ge=1, le=16)
    """Tokens that stand for `new_word`."""
    kohya_copy: bool = _runtime(False)
    """Write the LoRA in kohya's format too, for ComfyUI and others: pytorch_lora_weights_kohya.safetensors."""
    tensorboard: bool = _runtime(True)
    """Write event files into tensorboard/ where its package is installed."""
    num_samples: int = Field(4, ge=0)
    """Pictures drawn at the end with and without the LoRA, same seeds, into samples/."""
    seed: int = 0
    """Seed of weights, order, noise and steps."""
    device: Literal["auto", "cpu", "cuda"] = _runtime("auto")
    """Where the networks run."""

    @model_validator(mode="after")
    def _check_together(self) -> FinetuneConfig:
        if self.optimizer == "prodigy" and self.learning_rate < 0.1:
            raise ValueError("prodigy finds its own rate: set learning_rate to 1")
        if self.use_dora and self.kohya_copy:
            raise ValueError("a DoRA has no kohya copy: set use_dora or kohya_copy to false")
        if self.base_weights == "int8" and not self.gradient_checkpointing:
            raise ValueError("base_weights: int8 saves memory only with gradient_checkpointing")
        if self.prior_pictures and not self.prior_prompt:
            raise ValueError("prior_pictures: say in prior_prompt what they show")
        if set(self.crop_shapes) != {"1:1"} and not self.crop_fraction:
            raise ValueError(
                "crop_shapes are those of windows, and crop_fraction is 0: raise it, to 1 for buckets alone"
            )
        return self

    def num_waters(self) -> int:
        """Background pictures for `composites`: four in each, in other views, look like four."""
        return -(-self.composites // 4)

    def crop_ratios(self) -> tuple[tuple[int, int], ...]:
        """`crop_shapes` as width and height."""
        return tuple(parse_ratio(shape) for shape in self.crop_shapes)


class GenerateConfig(Section):
    """Prompts + LoRA -> synthetic photos."""

    pictures: Path | None = None
    """Your own folder of generated pictures: taken in as they are, nothing is generated."""
    num_images: int = Field(256, ge=0)
    """Pictures to make."""
    mode: GenerateMode | dict[GenerateMode, float] = "text"
    """`text`: from the prompt alone; `image`: from a real train tile (see `image_strength`); `placed`: an animal painted into water (see `placed_water`), at a box that has the size of a real one. Or shares of them: `{text: 2, placed: 1}`."""
    image_strength: float = Field(0.6, gt=0, le=1)
    """With `mode: image`: share of the denoising that is done, from the tile in so much noise. Low values copy the tile, and the filter drops copies; 1 leaves nothing of it."""
    placed_start: Literal["animal", "noise"] = "animal"
    """With `mode: placed`: start from the real animal that the box is as large as, cut out along its outline, turned and set into the water there (few photos, or a model that knows the animal little), or from `noise`: then set `placed_strength` to 1."""
    placed_water: Literal["real", "drawn"] = "real"
    """With `mode: placed`: the water is a `real` train tile without animals, or one of the run's own background pictures, `drawn` from `background_prompts`: seas that no photo shows. Of either, one whose caption or prompt names the same `attributes`."""
    placed_strength: float = Field(0.5, gt=0, le=1)
    """With `mode: placed`: share of the denoising that is done inside the box. Lower values keep the animal, higher ones change it."""
    prompts: tuple[str, ...] = ("aerial photo of {animals}",)
    """Prompt templates; names in braces come from `animals` and `attributes`."""
    animals: dict[str, int] | None = None
    """Phrase for `{animals}` -> number of animals it asks for. Without it: one and two of each class."""
    attributes: dict[str, tuple[str, ...]] = {}
    """Further names for the templates, each with its values; every combination comes up equally often."""
    background_prompts: tuple[str, ...] = ("aerial photo of open water",)
    """Prompts for pictures without animals."""
    background_fraction: float = Field(0.1, ge=0, le=1)
    """Share of pictures made from the background prompts."""
    negative_prompt: str = ""
    """What guidance leads away from. A template too: in braces the `attributes` that every prompt names, filled with the picture's. The background prompt, as in `aerial photo of open water in a {sea} sea`, leaves nothing but the animals to be led to; no picture is led away from its own prompt. Samples and class pictures of `finetune`, which have no attributes, are drawn without one that names some."""
    background_negative_prompt: str | None = None
    """The same for the pictures from `background_prompts`: `whale, boat`. null: `negative_prompt`."""
    num_inference_steps: int = Field(30, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(6.0, ge=0)
    """Classifier-free guidance (Ho & Salimans, 2022)."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """How far the contrast that guidance adds is taken back (Lin et al., 2024, section 3.4). Above 0 against colours that are too strong, dark water that is black, and blots; 0.7 is usual."""
    guidance_end: float = Field(1.0, gt=0, le=1)
    """Share of the steps after which guidance is switched off: 0.5 spares a quarter of the work and changes pictures somewhat. 1: guided to the end."""
    scheduler: str = "DPMSolverMultistepScheduler"
    """Name of a diffusers scheduler; DPM-Solver++ multistep with Karras sigmas by default."""
    scheduler_options: dict[str, str | bool | int | float] = {}
    """What the scheduler is told beside the model's own noise schedule, by diffusers' names: `{timestep_spacing: trailing}`."""
    few_step_lora: Path | None = None
    """A LoRA distilled for few steps (SDXL-Lightning, Hyper-SD, LCM: a .safetensors file), fused beside the run's own. It wants the steps, guidance and scheduler that its authors name: Lightning of 4 steps `num_inference_steps: 4`, `guidance_scale: 0`, `scheduler: EulerDiscreteScheduler`, `scheduler_options: {timestep_spacing: trailing}`. Pictures come several times as fast and look more alike: see whether the verdict still holds."""
    lora_scale: float = Field(0.9, ge=0)
    """Strength of the LoRA."""
    placed_lora_scale: float | None = Field(None, ge=0)
    """With `mode: placed`: its strength there, and in the drawn water that animals are placed into. Where the animal is a real one, less of the LoRA keeps it and its water as they are. null: `lora_scale`."""
    batch_size: Literal["auto"] | int = "auto"
    """Pictures a batch. Part of what is made: another batch shape changes pixels slightly. `auto`: as many as fit, found out before the first picture and kept in `plan.json`."""
    vae_batch_size: int = Field(1, ge=1)
    """Pictures the VAE decodes at once: it needs more memory a picture than all else."""
    compile: bool = False
    """Compile UNet and VAE with torch before the first batch: minutes at the start, and again for every other batch shape and for `placed_lora_scale`; then faster on a GPU. It changes pixels slightly. For thousands of pictures."""
    seed: int = 0
    """Seed of the first picture; each picture has its own."""
    mixed_precision: Precision = "auto"
    """Precision of the pipeline: `no` (float32), `fp16`, `bf16` or `auto`, as in `finetune`."""
    workers: int = _runtime(0, ge=0)
    """Threads that write pictures while the next batch is drawn. 0: one a core, four at most."""
    device: Literal["auto", "cpu", "cuda"] = _runtime("auto")
    """Where the networks run."""

    @field_validator("mode", mode="before")
    @classmethod
    def _know_modes(cls, mode: Any) -> Any:
        shares = mode if isinstance(mode, dict) else {str(mode): 1}
        known = all(isinstance(name, str) and name in get_args(GenerateMode) for name in shares)
        if not (
            shares and known and all(_is_number(share) and share > 0 for share in shares.values())
        ):
            raise ValueError(
                f"{mode!r} is neither text, image or placed nor shares of them above 0, such as "
                "{text: 2, placed: 1}"
            )
        return mode

    @field_validator("batch_size", mode="before")
    @classmethod
    def _know_batch_sizes(cls, size: Any) -> Any:
        if size != "auto" and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"{size!r} is neither auto nor a number of pictures, 1 or more")
        return size

    def mode_shares(self) -> dict[GenerateMode, float]:
        """Mode -> its share, in any unit."""
        return {self.mode: 1.0} if isinstance(self.mode, str) else dict(self.mode)

    def strength(self, mode: GenerateMode) -> float:
        """Share of the denoising that is done in a mode."""
        return {"text": 1.0, "image": self.image_strength, "placed": self.placed_strength}[mode]

    def lora_strength(self, mode: GenerateMode, *, background: bool) -> float:
        """Strength of the LoRA in a mode; a background that is drawn to place animals into has theirs."""
        placing = "placed" in self.mode_shares() and self.placed_water == "drawn"
        if self.placed_lora_scale is not None and (mode == "placed" or (background and placing)):
            return self.placed_lora_scale
        return self.lora_scale

    @model_validator(mode="after")
    def _check_modes(self) -> GenerateConfig:
        if self.pictures is not None and set(self.mode_shares()) != {"text"}:
            raise ValueError(
                "pictures are taken in as they are: leave mode at text, or pictures out"
            )
        for mode in self.mode_shares():
            if int(self.num_inference_steps * self.strength(mode)) < 1:
                raise ValueError(
                    f"{mode}_strength {self.strength(mode):g} of {self.num_inference_steps} steps is "
                    "no step: raise it, or num_inference_steps"
                )
        drawn = self.placed_water == "drawn" and "placed" in self.mode_shares()
        if drawn and self.num_images and not round(self.num_images * self.background_fraction):
            raise ValueError(
                "placed_water: drawn places animals into the run's own background pictures, and there is "
                "none: raise background_fraction, or set placed_water to real"
            )
        return self


class FilterConfig(Section):
    """CLIP similarity to the real centroid: keep, or drop and say why."""

    model: str = "openai/clip-vit-base-patch32"
    """Hub id or folder of a transformers CLIP or SigLIP, or `pocket`."""
    threshold: Calibrated | float = _decision("calibrated")
    """Cosine similarity to the centroid of the real train tiles below which a picture is dropped. `calibrated`: a low percentile of the real tiles' own similarity, each group left out in turn; higher where a few odd tiles set that and a higher one keeps more out than it costs. (0.3, the usual text-to-image value, passes almost everything here.)"""
    percentile: float = _decision(2.0, ge=0, le=50)
    """With `threshold: calibrated`: the percentile of real similarities, so the share of real photos that would be lost (of ordinary ones, where the threshold is raised)."""
    copy_threshold: Calibrated | float = _decision("calibrated")
    """Similarity to the nearest real tile above which a picture counts as a copy of it. `calibrated`: closer than real tiles of different groups ever are to each other. It must repeat the tile's layout too, more than real tiles of different groups do."""
    duplicate_threshold: Calibrated | float | None = _decision("calibrated")
    """Agreement of layouts (0..1: steps of brightness in a thumbnail) above which two synthetic pictures are near-duplicates: the one nearer to the centroid stays. `calibrated`: half way from what real tiles of different groups reach to 1. null: all stay."""
    background_check: bool = _decision(True)
    """Drop a picture that was asked for an animal and is nearer to the real background tiles than real tiles with an animal are (all but `percentile` of them). Only where CLIP tells the two kinds apart."""
    per_class: bool = _decision(False)
    """A centroid for each class, and a picture is held against those of the classes it was asked for. false: one of all."""
    clusters: int = _decision(1, ge=1)
    """Centroids a class (k-means), where its animals come in looks that have no middle; a picture counts for the nearest."""
    negatives: Path | None = _decision(None)
    """Folder of pictures that must not pass (empty sea, other animals): the share that would is printed. With the background tiles they are the evidence on which a calibrated threshold is raised, never beyond where ordinary real tiles end."""
    prompt_agreement: bool = _decision(False)
    """Score too how well each picture agrees with its prompt: the cosine of both in CLIP, by its text tower. Prompts of more words than that reads (77 pieces for most) are cut."""
    prompt_threshold: float | None = _decision(None, ge=-1, le=1)
    """With `prompt_agreement`: drop pictures that agree less with their prompt. A text-to-image scale: about 0.2 to 0.35 with CLIP, and near 0 with SigLIP; a note gives the run's own. null: it is only told."""
    workers: int = _runtime(0, ge=0)
    """Threads that decode pictures (decoders let go of the interpreter's lock). 0: one a core."""
    batch_size: int = _runtime(32, ge=1)
    """Pictures a forward pass."""
    device: Literal["auto", "cpu", "cuda"] = _runtime("auto")
    """Where the network runs."""

    @model_validator(mode="after")
    def _check_prompt_threshold(self) -> FilterConfig:
        if self.prompt_threshold is not None and not self.prompt_agreement:
            raise ValueError("prompt_threshold: it needs prompt_agreement: true")
        return self


class LabelConfig(Section):
    """Detector -> boxes, checked."""

    weights: str | tuple[str, ...] | None = None
    """Your own detector: a folder written by synthdet, or by transformers' `save_pretrained`, its hub name, or an ultralytics .pt (see `trust`). Without it the run trains its own on the real train tiles. Several as a list, in which `own` is the run's own: all look at every picture, their boxes are joined, and what they agree on is a better label."""
    trust: bool = False
    """A .pt file can run code when it is loaded. Set to true for files whose origin you know."""
    class_map: dict[str, str] | tuple[dict[str, str] | None, ...] | None = None
    """With `weights`: the detector's class name -> the run's. Without it the names must be equal, or there is one class on both sides. With several weights a list in their order, null where names are equal; or one for all of them but `own`."""
    queries: dict[str, tuple[str, ...]] | None = None
    """With `weights` that find by text (OWLv2, Grounding DINO; for those who have few boxes or none): the run's class -> phrases to look for, like `{seal: [a seal on ice, a grey seal]}`. null: every class by its name. Such detectors are weak from the air; nothing they find is accepted unseen unless real val photos say how good it is."""
    detector: str = "yolo11n"
    """What the run's own detector starts from: an ultralytics model name (random weights), a folder written by synthdet, `pocket`, or a transformers detector (RT-DETR, RT-DETRv2, D-FINE; Apache-2.0) by hub id or folder, like `PekingU/rtdetr_r18vd`. Which library opens it is seen from what it is, and told."""
    image_size: int | None = Field(None, ge=32, multiple_of=DETECTOR_STRIDE)
    """Side in pixels the detector sees. null: the tiles' resolution, or the next multiple of 32."""
    max_train_steps: int = Field(1500, ge=1)
    """Optimizer steps of the run's own detector."""
    train_batch_size: int = Field(16, ge=1)
    """Pictures a step."""
    learning_rate: float | None = Field(None, gt=0)
    """Of AdamW. null: what suits the detector, 1e-3 with ultralytics and 1e-4 with transformers (a tenth of it for the backbone)."""
    seed: int = 0
    """Seed of the training."""
    views: bool = True
    """Look at each picture in its eight turns and mirrors and join what is drawn in them: a box that all views show is a better label. Eight times the detector's time. false: the picture as it is, alone."""
    tile_side: int | None = Field(None, ge=32)
    """Look at pictures with a longer side than this in overlapping square tiles of so many pixels, as `predict` does: for pictures that are larger than what the detector has learned from. Without `image_size` detectors in `weights` then see this side (in steps of 32), so tiles as they are; `own` sees what it learned at, so give it `prepare.resolution`. null: at every picture as a whole."""
    confidence: Calibrated | float = _decision("calibrated")
    """Confidence from which a box is accepted. `calibrated`: where F1 on the real val tiles is best, or higher where `accept_precision` asks for it. With `views`, confidence is the mean over the eight views."""
    accept_precision: float = _decision(0.95, ge=0, le=1)
    """With `confidence: calibrated`: the precision on the real val tiles that boxes accepted without a look must have. 0: best F1 alone."""
    agreement: float = _decision(0.75, ge=0, le=1)
    """With `views`: a box on which the views agree less than this (mean overlap with the joined box, 0 where a view does not show it) sends its picture to review."""
    placed_correlation: float = _decision(0.9, ge=0, le=1)
    """A real animal that was set into a picture (`generate.mode: placed`) and is still this much alike there has its box by that, whether the detector finds it or not. 1: the detector decides alone."""
    sizes: bool = _decision(True)
    """A box longer or shorter than real animals are (1st to 99th percentile of the real train boxes), or a mere fragment at the border, sends its picture to review."""
    review_confidence: float = _decision(0.1, ge=0, le=1)
    """A box between this and `confidence` sends its picture to review; where an animal was painted (`generate.mode: placed`) it is accepted from here on."""
    negatives: bool = _decision(True)
    """Take a background picture without any box above `review_confidence` as a confirmed negative."""
    device: Literal["auto", "cpu", "cuda"] = _runtime("auto")
    """Where the network runs."""
    workers: int = _runtime(1, ge=1)
    """Threads of the detector's process on a CPU."""

    @model_validator(mode="after")
    def _check_detectors(self) -> LabelConfig:
        names = self.weights_names()
        if not names or not all(name.strip() for name in names) or len(set(names)) < len(names):
            raise ValueError("weights: name one detector or several, each once")
        if isinstance(self.class_map, tuple) and len(self.class_map) != len(names):
            raise ValueError(
                f"class_map: {len(self.class_map)} for {len(names)} weights: one for each, in their order"
            )
        if self.queries is not None and not (
            self.queries
            and all(
                said and all(phrase.strip() for phrase in said) for said in self.queries.values()
            )
        ):
            raise ValueError("queries: name a class, and at least one phrase for each")
        return self

    def weights_names(self) -> tuple[str, ...]:
        """The detectors in their order, as they were named; `OWN_WEIGHTS` is the run's own."""
        if self.weights is None:
            return (OWN_WEIGHTS,)
        return (self.weights,) if isinstance(self.weights, str) else self.weights

    def class_map_of(self, weights: str) -> dict[str, str] | None:
        """Class names of one of the detectors, however its path is spelled -> the run's, where they were named."""
        if weights == OWN_WEIGHTS:
            return None
        if not isinstance(self.class_map, tuple):
            return self.class_map
        places = [Path(name).expanduser() for name in self.weights_names()]
        return dict(zip(places, self.class_map, strict=True)).get(Path(weights).expanduser())


class ExportConfig(Section):
    """Real + kept synthetic -> YOLO and COCO."""

    num_synthetic: int | None = _decision(None, ge=0)
    """Synthetic pictures in train. null: all accepted ones, or what `synthetic_fraction` says."""
    synthetic_fraction: float | None = _decision(None, ge=0, lt=1)
    """Share of synthetic pictures in train."""
    max_background_fraction: float = _decision(0.2, ge=0, le=1)
    """Share of train, at most, that synthetic pictures without an animal (confirmed backgrounds) make up."""
    include_review: bool = _decision(False)
    """Export pictures whose boxes wait for review, with the boxes they have."""
    select: Literal["random", "similarity", "diversity"] = _decision("random")
    """Which ones, where there are more than asked for: drawn by seed, most similar to the real ones, or as unlike each other as can be (by their CLIP embeddings)."""
    augmented: Literal["arm", "train"] = _decision("arm")
    """Augmented copies of the real train tiles, as many as there are synthetic pictures. `arm`: made where `evaluate.arms` names real_plus_augmented, for that arm alone; `train`: always made, and part of the exported train set."""
    voc: bool = _decision(True)
    """Write Pascal VOC (XML) beside YOLO and COCO."""
    whole_frames: bool = _decision(True)
    """Keep the whole real test photos too, in `frames/`, for a test by tiled inference."""
    keep_metadata: bool = _decision(False)
    """Leave GPS, serial numbers, camera data and texts in the exported pictures. Without it they are taken out: where endangered animals live is not given away."""
    seed: int = _decision(0)
    """Seed of the choice, and of the augmented copies."""


Arm = Literal["real", "real_plus_augmented", "real_plus_synthetic", "synthetic"]


class EvaluateConfig(Section):
    """The same detector trained with and without -> verdict."""

    arms: tuple[Arm, ...] = ("real", "real_plus_synthetic")
    """What is compared. Each arm is trained once a seed. `real_plus_augmented` has as many augmented copies of real tiles as `real_plus_synthetic` has synthetic pictures; `synthetic` has these alone."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One paired training of every arm a seed."""
    sweep: tuple[Annotated[float, Field(ge=0)], ...] = _decision(())
    """How much is enough: train besides with these numbers of synthetic pictures, as multiples of the real ones, like [0, 0.5, 1, 2]. Every point costs a training a seed; the curve ends early where it is flat. Points can be added later."""
    real_sweep: tuple[Annotated[int, Field(ge=1)], ...] = _decision(())
    """What more photos would bring: train besides on these numbers of real photos alone, whole groups one after the other, like [10, 20, 40]."""
    detector: str = "yolo11n"
    """Architecture and start weights: as `label.detector`."""
    image_size: int | None = Field(None, ge=32, multiple_of=DETECTOR_STRIDE)
    """Side in pixels the detector sees. null: the tiles' resolution, or the next multiple of 32."""
    max_train_steps: int = Field(1500, ge=1)
    """Optimizer steps, the same in every arm."""
    train_batch_size: int = Field(16, ge=1)
    """Pictures a step."""
    learning_rate: float | None = Field(None, gt=0)
    """Of AdamW. null: what suits the detector, 1e-3 with ultralytics and 1e-4 with transformers (a tenth of it for the backbone)."""
    device: Literal["auto", "cpu", "cuda"] = _runtime("auto")
    """Where the networks run."""
    workers: int = _runtime(1, ge=1)
    """Threads of a detector's process on a CPU."""
    side_by_side: int = _runtime(0, ge=0)
    """Detectors trained at the same time, each in a process of its own. 0: on a CPU as many as there are cores and memory for, on a GPU one. The results are the same."""


class Config(Section):
    """A run's settings: what `RUN/synthdet.yaml` holds."""

    version: int = RUN_FOLDER_VERSION
    """Version of the run folder."""
    prepare: PrepareConfig = PrepareConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    generate: GenerateConfig = GenerateConfig()
    filter: FilterConfig = FilterConfig()
    label: LabelConfig = LabelConfig()
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def side_for(self, section: LabelConfig | EvaluateConfig) -> int:
        """Side in pixels of the square that a section's detector sees: in whole steps of the network's.

        A detector cannot join its levels of another size, and tiles come in steps of 8.
        """
        strides = math.ceil(self.prepare.resolution / DETECTOR_STRIDE)
        return section.image_size or strides * DETECTOR_STRIDE


def parse_config(text: str, *, where: str) -> Config:
    """Read YAML (safe loader) and check every key and value.

    Raises:
        SynthdetError: Not YAML, an unknown key, a bad value, or another version; names the key.
    """
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SynthdetError(f"{where} is not readable as YAML: {_one_line(error)}") from error
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise SynthdetError(f"{where} must hold settings by section, like `generate:`")
    return make_config(cast("dict[str, Any]", fields), where=where)


def make_config(fields: dict[str, Any], *, where: str) -> Config:
    """Check settings that are already parsed.

    Raises:
        SynthdetError: As `parse_config`.
    """
    version = fields.get("version", RUN_FOLDER_VERSION)
    if version != RUN_FOLDER_VERSION:
        raise SynthdetError(
            f"{where} is version {version}; this synthdet reads version {RUN_FOLDER_VERSION}: "
            "install the synthdet it was made with, or make a new run"
        )
    try:
        return Config.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SynthdetError(f"{where}: there is no setting {key}") from error
        if first["type"] == "value_error":  # of a whole section: its input says nothing
            raise SynthdetError(f"{where}: {key}: {first['ctx']['error']}") from error
        raise SynthdetError(f"{where}: {key}: {first['msg']}, got {first['input']!r}") from error


def set_values(config: Config, assignments: list[str]) -> Config:
    """Apply `section.key=value` assignments; the value is read as YAML.

    Raises:
        SynthdetError: Not of that form, or refused by the checks.
    """
    fields = config.model_dump(mode="json")
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise SynthdetError(
                f"--set {assignment}: write it as section.key=value, like generate.num_images=8"
            )
        if not isinstance(fields.get(section), dict):
            raise SynthdetError(f"--set {assignment}: there is no section {section}")
        try:
            fields[section][name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SynthdetError(f"--set {assignment}: {_one_line(error)}") from error
    return make_config(fields, where="--set")


def to_yaml(config: Config, *, header: str = "") -> str:
    """The settings as YAML in stage order, under an optional comment."""
    body = yaml.safe_dump(
        config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )
    return header + body


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
