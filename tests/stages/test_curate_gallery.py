"""The gallery: a page that judges pictures without a server, and its verdicts on the way to the export."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from synthdet.cli import app
from synthdet.config import Config
from synthdet.core.records import ManifestEntry, Verdict
from synthdet.errors import SynthdetError
from synthdet.stages import curate, curate_gallery, export
from synthdet.workspace import Workspace, read_records, write_json, write_text
from tests.browser import Page, browse
from tests.handmade import CLASSES, HEIGHT, WIDTH, make_run, make_tiles, quiet
from tests.labelled import FAINT, NASTY, WHALE, make_labelled


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_labelled(tmp_path / "Seals <b>")[0]


class Parts(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(dict(attrs).get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.append("")

    def handle_data(self, content: str) -> None:
        if self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + content


def write(workspace: Workspace) -> Parts:
    path = curate.write_html(workspace, Config(), quiet()[0])
    assert path == workspace.root / "curation.html"
    return Parts(path.read_text(encoding="utf-8"))


def test_the_page_holds_every_usable_picture_in_the_order_to_look_at_them(
    workspace: Workspace,
) -> None:
    page = write(workspace)
    data = json.loads(page.texts["data"])
    assert [(p["id"][-1], p["kind"]) for p in data["pictures"]] == [
        ("5", "review"), ("0", "review"), ("1", "near"), ("3", "accepted"), ("2", "accepted"),
        ("4", "dropped"),
    ]  # fmt: skip
    first = data["pictures"][1]
    assert (first["prompt"], first["seed"], first["status"]) == (NASTY, 0, "review")
    assert (first["similarity"], first["reason"]) == (0.8, "confidence 0.20")
    assert first["margin"] == pytest.approx(0.1)
    assert first["boxes"][0] == {"xyxy": list(WHALE), "class_id": 1, "confidence": 0.9}
    assert data["pictures"][5]["boxes"] is None, "nobody has labelled it"
    assert data["pictures"][5]["raw"][0]["xyxy"] == list(FAINT)
    assert data["classes"] == list(CLASSES)
    for one in [*data["pictures"], *data["reals"].values()]:
        with Image.open(io.BytesIO(base64.b64decode(page.texts[one["block"]]))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (WIDTH, HEIGHT))
    assert list(data["reals"]) == ["train-000"]


def test_the_page_can_ask_nobody_and_takes_no_text_for_markup(workspace: Workspace) -> None:
    page = write(workspace)
    text = (workspace.root / "curation.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "<title>Seals &lt;b&gt;: look" in text
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for _, attributes in page.elements:
        assert not set(attributes) & {"src", "style", "onload", "onclick", "action"}
        assert (attributes.get("href") or "data:").startswith("data:")


def test_the_same_run_gives_the_same_bytes(workspace: Workspace) -> None:
    write(workspace)
    first = (workspace.root / "curation.html").read_bytes()
    write(workspace)
    assert (workspace.root / "curation.html").read_bytes() == first


def test_what_does_not_fit_is_said_and_judged_pictures_make_room(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curate_gallery, "MAX_PICTURES", 3)
    write_text(
        workspace.root / "curation.jsonl",
        '{"image_id": "syn-000000", "verdict": "reject", "by": "me", "at": "now"}\n',
    )
    reporter, said = quiet()
    curate.write_html(workspace, Config(), reporter)
    page = Parts((workspace.root / "curation.html").read_text(encoding="utf-8"))
    data = json.loads(page.texts["data"])
    assert [p["id"][-1] for p in data["pictures"]] == ["5", "1", "3"]
    assert "3 more do not fit on one page" in said.getvalue()
    assert "3 more do not fit on one page" in data["note"]


def test_large_pictures_are_made_smaller_and_keep_the_pixels_of_their_boxes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curate_gallery, "SIDE", 36)
    page = write(workspace)
    picture = json.loads(page.texts["data"])["pictures"][1]
    assert (picture["width"], picture["height"]) == (WIDTH, HEIGHT)
    with Image.open(io.BytesIO(base64.b64decode(page.texts[picture["block"]]))) as small:
        assert small.size == (36, 24)


def test_a_picture_that_is_gone_is_named(workspace: Workspace) -> None:
    (workspace.root / "3-generate/images/syn-000002.png").unlink()
    with pytest.raises(SynthdetError, match="syn-000002.png cannot be read"):
        write(workspace)


# --- the file on its way back -------------------------------------------------------------------


def verdict_file(path: Path, workspace: Workspace, *verdicts: dict[str, Any]) -> Path:
    hashes = {p["id"]: p["sha256"] for p in json.loads(write(workspace).texts["data"])["pictures"]}
    full = [{"sha256": hashes[one["image_id"]], **one} for one in verdicts]
    write_json(
        path,
        {"synthdet_verdicts": 1, "run": "r", "classes": list(CLASSES), "verdicts": full},
    )
    return path


def pull(workspace: Workspace, file: Path) -> tuple[list[Verdict], str]:
    path = workspace.root / "curation.jsonl"
    before = read_records(path, Verdict)
    reporter, said = quiet()
    curate.pull_file(workspace, Config(), reporter, file=file)
    after = read_records(path, Verdict)
    assert after[: len(before)] == before
    return after[len(before) :], said.getvalue()


def test_pulled_twice_nothing_doubles(workspace: Workspace, tmp_path: Path) -> None:
    boxes = [{"xyxy": [1.004, 2, 30, 99], "class_id": 0}]
    file = verdict_file(
        tmp_path / "v.json",
        workspace,
        {"image_id": "syn-000000", "verdict": "accept", "boxes": boxes},
        {"image_id": "syn-000002", "verdict": "reject"},
    )
    (accepted, rejected), said = pull(workspace, file)
    assert accepted.boxes is not None
    assert accepted.boxes[0].xyxy == (1.0, 2.0, 30.0, HEIGHT)
    assert (rejected.image_id, rejected.verdict) == ("syn-000002", "reject")
    assert "1 accepted (0 of them without a box) · 1 rejected" in said
    again, said = pull(workspace, file)
    assert again == []
    assert "no new verdicts" in said
    page = json.loads(write(workspace).texts["data"])
    known = {p["id"]: (p["known"], p["boxes"]) for p in page["pictures"]}
    assert known["syn-000002"][0] == "reject"
    assert known["syn-000000"] == (
        "accept", [{"xyxy": [1.0, 2.0, 30.0, HEIGHT], "class_id": 0, "confidence": None}],
    )  # fmt: skip


def test_nothing_is_written_where_one_verdict_cannot_be_followed(
    workspace: Workspace, tmp_path: Path
) -> None:
    outside = [{"xyxy": [90, 2, 99, 9], "class_id": 0}]
    file = verdict_file(
        tmp_path / "v.json",
        workspace,
        {"image_id": "syn-000002", "verdict": "reject"},
        {"image_id": "syn-000000", "verdict": "accept", "boxes": outside},
    )
    with pytest.raises(SynthdetError, match=r"v\.json: syn-000000 has a box .* 72 x 48 pixels"):
        pull(workspace, file)
    assert not (workspace.root / "curation.jsonl").exists()


def test_a_file_that_is_not_there_or_not_text(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(SynthdetError, match="v.json cannot be read"):
        pull(workspace, tmp_path / "v.json")
    (tmp_path / "v.json").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SynthdetError, match="v.json cannot be read"):
        pull(workspace, tmp_path / "v.json")


# --- in a browser -------------------------------------------------------------------------------


def window_point(page: Page, x: float, y: float) -> tuple[float, float]:
    """A point of the picture, in the window."""
    a, b = page.evaluate(
        "(() => { const m = document.getElementById('canvas').getScreenCTM();"
        f"const p = new DOMPoint({x}, {y}).matrixTransform(m); return [p.x, p.y]; }})()"
    )
    return a, b


def current(page: Page) -> str:
    name = page.evaluate("document.querySelector('.thumb[aria-current]').title")
    return str(name)


def boxes_on_stage(page: Page) -> list[list[float]]:
    drawn: list[list[float]] = page.evaluate(
        "[...document.querySelectorAll('#canvas rect.box')].map(r =>"
        "['x', 'y', 'width', 'height'].map(k => Number(r.getAttribute(k))))"
    )
    return drawn


@pytest.mark.slow
def test_a_person_judges_in_a_browser_and_the_export_has_it(tmp_path: Path) -> None:
    workspace, config = make_labelled(tmp_path / "Seals <b>")
    address = curate.write_html(workspace, config, quiet()[0]).as_uri()
    with browse(address, tmp_path / "browser") as page:
        page.wait_for("document.querySelector('.thumb[aria-current]')")
        assert current(page) == "syn-000005"

        page.press("a")  # it has no box: nothing is accepted by a slip
        assert "draw one" in page.evaluate("document.getElementById('toast').textContent")
        page.drag(window_point(page, 10, 10), window_point(page, 30, 25))  # a box of its own
        page.press("j")
        assert current(page) == "syn-000000"
        assert NASTY in page.evaluate("document.getElementById('facts').textContent")

        page.drag(window_point(page, 22, 17), window_point(page, 27, 20))  # moved
        page.drag(window_point(page, 39, 29), window_point(page, 44, 35))  # its corner
        (left, top, width, height), _faint = boxes_on_stage(page)
        assert (left, top) == pytest.approx((15, 11), abs=0.5)
        assert (width, height) == pytest.approx((29, 24), abs=0.5)
        page.click(*window_point(page, 55, 38))
        page.press("x")  # the faint one is deleted
        assert len(boxes_on_stage(page)) == 1

        page.press("ArrowRight")
        page.press("r")
        page.press("u")  # rejected, and taken back
        assert current(page) == "syn-000001"
        page.press("4")
        assert current(page) == "syn-000004"
        page.click(*window_point(page, 50, 30))  # the raw box of a dropped picture
        page.press("3")
        page.press("j")
        page.press("r")
        assert "4 of 6 judged · not saved" in page.evaluate("document.body.innerText")

        page.go(address)  # a page that is opened again knows what was decided
        page.wait_for("document.querySelectorAll('.thumb[data-verdict=accept]').length === 3")
        page.click(*page.centre("#save"))
        saved = tmp_path / "browser" / "downloads" / "curation-verdicts.json"
        for _ in range(50):
            if saved.exists():
                break
            page.evaluate("new Promise(resolve => setTimeout(resolve, 100))")
        page.wait_for("!document.getElementById('progress').textContent.includes('not saved')")
        asked = [one for one in page.requests if not one.startswith(("data:", "blob:"))]
        assert set(asked) == {address}
        assert page.complaints == []

    verdicts, _ = pull(workspace, saved)
    assert {(v.image_id[-1], v.verdict) for v in verdicts} == {
        ("5", "accept"), ("0", "accept"), ("4", "accept"), ("2", "reject"),
    }  # fmt: skip
    assert pull(workspace, saved)[0] == []
    export.run(workspace, config, quiet()[0])
    path = workspace.stage("export").path / "manifest.jsonl"
    entries = {e.image_id[-1]: e for e in read_records(path, ManifestEntry) if e.source == "synthetic"}  # fmt: skip
    assert set(entries) == {"0", "1", "3", "4", "5"}
    (moved,) = entries["0"].boxes
    assert moved.xyxy == pytest.approx((15, 11, 44, 35), abs=0.6)
    assert moved.class_id == 1
    assert entries["4"].boxes[0].xyxy == FAINT
    assert entries["5"].boxes[0].xyxy == pytest.approx((10, 10, 30, 25), abs=0.6)


def test_the_command_writes_the_page_and_takes_the_file(
    workspace: Workspace, tmp_path: Path
) -> None:
    root = str(workspace.root)
    runner = CliRunner()
    assert runner.invoke(app, ["curate", root, "--html"]).exit_code == 0
    assert (workspace.root / "curation.html").exists()
    one = {"image_id": "syn-000002", "verdict": "reject"}
    file = str(verdict_file(tmp_path / "v.json", workspace, one))
    for spelling in (["--pull", "--verdicts", file], ["--verdicts", file]):
        assert runner.invoke(app, ["curate", root, *spelling]).exit_code == 0
    (verdict,) = read_records(workspace.root / "curation.jsonl", Verdict)
    assert verdict.verdict == "reject"
    refused = runner.invoke(app, ["curate", root, "--html", "--pull"])
    assert str(refused.exception).startswith("--html writes the page")


@pytest.mark.slow
def test_a_page_without_pictures_opens_all_the_same(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    make_tiles(workspace)
    address = curate.write_html(workspace, config, quiet()[0]).as_uri()
    with browse(address, tmp_path / "browser") as page:
        page.wait_for("document.body.innerText.includes('There is no such picture.')")
        for key in "arjkueb2s0":
            page.press(key)
        assert "0 of 0 judged" in page.evaluate("document.body.innerText")
        assert page.complaints == []


@pytest.mark.slow
def test_the_newer_verdict_of_the_run_wins_over_what_the_browser_kept(tmp_path: Path) -> None:
    workspace, config = make_labelled(tmp_path / "run")
    address = curate.write_html(workspace, config, quiet()[0]).as_uri()
    with browse(address, tmp_path / "browser") as page:
        page.wait_for("document.querySelector('.thumb[aria-current]')")
        for key in "rr":
            page.press(key)
        write_text(
            workspace.root / "curation.jsonl",
            '{"image_id": "syn-000005", "verdict": "accept", "boxes": [], "by": "me", "at": "now"}\n',
        )
        curate.write_html(workspace, config, quiet()[0])
        page.go(address)
        page.wait_for("document.querySelector('.thumb[aria-current]')")
        verdicts = page.evaluate(
            "[...document.querySelectorAll('.thumb')].slice(0, 2).map(t => t.dataset.verdict)"
        )
        assert verdicts == ["accept", "reject"], "the first was decided elsewhere since"
