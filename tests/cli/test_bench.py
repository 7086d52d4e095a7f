"""`lth-sparse bench`: a tiny run of both kinds, what it writes, and the mistakes it names."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lth_sparse.benchmarks import end_to_end
from lth_sparse.benchmarks.gpu import __main__ as gpu
from lth_sparse.benchmarks.measure import COLUMNS, read_csv
from lth_sparse.cli.measuring import Options, Progress
from lth_sparse.cli.measuring import run as measure

Run = Callable[..., Any]
TINY = ("bench", "--cases", "lenet-fc2", "--quick", "--densities", "0.1", "--seconds", "0.001", "--layouts", "csr")
NETWORK = ("bench", "--end-to-end", "--networks", "lenet", "--quick", "--levels", "1", "--iterations", "1")


def test_a_tiny_run_prints_a_table_and_writes_rows_and_plots(run: Run, tmp_path: Path) -> None:
    csv, plots = tmp_path / "out" / "rows.csv", tmp_path / "plots"
    outcome = run(*TINY, "--csv", csv, "--plots", plots)
    assert outcome.code == 0, outcome.err
    assert "GFLOP/s multiply-add on registers" in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("lenet-fc2  csr")]
    assert line.split()[:4] == ["lenet-fc2", "csr", "1", "0.1"]
    rows = read_csv(csv)
    assert tuple(rows[0]) == COLUMNS
    assert {(row["candidate"], row["mode"]) for row in rows} == {
        (candidate, mode) for candidate in ("dense", "lth_sparse csr") for mode in ("forward", "step")
    }
    assert sorted(path.name for path in plots.iterdir()) == ["roofline.svg", "speedup.svg"]


def test_peers_join_when_they_are_named(run: Run) -> None:
    outcome = run(*TINY, "--peers", "torch CSR,scipy CSR", "--modes", "forward")
    assert outcome.code == 0, outcome.err
    assert "Dense time over" in outcome.out
    assert "scipy CSR" in outcome.out


def test_a_tiny_network_prints_its_tables_and_writes_rows_and_plots(run: Run, tmp_path: Path) -> None:
    csv, plots = tmp_path / "rows.csv", tmp_path / "plots"
    outcome = run(*NETWORK, "--csv", csv, "--plots", plots)
    assert outcome.code == 0, outcome.err
    assert "Training steps" in outcome.out
    assert "Search, lenet, 1 iterations a level" in outcome.out
    assert tuple(read_csv(csv)[0]) == end_to_end.COLUMNS
    assert sorted(path.name for path in plots.iterdir()) == ["search.svg", "steps.svg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "nope"], "cases: expected names or globs"),
        (["--densities", "2"], "densities: expected numbers above 0"),
        (["--densities", "many"], "--densities: expected numbers with commas"),
        (["--threads", "0"], "threads: expected numbers from 1"),
        (["--threads", "1.5"], "--threads: expected whole numbers"),
        (["--layouts", "csc"], "layouts: expected some of csr"),
        (["--modes", "back"], "modes: expected some of forward"),
        (["--peers", "mkl"], "peers: expected some of"),
        (["--seconds", "0"], "seconds: expected a positive number"),
        (["--networks", "lenet"], "--networks: expected --end-to-end beside it"),
        (["--levels", "3"], "--levels: expected --end-to-end beside it"),
        (["--end-to-end", "--networks", "alexnet"], "networks: expected some of lenet"),
        (["--end-to-end", "--parts", "all"], "parts: expected some of step, search, chain"),
        (["--end-to-end", "--cases", "lenet-fc1"], "--cases: expected no --end-to-end beside it"),
        (["--end-to-end", "--levels", "0"], "--levels"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(run: Run, words: list[str], said: str) -> None:
    outcome = run("bench", *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("lth-sparse: error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err


def test_a_csv_of_something_else_is_refused_before_anything_is_measured(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    outcome = run(*TINY, "--csv", path)
    assert (outcome.code, outcome.out) == (1, "")
    assert "csv: expected a new file" in outcome.err
    assert path.read_text() == "a,b\n1,2\n"


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    screen, now = io.StringIO(), [0.0]
    console = Console(file=screen, force_terminal=True, width=100)
    with Progress(console, [1.0, 3.0], clock=lambda: now[0]) as progress:
        progress.start("first")
        assert progress.left() is None
        now[0] = 10.0
        progress.done()
        assert progress.left() == 30.0
        progress.start("second")
    assert "second" in screen.getvalue()
    assert "about 30 s left" in screen.getvalue()


def test_a_log_gets_a_line_for_each_piece() -> None:
    screen = io.StringIO()
    options = Options("lenet-fc2", "0.1", layouts="csr", peers="none", seconds=0.001)
    assert measure(options, Console(file=screen, width=200)) == 0
    assert "[1/2] lenet-fc2, forward, 1 thread(s)" in screen.getvalue()
    assert "[2/2] lenet-fc2, step, 1 thread(s), about" in screen.getvalue()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "device: expected an NVIDIA GPU for 'cuda', but torch finds none (lth-sparse doctor)"),
        (["--device", "tpu"], "--device: expected cpu or cuda, got tpu"),
        (["--device", "cuda", "--quick"], "--quick: expected no --device cuda beside it"),
        (["--device", "cuda", "--goals", "G99"], "goals: expected some of G1, G2"),
        (["--device", "cuda", "--cases", "nope"], "cases: expected names or globs of GPU cases"),
        (["--minutes", "2"], "--minutes: expected --device cuda beside it, got none"),
    ],
)
def test_mistakes_about_gpus_are_one_line(
    words: list[str], said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = run("bench", *words)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err


def test_the_suite_for_gpus_gets_its_options(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def suite(cases: list, csv: Path, plots: Path, minutes: float, say: Callable[[str], None]) -> int:
        seen.extend([[case.goal for case in cases], csv, plots, minutes])
        say("measured")
        return 1

    monkeypatch.setattr(gpu, "run", suite)
    words = ("--goals", "G4", "--minutes", "2", "--csv", tmp_path / "rows.csv", "--plots", tmp_path)
    outcome = run("bench", "--device", "cuda", *words)
    assert (outcome.code, outcome.out) == (1, "measured\n")
    assert seen == [["G4"], tmp_path / "rows.csv", tmp_path, 2.0]
