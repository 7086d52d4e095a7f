"""Whole networks: the training step against dense torch (`training.py`), full searches (`search.py`), and chains of
equal layers in inference (`chains.py`).

`Run.measure` goes through them; rows, tables and plots are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.report.tables import Grid

from . import chains
from .chains import CHAINS, ChainTime
from .machine import ABOUT, Rates, about, torch_threads
from .plots import Row, levels_plot, steps_plot
from .search import LevelTime, time_levels
from .timing import quantile
from .training import MASKED, NETWORKS, OURS, StepTime, time_steps

PARTS = ("step", "search", "chain")
#: Those measured unless told otherwise.
USUAL = ("step", "search")
DENSITIES = (0.5, 0.2, 0.1, 0.05)
LEVELS = 20

COLUMNS = (
    *ABOUT,
    *("threads", "fma_peak_gflops", "read_gbytes"),
    *("network", "part", "candidate", "density", "weights_kept", "layouts", "batch", "optimizer"),
    *("median_ms", "p20_ms", "p80_ms", "rounds", "forward_ms", "backward_ms", "optimizer_ms"),
    *("parameter_bytes", "gradient_bytes", "optimizer_bytes", "index_bytes", "saved_bytes"),
    *("level", "iterations", "work", "plan_seconds", "level_seconds", "train_seconds", "floor_seconds"),
    *("ratio", "ratio_p20", "ratio_p80", "ratio_to"),
)


@dataclass(frozen=True)
class Settings:
    """What a run measures.

    Attributes:
        densities: shares of the weights kept in the steps.
        parts: "step", "search" and "chain", or some of them; a search is for the networks that have prune rates (LeNet
            and Conv-6), a chain of layers has no network.
        levels: prunings of a search, 20 by default; iterations: steps of each level, by default the network's own.
        seconds, rounds: given to each candidate of the steps, and the least number of rounds.

    Raises ArgumentError, naming the argument.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    densities: tuple[float, ...] = DENSITIES
    threads: tuple[int, ...] = (1,)
    parts: tuple[str, ...] = USUAL
    levels: int | None = None
    iterations: int | None = None
    seconds: float = 1.0
    rounds: int = 5

    def __post_init__(self) -> None:
        for name, given, known in (("networks", self.networks, NETWORKS), ("parts", self.parts, PARTS)):
            if not given or (unknown := [one for one in given if one not in known]):
                raise ArgumentError(expected(name, f"some of {', '.join(known)}", ", ".join(unknown if given else ())))
        if not self.densities or not all(0.0 < density < 1.0 for density in self.densities):
            raise ArgumentError(expected("densities", "numbers between 0 and 1", self.densities))
        if not self.threads or min(self.threads) < 1:
            raise ArgumentError(expected("threads", "numbers from 1", self.threads))
        for name, value in (("levels", self.levels), ("iterations", self.iterations)):
            if value is not None and value < 1:
                raise ArgumentError(expected(name, "at least 1", value))

    def quick(self) -> Settings:
        """The same in seconds: enough to see that everything runs."""
        return replace(self, levels=self.levels or 3, iterations=self.iterations or 5, seconds=0.05, rounds=2)

    @property
    def depth(self) -> int:
        return LEVELS if self.levels is None else self.levels

    def pieces(self) -> list[tuple[int, str, str]]:
        """(threads, network or chain, part) in the order of measurement."""
        found = [
            (name, part)
            for name in self.networks
            for part in USUAL
            if part in self.parts and (part == "step" or NETWORKS[name].iterations)
        ]
        if "chain" in self.parts:
            found += [(name, "chain") for name in CHAINS]
        return [(threads, *piece) for threads in self.threads for piece in found]


@dataclass
class Run:
    """Measurements of one session."""

    settings: Settings
    steps: list[StepTime] = field(default_factory=list)
    levels: list[LevelTime] = field(default_factory=list)
    chains: list[ChainTime] = field(default_factory=list)
    rates: dict[int, Rates] = field(default_factory=dict)

    def costs(self) -> list[float]:
        """Guesses of how long each yield of `measure` takes, unit-free."""
        costs = []
        for _, name, part in self.settings.pieces():
            if part == "chain":
                options = self.settings
                costs.append(chains.cost(CHAINS[name], options.densities, options.seconds, options.rounds))
                continue
            own = STEP_COST[name]
            if part == "step":
                costs.append(
                    (own * self.settings.rounds + self.settings.seconds) * (4 + 2 * len(self.settings.densities))
                )
            else:
                costs += [own * self._iterations(name)] * (self.settings.depth + 1)
        return costs

    def measure(self, before: Callable[[str], object] = lambda name: None) -> Iterator[None]:
        """Everything; `before` is told what comes before each yield."""
        for threads, name, part in self.settings.pieces():
            settings = self.settings
            with torch_threads(threads):
                if threads not in self.rates:
                    self.rates[threads] = Rates.measure(threads)
                if part == "chain":
                    before(f"{name}, {threads} thread(s)")
                    self.chains += chains.time_chain(
                        CHAINS[name], settings.densities, threads, settings.seconds, settings.rounds
                    )
                    yield
                    continue
                network = NETWORKS[name]
                if part == "step":
                    before(f"{name}, training step, {threads} thread(s)")
                    self.steps += time_steps(network, settings.densities, threads, settings.seconds, settings.rounds)
                    yield
                    continue
                levels = time_levels(network, threads, settings.depth, self._iterations(name))
                for k in range(settings.depth + 1):
                    before(f"{name}, search, level {k}, {threads} thread(s)")
                    self.levels += next(levels)
                    yield

    def _iterations(self, name: str) -> int:
        return self.settings.iterations or NETWORKS[name].iterations

    def rows(self) -> list[dict[str, str]]:
        """Cells of `COLUMNS`; those of the other parts are empty."""
        where = about()
        rows = [*map(_step_row, self.steps), *(self._level_row(one) for one in self.levels)]
        rows += map(chains.row, self.chains)
        return [dict.fromkeys(COLUMNS, "") | where | self._rates(row["threads"]) | row for row in rows]

    def _rates(self, threads: str) -> dict[str, str]:
        rates = self.rates[int(threads)]
        return {"fma_peak_gflops": f"{rates.flops / 1e9:.1f}", "read_gbytes": f"{rates.read_bytes / 1e9:.1f}"}

    def _level_row(self, one: LevelTime) -> dict[str, str]:
        return {
            "threads": str(one.threads),
            "network": one.network.name,
            "part": "search",
            "candidate": one.candidate,
            "density": f"{one.density:.5f}",
            "batch": str(one.network.batch),
            "optimizer": one.network.solver,
            "level": str(one.level),
            "iterations": str(one.iterations),
            "work": f"{one.work:.5f}",
            "plan_seconds": f"{one.plan_seconds:.4f}",
            "level_seconds": f"{one.seconds:.4f}",
            "train_seconds": f"{one.train_seconds:.4f}",
            "floor_seconds": f"{self.floor(one):.4f}",
            "ratio": f"{self.twin(one, MASKED, one.level).seconds / one.seconds:.3f}",
            "ratio_to": MASKED,
        }

    def twin(self, one: LevelTime, candidate: str, level: int) -> LevelTime:
        """The level of a candidate in the same search as `one`."""
        key = (one.network.name, one.threads, candidate, level)
        return next(x for x in self.levels if (x.network.name, x.threads, x.candidate, x.level) == key)

    def floor(self, one: LevelTime) -> float:
        """The training time of our level 0, which is the plain dense network, x the share of the work that is left."""
        return one.work * self.twin(one, OURS, 0).train_seconds

    def grids(self) -> list[Grid]:
        """The tables of what was measured."""
        grids = [_step_grid(self.steps)] if self.steps else []
        searches = list(dict.fromkeys((one.network.name, one.threads) for one in self.levels))
        grids += [self._search_grid(name, threads) for name, threads in searches]
        return grids + ([chains.grid(self.chains)] if self.chains else [])

    def _search_grid(self, name: str, threads: int) -> Grid:
        ours = [x for x in self.levels if (x.network.name, x.threads, x.candidate) == (name, threads, OURS)]
        pairs = [(one, self.twin(one, MASKED, one.level)) for one in ours]
        rows = [
            (
                *(str(one.level), f"{one.density:.1%}", f"{other.seconds:.2f}", f"{one.seconds:.2f}"),
                *(f"{one.train_seconds:.2f}", f"{self.floor(one):.2f}", f"{other.seconds / one.seconds:.2f}"),
            )
            for one, other in pairs
        ]
        total, masked = sum(one.seconds for one in ours), sum(other.seconds for _, other in pairs)
        training, floor = sum(one.train_seconds for one in ours), sum(map(self.floor, ours))
        rows.append(
            ("all", "", f"{masked:.2f}", f"{total:.2f}", f"{training:.2f}", f"{floor:.2f}", f"{masked / total:.2f}")
        )
        title = f"Search, {name}, {ours[0].iterations} iterations a level, {threads} thread(s); seconds"
        title += f" ({ours[0].plan_seconds:.1f} more to plan)"
        headers = ("level", "weights left", "masked dense", "ours", "of it training", "floor", "ratio")
        return Grid(title, headers, tuple(rows))


#: Seconds of one dense step on one core, roughly: for the time left alone.
STEP_COST = {"lenet": 0.002, "conv6": 0.5, "resnet18": 2.0, "vgg19": 1.5}


def draw(rows: Sequence[Row], directory: Path) -> list[Path]:
    """steps.svg and search.svg, as far as there are rows for them; chains have a table only."""
    directory.mkdir(parents=True, exist_ok=True)
    steps, levels = ([row for row in rows if row["part"] == part] for part in USUAL)
    return [
        *([steps_plot(steps, directory / "steps.svg")] if steps else []),
        *([levels_plot(levels, directory / "search.svg")] if levels else []),
    ]


def _step_row(one: StepTime) -> dict[str, str]:
    median, low, high = (quantile(one.samples, share) * 1e3 for share in (0.5, 0.2, 0.8))
    ratio, ratio_low, ratio_high = (quantile(one.ratios, share) for share in (0.5, 0.2, 0.8))
    return {
        "threads": str(one.threads),
        "network": one.network.name,
        "part": "step",
        "candidate": one.candidate,
        "density": f"{one.density:g}",
        "weights_kept": str(one.kept),
        "layouts": one.layouts,
        "batch": str(one.network.batch),
        "optimizer": one.network.solver,
        "median_ms": f"{median:.3f}",
        "p20_ms": f"{low:.3f}",
        "p80_ms": f"{high:.3f}",
        "rounds": str(len(one.samples)),
        **{f"{name}_ms": f"{1e3 * s:.3f}" for name, s in zip(PHASES, one.phases, strict=True)},
        **{name: str(count) for name, count in one.bytes.items()},
        "ratio": f"{ratio:.3f}",
        "ratio_p20": f"{ratio_low:.3f}",
        "ratio_p80": f"{ratio_high:.3f}",
        "ratio_to": one.ratio_to,
    }


PHASES = ("forward", "backward", "optimizer")


def _step_grid(steps: Sequence[StepTime]) -> Grid:
    headers = (
        *("network", "candidate", "threads", "density", "step ms", "forward", "backward", "optimiser"),
        *("ratio", "20-80%", "weights+grad+opt MB", "index MB", "saved MB", "layouts"),
    )
    rows = []
    for one in steps:
        size = one.bytes
        state = size["parameter_bytes"] + size["gradient_bytes"] + size["optimizer_bytes"]
        rows.append(
            (
                *(one.network.name, one.candidate, str(one.threads), f"{one.density:g}"),
                f"{quantile(one.samples, 0.5) * 1e3:.2f}",
                *(f"{phase * 1e3:.2f}" for phase in one.phases),
                f"{quantile(one.ratios, 0.5):.2f}",
                f"{quantile(one.ratios, 0.2):.2f}-{quantile(one.ratios, 0.8):.2f}",
                *(f"{count / 1e6:.2f}" for count in (state, size["index_bytes"], size["saved_bytes"])),
                one.layouts or "-",
            )
        )
    return Grid("Training steps", headers, tuple(rows), left=2)
