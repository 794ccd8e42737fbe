"""Pictures and their records on disk, written while the next batch is drawn."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from synthdet.core.records import SyntheticImage
from synthdet.models.protocols import Picture
from synthdet.workspace import write_bytes

Fields = Mapping[str, Any]
"""Of a picture's record, but for those that its file tells."""
_MAX_WRITERS = 4
_AFTER_HEADER = 8 + 25
"""Bytes of a PNG before its second chunk: the signature, and IHDR, which is always as long."""


def write_picture(
    path: Path, picture: Picture, fields: Fields, *, in_text: Sequence[str], root: Path
) -> SyntheticImage:
    """Write a picture as PNG, whole or not at all.

    Safe in several threads at once: OpenCV lets go of the interpreter's lock.

    Args:
        path: Of the file.
        picture: ``uint8`` ``(height, width, 3)``, RGB.
        fields: Of its record.
        in_text: Names of those fields that the PNG carries as text, where they are there.
        root: The run folder; the record's path is relative to it.

    Returns:
        The record.

    Raises:
        SynthdetError: The disk is full or the folder cannot be written.
    """
    texts = {name: _as_text(fields[name]) for name in in_text if fields.get(name) is not None}
    content = encode_png(picture, texts)
    write_bytes(path, content)
    height, width, _ = picture.shape
    return SyntheticImage(
        path=path.relative_to(root).as_posix(),
        sha256=hashlib.sha256(content).hexdigest(),
        width=width,
        height=height,
        **fields,
    )


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(one.to_line() for one in value)}]"
    return str(value)


def encode_png(picture: Picture, texts: Mapping[str, str]) -> bytes:
    """A PNG with texts, by OpenCV: the size of Pillow's at its default, in a tenth of the time.

    Args:
        picture: ``uint8`` ``(height, width, 3)``, RGB.
        texts: Keyword (Latin letters) -> text, any Unicode.
    """
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"OpenCV wrote no PNG of {picture.dtype} {picture.shape}")
    content = encoded.tobytes()
    chunks = b"".join(_text_chunk(keyword, text) for keyword, text in texts.items())
    return content[:_AFTER_HEADER] + chunks + content[_AFTER_HEADER:]


def _text_chunk(keyword: str, text: str) -> bytes:
    """Source: PNG specification, third edition, 11.3.3: tEXt is Latin-1, iTXt is UTF-8."""
    try:
        kind, body = b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        kind = b"iTXt"
        body = keyword.encode("latin-1") + b"\0" + b"\0\0" + b"\0\0" + text.encode("utf-8")
    checksum = zlib.crc32(kind + body).to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + kind + body + checksum


class Saver:
    """Saves batches in threads of its own, in order, while the caller draws the next one.

    A batch's records are appended when all its files are in place, and never before those of the
    batch before it. At most one batch waits to be saved, so memory does not grow with their number.

    Args:
        write: Writes one picture and makes its record; called in several threads at once.
        append: Appends the records of a batch; called in one thread, batch after batch.
        workers: Threads that write pictures; 0 for one a core, four at most.

    Attributes:
        stalled: Seconds for which the caller has waited.
    """

    def __init__(
        self,
        write: Callable[[Picture, Fields], SyntheticImage],
        append: Callable[[Sequence[SyntheticImage]], None],
        *,
        workers: int,
    ) -> None:
        self._write = write
        self._append = append
        number = workers or min(_MAX_WRITERS, os.cpu_count() or 1)
        self._writers = ThreadPoolExecutor(number, thread_name_prefix="write-png")
        self._appender = ThreadPoolExecutor(1, thread_name_prefix="append-records")
        self._waiting: deque[Future[None]] = deque()
        self.stalled = 0.0

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # What was drawn is saved, even where drawing the next batch has failed.
        try:
            self.wait()
        except Exception:
            if error is None:
                raise
        finally:
            self._writers.shutdown()
            self._appender.shutdown()

    def save(self, batch: Sequence[tuple[Picture, Fields]]) -> None:
        """Hand over a batch; returns as soon as the one before it is saved.

        Raises:
            SynthdetError: That one could not be saved: the disk is full.
        """
        files = [self._writers.submit(self._write, picture, fields) for picture, fields in batch]
        self._waiting.append(self._appender.submit(self._finish, files))
        while len(self._waiting) > 1:
            self._settle()

    def wait(self) -> None:
        """Return when all that was handed over is saved.

        Raises:
            SynthdetError: Something could not be saved: the disk is full.
        """
        while self._waiting:
            self._settle()

    def _finish(self, files: Sequence[Future[SyntheticImage]]) -> None:
        self._append([file.result() for file in files])

    def _settle(self) -> None:
        begun = time.perf_counter()
        try:
            self._waiting.popleft().result()
        finally:
            self.stalled += time.perf_counter() - begun
