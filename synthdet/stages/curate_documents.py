"""A run's documents for FiftyOne, made by a process of its own while the database takes others.

To read the records and make documents of them takes Python as long as handing them to the database does,
and neither needs the other. The process is this module, run by itself: FiftyOne is not imported there. It
ends when nobody reads its output, so it never outlives the process that started it.

Reads (stdin): one BSON document, ``{image id: further tags}``.
Writes (stdout): BSON documents: a `Summary`; the samples, real tiles first; and last ``{"end": ""}``, or
``{"end": line}`` with the reason why there are no more.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Final, Self

from synthdet.core.formats.fiftyone import make_samples
from synthdet.errors import SynthdetError
from synthdet.stages.curate_run import read_run
from synthdet.workspace import Workspace, paused_collector

_BUFFER: Final = 1 << 20


@dataclass(frozen=True)
class Summary:
    """What the documents are of.

    Attributes:
        class_names: By class id.
        number: Of documents.
        words: Counts in words.
    """

    class_names: list[str]
    number: int
    words: str


class Documents(Iterator[dict[str, Any]]):
    """A run's documents, one after the other.

    Attributes:
        summary: What they are of.

    Raises:
        SynthdetError: The run cannot be read, or the process that makes them died.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        from bson import InvalidBSON, decode_file_iter

        self._cut_off = InvalidBSON
        self._given: Iterator[dict[str, Any]] = decode_file_iter(stream)
        self.summary = Summary(**self._take())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        document = self._take()
        if "end" in document:
            self._given = repeat(document)  # whoever asks again hears the same
            raise StopIteration
        return document

    def _take(self) -> dict[str, Any]:
        died = {"end": "the process that reads the run has died"}
        try:
            document = next(self._given, died)
        except self._cut_off:  # in the middle of one
            document = died
        if document.get("end"):
            raise SynthdetError(document["end"])
        return document


@contextmanager
def open_documents(root: Path, own_tags: Mapping[str, Sequence[str]]) -> Iterator[Documents]:
    """Start making a run's documents.

    Args:
        root: The run.
        own_tags: Image id -> further tags, which a person invented.

    Raises:
        SynthdetError: As `Documents`.
    """
    from bson import encode

    with subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", "synthdet.stages.curate_documents", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=_BUFFER,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a child without pipes")
        try:
            with suppress(BrokenPipeError):  # dead already: its output says so
                process.stdin.write(encode(own_tags))
                process.stdin.close()
            yield Documents(process.stdout)
        finally:
            process.kill()


def _serve(root: Path) -> None:
    from bson import decode, encode

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    own_tags = decode(sys.stdin.buffer.read())
    # Where the parent was killed, nobody is there to be told of it.
    with suppress(BrokenPipeError), open(1, "wb", buffering=_BUFFER, closefd=False) as out:
        end = ""
        try:
            for document in _make(Workspace(root), own_tags):
                out.write(encode(document))
        except SynthdetError as error:
            end = str(error)
        out.write(encode({"end": end}))


def _make(workspace: Workspace, own_tags: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    from bson import ObjectId

    with paused_collector():
        shown = read_run(workspace)
        number = len(shown.tiles) + len(shown.images)
        yield asdict(Summary(list(shown.class_names), number, shown.describe()))
        yield from make_samples(shown, own_tags, ObjectId)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
