"""Further processes that make small files and hard links, while the first one goes on thinking.

Making three names a picture costs the file system about as long as everything else costs Python, and
neither needs the other. The process is this module, run by itself: nothing but the standard library is
loaded. It ends when its input ends, so it never outlives the process that started it.

Reads (stdin): pickled lists of jobs, ``(path, content)`` for a new file or ``(path, path of ours)`` for a
link to it. Writes (stdout): for each list a line, empty or ``errno path``.
"""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

Job = tuple[str, str | bytes]
"""The new path; and its content, or the path of ours that it is to be another name of."""

_BATCH: Final = 2_000
_AHEAD: Final = 2
"""Batches on their way: the pipe never grows, and the other process never waits."""


class FileMaker:
    """Makes files and links, each kind in a process of its own once there are many.

    The two kinds share no folder, in which they would have to wait for each other, and no order: what
    is linked to has to be there already.

    Raises:
        OSError: One of the files so far could not be made; with its path.
    """

    def __init__(self) -> None:
        self._contents, self._links = _Lane(), _Lane()

    def write(self, path: str, content: bytes) -> None:
        """Make a new file."""
        self._contents.add((path, content))

    def link(self, source: str, path: str) -> None:
        """Give a file of ours, which is there, another name; where that is not possible, copy it."""
        self._links.add((path, source))

    def flush(self) -> None:
        """Come back when every file is made."""
        self._contents.flush()
        self._links.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._contents.end()
            self._links.end()


class _Lane:
    """Jobs of one kind, in order, and the process that does them."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._on_the_way = 0

    def add(self, job: Job) -> None:
        self._jobs.append(job)
        if len(self._jobs) == _BATCH:
            self._send()

    def flush(self) -> None:
        if self._process is None:
            jobs, self._jobs = self._jobs, []
            for job in jobs:
                _make(job)
            return
        if self._jobs:
            self._send()
        while self._on_the_way:
            self._wait()

    def end(self) -> None:
        """End the process; after a flush it has nothing left to do."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _send(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        if self._on_the_way == _AHEAD:
            self._wait()
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError("a child without pipes")
        try:
            pickle.dump(self._jobs, stdin, protocol=pickle.HIGHEST_PROTOCOL)
            stdin.flush()
        except BrokenPipeError as error:
            raise OSError(errno.EPIPE, "the process that writes files has died") from error
        self._on_the_way += 1
        self._jobs = []

    def _wait(self) -> None:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("nothing was sent")
        answer = self._process.stdout.readline()
        self._on_the_way -= 1
        if not answer.endswith(b"\n"):
            raise OSError(errno.EPIPE, "the process that writes files has died")
        number, _space, path = answer.decode().rstrip("\n").partition(" ")
        if number:
            raise OSError(int(number), os.strerror(int(number)), path)


def _make(job: Job) -> None:
    path, what = job
    if isinstance(what, str):
        try:
            os.link(what, path)
            return
        except FileExistsError:
            raise
        except OSError:  # as many links as the file system allows, or none at all
            what = Path(what).read_bytes()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if os.write(descriptor, what) < len(what):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(descriptor)


def _serve() -> None:
    while True:
        try:
            jobs = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
        except EOFError:
            return
        answer = ""
        for job in jobs:
            try:
                _make(job)
            except OSError as error:
                answer = f"{error.errno} {job[0]}"
                break
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
