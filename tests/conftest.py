"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Networks this small are fastest on one thread, and two that spin while they wait for each other
# stand still on a busy machine. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """FiftyOne's database of the tests, apart from a person's: set before its first import.

    The folder is pytest's to remove, some sessions later: the server runs until this process ends.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIFTYONE_DATABASE_DIR", str(tmp_path_factory.mktemp("mongodb")))
        patch.delenv("FIFTYONE_DATABASE_URI", raising=False)
        yield
