"""Two cores for the cases: the processes that the tests of this session will wait for run beside each other.

Where pytest-xdist has given each core a worker, a worker waits for one process at a time.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which files of cases are going to be run, and by which Triton."""
    if importlib.util.find_spec("triton") is None or hasattr(session.config, "workerinput"):
        return
    from kernel_cases import NEWEST, OLDEST, WANTED

    chosen = [item for item in session.items if item.path.parent == HERE and isinstance(item, pytest.Function)]
    interpreted = [item for item in chosen if item.originalname == "test_every_case_interpreted"]
    for item in interpreted:
        if item.path.stem != "test_oldest_triton":
            WANTED.append((item.module.CASES, True, None))
        elif OLDEST.is_dir():
            WANTED.append((item.callspec.params["cases"], True, OLDEST))
    for name, folder in (("test_oldest_triton", OLDEST), ("test_newest_triton", NEWEST)):
        if folder.is_dir() and any(item.path.stem == name for item in chosen):
            WANTED.append((HERE / "test_compile.py", False, folder))
