"""Measures cases: each comparison runs all candidates of a case, at all densities, interleaved in one process.

A comparison is one case, one number of threads and one mode. What multiplies all weights is in it once, since no
density changes its time; ratios are taken to it within each round.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.ops.memory import keep_memory

from .cases import DENSITIES, Case
from .machine import ABOUT, Rates, about, torch_threads
from .providers import DENSE, LAYOUTS, MODES, PEERS, Problem, Provider, chosen
from .timing import interleave, quantile

COLUMNS = (
    *ABOUT,
    *("threads", "fma_peak_gflops", "read_gbytes"),
    *("case", "op", "weight", "image", "stride", "groups", "batch", "count"),
    *("candidate", "backend", "density", "nnz", "mode", "state"),
    *("median_us", "p20_us", "p80_us", "rounds"),
    *("live_gflops", "flops_per_byte", "ratio", "ratio_p20", "ratio_p80", "ratio_to"),
)

#: How a call finds the machine. "steady": as in a training loop, after a call of the same candidate and in a process
#: that keeps its memory (`keep_memory`). "cold": after other candidates, which took the caches, with memory new from
#: the system.
STATES = ("steady", "cold")

#: A candidate of a comparison: its provider's name and the density, which is 1 for what multiplies all weights.
Key = tuple[str, float]


@dataclass(frozen=True)
class Measurement:
    """One candidate of one comparison.

    Attributes:
        samples: seconds, one a round.
        ratios: of the better dense candidate's time to this one's, one a round; `ratio_to` is that candidate.
    """

    case: Case
    threads: int
    mode: str
    provider: Provider
    density: float
    nnz: int
    samples: list[float]
    ratios: list[float]
    ratio_to: str
    state: str = "steady"

    def seconds(self, share: float = 0.5) -> float:
        return quantile(self.samples, share)

    def ratio(self, share: float = 0.5) -> float:
        return quantile(self.ratios, share)

    @property
    def live_flops(self) -> float:
        """Operations a second, of live weights alone: what a dense candidate multiplies in vain is not counted."""
        return self.case.flops(self.nnz, self.mode) / self.seconds()

    @property
    def intensity(self) -> float:
        """Operations per byte that must move at least."""
        return self.case.flops(self.nnz, self.mode) / self.case.least_bytes(self.nnz, self.mode)

    def row(self, rates: Rates) -> dict[str, str]:
        """The cells of `COLUMNS` that are not about the machine."""
        case = self.case
        return {
            "threads": str(self.threads),
            "fma_peak_gflops": f"{rates.flops / 1e9:.1f}",
            "read_gbytes": f"{rates.read_bytes / 1e9:.1f}",
            "case": case.name,
            "op": case.op,
            "weight": "x".join(map(str, case.weight)),
            "image": "x".join(map(str, case.image)) if case.op == "conv2d" else "",
            "stride": str(case.stride),
            "groups": str(case.groups),
            "batch": str(case.batch),
            "count": str(case.count),
            "candidate": self.provider.name,
            "backend": self.provider.backend(case),
            "density": f"{self.density:g}",
            "nnz": str(self.nnz),
            "mode": self.mode,
            "state": self.state,
            "median_us": f"{self.seconds() * 1e6:.2f}",
            "p20_us": f"{self.seconds(0.2) * 1e6:.2f}",
            "p80_us": f"{self.seconds(0.8) * 1e6:.2f}",
            "rounds": str(len(self.samples)),
            "live_gflops": f"{self.live_flops / 1e9:.2f}",
            "flops_per_byte": f"{self.intensity:.2f}",
            "ratio": f"{self.ratio():.3f}",
            "ratio_p20": f"{self.ratio(0.2):.3f}",
            "ratio_p80": f"{self.ratio(0.8):.3f}",
            "ratio_to": self.ratio_to,
        }


@dataclass(frozen=True)
class Settings:
    """What a run measures; `seconds` is the time given to each candidate of a comparison.

    Raises ArgumentError, naming the argument, for values that nothing can be measured with.
    """

    cases: tuple[Case, ...]
    densities: tuple[float, ...] = DENSITIES
    threads: tuple[int, ...] = (1,)
    modes: tuple[str, ...] = ("forward", "step")
    layouts: tuple[str, ...] = LAYOUTS
    peers: tuple[str, ...] = PEERS
    seconds: float = 0.2
    state: str = "steady"

    def __post_init__(self) -> None:
        if not self.densities or not all(0.0 < density <= 1.0 for density in self.densities):
            raise ArgumentError(expected("densities", "numbers above 0 and up to 1", self.densities))
        if not self.threads or min(self.threads) < 1:
            raise ArgumentError(expected("threads", "numbers from 1", self.threads))
        if not self.modes or (unknown := [mode for mode in self.modes if mode not in MODES]):
            raise ArgumentError(expected("modes", f"some of {', '.join(MODES)}", ", ".join(unknown) or "none"))
        if not self.seconds > 0:
            raise ArgumentError(expected("seconds", "a positive number", self.seconds))
        if self.state not in STATES:
            raise ArgumentError(expected("state", " or ".join(STATES), self.state))
        chosen(self.layouts, self.peers)

    def comparisons(self) -> list[Comparison]:
        """In the order in which they are measured."""
        return [
            Comparison(case, threads, mode, self)
            for threads in self.threads
            for case in self.cases
            for mode in self.modes
        ]

    def skipped(self) -> list[str]:
        """What is asked for but cannot run, one sentence for each provider and reason."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for case in self.cases:
            for provider in chosen(self.layouts, self.peers):
                if case.op in provider.ops and (reason := provider.refusal(case)):
                    reasons.setdefault((provider.name, reason), []).append(case.name)
        return [f"{name} skipped for {', '.join(cases)}: {reason}" for (name, reason), cases in reasons.items()]


@dataclass(frozen=True)
class Comparison:
    """One case, number of threads and mode."""

    case: Case
    threads: int
    mode: str
    settings: Settings

    def __str__(self) -> str:
        return f"{self.case.name}-{self.mode}-{self.threads}"

    @cached_property
    def providers(self) -> list[Provider]:
        """Those that have the operator and the mode, and can run."""
        case = self.case
        return [
            provider
            for provider in chosen(self.settings.layouts, self.settings.peers)
            if case.op in provider.ops and self.mode in provider.modes and not provider.refusal(case)
        ]

    def candidates(self) -> list[Key]:
        """Its candidates, without building any."""
        return [
            (provider.name, density)
            for provider in self.providers
            for density in (self.settings.densities if provider.sparse else (1.0,))
        ]

    def cost(self) -> float:
        """A guess of its duration, for the time left: unit-free."""
        calls = sum(density if density < 1 else 2.0 for _, density in self.candidates())
        return self.settings.seconds * 2e11 * len(self.candidates()) + 10 * calls * self.case.flops(
            self.case.numel, self.mode
        )

    def measure(self) -> list[Measurement]:
        """Build the candidates, run them interleaved, and take the ratios."""
        case = self.case
        with torch_threads(self.threads), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same masks in every run
            problem = Problem.of(case)
            calls, nnz = {}, {}
            for provider in self.providers:
                for density in self.settings.densities if provider.sparse else (1.0,):
                    mask = case.mask(density, provider.block)
                    calls[provider.name, density] = provider.make(problem, mask)[self.mode]
                    nnz[provider.name, density] = int(mask.sum())
            steady = self.settings.state == "steady"
            if steady:  # else left alone: thresholds that are set, even to their defaults, no longer adapt
                keep_memory()
            samples = interleave(calls, self.settings.seconds, untimed=int(steady))
        best = min((key for key in samples if key[0] in DENSE), key=lambda key: quantile(samples[key], 0.5))
        by_name = {provider.name: provider for provider in self.providers}
        return [
            Measurement(
                case,
                self.threads,
                self.mode,
                by_name[key[0]],
                key[1],
                nnz[key],
                times,
                [dense / own for dense, own in zip(samples[best], times, strict=True)],
                best[0],
                self.settings.state,
            )
            for key, times in samples.items()
        ]


@dataclass
class Run:
    """Measurements of one session, with the machine's rates for each number of threads, measured once."""

    settings: Settings
    measurements: list[Measurement] = field(default_factory=list)
    rates: dict[int, Rates] = field(default_factory=dict)

    def add(self, measurements: Sequence[Measurement]) -> None:
        for one in measurements:
            self.rates_of(one.threads)
        self.measurements += measurements

    def rates_of(self, threads: int) -> Rates:
        if threads not in self.rates:
            self.rates[threads] = Rates.measure(threads)
        return self.rates[threads]

    def measure(self, before: Callable[[Comparison], object] = lambda comparison: None) -> Iterator[list[Measurement]]:
        """All comparisons; `before` is told of each before it starts."""
        for comparison in self.settings.comparisons():
            before(comparison)
            done = comparison.measure()
            self.add(done)
            yield done

    def rows(self) -> list[dict[str, str]]:
        """What --csv writes and plots read."""
        where = about()
        return [{**where, **one.row(self.rates_of(one.threads))} for one in self.measurements]


def check_csv(path: Path, columns: Sequence[str]) -> bool:
    """Whether `path` has a header already; ArgumentError when it is one of other columns."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open(newline="") as file:
        if next(csv.reader(file)) != list(columns):
            raise ArgumentError(expected("csv", f"a new file, or one with the same columns: {path}", "others"))
    return True


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Append rows to `path`; the header is written into a new or empty file.

    Raises ArgumentError when the file holds other columns.
    """
    started = check_csv(path, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if not started:
            writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `write_csv` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
