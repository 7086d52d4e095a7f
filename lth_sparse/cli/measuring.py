"""`lth-sparse bench`: the benchmarks of lth_sparse.benchmarks on this machine, as tables, CSV and plots.

Without --end-to-end single layers are measured, each against dense torch and other libraries; with it whole training
steps, or the whole search for a ticket, of LeNet, Conv-6, VGG-19 and ResNet-18, or chains of equal layers. With
--device cuda it is the suite of the GPU kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from lth_sparse.benchmarks import end_to_end
from lth_sparse.benchmarks.cases import DENSITIES, select
from lth_sparse.benchmarks.machine import about
from lth_sparse.benchmarks.measure import COLUMNS, Run, Settings, check_csv, write_csv
from lth_sparse.benchmarks.options import floats, integers, words
from lth_sparse.benchmarks.plots import draw
from lth_sparse.benchmarks.providers import LAYOUTS, PEERS
from lth_sparse.benchmarks.tables import layer_grid, network_grid, peer_grid, rates_line
from lth_sparse.cli.progress import crowding, duration
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.report.tables import show

__all__ = ["Options", "Progress", "run"]

QUICK_DENSITIES, QUICK_SECONDS = (0.2, 0.1), 0.03


@dataclass(frozen=True)
class Options:
    """The command line; None means the benchmark's own, which --quick makes smaller."""

    cases: str | None = None
    densities: str | None = None
    threads: str = "1"
    layouts: str | None = None
    modes: str | None = None
    peers: str | None = None
    seconds: float | None = None
    state: str | None = None
    quick: bool = False
    end_to_end: bool = False
    networks: str | None = None
    parts: str | None = None
    levels: int | None = None
    iterations: int | None = None
    device: str = "cpu"
    goals: str | None = None
    minutes: float | None = None
    csv: Path | None = None
    plots: Path | None = None


def run(options: Options, console: Console | None = None) -> int:
    """Measure, print, write; 0. On a GPU 1 when something failed; the rest is measured all the same.

    Raises:
        ArgumentError: any of the user's mistakes, before anything is measured.
        BackendError: no GPU for --device cuda.
    """
    console = Console() if console is None else console
    if options.device != "cpu":
        return _gpu(options, console)
    for name in ("goals", "minutes"):
        if getattr(options, name) is not None:
            raise ArgumentError(expected(f"--{name}", "--device cuda beside it", "none"))
    if options.csv is not None:
        check_csv(options.csv, end_to_end.COLUMNS if options.end_to_end else COLUMNS)
    return (_networks if options.end_to_end else _layers)(options, console)


#: What the suite for GPUs takes of the command line.
GPU_OPTIONS = ("cases", "device", "goals", "minutes", "csv", "plots")


def _gpu(options: Options, console: Console) -> int:
    from lth_sparse.benchmarks.gpu import __main__ as gpu
    from lth_sparse.benchmarks.gpu.cases import select as select_gpu

    if options.device != "cuda":
        raise ArgumentError(expected("--device", "cpu or cuda", options.device))
    for option in fields(Options):
        if option.name not in GPU_OPTIONS and getattr(options, option.name) != option.default:
            name = f"--{option.name.replace('_', '-')}"
            raise ArgumentError(expected(name, "no --device cuda beside it, whose cases are fixed", "both"))
    names = [words(text) if text is not None else () for text in (options.goals, options.cases)]
    minutes = gpu.MINUTES if options.minutes is None else options.minutes
    return gpu.run(select_gpu(*names), options.csv, options.plots, minutes, lambda line: _say(console, line))


def _layers(options: Options, console: Console) -> int:
    for name in ("networks", "parts", "levels", "iterations"):
        if getattr(options, name) is not None:
            raise ArgumentError(expected(f"--{name}", "--end-to-end beside it", "none"))
    settings = Settings(
        select(options.cases or "headline"),
        _densities(options, DENSITIES),
        integers("--threads", options.threads),
        words(options.modes or "forward,step"),
        words(options.layouts) if options.layouts is not None else LAYOUTS,
        words(options.peers if options.peers is not None else "none" if options.quick else ",".join(PEERS)),
        options.seconds if options.seconds is not None else QUICK_SECONDS if options.quick else 0.2,
        options.state or "steady",
    )
    _announce(console)
    for sentence in settings.skipped():
        _say(console, sentence)
    work = Run(settings)
    comparisons = settings.comparisons()
    with Progress(console, [one.cost() for one in comparisons]) as progress:
        for _ in work.measure(lambda one: progress.start(f"{one.case.name}, {one.mode}, {one.threads} thread(s)")):
            progress.done()
    _say(console, f"\nCeilings: {rates_line(work)}.")
    _say(console, "Times are medians, a ratio above 1 is faster than the better of torch's dense layers.\n")
    for grid in (layer_grid(work), peer_grid(work), network_grid(work)):
        if grid is not None:
            show(console, grid)
    rows = work.rows()
    _write(options, console, rows, COLUMNS, draw)
    return 0


def _networks(options: Options, console: Console) -> int:
    for name in ("cases", "layouts", "modes", "peers", "seconds", "state"):
        if getattr(options, name) is not None:
            raise ArgumentError(expected(f"--{name}", "no --end-to-end beside it", "both"))
    settings = end_to_end.Settings(
        networks=words(options.networks) if options.networks is not None else tuple(end_to_end.NETWORKS),
        densities=_densities(options, end_to_end.DENSITIES),
        threads=integers("--threads", options.threads),
        parts=words(options.parts) if options.parts is not None else end_to_end.USUAL,
        levels=options.levels,
        iterations=options.iterations,
    )
    if options.quick:
        settings = settings.quick()
    _announce(console)
    work = end_to_end.Run(settings)
    with Progress(console, work.costs()) as progress:
        for _ in work.measure(progress.start):
            progress.done()
    for grid in work.grids():
        show(console, grid)
    _write(options, console, work.rows(), end_to_end.COLUMNS, end_to_end.draw)
    return 0


def _densities(options: Options, usual: tuple[float, ...]) -> tuple[float, ...]:
    if options.densities is not None:
        return floats("--densities", options.densities)
    return QUICK_DENSITIES if options.quick else usual


def _announce(console: Console) -> None:
    machine = about()
    _say(
        console,
        f"{machine['processor']}, {machine['cores']} cores, {machine['isa']}; torch {machine['torch']}, "
        f"lth_sparse {machine['lth_sparse']}; {machine['date']}",
    )
    if busy := crowding():
        _say(console, f"Careful with every figure: {busy}.")


def _write(
    options: Options,
    console: Console,
    rows: list[dict[str, str]],
    columns: tuple[str, ...],
    draw: Callable[[list[dict[str, str]], Path], list[Path]],
) -> None:
    if options.csv is not None:
        write_csv(options.csv, rows, columns)
        _say(console, f"Rows: {options.csv}")
    if options.plots is not None:
        for path in draw(rows, options.plots):
            _say(console, f"Plot: {path}")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class Progress:
    """A bar over pieces of work of known relative cost, with the time left; a line for each piece without a terminal.

    Drawn between the pieces alone: a thread that draws would take time from what is measured.
    """

    def __init__(self, console: Console, costs: list[float], clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.costs, self.clock = console, costs, clock
        self.finished, self.began = 0, clock()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
            self._bar = Bar(*columns, console=self.console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("starting", total=sum(self.costs), left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, name: str) -> None:
        """The next piece begins."""
        left = self.left()
        about_left = "" if left is None else f"about {duration(left)} left"
        if self._bar is None:
            count = f"[{self.finished + 1:>{len(str(len(self.costs)))}}/{len(self.costs)}]"
            _say(self.console, ", ".join(filter(None, (f"{count} {name}", about_left))))
            return
        self._bar.update(self._task, completed=sum(self.costs[: self.finished]), description=name, left=about_left)
        self._bar.refresh()

    def done(self) -> None:
        """The piece that began last is finished."""
        self.finished += 1

    def left(self) -> float | None:
        """Seconds, at the pace so far; None before the first piece is finished."""
        behind = sum(self.costs[: self.finished])
        if not behind:
            return None
        return (self.clock() - self.began) * sum(self.costs[self.finished :]) / behind
