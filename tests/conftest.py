"""Fixtures that every test may ask for: fixed seeds, and poison in the memory that torch leaves uninitialised."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

#: What takes longest in one piece. Where workers share the tests, file by file, these come first: begun last, they
#: would be all that is left to do, on one core.
LONGEST = (
    "test_packaging.py",
    "kernels/test_oldest_triton.py",
    "kernels/test_newest_triton.py",
    "kernels/test_compile.py",
    "csrc/test_native.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist, and the processes that their tests start, share the cores."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on machines without a CUDA device; begin with the longest files in parallel runs."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def seed() -> Iterator[int]:
    """Seed Python, numpy and torch with 0 for one test; the state before it comes back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield 0
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(autouse=True)
def no_plan_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither read nor write what the planner remembers on this machine; those of the cache turn it on."""
    monkeypatch.setenv("LTH_SPARSE_CACHE", "0")


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with NaN (floats), the largest value (integers) or True: whatever is not overwritten then shows up."""
    if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        return tensor
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        if tensor.dtype is torch.bool:
            return tensor.fill_(True)
        return tensor.fill_(torch.iinfo(tensor.dtype).max)


@pytest.fixture
def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.empty, empty_like, empty_strided, Tensor.new_empty and new_empty_strided return poisoned memory.

    A kernel that is handed an output to fill must write every element of it, rows without weights included. With this
    fixture, an element that it forgets is NaN (or a huge integer) and fails the comparison.
    """

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            return poison(make(*args, **kwargs))

        return made

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))
