"""The commands: one a stage, plus init, run, status, curate, app, demo and doctor.

A user error is one line and exit 1; anything else is a bug and shows its traceback. Nothing heavy
is imported before a command needs it.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from synthdet import __version__
from synthdet.config import set_values
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.workspace import STAGES, Workspace

app = typer.Typer(
    name="synthdet",
    help="From a few annotated aerial photos to a bigger detection training set, and an honest verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change a setting; checked and written into RUN/synthdet.yaml. May be repeated.",
    ),
]
RedoOption = Annotated[
    bool, typer.Option("--redo", help="Keep the old folder aside and make the stage again.")
]
OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help="Ask no hub: models come from folders and the local cache."),
]
_INTERRUPTED = 130
"""What Typer makes of Ctrl-C."""
_JOURNEY, _LOOK, _START = "The journey", "Looking", "Starting"


def main() -> None:
    """Entry point of the ``synthdet`` command."""
    # Threads that wait for each other by spinning stand still on a machine that does something else
    # too: measured, 17 s a training step instead of 0.5. Read by OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except SynthdetError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail("the disk is full; make room and run the same command again, nothing is lost")
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            print("synthdet: stopped; the same command goes on from here", file=sys.stderr)
        raise


def _fail(message: str) -> None:
    print(f"synthdet: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(1)


def _open(run: Path, assignments: list[str] | None, *, offline: bool = False) -> Workspace:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    workspace = Workspace(run)
    if assignments:
        with workspace.exclusive():
            workspace.write_config(set_values(workspace.read_config(), assignments))
    return workspace


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


# --- starting ----------------------------------------------------------------------------------


@app.command(rich_help_panel=_START)
def demo(
    run: Annotated[Path, typer.Argument(metavar="[RUN]", help="The run folder.")] = Path(
        "runs/demo"
    ),
) -> None:
    """The whole journey on the embedded default: a rendered sea and pocket-size models."""
    from synthdet import pipeline

    pipeline.run_demo(run, Reporter())


@app.command(rich_help_panel=_START)
def init(
    run: RunArgument,
    photos: Annotated[Path, typer.Option(help="Folder with the annotated photos; read only.")],
    config: Annotated[
        str, typer.Option(help="Name of a shipped config, or a YAML file.")
    ] = "humpback-sdxl",
    labels: Annotated[
        Path | None, typer.Option(help="Annotations, where they are not beside the photos.")
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str,
        typer.Option(help="Annotation format: auto, yolo, coco, voc, labelme, cvat or csv."),
    ] = "auto",
    assignments: SetOption = None,
) -> None:
    """Make a run folder for your own photos."""
    from synthdet import pipeline

    workspace = pipeline.init_run(
        run,
        config=config,
        photos=photos,
        labels=labels,
        annotation_format=format,
        assignments=assignments or [],
        reporter=Reporter(),
    )
    print(f"{workspace.config_path} is written. Next: synthdet run {run}")


@app.command(rich_help_panel=_START)
def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run: what its fine-tuning will take here."),
    ] = None,
) -> None:
    """Look at this machine: GPU, memory, disk, hub login, MongoDB, versions; and at what a run will take."""
    from synthdet import pipeline
    from synthdet.models.machine import check_machine

    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    checks = check_machine() + (pipeline.check_run(Workspace(run)) if run else [])
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[yellow]look[/]"
        table.add_row(
            mark,
            f"[bold]{check.name}[/]",
            check.detail + (f"\n→ {check.advice}" if check.advice else ""),
        )
    Console().print(table)


# --- the journey -------------------------------------------------------------------------------


@app.command("run", rich_help_panel=_JOURNEY)
def run_command(
    run: RunArgument,
    until: Annotated[str, typer.Option(help=f"Last stage to run: {', '.join(STAGES)}.")] = STAGES[
        -1
    ],
    assignments: SetOption = None,
    offline: OfflineOption = False,
) -> None:
    """Run every stage that is not done."""
    from synthdet import pipeline

    if until not in STAGES:
        raise SynthdetError(f"there is no stage {until}: name one of {', '.join(STAGES)}")

    def work() -> None:
        workspace = _open(run, assignments, offline=offline)
        reporter = Reporter()
        pipeline.run_stages(workspace, reporter, until=until)
        if until == STAGES[-1]:
            pipeline.say_where_to_look(workspace, reporter)

    pipeline.lead(work)


def _add_stage(name: str, summary: str) -> None:
    def command(
        run: RunArgument,
        assignments: SetOption = None,
        redo: RedoOption = False,
        offline: OfflineOption = False,
    ) -> None:
        from synthdet import pipeline

        def work() -> None:
            workspace = _open(run, assignments, offline=offline)
            pipeline.run_stage(name, workspace, Reporter(), redo=redo)

        pipeline.lead(work)

    command.__doc__ = summary
    app.command(name, rich_help_panel=_JOURNEY)(command)


for _name, _summary in (
    ("prepare", "Real photos in: checked, split once by group, cut into tiles."),
    ("finetune", "Train the SDXL LoRA on the train tiles."),
    ("generate", "Make synthetic photos, batch by batch."),
    ("filter", "CLIP similarity to the real centroid: keep, or drop and say why."),
    ("label", "Put boxes on what was kept, with the run's detector or yours."),
    ("export", "Write the mixed real + synthetic set as YOLO and COCO."),
    ("evaluate", "Train the same detector with and without; give the verdict."),
):
    _add_stage(_name, _summary)


@app.command(rich_help_panel=_JOURNEY)
def predict(
    run: RunArgument,
    photos: Annotated[Path, typer.Argument(metavar="FOLDER", help="A survey's photos; read only.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where results go: RUN/8-predict/<name> if not told."),
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            help="Of the study: real, real_plus_synthetic ... or a point of a sweep. The best arm on val if not told."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Any other detector, as label.weights takes it.")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Tile pixels a photo pixel, for a survey flown at another height."),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="A box counts from here on: best F1 on val if not told."
        ),
    ] = None,
    redo: RedoOption = False,
) -> None:
    """The best detector of the study on a new survey: boxes, and counts with their expected error."""
    from synthdet import pipeline
    from synthdet.stages.predict import Asked

    asked = Asked(photos, output, arm, weights, scale, confidence)
    pipeline.predict(_open(run, None), asked, Reporter(), redo=redo)


# --- looking -----------------------------------------------------------------------------------


@app.command(rich_help_panel=_LOOK)
def status(
    run: RunArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file again.")] = False,
) -> None:
    """How the stages stand, with counts and times, and what was found in new surveys."""
    from synthdet import pipeline

    workspace = _open(run, None)
    table = Table("stage", "state", "counts", "time", box=None, pad_edge=False)
    for row in pipeline.stage_statuses(workspace):
        table.add_row(
            row.name,
            _colour(row.state),
            _say_counts(row.counts) + (f" [yellow]({row.why})[/]" if row.why else ""),
            _say_seconds(row.seconds),
        )
    Console().print(table)
    if surveys := pipeline.survey_statuses(workspace):
        table = Table("survey", "state", "found", "time", box=None, pad_edge=False)
        for one in surveys:
            table.add_row(
                escape(one.name), _colour(one.state), escape(one.found), _say_seconds(one.seconds)
            )
        Console().print("", table, sep="\n")
    if lost := pipeline.where_lost(workspace):
        print(lost)
    if verify:
        problems = pipeline.verify(workspace)
        for problem in problems:
            print(problem)
        if problems:
            raise SynthdetError(
                f"{len(problems)} files of {run} are not as recorded: run the stages named above again"
            )
        print("every file is as recorded")


def _colour(state: str) -> str:
    colour = {"done": "green", "stale": "yellow", "begun": "yellow"}.get(state, "dim")
    return f"[{colour}]{state}[/]"


def _say_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds else ""


def _say_counts(counts: dict[str, Any]) -> str:
    """Counts in words, inner ones in brackets: ``tiles 82 (train 61, val 7)``; what is 0 is left out."""
    words = []
    for key, value in counts.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{name} {number}" for name, number in value.items() if number)
            words += [f"{key}: {inner}"] if inner else []
        elif value not in (None, 0, ""):
            words.append(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}")
    return escape(" · ".join(words).replace("_", " "))


@app.command(rich_help_panel=_LOOK)
def curate(
    run: RunArgument,
    pull: Annotated[
        bool, typer.Option("--pull", help="Bring a person's verdicts back into curation.jsonl.")
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Load again over verdicts that were not pulled.")
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write RUN/curation.html to judge without FiftyOne.")
    ] = False,
    verdicts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pull from the file that curation.html saved."),
    ] = None,
) -> None:
    """Load the run into FiftyOne or write it as a page, or bring the verdicts back."""
    from synthdet.stages import curate as stage

    workspace = _open(run, None)
    config, reporter = workspace.read_config(), Reporter()
    if html and (pull or verdicts or redo):
        raise SynthdetError("--html writes the page: leave out --pull, --verdicts and --redo")
    if redo and (pull or verdicts):
        raise SynthdetError("--redo loads the run again: leave out --pull and --verdicts")
    with workspace.exclusive():
        if html:
            stage.write_html(workspace, config, reporter)
        elif verdicts is not None:
            stage.pull_file(workspace, config, reporter, file=verdicts)
        elif pull:
            stage.pull(workspace, config, reporter)
        else:
            stage.load(workspace, config, reporter, redo=redo)


@app.command("app", rich_help_panel=_LOOK)
def app_command(
    run: RunArgument,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5151,
) -> None:
    """Load the run into FiftyOne and open the App on 127.0.0.1."""
    from synthdet.stages import curate as stage

    workspace = _open(run, None)
    stage.serve(workspace, workspace.read_config(), Reporter(), port=port)


if __name__ == "__main__":
    main()
