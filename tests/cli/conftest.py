"""Run command lines in this process, and one tiny search that all tests look at."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lth_sparse.cli import main
from lth_sparse.paper import models

# 6 iterations on one thread: the networks learn nothing, but every part of the command runs.
TINY = ("find", "lenet", "--quick", "--iterations", "6", "--levels", "1", "--threads", "1")


class Outcome(NamedTuple):
    """What a command line left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def run_command(*words: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
    finally:
        torch.set_num_threads(threads)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def run() -> Run:
    """run("find", "lenet", ...) -> exit code, stdout, stderr."""
    return run_command


@pytest.fixture
def small_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-19 with six channels in each layer of its quick form: the same names and poolings, far faster."""
    narrow = tuple(out if isinstance(out, str) else 6 for out in models.VGG["vgg19"])
    monkeypatch.setitem(models.VGG, "vgg19-quarter", narrow)


@pytest.fixture
def find_tiny() -> Run:
    """find_tiny("--seeds", 1, ...): `lth-sparse find` with a budget of seconds and the given options."""

    def find(*words: object) -> Outcome:
        return run_command(*TINY, *words)

    return find


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The run directory of a finished search over two seeds, and what it printed."""
    directory = tmp_path_factory.mktemp("find") / "run"
    return directory, run_command(*TINY, "--seeds", 2, "--output", directory)


@pytest.fixture
def ticket(finished: tuple[Path, Outcome]) -> Path:
    """The ticket file of its last level."""
    return finished[0] / "seed_0" / "level_01.safetensors"
