"""Corrupt files: no crash, no traceback; each is used, or refused with a reason."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from synthdet.core.boxes import check_boxes
from synthdet.core.records import Record, Rejected
from synthdet.errors import SynthdetError
from synthdet.stages import _photos, prepare
from synthdet.stages._annotations import read_annotations
from synthdet.stages._recognise import recognise
from synthdet.workspace import Workspace
from tests.builders import make_photos, quiet_reporter, small_config, write_photo
from tests.corrupt import (
    HEIGHT,
    NAMES,
    PHOTOS,
    WIDTH,
    corrupt_annotations,
    corrupt_picture,
    whole_annotations,
    whole_pictures,
)

FORMATS = ("yolo", "coco", "voc", "labelme", "cvat", "csv")


def survey(folder: Path) -> Path:
    folder.mkdir()
    for name in PHOTOS:
        write_photo(folder / name, np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    return folder


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        if path.suffix != ".jpg":
            path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def strict_line(record: Record) -> str:
    """A record as it goes into a file; anything but strict JSON in UTF-8 raises."""
    line = record.to_line()
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    line.encode()
    return line


def read(folder: Path, *, unnamed: bool) -> str:
    """What becomes of a survey, in a word; asserts that nothing is without a reason."""
    try:
        annotations = read_annotations(recognise(folder, None, "auto"), unnamed=unnamed)
    except SynthdetError as error:
        message = str(error)
        if not 0 < len(message) < 1500 or "\n" in message:
            pytest.fail(f"not one line: {message[:2000]!r}")
        return "refused"
    outcome = "read"
    for entry in annotations.rejected:
        assert entry.reason.strip()
        assert "\n" not in entry.reason
        strict_line(entry)
        outcome = "partly rejected"
    for name in annotations.names:
        name.encode()
    for photo in annotations.photos:
        assert photo.path in PHOTOS
        assert photo.boxes or not photo.problems
        assert all("\n" not in problem for problem in photo.problems)
        width, height = photo.size_wh if photo.size_wh not in (None, (1, 1)) else (WIDTH, HEIGHT)
        scale = (width, height) if photo.size_wh == (1, 1) else (1, 1)
        boxes = [
            box.model_copy(
                update={
                    "xyxy": tuple(value * scale[place % 2] for place, value in enumerate(box.xyxy))
                }
            )
            for box in photo.boxes
        ]
        kept, dropped = check_boxes(boxes, width, height)
        for box in kept:
            assert 0 <= box.class_id < len(annotations.names)
            assert all(math.isfinite(value) for value in box.xyxy)
        for box, reason in dropped:
            strict_line(Rejected(path=photo.path, reason=reason, box=box.xyxy))
        if photo.problems or dropped:
            outcome = "partly rejected"
    return outcome


@pytest.mark.parametrize("format_", FORMATS)
def test_whole_annotations_are_read(tmp_path, format_):
    folder = survey(tmp_path / "photos")
    write_files(folder, whole_annotations(format_))
    assert read(folder, unnamed=False) == "read"
    annotations = read_annotations(recognise(folder, None, "auto"), unnamed=False)
    assert [len(photo.boxes) for photo in annotations.photos] == [2, 1, 0]
    assert set(annotations.names) == set(NAMES)


def fuzz_annotations(folder: Path, number: int, seed: int) -> Counter[tuple[str, str]]:
    survey(folder)
    outcomes: Counter[tuple[str, str]] = Counter()
    for case in range(number):
        format_ = FORMATS[case % len(FORMATS)]
        files = corrupt_annotations(format_, np.random.default_rng((seed, case)))
        write_files(folder, files)
        try:
            outcome = read(folder, unnamed=case % 2 == 0)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"case {case} of seed {seed} ({format_}): {error!r}") from error
        outcomes[format_, outcome] += 1
    return outcomes


def test_corrupt_annotations_have_a_reason(tmp_path):
    outcomes = fuzz_annotations(tmp_path / "photos", 360, seed=1)
    for format_ in FORMATS:
        assert outcomes[format_, "refused"] + outcomes[format_, "partly rejected"] >= 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_corrupt_annotations_have_a_reason(tmp_path):
    outcomes = fuzz_annotations(tmp_path / "photos", 10_000, seed=0)
    assert sum(outcomes.values()) == 10_000
    print(dict(sorted(outcomes.items())))


def fuzz_pictures(folder: Path, number: int, seed: int) -> Counter[tuple[str, bool]]:
    folder.mkdir()
    pictures = sorted(whole_pictures().items())
    outcomes: Counter[tuple[str, bool]] = Counter()
    for case in range(number):
        kind, whole = pictures[case % len(pictures)]
        path = folder / f"{case}.jpg"
        content = corrupt_picture(whole, np.random.default_rng((seed, case)))
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, about tags
            inspected = _photos.inspect(path)
        assert path.read_bytes() == content
        if inspected.reason is None:
            assert inspected.width > 0
            assert inspected.height > 0
            assert inspected.thumb is not None
            assert inspected.thumb.dtype == np.uint8
        else:
            assert inspected.reason.strip()
            assert "\n" not in inspected.reason
            strict_line(Rejected(path=path.name, reason=inspected.reason))
        outcomes[kind, inspected.reason is None] += 1
        path.unlink()
    return outcomes


def test_whole_pictures_are_read(tmp_path):
    for name, content in whole_pictures().items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        assert _photos.inspect(path).reason is None, name


def test_corrupt_pictures_have_a_reason(tmp_path):
    outcomes = fuzz_pictures(tmp_path / "photos", 216, seed=1)
    assert sum(number for (_kind, good), number in outcomes.items() if not good) >= 70


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_corrupt_pictures_have_a_reason(tmp_path):
    outcomes = fuzz_pictures(tmp_path / "photos", 2_000, seed=0)
    assert sum(outcomes.values()) == 2_000
    print(dict(sorted(outcomes.items())))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("format_", FORMATS)
def test_a_corrupt_survey_goes_through_the_whole_stage_or_is_refused(tmp_path, format_, seed):
    """Three corrupt pictures and a corrupt annotation file among good ones."""
    rng = np.random.default_rng((seed, len(format_)))
    folder = survey(tmp_path / "photos")
    write_files(folder, corrupt_annotations(format_, rng) | {"classes.txt": b"seal\npup\n"})
    pictures = sorted(whole_pictures().items())
    for number in range(8):
        photo = make_photos(seed=number, size_wh=(WIDTH, HEIGHT))[0]
        write_photo(folder / f"more{number}.jpg", photo.picture)
    for name in ("a.jpg", "more0.jpg", "more1.jpg"):
        _kind, whole = pictures[int(rng.integers(len(pictures)))]
        (folder / name).write_bytes(corrupt_picture(whole, rng))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = {"unlabelled": "negative", "few_groups": "allow", "split": "new"}
    config = small_config(folder, {"prepare": settings})
    workspace = Workspace.make(tmp_path / "run", config)
    with contextlib.suppress(SynthdetError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare.run(workspace, config, quiet_reporter())
        for line in (workspace.stage("prepare").path / "rejected.jsonl").read_text().splitlines():
            assert json.loads(line)["reason"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
