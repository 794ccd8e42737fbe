"""The embedded default: a rendered sea, and SDXL, CLIP and YOLO in pocket size.

Nothing heavy is imported here; torch only in the `build*` modules.
"""

from importlib import resources
from pathlib import Path

from synthdet.errors import SynthdetError

PRODUCTS = ("sdxl", "clip", "yolo")


def weights_dir() -> Path:
    """Folder with the shipped weights: `sdxl/`, `clip/` and `yolo/`.

    Raises:
        SynthdetError: A part is missing; says which, and how to build it.
    """
    folder = Path(str(resources.files(__name__))) / "weights"
    for product in PRODUCTS:
        if not (folder / product).is_dir():
            raise SynthdetError(
                f"{folder / product} is missing: install synthdet with its package data, "
                "or build it with `python -m synthdet.pocket.build`"
            )
    return folder
