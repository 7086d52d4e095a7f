"""From mask to blocks on a network of the paper: tickets at 95% sparsity, the ledger of every method, over seeds.

    python -m lth_sparse.benchmarks.conversion lenet --output runs/blocks-lenet
    python -m lth_sparse.benchmarks.conversion conv6 --output runs/blocks-conv6

For each seed: the search for an unstructured ticket with at most 5% of the weights; the same search with 4x1 vectors,
and with 16x16 blocks, pruned as a whole (block-aware pruning is a method too, which only a search can carry out); then
every method on the unstructured ticket, retrained from theta_0 and timed against dense torch and against CSR. What is
on disk is not done again. Last it says whether a conversion trains faster than CSR in every seed, by more than the 2%
that are a tie, at a mean loss of at most half a point, and if none does, what stands against it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lth_sparse._files import atomic_write
from lth_sparse.engine import Ticket, find_ticket
from lth_sparse.engine.conversion.entries import AUTO, BASELINES, CSR, DENSE
from lth_sparse.ops.memory import keep_memory
from lth_sparse.ops.plan import TIE
from lth_sparse.paper import PRESETS, DataSet, Preset, build_model, make_train
from lth_sparse.paper.conversion import ledger_of
from lth_sparse.paper.models import CONVS
from lth_sparse.report.tables import Grid, plain_text

from .machine import about

#: Searches whose tickets are compared: what the ledger calls them, and their granularity.
AWARE = {"IMP vector:4x1": "vector:4x1", "IMP block:16x16": "block:16x16"}
#: Budgets of ten minutes (LeNet) and half an hour for each seed (Conv-6), where the command line says nothing else.
#: Steps of tens of milliseconds want more seconds: within one, identical networks were found to differ by a tenth.
CONV: dict[str, Any] = {"seeds": 2, "threads": 2, "prunings": 2, "iterations": 400, "seconds": 8.0}
USUAL: dict[str, dict[str, Any]] = {
    "lenet": {"seeds": 3, "threads": 1, "prunings": 1, "seconds": 1.0},
    **dict.fromkeys(("conv2", "conv4", "conv6"), CONV),
}
NUMBERS = ("seeds", "iterations", "threads", "prunings", "seconds")
#: The share of the weights that is left at most, and the points of accuracy that a conversion may lose.
DENSITY, BUDGET = 0.05, 0.5
#: A ticket that learns less than this shows nothing: at chance, conversions lose nothing.
LEAST = 0.9


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        iterations: of each training; retrainings take as many.
        aware: also search with whole blocks. prunings: of the paper's that each level of a search does at once.
        methods: None for the standard ones.
        seconds: for which each network is timed, pass by pass.
    """

    network: str
    output: Path
    seeds: int = 3
    iterations: int | None = None
    threads: int = 1
    aware: bool = True
    prunings: int = 1
    methods: tuple[str, ...] | None = None
    seconds: float = 1.0

    def preset(self) -> Preset:
        """The quick budget on digits."""
        preset = PRESETS[self.network].quick()
        rates = {name: 1.0 - (1.0 - rate) ** self.prunings for name, rate in preset.rates.items()}
        preset = dataclasses.replace(preset, rates=rates)
        if self.iterations is None:
            return preset
        every = min(preset.evaluate_every, self.iterations)
        return dataclasses.replace(preset, iterations=self.iterations, evaluate_every=every)


@dataclass(frozen=True)
class Row:
    """One entry over the seeds.

    Attributes:
        density: mean share of the weights left. losses: points lost in each seed. accuracies: after retraining.
        csr, auto, dense: time of the ticket in CSR, in its measured layouts, and of dense torch over this one's for a
            training step, the median of each seed. forward: the same of the forward pass against CSR.
        padded: mean of the multiplications over those of the ticket in CSR.
    """

    name: str
    density: float
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    csr: tuple[float, ...]
    auto: tuple[float, ...]
    dense: tuple[float, ...]
    forward: tuple[float, ...]
    padded: float

    @property
    def loss(self) -> float:
        """Mean points lost."""
        return statistics.fmean(self.losses)

    @property
    def faster(self) -> bool:
        """Whether its step is shorter than CSR's in every seed, and no tie."""
        return min(self.csr) > 1.0 + TIE


def search(settings: Settings, preset: Preset, data: DataSet, seed: int, granularity: str) -> Path:
    """Find a ticket with at most ``DENSITY`` of the weights, or go on with the search; where the ticket lies."""
    name = granularity.replace(":", "-")
    directory = settings.output / f"seed_{seed}" / name
    result = find_ticket(
        build_model(preset.model, data, seed),
        make_train(preset, data),
        target_density=DENSITY,
        rates=preset.rates,
        granularity=granularity,
        feature_major=bool(CONVS[preset.model]),
        directory=directory,
        seed=seed,
    )
    return directory / f"level_{result.ticket.level:02d}.safetensors"


def measure(settings: Settings, preset: Preset, data: DataSet, seed: int) -> dict[str, Any]:
    """The ledger of one seed as plain values; kept on disk."""
    path = settings.output / f"seed_{seed}" / "ledger.json"
    asked = json.loads(json.dumps({**preset.to_dict(), "threads": settings.threads, "methods": settings.methods}))
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known["asked"] == asked:
            return known
    paths = {name: search(settings, preset, data, seed, kind) for name, kind in AWARE.items() if settings.aware}
    found = search(settings, preset, data, seed, "weight")
    book = ledger_of(
        preset,
        data,
        Ticket.load(found),
        settings.methods,
        dense=Ticket.load(found.parent / "level_00.safetensors"),
        others={name: Ticket.load(path) for name, path in paths.items()},
        seconds=settings.seconds,
        seed=seed,
        progress=lambda done, words: print(f"  seed {seed}, {done:4.0%}: {words}", file=sys.stderr, flush=True),
    )
    facts = {**book.to_dict(), "asked": asked, "seed": seed, "about": about()}
    atomic_write(path, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    return facts


def across(ledgers: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Entries that every seed has, in the order of the first."""
    books = [{entry["name"]: entry for entry in ledger["entries"]} for ledger in ledgers]
    rows = []
    for name in books[0]:
        entries = [book[name] for book in books if name in book]
        if len(entries) < len(books):
            continue
        step = [entry["time"]["step_ratios"] for entry in entries]
        padded = [
            entry["work"]["padded"] / book[CSR]["work"]["padded"] for entry, book in zip(entries, books, strict=True)
        ]
        rows.append(
            Row(
                name,
                statistics.fmean(entry["density"] for entry in entries),
                tuple(entry["points_lost"] for entry in entries if entry["points_lost"] is not None),
                tuple(statistics.fmean(entry["retrained"]) for entry in entries if entry["retrained"]),
                tuple(ratio[CSR]["median"] for ratio in step),
                tuple(ratio[AUTO]["median"] for ratio in step),
                tuple(ratio[DENSE]["median"] for ratio in step),
                tuple(entry["time"]["forward_ratios"][CSR]["median"] for entry in entries),
                statistics.fmean(padded),
            )
        )
    return rows


def verdict(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether a block conversion keeps accuracy within the budget and trains faster than CSR, and a sentence why."""
    own = next(row.accuracies for row in rows if row.name == CSR)
    if statistics.fmean(own) < LEAST:
        return False, f"Not decided: the ticket itself reaches {statistics.fmean(own):.1%} only, see --iterations."
    conversions = [row for row in rows if row.name not in BASELINES and row.losses]
    within = [row for row in conversions if row.loss <= BUDGET]
    winners = [row for row in within if row.faster]
    if winners:
        best = max(winners, key=lambda row: statistics.fmean(row.csr))
        return True, (
            f"Holds: {best.name} loses {best.loss:+.2f} points {_span(best.losses, '+.2f')} and its training step is "
            f"{statistics.fmean(best.csr):.2f}x as fast as CSR's {_span(best.csr, '.2f')}, "
            f"{statistics.fmean(best.auto):.2f}x as fast as the ticket's in its measured layouts."
        )
    text = f"CSR stays best within {BUDGET} points."
    if within:
        best = max(within, key=lambda row: statistics.fmean(row.csr))
        text += (
            f" The fastest conversion that loses no more, {best.name}, takes {1 / statistics.fmean(best.csr):.2f} of "
            f"CSR's step for {best.padded:.2f} of its multiplications."
        )
    quicker = [row for row in conversions if row.faster]
    if quicker:
        best = min(quicker, key=lambda row: row.loss)
        text += f" Of the faster ones {best.name} loses least, {best.loss:.2f} points {_span(best.losses, '.2f')}."
    else:
        text += " No conversion is faster in every seed, at whatever loss."
    return False, text


def grid(rows: Sequence[Row], seeds: int) -> Grid:
    """One row for each entry: mean over the seeds, minimum and maximum in brackets."""
    speeds = ("step, vs csr", "vs auto", "vs dense", "forward, vs csr")
    headers = ("method", "weights left", "multiplied", "accuracy", "points lost", *speeds)
    cells = tuple(
        (
            row.name,
            f"{row.density:.2%}",
            f"{row.padded:.2f}x",
            f"{statistics.fmean(row.accuracies):.2%}" if row.accuracies else "-",
            f"{row.loss:+.2f} {_span(row.losses, '+.2f')}" if row.losses else "-",
            *map(_ratio, (row.csr, row.auto, row.dense, row.forward)),
        )
        for row in rows
    )
    return Grid(f"Mean over {seeds} seed(s) [minimum, maximum]", headers, cells)


def _ratio(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f}x {_span(values, '.2f')}"


def _span(values: Sequence[float], form: str) -> str:
    return f"[{min(values):{form}}, {max(values):{form}}]"


def run(settings: Settings) -> int:
    """Everything; 0, whatever the verdict."""
    torch.set_num_threads(settings.threads)
    keep_memory()
    preset = settings.preset()
    data = preset.load_data()
    ledgers = [measure(settings, preset, data, seed) for seed in range(settings.seeds)]
    rows = across(ledgers)
    holds, text = verdict(rows)
    summary = {
        "network": settings.network,
        "holds": holds,
        "verdict": text,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    atomic_write(
        settings.output / "summary.json", (json.dumps({**summary, "about": about()}, indent=1) + "\n").encode()
    )
    print(plain_text(grid(rows, settings.seeds)))
    print()
    print(text)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m lth_sparse.benchmarks.conversion", description=__doc__)
    parser.add_argument("network", choices=sorted(USUAL))
    parser.add_argument("--output", type=Path, required=True, help="directory of the searches and ledgers")
    parser.add_argument("--seeds", type=int, help="3 for lenet, else 2")
    parser.add_argument("--iterations", type=int, help="of each training; the quick preset's for lenet, else 400")
    parser.add_argument("--threads", type=int, help="1 for lenet, else 2")
    parser.add_argument("--methods", help="with commas; the standard ones by default")
    parser.add_argument(
        "--prunings", type=int, help="of the paper's, that each level does at once; 1 for lenet, else 2"
    )
    parser.add_argument("--no-aware", action="store_true", help="leave out the searches with whole blocks")
    parser.add_argument("--seconds", type=float, help="for which each network is timed; 1 for lenet, else 8")
    given = parser.parse_args(arguments)
    usual = USUAL[given.network]
    numbers = {name: usual.get(name) if getattr(given, name) is None else getattr(given, name) for name in NUMBERS}
    methods = None if given.methods is None else tuple(given.methods.split(","))
    own: dict[str, Any] = {**numbers, "aware": not given.no_aware, "methods": methods}
    return run(Settings(given.network, given.output, **own))


if __name__ == "__main__":
    sys.exit(main())
