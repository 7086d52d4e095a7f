"""`lth-sparse sweep`: combinations, the pool of processes, failures, Ctrl-C, and going on after SIGKILL."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lth_sparse.cli import pool, sweeping
from lth_sparse.cli.find import Options
from lth_sparse.cli.pool import Task, run_all
from lth_sparse.cli.sweep import grid_of, options_of
from lth_sparse.engine.lock import DirectoryLock
from lth_sparse.errors import ArgumentError, ArgumentTypeError

Run = Callable[..., Any]

#: In place of `find`: counts its calls and those at the same time, and leaves a report that says what it was asked.
STAND_IN = """
import json, os, pathlib, sys, time
words = sys.argv[1:]
where = pathlib.Path(words[words.index("--output") + 1])
rate = float(words[words.index("--rate") + 1])
running = where / "running"
running.write_text("")
with open(where / "calls", "a") as calls:
    calls.write(f"{len(list(where.parent.glob('*/running')))} {os.environ['OMP_NUM_THREADS']}\\n")
time.sleep(0.1)
running.unlink()
if rate == 0.9:
    print("a first line")
    sys.exit("lth-sparse: error: <b>no</b> such luck")
if rate == 0.8:
    os._exit(7)
level = {"early_accuracy": {"mean": 0.5 + rate}, "accuracy": {"mean": 0.1}}
report = {
    "verdict": {"kind": "winning", "title": f"A winning ticket at {rate}", "level": 1, "density": 1 - rate},
    "levels": [{"level": 0, **level, "early_accuracy": None}, {"level": 1, **level}],
    "trainings": [{"seconds": 2.5}, {"seconds": None if rate == 0.3 else 1.0}],
}
if rate != 0.7:
    (where / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Children are STAND_INs; the directory of the sweep."""
    monkeypatch.setattr(sweeping, "CHILD", (sys.executable, "-S", "-c", STAND_IN))
    return tmp_path / "sweep"


def found_in(directory: Path) -> Any:
    return json.loads((directory / "sweep.json").read_text(encoding="utf-8"))


def test_a_row_for_each_combination_from_its_own_report(run: Run, stand_in: Path) -> None:
    outcome = run("sweep", "--quick", "--grid", "rate=0.1,0.3", "--grid", "rewind=init,5it", "--output", stand_in)
    assert (outcome.code, outcome.err) == (0, "")
    found = found_in(stand_in)
    names = ["rate=0.1,rewind=init", "rate=0.1,rewind=5it", "rate=0.3,rewind=init", "rate=0.3,rewind=5it"]
    assert [row["name"] for row in found["combinations"]] == names
    assert found["combinations"][1] == {
        "name": "rate=0.1,rewind=5it",
        "options": {"rate": "0.1", "rewind": "5it"},
        "status": "finished",
        "verdict": "winning",
        "title": "A winning ticket at 0.1",
        "level": 1,
        "density": 0.9,
        "dense_accuracy": 0.1,
        "accuracy": 0.6,
        "seconds": 3.5,
        "report": "rate=0.1,rewind=5it/report.html",
        "error": None,
    }
    assert found["combinations"][2]["seconds"] is None
    page = (stand_in / "sweep.html").read_text(encoding="utf-8")
    assert page.count('<a href="rate%3D0.1%2Crewind%3D5it/report.html">winning</a>') == 1
    for words in ("4 finished, 0 failed", "60.00%", "Run it again"):
        assert words in page
    for words in ("[4/4] ", "A winning ticket at 0.3", "80.00%", f"Report: {stand_in / 'sweep.html'}"):
        assert words in outcome.out


def test_finished_combinations_are_not_run_again_unless_more_is_asked(run: Run, stand_in: Path) -> None:
    def calls() -> list[int]:
        names = ("rate=0.1", "rate=0.2")
        return [len((stand_in / name / "calls").read_text().splitlines()) for name in names]

    words = ("sweep", "lenet", "--output", stand_in, "--grid", "rate=0.1,0.2")
    assert run(*words).code == 0
    again = run(*words, "--threads", 2)
    assert again.out.count("finished before") == 2
    assert "0 of 2 combinations to run" in again.out
    assert calls() == [1, 1]
    assert run(*words, "--seeds", 4).code == 0
    assert calls() == [2, 2]
    (stand_in / "rate=0.2" / "report.json").write_text("{")
    assert run(*words, "--seeds", 4).code == 0
    assert calls() == [2, 3]


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.9, "a first line\nlth-sparse: error: <b>no</b> such luck"),
        (0.8, "exit code 7, and it said nothing"),
        (0.7, "report.json: damaged"),
    ],
)
def test_a_combination_that_fails_is_reported_and_the_rest_is_run(
    run: Run, stand_in: Path, rate: float, said: str
) -> None:
    outcome = run("sweep", "--grid", f"rate={rate},0.1", "--jobs", 1, "--output", stand_in)
    assert outcome.code == 1
    assert outcome.err == (f"lth-sparse: error: rate={rate} failed; see {stand_in / f'rate={rate}' / 'log.txt'}\n")
    failed, rest = found_in(stand_in)["combinations"]
    assert (failed["status"], rest["status"]) == ("failed", "finished")
    assert said in failed["error"]
    page = (stand_in / "sweep.html").read_text(encoding="utf-8")
    assert f"Failed: rate={rate}" in page
    assert "<b>no" not in page
    again = run("sweep", "--grid", f"rate={rate},0.1", "--output", stand_in)
    assert "1 of 2 combinations to run" in again.out


@pytest.mark.parametrize(("jobs", "most"), [(1, 1), (2, 2)])
def test_no_more_run_at_a_time_than_jobs_each_with_its_threads(run: Run, stand_in: Path, jobs: int, most: int) -> None:
    words = ("--grid", "rate=0.1,0.2,0.4,0.5", "--jobs", jobs, "--threads", 3, "--output", stand_in)
    assert run("sweep", *words).code == 0
    calls = [path.read_text().split() for path in stand_in.glob("*/calls")]
    assert max(int(at_a_time) for at_a_time, _ in calls) <= most
    assert {threads for _, threads in calls} == {"3"}


def test_jobs_are_by_default_what_the_cores_have_room_for(
    run: Run, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping.facts, "cores", lambda: 7)
    outcome = run("sweep", "--grid", "rate=0.1", "--threads", 3, "--output", stand_in)
    assert "1 of 1 combinations to run, 2 at a time" in outcome.out
    assert found_in(stand_in)["command"] == (
        f"lth-sparse sweep lenet --grid rate=0.1 --jobs 2 --threads 3 --output {stand_in}"
    )


def test_a_terminal_gets_a_bar_and_a_log_does_not(stand_in: Path) -> None:
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=200)
        assert sweeping.sweep(Options(), {"rate": [0.1 + terminal / 5]}, output=stand_in, console=console) == 0
        assert ("0/1" in out.getvalue()) == terminal
        assert any(character < " " and character != "\n" for character in out.getvalue()) == terminal


def test_control_c_ends_every_child_and_says_how_to_go_on(
    run: Run, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = pool._start

    def noted(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "CHILD", (sys.executable, "-S", "-c", "import os; os.read(0, 1)"))
    monkeypatch.setattr(pool, "_start", noted)
    monkeypatch.setattr(pool, "time", SimpleNamespace(sleep=interrupted, monotonic=time.monotonic))
    words = ("--grid", "rate=0.1,0.2,0.3", "--jobs", 2, "--output", stand_in)
    outcome = run("sweep", "conv2", "--quick", *words)
    assert outcome.code == 130
    assert outcome.err == (
        "lth-sparse: stopped; go on with: lth-sparse sweep conv2 --quick --grid rate=0.1,0.2,0.3 --jobs 2 --threads 1 "
        f"--output {stand_in}\n"
    )
    assert [process.returncode for process in started] == [0, 0]


def test_a_child_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "GRACE_SECONDS", 0.1)
    started: list[subprocess.Popen[bytes]] = []
    start = pool._start
    monkeypatch.setattr(pool, "_start", lambda *arguments: started.append(start(*arguments)) or started[-1])
    sleeper = Task("a", [sys.executable, "-S", "-c", "import time; time.sleep(100)"], tmp_path / "a")
    quick = Task("b", [sys.executable, "-S", "-c", "print(5)"], tmp_path / "b")
    with contextlib.closing(run_all([sleeper, quick], 2, os.environ)) as results:
        assert next(results) == (quick, 0)
    assert (tmp_path / "b").read_text() == "5\n"
    assert started[0].returncode not in (None, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "grid: expected at least one option and its values"),
        (["--grid", "rate"], "grid: expected an option and its values, such as rate=0.1,0.2, got 'rate'"),
        (["--grid", "rate=0.1,,0.2"], "grid: expected an option and its values"),
        (["--grid", "colour=red"], "grid: expected an option of find, such as rate or rewind, got 'colour'"),
        (["--grid", "rate=0.1", "--grid", "rate=0.2"], "grid: expected every option once"),
        (["--grid", "output=a,b"], "grid: expected options among model, dataset"),
        (["--grid", "threads=1,2"], "grid: expected options among model, dataset"),
        (["--grid", "strict=maybe"], "grid, strict: expected yes or no, got 'maybe'"),
        (["--grid", "rate=0.1,fast"], "Invalid value for '--rate'"),
        (["--grid", "rate=0.1,1.5"], "rate: expected"),
        (["--grid", "rewind=init,tomorrow"], "rewind: expected"),
        (["--grid", "model=lenet,resnet50"], "model: expected one of lenet"),
        (["--grid", "data=/a/b,/a-b"], "two combinations called 'data=-a-b'"),
        (["vgg16", "--grid", "rate=0.1"], "model: expected one of lenet"),
        (["lenet", "--colour", "red", "--grid", "rate=0.1"], "No such option"),
        (["lenet", "--grid", "rate=0.1", "--jobs", "0"], "--jobs"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_nothing(run: Run, stand_in: Path, words: list[str], said: str) -> None:
    outcome = run("sweep", *words, "--output", stand_in)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err
    assert not stand_in.exists()


def test_combinations_with_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="two combinations called 'freeze=a-b'"):
        sweeping.combinations(Options(), {"freeze": [("a/b",), ("a-b",)]}, tmp_path)
    with pytest.raises(ArgumentError, match="grid, rate: expected at least one value"):
        sweeping.combinations(Options(), {"rate": []}, tmp_path)


def test_jobs_and_threads_are_numbers(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="threads: expected an int of at least 1, got None"):
        sweeping.sweep(Options(), {"rate": [0.1]}, output=tmp_path, threads=None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="jobs: expected an int of at least 1, got 0"):
        sweeping.sweep(Options(), {"rate": [0.1]}, output=tmp_path, jobs=0)


def test_two_sweeps_in_one_directory_are_refused(run: Run, stand_in: Path) -> None:
    stand_in.mkdir()
    with DirectoryLock(stand_in / "lock"):
        outcome = run("sweep", "--grid", "rate=0.1", "--output", stand_in)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "in use by" in outcome.err


def test_words_are_read_as_find_reads_them() -> None:
    words = "conv2 --dataset digits --quick --levels 3 --seeds 2 --rate 0.5 --no-controls --freeze a --freeze Linear"
    expected = Options(
        model="conv2",
        dataset="digits",
        quick=True,
        levels=3,
        seeds=2,
        rate=0.5,
        controls=False,
        freeze=("a", "Linear"),
    )
    assert options_of(words.split()) == expected
    assert options_of([]) == Options()
    assert options_of(["--data", "x"]).data == Path("x")


def test_values_of_the_grid_have_the_options_types() -> None:
    entries = ["rate=0.1,0.20", "levels=2", "controls=yes,no", "more-controls=random", "freeze=Linear", "model=conv2"]
    assert grid_of(entries, ["--rewind", "5it"]) == {
        "rate": [0.1, 0.2],
        "levels": [2],
        "controls": [True, False],
        "more_controls": ["random"],
        "freeze": [("Linear",)],
        "model": ["conv2"],
    }


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_and_begun_again_the_tickets_are_bit_for_bit_those_of_find(
    run: Run, find_tiny: Run, tmp_path: Path
) -> None:
    directory = tmp_path / "sweep"
    budget = ("lenet", "--quick", "--iterations", "6", "--levels", "1", "--seeds", "1", "--no-controls")
    words = ["sweep", *budget, "--grid", "rate=0.1,0.2", "--jobs", "2", "--output", str(directory)]
    with subprocess.Popen([sys.executable, "-m", "lth_sparse.cli", *words], stdout=subprocess.DEVNULL) as process:
        while not list(directory.glob("*/seed_0/level_00.safetensors")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    # What it had started ends by itself: locks of the living would be refused.
    assert run(*words).code == 0
    assert {row["status"] for row in found_in(directory)["combinations"]} == {"finished"}
    for rate in ("0.1", "0.2"):
        whole = tmp_path / rate
        assert find_tiny("--seeds", 1, "--no-controls", "--rate", rate, "--output", whole).code == 0
        names = sorted(path.name for path in (whole / "seed_0").glob("*.safetensors"))
        assert names == ["level_00.safetensors", "level_01.safetensors", "start.safetensors"]
        for name in (*names, "run.json"):
            ours = directory / f"rate={rate}" / "seed_0" / name
            assert ours.read_bytes() == (whole / "seed_0" / name).read_bytes(), name
        assert (directory / f"rate={rate}" / "find.json").read_bytes() == (whole / "find.json").read_bytes()
