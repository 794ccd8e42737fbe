"""The order of the stages, written once, and the real models built for them.

Models are opened by the stages when there is work for them, so every builder here is a function
that is called late; the libraries behind them are imported later still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthdet.config import (
    DETECTOR_STRIDE,
    Config,
    EvaluateConfig,
    LabelConfig,
    make_config,
    parse_config,
    set_values,
)
from synthdet.core.records import ManifestEntry, Photo, SyntheticImage, Tile
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.workspace import (
    CONFIG_NAME,
    HASHES_NAME,
    STAGES,
    Workspace,
    hash_file,
    read_json,
    read_records,
)

if TYPE_CHECKING:
    from synthdet.models.detector import DetectorProcess, Wanted
    from synthdet.models.machine import Check
    from synthdet.models.protocols import (
        Detector,
        DetectorTrainer,
        ImageEmbedder,
        ImageGenerator,
        LoraTrainer,
    )
    from synthdet.stages import predict as predict_stage

DETECT_BATCH = 32
"""Pictures a forward pass of the detector; the adapter takes fewer where that is faster."""


# --- stages ------------------------------------------------------------------------------------


def run_stage(name: str, workspace: Workspace, reporter: Reporter, *, redo: bool = False) -> None:
    """Run one stage with the settings that stand in the run folder now.

    Raises:
        SynthdetError: Whatever the stage has to tell.
    """
    config = workspace.read_config()
    with workspace.exclusive():
        _STAGE_RUNNERS[name](workspace, config, reporter, redo)


def run_stages(workspace: Workspace, reporter: Reporter, *, until: str = STAGES[-1]) -> None:
    """Run every stage that is needed and not done, in order, up to and with ``until``.

    After the last one the run's contact sheet is drawn.

    Raises:
        SynthdetError: Whatever a stage has to tell; the stages before it are done.
    """
    for name in STAGES[: STAGES.index(until) + 1]:
        if _is_needed(name, workspace.read_config()):
            run_stage(name, workspace, reporter)
    if until == STAGES[-1]:
        from synthdet.stages import contact_sheet

        contact_sheet.draw(workspace)


def lead(work: Callable[[], None]) -> None:
    """Do the work in one process; where `accelerate launch` started several, the others help to train.

    Raises:
        SynthdetError: Whatever the work, or the training that is helped with, has to tell.
    """
    from synthdet.models.lora_team import find_team

    team = find_team()
    if team.leads:
        work()
    if team.size > 1:
        from synthdet.models.lora import help_to_train, let_helpers_go

        (let_helpers_go if team.leads else help_to_train)()


def _is_needed(stage: str, config: Config) -> bool:
    """Pictures that the user brings need no LoRA."""
    return stage != "finetune" or config.generate.pictures is None


def _prepare(workspace: Workspace, config: Config, reporter: Reporter, redo: bool) -> None:
    from synthdet.stages import prepare

    prepare.run(workspace, config, reporter, redo=redo)


def _finetune(workspace: Workspace, config: Config, reporter: Reporter, redo: bool) -> None:
    from synthdet.stages import finetune

    note = partial(reporter.note, "finetune")
    finetune.run(
        workspace,
        config,
        reporter,
        open_trainer=lambda: _open_lora_trainer(config, note),
        open_generator=lambda lora: _open_generator(config, lora, config.generate.lora_scale, note),
        redo=redo,
    )


def _generate(workspace: Workspace, config: Config, reporter: Reporter, redo: bool) -> None:
    from synthdet.stages import generate

    note = partial(reporter.note, "generate")
    lora = workspace.stage("finetune").path / "pytorch_lora_weights.safetensors"
    generate.run(
        workspace,
        config,
        reporter,
        open_generator=lambda lora_scale: _open_generator(config, lora, lora_scale, note),
        redo=redo,
    )


def _filter(workspace: Workspace, config: Config, reporter: Reporter, redo: bool) -> None:
    from synthdet.stages import filter as filter_stage

    filter_stage.run(
        workspace, config, reporter, open_embedder=partial(_open_embedder, config), redo=redo
    )


def _label(workspace: Workspace, config: Config, reporter: Reporter, redo: bool) -> None:
    from synthdet.models.detector import DetectorProcess
    from synthdet.models.identity import identify
    from synthdet.stages import label

    own = workspace.stage("label").path / "weights"
    with ExitStack() as stack:
        first = stack.enter_context(DetectorProcess(config.label.workers))
        idle = [first]

        def open_detector(weights: Path) -> Detector:
            """In a process of its own, so that several stay open: only the first is the trainer's."""
            process = (
                idle.pop() if idle else stack.enter_context(DetectorProcess(config.label.workers))
            )
            return _open_detector(
                config,
                config.label,
                weights,
                process,
                image_size=None if weights == own else _tile_side(config),
                wanted=_wanted(workspace, config),
            )

        label.run(
            workspace,
            config,
            reporter,
            open_trainer=lambda: _open_detector_trainer(
                config, config.label, first, partial(reporter.note, "label")
            ),
            open_detector=open_detector,
            identify=lambda name: identify(_embedded(name, "yolo")),
            redo=redo,
        )


def _export(workspace: Workspace, config: Config, reporter: Reporter, redo: bool) -> None:
    from synthdet.models.dataset_reader import UltralyticsReader
    from synthdet.models.detector import DetectorProcess
    from synthdet.models.identity import identify
    from synthdet.stages import export

    with DetectorProcess(1) as process:
        export.run(
            workspace,
            config,
            reporter,
            open_reader=lambda: UltralyticsReader(process),
            identify=lambda name, part: identify(_embedded(name, part)),
            redo=redo,
        )


def _evaluate(workspace: Workspace, config: Config, reporter: Reporter, redo: bool) -> None:
    from synthdet.models.detector import DetectorProcess
    from synthdet.stages import evaluate

    def count_trainings() -> int:
        from synthdet.models.devices import resolve_device
        from synthdet.models.machine import trainings_side_by_side

        settings = config.evaluate
        return settings.side_by_side or trainings_side_by_side(
            resolve_device(settings.device),
            threads=settings.workers,
            pixels=settings.train_batch_size * config.side_for(settings) ** 2,
        )

    with DetectorProcess(config.evaluate.workers) as process:
        evaluate.run(
            workspace,
            config,
            reporter,
            count_trainings=count_trainings,
            open_trainer=lambda: _open_detector_trainer(
                config, config.evaluate, process, partial(reporter.note, "evaluate")
            ),
            open_detector=lambda weights: _open_detector(config, config.evaluate, weights, process),
            redo=redo,
        )


_STAGE_RUNNERS: dict[str, Callable[[Workspace, Config, Reporter, bool], None]] = {
    "prepare": _prepare,
    "finetune": _finetune,
    "generate": _generate,
    "filter": _filter,
    "label": _label,
    "export": _export,
    "evaluate": _evaluate,
}


def predict(
    workspace: Workspace, asked: predict_stage.Asked, reporter: Reporter, *, redo: bool = False
) -> None:
    """Run the best detector of the study, or the one that was asked for, on a new survey.

    Raises:
        SynthdetError: Whatever it has to tell.
    """
    from synthdet.models.detector import DetectorProcess
    from synthdet.stages import predict as stage

    config = workspace.read_config()
    settings = config.evaluate if asked.weights is None else config.label
    with workspace.exclusive(), DetectorProcess(settings.workers) as process:
        stage.run(
            workspace,
            config,
            reporter,
            asked,
            open_detector=lambda weights: _open_detector(
                config, settings, weights, process, wanted=_wanted(workspace, config)
            ),
            redo=redo,
        )


# --- models ------------------------------------------------------------------------------------


def _embedded(name: str, part: str) -> str | Path:
    """``pocket`` is the embedded default; every other name goes to the loader as it is."""
    if name != "pocket":
        return name
    from synthdet.pocket import weights_dir

    return weights_dir() / part


def _open_lora_trainer(config: Config, note: Callable[[str], None]) -> LoraTrainer:
    from synthdet.models.lora import SdxlLoraTrainer

    settings = config.finetune
    return SdxlLoraTrainer(
        _embedded(settings.base_model, "sdxl"),
        vae=settings.vae,
        rank=settings.rank,
        lora_alpha=settings.lora_alpha,
        target_modules=settings.target_modules,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        lr_warmup_steps=settings.lr_warmup_steps,
        max_train_steps=settings.max_train_steps,
        train_batch_size=settings.train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        mixed_precision=settings.mixed_precision,
        base_weights=settings.base_weights,
        compile=settings.compile,
        gradient_checkpointing=settings.gradient_checkpointing,
        snr_gamma=settings.snr_gamma,
        animal_weight=settings.animal_weight,
        noise_offset=settings.noise_offset,
        caption_dropout=settings.caption_dropout,
        symmetries=settings.symmetries,
        crop_fraction=settings.crop_fraction,
        crop_sides=settings.crop_sides,
        crop_ratios=settings.crop_ratios(),
        prior_weight=settings.prior_weight,
        checkpointing_steps=settings.checkpointing_steps,
        seed=settings.seed,
        device=settings.device,
        validation_steps=settings.validation_steps,
        use_dora=settings.use_dora,
        train_text_encoder=settings.train_text_encoder,
        new_word=settings.new_word,
        new_tokens=settings.new_tokens,
        kohya_copy=settings.kohya_copy,
        tensorboard=settings.tensorboard,
        note=note,
    )


def _open_generator(
    config: Config, lora: Path | None, lora_scale: float, note: Callable[[str], None]
) -> ImageGenerator:
    from synthdet.models.sdxl import SdxlGenerator

    return SdxlGenerator(
        _embedded(config.finetune.base_model, "sdxl"),
        vae=config.finetune.vae,
        lora=lora,
        lora_scale=lora_scale,
        scheduler=config.generate.scheduler,
        mixed_precision=config.generate.mixed_precision,
        device=config.generate.device,
        vae_batch_size=config.generate.vae_batch_size,
        few_step_lora=config.generate.few_step_lora,
        compile_networks=config.generate.compile,
        scheduler_options=config.generate.scheduler_options,
        words=_find_words(config, lora),
        note=note,
    )


def _find_words(config: Config, lora: Path | None) -> Path | None:
    """What was learned beside a run's own LoRA."""
    if lora is None or config.finetune.lora is not None or config.finetune.new_word is None:
        return None
    from synthdet.models.new_words import WORDS_NAME

    return lora.with_name(WORDS_NAME)


def _open_embedder(config: Config) -> ImageEmbedder:
    from synthdet.models.clip import ClipEmbedder

    settings = config.filter
    return ClipEmbedder(
        _embedded(settings.model, "clip"), batch_size=settings.batch_size, device=settings.device
    )


def _open_detector_trainer(
    config: Config,
    settings: LabelConfig | EvaluateConfig,
    process: DetectorProcess,
    note: Callable[[str], None],
) -> DetectorTrainer:
    from synthdet.models.detector import ChildTrainer

    trainer = ChildTrainer(
        _embedded(settings.detector, "yolo"),
        device=settings.device,
        threads=settings.workers,
        trust=config.label.trust,
        process=process,
    )
    note(f"the detector starts from {settings.detector} and is trained with {trainer.library}")
    return trainer


def _wanted(workspace: Workspace, config: Config) -> Wanted:
    """What a detector by text looks for: the run's classes."""
    from synthdet.models.detector import Wanted

    dataset = read_json(workspace.stage("prepare").path / "dataset.json")
    return Wanted(tuple(dataset["classes"]), config.label.queries, config.label.image_size)


def _tile_side(config: Config) -> int | None:
    """Side at which detectors that were named see the tiles of large pictures as they are.

    None where there are no tiles, or a person has set the side.
    """
    side = config.label.tile_side
    if side is None or config.label.image_size is not None:
        return None
    return math.ceil(side / DETECTOR_STRIDE) * DETECTOR_STRIDE


def _open_detector(
    config: Config,
    settings: LabelConfig | EvaluateConfig,
    weights: Path,
    process: DetectorProcess,
    *,
    image_size: int | None = None,
    wanted: Wanted | None = None,
) -> Detector:
    """What finds boxes; it sees ``image_size`` pixels, or what the section's settings say."""
    from synthdet.models.detector import ChildDetector

    return ChildDetector(
        weights,
        image_size=image_size or config.side_for(settings),
        batch_size=DETECT_BATCH,
        device=settings.device,
        threads=settings.workers,
        trust=config.label.trust,
        process=process,
        wanted=wanted,
    )


# --- status ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How a stage stands. ``state`` is one of done, stale, begun, open and not needed."""

    name: str
    state: str
    why: str
    counts: dict[str, Any]
    seconds: float


def stage_statuses(workspace: Workspace) -> list[StageStatus]:
    """How every stage stands, in order.

    A finished stage is stale when its settings, or the output of a stage it was made from, are no
    longer those it was made with.
    """
    config = workspace.read_config()
    outputs: dict[str, str] = {}
    statuses = []
    for name in STAGES:
        lock = workspace.stage(name).lock()
        if lock is None:
            state = "open" if _is_needed(name, config) else "not needed"
            statuses.append(StageStatus(name, state, "", {}, 0.0))
            continue
        why = "; ".join(_changes(lock, getattr(config, name), outputs))
        state = "begun" if not lock["finished"] else "stale" if why else "done"
        outputs[name] = lock["output"] if state == "done" else "stale"
        statuses.append(StageStatus(name, state, why, lock.get("counts", {}), lock["seconds"]))
    return statuses


def _changes(lock: dict[str, Any], section: Any, outputs: dict[str, str]) -> Iterator[str]:
    now = section.model_dump(mode="json")
    for key, value in {**lock["settings"], **lock["decisions"]}.items():
        if key in now and now[key] != value:
            yield f"{key} was {value!r} and is now {now[key]!r}"
    for stage, output in {**lock["inputs"], **lock["decision_inputs"]}.items():
        if stage in outputs and outputs[stage] != output:
            yield f"{stage} changed"


@dataclass(frozen=True, slots=True)
class SurveyStatus:
    """How a survey stands. ``state`` is done or begun; ``found`` is empty until it is done."""

    name: str
    state: str
    found: str
    seconds: float


def survey_statuses(workspace: Workspace) -> list[SurveyStatus]:
    """What `predict` found in the surveys of ``8-predict/``, in the words it closed with, by name."""
    surveys = workspace.surveys()
    if not surveys:
        return []
    from synthdet.stages.predict import closing_line

    statuses = []
    for survey in surveys:
        lock = survey.lock() or {}
        done = bool(lock["finished"])
        found = closing_line(lock["counts"]) if done else ""
        statuses.append(
            SurveyStatus(survey.path.name, "done" if done else "begun", found, lock["seconds"])
        )
    return statuses


def check_run(workspace: Workspace) -> list[Check]:
    """What the run's fine-tuning will take on this machine: memory, time and disk, worked out."""
    from synthdet.models import forecast

    tiles = workspace.stage("prepare").path / "tiles.jsonl"
    train = sum(tile.split == "train" for tile in read_records(tiles, Tile))
    return forecast.check_run(workspace.read_config(), workspace.root, num_tiles=train or None)


def where_lost(workspace: Workspace) -> str | None:
    """The stage after which no synthetic picture was left, in a sentence; None where some are left."""
    counts = {status.name: status.counts for status in stage_statuses(workspace)}
    if counts["export"].get("synthetic", 1) > 0:
        return None
    for name, key, verb in (
        ("generate", "pictures", "made"),
        ("filter", "kept", "kept"),
        ("label", "usable", "accepted"),
    ):
        if counts[name].get(key) == 0:
            return f"no synthetic picture is left after {name}: it {verb} none ({_reasons(counts[name])})"
    return "no synthetic picture is left after export: the mix or the curation took none"


def _reasons(counts: dict[str, Any]) -> str:
    dropped = counts.get("dropped")
    if isinstance(dropped, dict) and dropped:
        return ", ".join(f"{number} {reason}" for reason, number in dropped.items())
    return ", ".join(f"{key} {value}" for key, value in counts.items() if isinstance(value, int))


def verify(workspace: Workspace) -> list[str]:
    """Read every file again, the photos too, and compare it with its record.

    A photo that is another than it looks from outside is read again by the next `prepare`.

    Returns:
        A line for every file that is missing or differs. Empty: all is well.
    """
    problems = []
    for path, sha256 in _promised_files(workspace):
        if not path.is_file():
            problems.append(f"{workspace.relative(path)} is missing")
        elif hash_file(path) != sha256:
            problems.append(f"{workspace.relative(path)} is not the file that was written")
    for path, sha256 in _prepared_photos(workspace):
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif hash_file(path) != sha256:
            problems.append(f"{path} is not the photo that was prepared")
            (workspace.root / HASHES_NAME).unlink(missing_ok=True)
    return problems


def _prepared_photos(workspace: Workspace) -> Iterator[tuple[Path, str]]:
    """The user's photos; none where their folder is not there any more, which a run can do without."""
    folder = workspace.stage("prepare").path
    photos = read_records(folder / "photos.jsonl", Photo)
    root = Path(read_json(folder / "dataset.json").get("photos", "")) if photos else Path()
    for photo in photos if root.is_dir() else ():
        yield root / photo.path, photo.sha256


def _promised_files(workspace: Workspace) -> Iterator[tuple[Path, str]]:
    root = workspace.root
    for tile in read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile):
        yield root / tile.path, tile.sha256
    for image in read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage):
        yield root / image.path, image.sha256
    for inside in ("", "augmented/", "frames/"):
        manifest = workspace.stage("export").path / f"{inside}manifest.jsonl"
        for entry in read_records(manifest, ManifestEntry):
            yield root / entry.yolo_path, entry.sha256
            if entry.coco_path is not None:
                yield root / entry.coco_path, entry.sha256


# --- configs -----------------------------------------------------------------------------------


def shipped_configs() -> dict[str, Path]:
    """Name -> file of the settings that come with synthdet, from a wheel or a checkout alike."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_config(name_or_file: str) -> Path:
    """A shipped config by its name, or a file.

    Raises:
        SynthdetError: Neither; names what there is.
    """
    shipped = shipped_configs()
    if name_or_file in shipped:
        return shipped[name_or_file]
    path = Path(name_or_file)
    if path.is_file():
        return path
    raise SynthdetError(
        f"there is no config {name_or_file}: name a YAML file, or one of {', '.join(shipped)}"
    )


# --- starting ----------------------------------------------------------------------------------


def init_run(
    run: Path,
    *,
    config: str,
    photos: Path,
    labels: Path | None,
    annotation_format: str,
    assignments: list[str],
    reporter: Reporter,
) -> Workspace:
    """Make a run folder for a folder of annotated photos, once it is known how they are annotated.

    Raises:
        SynthdetError: No such folder or config, annotations that are not recognised, or a run folder
            that exists already.
    """
    from synthdet.stages import prepare

    path = find_config(config)
    settings = parse_config(path.read_text(encoding="utf-8"), where=str(path))
    fields = settings.model_dump(mode="json")
    fields["prepare"]["photos"] = str(photos.resolve())
    fields["prepare"]["labels"] = str(labels.resolve()) if labels else fields["prepare"]["labels"]
    fields["prepare"]["format"] = annotation_format
    settings = set_values(make_config(fields, where="synthdet init"), assignments)
    own = settings.prepare
    found = prepare.recognise(photos, own.labels, own.format, own.csv)
    reporter.close("init", found.describe())
    header = f"# Settings of this run, from {path.name}. After a change: synthdet run {run}\n"
    return Workspace.make(run, settings, header=header)


def run_demo(run: Path, reporter: Reporter) -> None:
    """The whole journey on the embedded default; goes on where an earlier call was stopped.

    Raises:
        SynthdetError: The folder is somebody else's run, or whatever a stage has to tell.
    """
    from synthdet.pocket.survey import SETTINGS, write_survey

    survey = run.with_name(f"{run.name}-survey")
    reporter.close("demo", f"a rendered sea, drawn by a program: no photo in it is real ({survey})")
    write_survey(survey, reporter)
    if not (run / CONFIG_NAME).exists():
        init_run(
            run,
            config="pocket",
            photos=survey,
            labels=None,
            annotation_format="auto",
            assignments=list(SETTINGS),
            reporter=reporter,
        )
    workspace = Workspace(run)
    if workspace.read_config().prepare.photos != survey.resolve():
        raise SynthdetError(f"{run} is a run on other photos: name another folder for the demo")
    run_stages(workspace, reporter)
    say_what_was_made(workspace, reporter)
    say_where_to_look(workspace, reporter)


def say_what_was_made(workspace: Workspace, reporter: Reporter) -> None:
    """The whole run in plain words, and the verdict."""
    counts = {status.name: status.counts for status in stage_statuses(workspace)}
    verdict = read_json(workspace.stage("evaluate").path / "verdict.json")
    reporter.close(
        "in short",
        f"from {verdict['train_pictures']['real']} tiles of {counts['prepare']['photos']} photos, "
        f"{counts['generate']['pictures']} pictures were made; {counts['filter']['kept']} of them look "
        f"like the photos, and {counts['export']['synthetic']} had boxes sure enough to train on. "
        f"{verdict['sentence']}",
    )


def say_where_to_look(workspace: Workspace, reporter: Reporter) -> None:
    """The last lines of a whole run: who dropped the pictures, if all are gone, and what to open."""
    from synthdet.stages import contact_sheet

    if lost := where_lost(workspace):
        reporter.note("lost", lost)
    for what, path in (
        ("dataset", workspace.stage("export").path / "yolo" / "data.yaml"),
        ("", workspace.stage("export").path / "coco" / "annotations"),
        ("report", workspace.stage("evaluate").path / "report.html"),
        ("", workspace.stage("filter").path / "report.png"),
        ("", workspace.root / contact_sheet.NAME),
    ):
        reporter.close(what, str(path))
    reporter.close("look", f"synthdet app {workspace.root}")
