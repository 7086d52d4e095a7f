"""The tests that need a GPU, the suite and its plots, within a number of minutes: what ``make gpu`` runs.

    python -m lth_sparse.benchmarks.gpu.session --out FOLDER [--minutes 9] [-- arguments of pytest]

Tests come first and get at most ``--test-minutes``; the suite gets what they leave. Failing tests, or tests cut short,
cost no measurement. All that is printed is kept in FOLDER as tests.log and suite.log. Exit code 0 when both went well.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main", "run"]

MINUTES, TEST_MINUTES = 9.0, 4.0
#: What the suite may need after its time: the case under way, plots, the end.
RESERVE = 0.75
CUT_SHORT = 124

PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider")
SUITE = (sys.executable, "-m", __package__)


def run(
    out: Path,
    minutes: float = MINUTES,
    test_minutes: float = TEST_MINUTES,
    pytest: Sequence[str] = PYTEST,
    suite: Sequence[str] = SUITE,
) -> int:
    """Both, one after the other, whatever the first one gave; 0 when both gave 0."""
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    tested = logged(pytest, out / "tests.log", 60 * test_minutes)
    left = minutes - (time.monotonic() - begin) / 60
    measured = logged(
        [*suite, "--out", str(out), "--minutes", f"{max(left - RESERVE, 0.1):.2f}"], out / "suite.log", 60 * left
    )
    for name, code in (("tests", tested), ("suite", measured)):
        outcome = "passed" if code == 0 else "were cut short" if code == CUT_SHORT else f"failed (exit code {code})"
        print(f"{name}: {outcome}; {out / name}.log")
    return 0 if tested == measured == 0 else 1


def logged(command: Sequence[str], log: Path, seconds: float) -> int:
    """Run a command, its output to a file and here; its exit code, or 124 when it was stopped after so long."""
    end = time.monotonic() + seconds
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        # A session of its own: what it started is stopped with it.
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        with log.open("rb") as shown:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
                _echo(shown.read())
            stopped = process.poll() is None
            if stopped:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            _echo(shown.read())
    return CUT_SHORT if stopped else code


def _echo(text: bytes) -> None:
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu.session", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs, gpu.csv and plots")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all of it; default {MINUTES:g}")
    parser.add_argument("--test-minutes", type=float, default=TEST_MINUTES, help=f"default {TEST_MINUTES:g}")
    parser.add_argument("pytest", nargs="*", help="more arguments of pytest, after --")
    options = parser.parse_args(arguments)
    return run(options.out, options.minutes, options.test_minutes, (*PYTEST, *options.pytest))


if __name__ == "__main__":
    sys.exit(main())
