"""The pictures of ``3-generate``: what is there, what is added, and in the end all in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from synthdet.core.records import Rejected, SyntheticImage
from synthdet.errors import SynthdetError
from synthdet.models.protocols import Picture
from synthdet.progress import Reporter
from synthdet.stages.generate_files import Fields, write_picture
from synthdet.workspace import StageFolder, append_records, read_records, write_records


def picture_path(folder: Path, image_id: str) -> Path:
    """Where a picture of the stage's folder lies."""
    return folder / "images" / f"{image_id}.png"


_IN_TEXT = (
    "prompt", "negative_prompt", "seed", "scheduler", "num_inference_steps", "guidance_scale",
    "guidance_end", "guidance_rescale", "lora_scale", "batch_shape", "mode", "source_tile", "source_image", "source_view", "strength", "placed",
)  # fmt: skip


@dataclass
class Made:
    """All of them, by their ids."""

    folder: StageFolder
    reporter: Reporter
    records: dict[str, SyntheticImage] = field(init=False)
    rejected: dict[str, Rejected] = field(init=False)

    def __post_init__(self) -> None:
        self.records_path = self.folder.path / "images.jsonl"
        self.rejected_path = self.folder.path / "rejected.jsonl"
        self.records = {
            record.image_id: record for record in read_records(self.records_path, SyntheticImage)
        }
        self.rejected = {
            record.path: record for record in read_records(self.rejected_path, Rejected)
        }

    def path(self, image_id: str) -> Path:
        """File of a picture, there or not."""
        return picture_path(self.folder.path, image_id)

    def has(self, image_id: str) -> bool:
        """Whether a picture was made and recorded, and its file is still there."""
        return image_id in self.records and self.path(image_id).exists()

    def is_whole(self, num_pictures: int) -> bool:
        """Whether so many pictures are recorded, and all their files are there."""
        return (
            self.records_path.exists()
            and len(self.records) == num_pictures
            and all(self.path(image_id).exists() for image_id in self.records)
        )

    def write(self, picture: Picture, fields: Fields) -> SyntheticImage:
        """Write a picture; its record still has to be added. Safe in several threads.

        Raises:
            SynthdetError: The disk is full.
        """
        path = self.path(fields["image_id"])
        root = self.folder.workspace.root
        return write_picture(path, picture, fields, in_text=_IN_TEXT, root=root)

    def add(self, records: Sequence[SyntheticImage]) -> None:
        """Append the records of pictures that are in place.

        Raises:
            SynthdetError: The disk is full.
        """
        append_records(self.records_path, records)
        self.records |= {record.image_id: record for record in records}

    def close(self, wanted: Sequence[str], size_wh: tuple[int, int]) -> list[SyntheticImage]:
        """Check every promised file, and put the records in plan order, each once.

        Raises:
            SynthdetError: A picture is unreadable or of another size.
        """
        records = [self.records[image_id] for image_id in wanted if image_id in self.records]
        for record in records:
            path = self.path(record.image_id)
            try:
                with Image.open(path) as image:  # reads no pixel
                    size = image.size
            except OSError as error:
                raise SynthdetError(f"{path} cannot be read: delete it and run again") from error
            if size != size_wh:
                raise SynthdetError(
                    f"{path} is {size[0]} x {size[1]}, not {size_wh[0]} x {size_wh[1]}: "
                    "delete it and run again"
                )
        self._say_what_came_out_blank(records)
        write_records(self.records_path, records)
        write_records(self.rejected_path, self.rejected.values())
        return records

    def _say_what_came_out_blank(self, records: Sequence[SyntheticImage]) -> None:
        again = [record.image_id for record in records if record.vae is not None]
        if again:
            self.reporter.note(
                "generate",
                f"{len(again)} pictures came out blank and were made again with the VAE in float32, "
                f"such as {again[0]}",
            )
        blank = [record.image_id for record in records if record.fault is not None]
        if blank:
            self.reporter.note(
                "generate", f"{len(blank)} pictures are of one colour, such as {blank[0]}"
            )
