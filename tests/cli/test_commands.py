"""Help, version, and how command lines end that are wrong before anything is computed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from lth_sparse import __version__
from lth_sparse.cli import main
from lth_sparse.errors import RunError

Run = Callable[..., Any]


@pytest.mark.parametrize("words", [[], ["find"], ["convert"], ["plan"], ["doctor"], ["bench"]])
def test_help_succeeds(run: Run, words: list[str]) -> None:
    outcome = run(*words, "--help")
    assert outcome.code == 0
    assert "Usage: lth-sparse" in outcome.out
    assert outcome.err == ""


def test_help_names_every_option_of_find(run: Run) -> None:
    text = run("find", "--help").out
    for option in (
        "dataset",
        "data",
        "quick",
        "levels",
        "seeds",
        "iterations",
        "rewind",
        "scope",
        "rate",
        "no-controls",
    ):
        assert f"--{option}" in text
    for option in ("output", "layout", "threads"):
        assert f"--{option}" in text


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"lth-sparse {__version__}\n", "")


def test_module_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "lth_sparse.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"lth-sparse {__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing command"),
        (["fnd"], "fnd"),
        (["find", "--nope"], "--nope"),
        (["find", "--levels", "many"], "--levels"),
        (["find", "--levels", "0"], "--levels"),
        (["find", "--seeds", "0"], "--seeds"),
        (["find", "--iterations", "-1"], "--iterations"),
        (["find", "--threads", "0"], "--threads"),
        (["find", "lenet", "conv2"], "conv2"),
        (["convert"], "ticket"),
        (["convert", "a.safetensors"], "--output"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_1(run: Run, words: list[str], said: str) -> None:
    outcome = run(*words)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("lth-sparse: error: ")
    assert outcome.err.count("\n") == 1
    assert said.lower() in outcome.err.lower()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("first\nsecond"), "lth-sparse: error: first second\n"),
        (
            OSError(28, "No space left on device", "/x/y"),
            "lth-sparse: error: cannot use /x/y: No space left on device\n",
        ),
    ],
)
def test_errors_of_the_work_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setattr("lth_sparse.cli.doctor.run", fail)
    assert run("doctor") == (1, "", line)


def test_a_bug_is_not_dressed_up_as_the_users_mistake(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("lth_sparse.cli.doctor.run", fail)
    with pytest.raises(ZeroDivisionError):
        run("doctor")


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> int:
        warnings.simplefilter("always")
        warnings.warn("something\nodd", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("lth_sparse.cli.doctor.run", warn)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "lth-sparse: warning: something odd\n"
