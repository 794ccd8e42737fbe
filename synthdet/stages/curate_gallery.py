"""``curation.html``: the synthetic pictures of a run to judge in any browser. One file, no server.

The page (``curate_gallery.html``, ``.css`` and ``.js`` beside this file) holds everything it shows. A policy
in its head forbids it any request; what came from outside (prompts, class names) is only ever text in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

from PIL import Image

from synthdet.core.curation import (
    KINDS,
    Kind,
    ShownRun,
    boxes_to_export,
    doubt,
    sort_by_kind,
    standing_verdict,
    strongest,
    why,
)
from synthdet.core.fusion import is_upright
from synthdet.core.records import Box, DetectedBox, SyntheticImage, Tile
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.workspace import write_text

NAME: Final = "curation.html"
MAX_PICTURES: Final = 2_000
"""On one page: 50 to 100 MB, which a browser opens within seconds."""
SIDE: Final = 512
"""Longest side of a picture on the page, in pixels. Boxes keep the pixels of the picture itself."""
NEAREST_SIDE: Final = 256
_QUALITY: Final = 82
_RAW_BOXES: Final = 8
"""Raw boxes shown of a picture, the most confident: a detector draws hundreds of faint ones."""


def write_gallery(path: Path, shown: ShownRun, run_name: str, reporter: Reporter) -> str:
    """Write the page.

    Args:
        path: Of the file.
        shown: The run.
        run_name: To call it by.
        reporter: Shows how far it is.

    Returns:
        What is on the page, in words.

    Raises:
        SynthdetError: A picture of the run is gone or cannot be read.
    """
    chosen, left_out = _choose(shown)
    root, tiles = Path(shown.root), {tile.tile_id: tile for tile in shown.tiles}
    pictures: list[dict[str, Any]] = []
    reals: dict[str, dict[str, Any]] = {}
    blocks: list[str] = []
    with reporter.bar("curate", len(chosen)) as advance:
        for kind, image in chosen:
            facts = _facts(shown, image, kind)
            if facts["nearest"] in tiles and facts["nearest"] not in reals:
                tile = tiles[facts["nearest"]]
                blocks.append(_block(f"r{len(reals)}", _jpeg(root / tile.path, NEAREST_SIDE)))
                reals[tile.tile_id] = {**_real(tile), "block": f"r{len(reals)}"}
            blocks.append(_block(f"p{len(pictures)}", _jpeg(root / image.path, SIDE)))
            pictures.append({**facts, "block": f"p{len(pictures)}"})
            advance(1)
    said = f"{len(pictures)} pictures, {sum(kind == 'review' for kind, _ in chosen)} to review"
    if left_out:
        said += f"; {left_out} more do not fit on one page: pull verdicts and make it again"
    data = {
        "key": f"synthdet-verdicts-{shown.dataset}",
        "run": run_name,
        "classes": list(shown.class_names),
        "note": said if left_out else "",
        "pictures": pictures,
        "reals": reals,
    }
    write_text(path, _page(data, blocks, run_name))
    return said


def _choose(shown: ShownRun) -> tuple[list[tuple[Kind, SyntheticImage]], int]:
    """The pictures of the page in order, and how many did not fit; those without a verdict go first."""
    kinds = sort_by_kind(shown)
    ordered = [(kind, image) for kind in KINDS for image in kinds[kind]]
    wanted = sorted(ordered, key=lambda pair: standing_verdict(shown, pair[1]) is not None)
    fitting = {image.image_id for _, image in wanted[:MAX_PICTURES]}
    chosen = [pair for pair in ordered if pair[1].image_id in fitting]
    return chosen, len(ordered) - len(chosen)


def _facts(shown: ShownRun, image: SyntheticImage, kind: Kind) -> dict[str, Any]:
    """What the page knows of a picture."""
    image_id = image.image_id
    score, decision = shown.scores.get(image_id), shown.decisions.get(image_id)
    label, found = shown.labels.get(image_id), shown.detections.get(image_id)
    verdict = standing_verdict(shown, image)
    raw = [box for box in found.boxes if is_upright(box)] if found else []
    return {
        "id": image_id,
        "sha256": image.sha256,
        "width": image.width,
        "height": image.height,
        "kind": kind,
        "prompt": image.prompt,
        "seed": image.seed,
        "similarity": score.similarity if score else None,
        "margin": shown.margins.get(image.image_id),
        "nearest": score.nearest_real if score else None,
        "nearestSimilarity": score.nearest_real_similarity if score else None,
        "kept": decision.kept if decision else None,
        "status": label.status if label else None,
        "reason": why(shown, image),
        "doubt": doubt(shown, image),
        "background": image.asked_for == (),
        "boxes": _drawn(boxes_to_export(shown, image)),
        "raw": _drawn(strongest(raw, _RAW_BOXES)),
        "known": verdict.verdict if verdict else None,
    }


def _real(tile: Tile) -> dict[str, Any]:
    return {"width": tile.width, "height": tile.height, "boxes": _drawn(tile.boxes)}


def _drawn(boxes: Sequence[Box | DetectedBox] | None) -> list[dict[str, Any]] | None:
    """Boxes to the hundredth of a pixel, which is what a verdict keeps of them."""
    if boxes is None:
        return None
    return [
        {
            "xyxy": [round(edge, 2) for edge in box.xyxy],
            "class_id": box.class_id,
            "confidence": box.confidence if isinstance(box, DetectedBox) else None,
        }
        for box in boxes
    ]


# --- the page ----------------------------------------------------------------------------------


def _page(data: dict[str, Any], blocks: Sequence[str], run_name: str) -> str:
    here = Path(__file__)
    style = here.with_suffix(".css").read_text(encoding="utf-8")
    script = here.with_suffix(".js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(here.with_suffix(".html").read_text(encoding="utf-8")).substitute(
        policy=policy,
        title=html.escape(run_name),
        style=style,
        script=script,
        data=_json_for_script(data),
        blocks="\n".join(blocks),
    )


def _hash(content: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _json_for_script(content: Any) -> str:
    """JSON that ends no ``<script>`` element, whatever texts are in it."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _block(name: str, jpeg: bytes) -> str:
    """A picture as text that the page takes when it is looked at: decoding all would fill the memory."""
    return f'<script type="text/plain" id="{name}">{base64.b64encode(jpeg).decode()}</script>'


def _jpeg(path: Path, side: int) -> bytes:
    """A picture with its longest side at most ``side`` pixels."""
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (side, side))  # a large JPEG is decoded small at once
            picture = opened.convert("RGB")
    except OSError as error:
        raise SynthdetError(
            f"{path} cannot be read ({error}): `synthdet status --verify` names what to make again"
        ) from error
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()
