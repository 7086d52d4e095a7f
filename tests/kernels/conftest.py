"""Two cores for the cases: the processes that the tests of this session will wait for run beside each other.

Where pytest-xdist has given each core a worker, a worker waits for one process at a time.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process that `kernel_cases.run_cases` gave a share of the cases: the first of each test, and one in so many.

    Drawn, always the same ones: every third of a grid would miss two values out of three of an axis with three.
    """
    share = int(os.environ.get("LTH_SPARSE_TEST_SHARE", "1"))
    if share == 1:
        return
    seen: Counter[str] = Counter()
    chosen, left = [], []
    for item in items:
        name = item.nodeid.split("[")[0]
        first = not seen[name]
        seen[name] += 1
        (chosen if first or random.Random(item.nodeid).randrange(share) == 0 else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = chosen


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which files of cases are going to be run, and by which Triton."""
    if importlib.util.find_spec("triton") is None or hasattr(session.config, "workerinput"):
        return
    from kernel_cases import BY_NEWEST, NEWEST, OLDEST, OLDEST_SHARE, WANTED

    chosen = [item for item in session.items if item.path.parent == HERE and isinstance(item, pytest.Function)]
    interpreted = [item for item in chosen if item.originalname == "test_every_case_interpreted"]
    for item in interpreted:
        if item.path.stem != "test_oldest_triton":
            WANTED.append((item.module.CASES, True, NEWEST if BY_NEWEST else None, 1))
        elif OLDEST.is_dir():
            WANTED.append((item.callspec.params["cases"], True, OLDEST, OLDEST_SHARE))
    for name, folder in (("test_oldest_triton", OLDEST), ("test_newest_triton", NEWEST)):
        if folder.is_dir() and any(item.path.stem == name for item in chosen):
            WANTED.append((HERE / "test_compile.py", False, folder, 1))
