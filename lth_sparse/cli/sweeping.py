"""`lth-sparse sweep`: `find` for every combination of some options, in parallel processes, and one report of all.

    OUTPUT/<combination>/   a run directory of `find`, with log.txt, what it printed, and finished.json, once it is done
    OUTPUT/sweep.json       options, verdict, accuracies and seconds of each; sweep.html shows them

A combination that is finished is not run again, and `find` goes on where it was stopped; so after a crash the same
command ends with the same tickets. Another seed or another value adds to what is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lth_sparse._files import atomic_write
from lth_sparse.cli.cluster import run_on_ray
from lth_sparse.cli.find import Options, check, command_line
from lth_sparse.cli.pool import Task, run_all
from lth_sparse.cli.progress import duration
from lth_sparse.engine.lock import SWEEP, DirectoryLock
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError, TicketError, expected
from lth_sparse.paper import load_dataset
from lth_sparse.report import facts
from lth_sparse.report.sweep import Row, row_of, sweep_grid, write_sweep
from lth_sparse.report.tables import show

__all__ = ["Combination", "combinations", "sweep"]

INTERRUPTED = 130
TAIL_LINES = 5
#: What `find` is run by; it ends with this process.
CHILD = (sys.executable, "-m", "lth_sparse.cli.child")
#: Options that belong to the sweep.
OWN = ("output", "threads")


@dataclass(frozen=True)
class Combination:
    """One point of the grid: the chosen values as text, and the options of its `find`, its directory among them."""

    chosen: dict[str, str]
    options: Options

    @property
    def directory(self) -> Path:
        assert self.options.output is not None  # combinations() has set it
        return self.options.output

    @property
    def words(self) -> list[str]:
        """The command line of its `find` without the program's name."""
        return shlex.split(command_line(self.options))[1:]

    def finished(self) -> Row | None:
        """Its row if it is finished as it is asked for now; None if not, or if what it left is damaged."""
        try:
            marker = json.loads((self.directory / "finished.json").read_text(encoding="utf-8"))
            return row_of(self.directory, self.chosen) if marker == self._marker() else None
        except (OSError, ValueError, TicketError):
            return None

    def finish(self) -> None:
        """Note that it is finished."""
        atomic_write(self.directory / "finished.json", (json.dumps(self._marker(), indent=2) + "\n").encode())

    def _marker(self) -> dict[str, Any]:
        # threads and the place decide nothing
        return {"command": command_line(dataclasses.replace(self.options, threads=None, output=None))}


def sweep(
    options: Options,
    grid: Mapping[str, Iterable[Any]],
    *,
    output: Path,
    jobs: int | None = None,
    threads: int = 1,
    ray: str | None = None,
    console: Console | None = None,
) -> int:
    """Run every combination of ``grid``, and report.

    Args:
        options: what all combinations share.
        grid: name of a field of ``options`` -> its values.
        output: directory of the report and of the combinations' own.
        jobs: processes at a time; by default as many as the cores, or the cluster's nodes, have room for.
        threads: of each.
        ray: address of a Ray cluster that runs them in place of this machine, see :func:`run_on_ray`.

    Returns:
        0; 1 when a combination failed; 130 when interrupted.

    Raises:
        LTHSparseError: any of the user's mistakes, before the first training where that can be known; RunError: another
            sweep is at work in ``output``, it cannot be written, or Ray is missing or out of reach.
    """
    console = Console() if console is None else console
    for name, value in (("jobs", jobs), ("threads", threads)):
        if (value is None and name == "threads") or (value is not None and not isinstance(value, int)):
            raise ArgumentTypeError(expected(name, "an int of at least 1", value))
        if value is not None and value < 1:
            raise ArgumentError(expected(name, "an int of at least 1", value))
    if ray is None and jobs is None:
        jobs = max(1, facts.cores() // threads)
    chosen = {name: list(dict.fromkeys(values)) for name, values in grid.items()}
    work = combinations(dataclasses.replace(options, threads=threads), chosen, output)
    load = functools.cache(load_dataset)
    for combination in work:
        check(combination.options, load)
    try:
        for combination in work:
            combination.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the directory {error.filename}: {error.strerror or error}") from error
    again = _command(options, chosen, output, jobs, threads, ray)
    with DirectoryLock(output / "lock"):
        try:
            return _Sweep(work, output, again, console).run(jobs, threads, ray)
        except KeyboardInterrupt:
            print(f"lth-sparse: stopped; go on with: {again}", file=sys.stderr)
            return INTERRUPTED


def combinations(options: Options, grid: Mapping[str, list[Any]], output: Path) -> list[Combination]:
    """Every point of the grid, the last option changing fastest.

    Raises:
        ArgumentError: an option that cannot be chosen from, or has no values; values that differ in no name of a
            directory.
    """
    known = [field.name for field in dataclasses.fields(Options) if field.name not in OWN]
    if not grid:
        raise ArgumentError(expected("grid", "at least one option and its values, such as rate=0.1,0.2", "none"))
    for name, values in grid.items():
        if name not in known:
            raise ArgumentError(expected("grid", f"options among {', '.join(known)}", repr(name)))
        if not values:
            raise ArgumentError(expected(f"grid, {name}", "at least one value", "none"))
    found: dict[str, Combination] = {}
    for values_at in itertools.product(*grid.values()):
        point = dict(zip(grid, values_at, strict=True))
        texts = {name.replace("_", "-"): _text(value) for name, value in point.items()}
        place = re.sub(r"[^A-Za-z0-9._+=,-]", "-", ",".join(f"{name}={text}" for name, text in texts.items()))
        if place in found:
            raise ArgumentError(expected("grid", "values whose names differ", f"two combinations called {place!r}"))
        found[place] = Combination(texts, dataclasses.replace(options, **point, output=output / place))
    return list(found.values())


@dataclass
class _Sweep:
    """One command's work, after every option has been checked."""

    work: list[Combination]
    output: Path
    again: str
    console: Console

    def __post_init__(self) -> None:
        self.rows = {one.directory.name: Row(one.directory.name, one.chosen, "not finished") for one in self.work}
        self.ended = 0

    def run(self, jobs: int | None, threads: int, ray: str | None) -> int:
        todo: dict[str, Combination] = {}
        for one in self.work:
            if (row := one.finished()) is None:
                todo[one.directory.name] = one
            else:
                self._note(row, "finished before")
        how = (f", {jobs} at a time" if jobs else "") + (f", on Ray ({ray})" if ray else "")
        self._say(f"{len(todo)} of {len(self.work)} combinations to run{how}; into {self.output}")
        begin, done = time.monotonic(), 0
        tasks = [
            Task(name, [*CHILD, *one.words], (one.directory / "log.txt").absolute(), Path.cwd())
            for name, one in todo.items()
        ]
        results = self._start(tasks, jobs, threads, ray)
        with contextlib.closing(results), _bar(self.console) as bar:
            shown = bar.add_task("combinations", total=len(tasks))
            for task, code in results:
                done += 1
                bar.advance(shown)
                seconds = (time.monotonic() - begin) / done * (len(tasks) - done)
                left = f"; about {duration(seconds)} left" if done < len(tasks) else ""
                row = self._judge(todo[task.name], task, code)
                self._note(row, (row.title or f"failed: {(row.error or '').splitlines()[-1]}") + left)
                write_sweep(self.output, list(self.rows.values()), self.again)
        page = write_sweep(self.output, list(self.rows.values()), self.again)
        self._say("")
        show(self.console, sweep_grid(list(self.rows.values()), ""))
        self._say(f"Report: {page}")
        failed = [row for row in self.rows.values() if row.status == "failed"]
        for row in failed:
            print(f"lth-sparse: error: {row.name} failed; see {self.output / row.name / 'log.txt'}", file=sys.stderr)
        return 1 if failed else 0

    def _start(
        self, tasks: list[Task], jobs: int | None, threads: int, ray: str | None
    ) -> Generator[tuple[Task, int], None, None]:
        """The tasks' processes, on this machine or on a cluster."""
        variables = {SWEEP: str(self.output.absolute()), **_pools(threads)}
        if ray is None:
            assert jobs is not None  # sweep() has chosen
            return run_all(tasks, jobs, {**os.environ, **variables})
        ours = {name: value for name, value in os.environ.items() if name.startswith("LTH_SPARSE_")}
        proof = (self.output / "lock").absolute()
        return run_on_ray(tasks, {**ours, **variables}, address=ray, threads=threads, jobs=jobs, proof=proof)

    def _judge(self, one: Combination, task: Task, code: int) -> Row:
        error = _tail(task.log) or f"exit code {code}, and it said nothing"
        if code == 0:
            try:
                row = row_of(one.directory, one.chosen)
                one.finish()
                return row
            except TicketError as damage:
                error = str(damage)
        return Row(one.directory.name, one.chosen, "failed", error=error)

    def _note(self, row: Row, words: str) -> None:
        self.rows[row.name] = row
        self.ended += 1
        self._say(f"[{self.ended}/{len(self.work)}] {row.name}: {words}")

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    """A bar with the time so far below the lines, on a terminal alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True, refresh_per_second=1)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _command(
    options: Options, grid: Mapping[str, list[Any]], output: Path, jobs: int | None, threads: int, ray: str | None
) -> str:
    """The command that repeats or continues a sweep."""
    shared = shlex.split(command_line(dataclasses.replace(options, output=None, threads=None)))[2:]
    words = ["lth-sparse", "sweep", *(shared if "model" not in grid else shared[1:])]
    for name, values in grid.items():
        words += ["--grid", f"{name.replace('_', '-')}={','.join(map(_text, values))}"]
    words += ["--jobs", str(jobs)] if jobs else []
    words += ["--ray", ray] if ray else []
    return shlex.join([*words, "--threads", str(threads), "--output", str(output)])


def _pools(threads: int) -> dict[str, str]:
    """Variables for pools of as many threads as a combination may use, and for logs line by line."""
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**pools, "PYTHONUNBUFFERED": "1"}


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"{log}: {error.strerror or error}"
    return "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])
