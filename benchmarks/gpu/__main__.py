"""``python -m lth_sparse.benchmarks.gpu --out FOLDER``: the suite on the NVIDIA GPU of this machine.

Exit code 0 when all that ran ran right, 1 when something failed or was wrong (the rest is measured all the same), or
when there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lth_sparse.errors import ArgumentError, BackendError, LTHSparseError

from ..measure import check_csv
from .cases import GOALS, Case, select
from .measuring import COLUMNS
from .plots import draw
from .suite import Suite
from .table import trouble
from .verdict import verdict

__all__ = ["MINUTES", "listing", "main", "run"]

MINUTES = 5.0


def run(
    cases: Sequence[Case],
    csv: Path | None,
    plots: Path | None,
    minutes: float = MINUTES,
    say: Callable[[str], None] = print,
    suite: Suite | None = None,
) -> int:
    """Measure, print, write, draw; 0, or 1 when something failed.

    Raises:
        BackendError: torch finds no GPU. ArgumentError: the CSV has other columns.
    """
    if suite is None:
        require_gpu()
        suite = Suite(cases, csv, minutes, say=say)
    if csv is not None:
        check_csv(csv, COLUMNS)
    suite.run()
    if suite.left:
        say(f"time is up: {len(suite.left)} of {len(suite.cases)} cases were not measured; --minutes gives more")
    for line in verdict(suite.rows):
        say(line)
    bad = [row for row in suite.rows if not str(row["status"]).startswith(("ok", "skipped"))]
    for line in (*suite.problems, *trouble(bad)):
        say(f"PROBLEM {line}")
    if plots is not None and suite.rows:
        for path in draw(suite.rows, plots):
            say(f"plot: {path}")
    return 1 if suite.failed else 0


def require_gpu() -> None:
    """Raise BackendError, one line, where torch finds no CUDA device."""
    if not torch.cuda.is_available():
        raise BackendError("device: expected an NVIDIA GPU for 'cuda', but torch finds none (lth-sparse doctor)")


def listing(cases: Sequence[Case]) -> list[str]:
    """The goals and the cases, in their order."""
    wide = max(len(case.name) for case in cases) if cases else 0
    shown = [f"{goal:<4} {words}" for goal, words in GOALS.items() if any(case.goal == goal for case in cases)]
    return shown + [f"{case.name:<{wide}}  {' '.join(case.modes)}" for case in cases]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for gpu.csv, which is appended to, and the plots")
    parser.add_argument("--goals", default="", help="such as G1,G3; default: all")
    parser.add_argument("--cases", default="", help="names or globs, with commas; default: all")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"begin no case after this; default {MINUTES:g}")
    parser.add_argument("--list", action="store_true", help="print the cases and measure nothing")
    options = parser.parse_args(arguments)
    try:
        cases = select(*([word for word in text.split(",") if word] for text in (options.goals, options.cases)))
        if options.list:
            print("\n".join(listing(cases)))
            return 0
        if options.out is None:
            raise ArgumentError("--out: expected a folder, got none")
        return run(cases, options.out / "gpu.csv", options.out, options.minutes)
    except LTHSparseError as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
