"""Pictures that the base model draws of its own idea of a class, which a LoRA's training keeps alive.

Source: Ruiz et al., "DreamBooth", 2023, section 3.2 (class-specific prior preservation).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from synthdet.config import Config
from synthdet.core.prompts import plain
from synthdet.errors import SynthdetError
from synthdet.models.protocols import ImageGenerator, PictureRequest, TrainTile
from synthdet.progress import Reporter
from synthdet.workspace import atomic_path, hash_file, write_text

RECORDS_NAME = "prior.jsonl"
_FIRST_SEED = 40_000_000
"""Far from the seeds of samples and of what is generated later."""


def draw_prior(
    folder: Path,
    side: int,
    config: Config,
    reporter: Reporter,
    open_generator: Callable[[Path | None], ImageGenerator],
) -> list[TrainTile]:
    """The class pictures of a run, of which those that are not there yet are drawn.

    Each has a seed of its own, so it is the same whether it was drawn before a restart or after. They
    go to ``prior/`` and, when all are there, into ``prior.jsonl``.

    Args:
        folder: Of the stage.
        side: Of the train tiles, in pixels.
        config: All settings; drawn with the steps and guidance of ``generate``.
        reporter: Hears the progress.
        open_generator: Opens the base model, given None; not called where nothing is missing.

    Raises:
        SynthdetError: One picture does not fit into memory.
    """
    settings = config.finetune
    requests = {
        folder / "prior" / f"prior-{number:04d}.png": PictureRequest(
            settings.prior_prompt,
            plain(config.generate.negative_prompt),
            settings.seed + _FIRST_SEED + number,
        )
        for number in range(settings.prior_pictures)
    }
    draw_missing(
        requests,
        side,
        config,
        reporter,
        open_generator,
        doing="class pictures",
        of="prior_pictures",
    )
    tiles = [
        TrainTile(path.stem, path, request.prompt, hash_file(path))
        for path, request in requests.items()
    ]
    lines = [
        {
            "path": path.relative_to(folder).as_posix(),
            "prompt": request.prompt,
            "seed": request.seed,
            "sha256": tile.sha256,
        }
        for tile, (path, request) in zip(tiles, requests.items(), strict=True)
    ]
    write_text(folder / RECORDS_NAME, "".join(json.dumps(line) + "\n" for line in lines))
    return tiles


def draw_missing(
    requests: Mapping[Path, PictureRequest],
    side: int,
    config: Config,
    reporter: Reporter,
    open_generator: Callable[[Path | None], ImageGenerator],
    *,
    doing: str,
    of: str,
) -> None:
    """Let the base model draw those pictures that are not there, each alone, prompt and seed in its file.

    Args:
        requests: File -> what it shows.
        side: Of the pictures, in pixels.
        config: All settings; drawn with the steps and guidance of ``generate``.
        reporter: Hears the progress.
        open_generator: Opens the base model, given None; not called where nothing is missing.
        doing: What is drawn, in words.
        of: The setting of ``finetune`` that asks for them.

    Raises:
        SynthdetError: One picture does not fit into memory.
    """
    missing = [path for path in requests if not path.exists()]
    if not missing:
        return
    generator = open_generator(None)
    with reporter.bar("finetune", len(missing), doing=doing) as advance:
        for path in missing:
            request = requests[path]
            try:
                (drawn,) = generator.generate(
                    [request],
                    width=side,
                    height=side,
                    num_inference_steps=config.generate.num_inference_steps,
                    guidance_scale=config.generate.guidance_scale,
                    guidance_rescale=config.generate.guidance_rescale,
                )
            except MemoryError as error:
                raise SynthdetError(
                    f"out of memory while the base model drew {doing} ({error}): start again with "
                    f"--redo and finetune.{of} at 0, lower prepare.resolution, or use a larger card"
                ) from error
            text = PngInfo()
            text.add_text("prompt", request.prompt)
            text.add_text("seed", str(request.seed))
            with atomic_path(path) as temporary:
                Image.fromarray(drawn).save(temporary, pnginfo=text)
            advance(1)
    del generator
    gc.collect()  # a compiled pipeline refers to itself, and a trainer comes next
