"""Train the same detector with and without the synthetic pictures, and say what that changed.

Reads:
    ``6-export/manifest.jsonl`` with ``yolo/`` (and ``augmented/``, for that arm), and of ``1-prepare/`` the class names and the groups of
    the test tiles.

Writes:
    ``7-evaluate/arms/<arm>/``, a ``data.yaml`` with lists of pictures; ``weights/<arm>/seed-<n>/``;
    ``predictions/<arm>-<n>.jsonl`` on the real test tiles and ``<arm>-<n>-val.jsonl`` on the real val
    tiles; ``results.csv``, a row an arm, seed and measure; ``sweep.csv``, the same of
    the curves; ``verdict.json``; ``report.html``.

Resume:
    An arm with a seed is one unit: trained, and tried on val and test. A unit that was interrupted
    starts again and gives the same weights; finished ones are not touched. So is a point of a sweep
    with a seed; points can be asked for later. Several are made side by side; none knows of another.

All arms have the same start weights, steps, picture size and seeds, in pairs. Whatever trains is
real, an augmented copy of it, or synthetic; whatever is measured is real.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthdet.config import Config
from synthdet.models.protocols import Detector, DetectorTrainer
from synthdet.progress import Reporter
from synthdet.stages.evaluate_measures import Result, measure, write_results
from synthdet.stages.evaluate_report import make_report, write_report
from synthdet.stages.evaluate_sweep import make_curve, plan_sweeps, tell, write_sweep
from synthdet.stages.evaluate_units import (
    Study,
    Unit,
    is_whole,
    make_units,
    read_study,
)
from synthdet.stages.evaluate_verdict import conclude
from synthdet.workspace import StageFolder, Workspace, read_json, write_json

PROMISED = ("results.csv", "verdict.json", "report.html")


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    open_trainer: Callable[[], DetectorTrainer],
    open_detector: Callable[[Path], Detector],
    count_trainings: Callable[[], int] = lambda: 1,
    redo: bool = False,
) -> None:
    """Compare the arms and write the verdict.

    Args:
        workspace: The run.
        config: Its settings.
        reporter: Where to tell.
        open_trainer: What it gives is asked by several threads at once, if more than one is trained.
        open_detector: Called by the thread that trained its weights.
        count_trainings: How many detectors are trained at the same time.
        redo: Make anew what is there.

    Raises:
        SynthdetError: The export is not done or lost a file, no real picture to train on, or a used
            setting was changed.
    """
    folder = workspace.stage("evaluate")
    before = folder.lock()
    done = folder.claim(
        settings=config.evaluate.settings("making"),
        inputs={"export": workspace.stage("export").output()},
        decisions=config.evaluate.settings("decision"),
        redo=redo,
        note=lambda text: reporter.note("evaluate", text),
    )
    study = read_study(workspace, config)
    units = study.units(config)
    if done and _is_all_there(folder, study, units):
        reporter.close("evaluate", _closing_line(read_json(folder.path / "verdict.json")))
        return
    for leftover in list(folder.path.rglob(".tmp-*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    if before and not before["decisions"] and all(is_whole(folder, study, one) for one in units):
        reporter.note(
            "evaluate", "made by an earlier version: measured again, no detector is trained again"
        )

    known: dict[tuple[str, int], Result] = {}

    def make(units: Sequence[Unit]) -> dict[tuple[str, int], Result]:
        make_units(
            folder, study, config, units, reporter, open_trainer, open_detector, count_trainings
        )
        for unit in units:
            if unit.key not in known:  # the ends of a curve are arms
                known[unit.key] = measure(folder, study, unit)
        return {unit.key: known[unit.key] for unit in units}

    results = make(units)
    curves = {
        name: make_curve(name, points, study, config, make)
        for name, points in plan_sweeps(study, config).items()
    }
    for name, curve in curves.items():
        reporter.note("evaluate", tell(name, curve))
    verdict = conclude(study, config, results, curves)
    write_results(folder.path / "results.csv", results)
    write_sweep(folder.path / "sweep.csv", curves)
    write_json(folder.path / "verdict.json", verdict)
    write_report(folder.path / "report.html", make_report(folder, study, config, results, verdict))
    folder.close(
        outputs=[
            path
            for name in ("results.csv", "sweep.csv", "verdict.json")
            if (path := folder.path / name).exists()
        ],
        counts={"units": len(units), "verdict": verdict["verdict"]},
        runtime=config.evaluate.settings("runtime"),
    )
    reporter.close("evaluate", _closing_line(verdict))


def _is_all_there(folder: StageFolder, study: Study, units: Sequence[Unit]) -> bool:
    """Whether every promised file is: of the arms, and of the points that the curves came to."""
    if not all((folder.path / name).exists() for name in PROMISED):
        return False
    sweeps = read_json(folder.path / "verdict.json")["sweeps"]
    points = {point["name"] for sweep in sweeps.values() for point in sweep["points"]}
    if points and not (folder.path / "sweep.csv").exists():
        return False
    seeds = {unit.seed for unit in units}
    trained = [*units, *(Unit(name, seed, ()) for name in sorted(points) for seed in seeds)]
    return all(is_whole(folder, study, unit) for unit in trained)


def _closing_line(verdict: Mapping[str, Any]) -> str:
    return str(verdict["sentence"])
