"""A run's documents for FiftyOne, made by a process of its own while the database takes others.

To read the records and make documents of them takes Python as long as handing them to the database does,
and neither needs the other. The process is this module, run by itself: FiftyOne is not imported there. It
ends when nobody reads its output, so it never outlives the process that started it.

Reads (stdin): one BSON document, ``{image id: further tags}``; no record before it.
Writes (stdout): BSON documents: the samples, real tiles first, as their records are read, with their boxes
packed (`_PACKED`); and last ``{"end": ""}`` with a `Summary`, or ``{"end": line}`` with the reason why there
are no more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO, Any, Final, Self

from synthdet.core.formats.fiftyone import Forms, make_samples
from synthdet.errors import SynthdetError
from synthdet.stages.curate_boxes import BoxEncoder
from synthdet.stages.curate_run import read_run
from synthdet.workspace import Workspace, paused_collector

_BUFFER: Final = 1 << 20
_PACKED: Final = ("ground_truth", "predictions", "accepted")
"""Fields that travel as BSON within BSON: nobody looks into them on the way to the database, so they are
neither taken apart nor put together again."""
_BUFFERS_AHEAD: Final = 32
"""Written before anybody reads them: the database is given some thousand documents at once, and meanwhile
more are made."""


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

    Args:
        order: Where the process waits for the further tags.
        stream: Of what it makes.

    Raises:
        SynthdetError: The run cannot be read, or the process that makes them died.
    """

    def __init__(self, order: IO[bytes], stream: IO[bytes]) -> None:
        from bson import InvalidBSON, decode_file_iter
        from bson.raw_bson import RawBSONDocument

        self._order, self._cut_off, self._unpack = order, InvalidBSON, RawBSONDocument
        self._given: Iterator[dict[str, Any]] = decode_file_iter(stream)

    def begin(self, own_tags: Mapping[str, Sequence[str]]) -> None:
        """Let the run be read from now on.

        Args:
            own_tags: Image id -> further tags, which a person invented.
        """
        from bson import encode

        with suppress(BrokenPipeError):  # dead already: its output says so
            self._order.write(encode(own_tags))
            self._order.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        document = self._take()
        if "end" in document:
            self._given = repeat(document)  # whoever asks again hears the same
            raise StopIteration
        for name in _PACKED:
            if name in document:
                document[name] = self._unpack(document[name])
        return document

    @property
    def summary(self) -> Summary:
        """What they are of. Those that were not taken are passed over."""
        for _ in self:
            pass
        return Summary(**self._take()["summary"])

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
def open_documents(root: Path) -> Iterator[Documents]:
    """Start the process that makes a run's documents.

    Args:
        root: The run.

    Raises:
        SynthdetError: As `Documents`.
    """
    with subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", "synthdet.stages.curate_documents", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=_BUFFER,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a child without pipes")
        try:
            yield Documents(process.stdin, process.stdout)
        finally:
            process.kill()


def _serve(root: Path) -> None:
    from bson import decode

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    own_tags = decode(sys.stdin.buffer.read())
    blocks: Queue[bytes] = Queue(_BUFFERS_AHEAD)
    writer = Thread(target=_write, args=(blocks,), daemon=True)
    writer.start()
    for block in _in_blocks(_encode(_make(Workspace(root), own_tags))):
        blocks.put(block)
    blocks.put(b"")
    writer.join()


def _write(blocks: Queue[bytes]) -> None:
    """To stdout, until an empty one comes."""
    with open(1, "wb", buffering=0, closefd=False) as out:
        while block := blocks.get():
            rest = memoryview(block)
            while rest:
                try:
                    rest = rest[out.write(rest) :]
                except OSError:  # the parent was killed: nobody is there to be told of it
                    os._exit(0)


def _in_blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Joined to blocks that are worth a thread's waking up."""
    block = bytearray()
    for piece in pieces:
        block += piece
        if len(block) >= _BUFFER:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def _encode(documents: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """As BSON; where the run cannot be read the reason comes last."""
    from bson import encode

    try:
        yield from map(encode, documents)
    except SynthdetError as error:
        yield encode({"end": str(error)})


def _make(workspace: Workspace, own_tags: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    from bson import ObjectId

    with paused_collector():
        shown, number, review = read_run(workspace, once=True), 0, 0
        forms = Forms(ObjectId, BoxEncoder(shown.class_names))
        for document in make_samples(shown, own_tags, forms):
            number += 1
            review += document.get("status") == "review"
            yield document
        summary = Summary(list(shown.class_names), number, shown.describe_with(review))
        yield {"end": "", "summary": asdict(summary)}


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
