"""`lth-sparse find`: one search per seed into OUTPUT/seed_K, then tables, the verdict and the report.

Everything that a seed finishes is on disk before the next begins, so the same command goes on where it was stopped.
OUTPUT/find.json says what is being trained; a directory with other settings is refused, as levels trained differently
must not be mixed. The number of seeds may grow, and controls may be added. Controls are trained at the last level and
at the smallest one that is a candidate for a winning ticket, which is known once all seeds are there.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from lth_sparse.cli.directory import break_even, claim, crowded_before, owned
from lth_sparse.cli.presets import preset_of, scaled_down, search_keywords, title
from lth_sparse.cli.progress import Key, Tracker
from lth_sparse.engine import Search, TicketResult, find_ticket, initialise_
from lth_sparse.engine.analyses import Barrier, count_cost, order_barrier
from lth_sparse.engine.controls import CONTROLS, REORDERED, REQUIRED
from lth_sparse.engine.criteria import find_criterion
from lth_sparse.engine.settings import Settings
from lth_sparse.ops.memory import keep_memory
from lth_sparse.paper import DataSet, Preset, build_model, evaluate, load_dataset, make_train
from lth_sparse.paper.training import score_batches
from lth_sparse.report import Training, facts, judge, summarise, trainings_of
from lth_sparse.report.analyses import Section, analysis_sections
from lth_sparse.report.html import Report, write_report
from lth_sparse.report.tables import seed_grid, show, verdict_grid
from lth_sparse.report.verdict import Verdict, candidate

__all__ = ["Options", "Study", "check", "command_line", "preset_of", "run"]

INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """The command line; None means the preset's own."""

    model: str = "lenet"
    dataset: str | None = None
    data: Path | None = None
    quick: bool = False
    levels: int | None = None
    seeds: int = 3
    iterations: int | None = None
    rewind: str = "init"
    criterion: str = "magnitude"
    scope: str | None = None
    granularity: str = "weight"
    freeze: tuple[str, ...] = ()
    rate: float | None = None
    controls: bool = True
    more_controls: str = ""
    barrier: bool = False
    init: str | None = None
    output: Path | None = None
    layout: str = "auto"
    threads: int | None = None
    plan: bool = False
    strict: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The controls to train: the required ones and, comma separated, those asked for; "all" names every one."""
        barrier = (REORDERED,) if self.barrier else ()
        if not self.controls:
            return barrier
        more = [kind.strip() for kind in self.more_controls.split(",") if kind.strip()]
        return tuple(dict.fromkeys((*REQUIRED, *(CONTROLS if more == ["all"] else more), *barrier)))


def run(options: Options, console: Console | None = None) -> int:
    """Search, print and report; 0, or 130 when interrupted.

    Raises:
        LTHSparseError: any of the user's mistakes, before the first training where that can be known.
    """
    console = Console() if console is None else console
    preset, data, keywords = check(options)
    directory = options.output or Path("runs") / f"{preset.name}-{preset.dataset}"
    options = dataclasses.replace(options, output=directory)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_memory()
    with owned(directory):
        note = claim(directory, preset, keywords | _noted(options))
        if options.plan:
            keywords["break_even"] = break_even(directory, preset, data)
        tracker = Tracker(console, options.seeds, _plan(options, preset), preset.iterations)
        tracker.crowded = note or crowded_before(directory)
        study = Study(options, preset, data, directory, keywords, console, tracker)
        study.announce()
        try:
            with tracker:
                study.search_all()
        except KeyboardInterrupt:
            print(f"lth-sparse: stopped; go on with: {command_line(options)}", file=sys.stderr)
            return INTERRUPTED
        study.conclude()
    return 0


def check(options: Options, load: Callable[..., DataSet] = load_dataset) -> tuple[Preset, DataSet, dict[str, Any]]:
    """Preset, images and keywords of the search; mistakes raise here, before a directory remembers them."""
    preset = preset_of(options)
    keywords = search_keywords(options, preset)
    data = load(preset.dataset, options.data, side=preset.side if preset.dataset == "digits" else None)
    settings = Settings(**keywords, **_from_data(options, preset, data), controls=options.kinds)
    keywords["scope"] = settings.scope
    Search(build_model(preset.model, data, 0, dropout=preset.dropout), settings)  # refuses what its layers cannot do
    return preset, data, keywords


@dataclass(frozen=True)
class Study:
    """One command's work, after every option has been checked: a search per seed, and what is said about them."""

    options: Options
    preset: Preset
    data: DataSet
    directory: Path
    keywords: dict[str, Any]
    console: Console
    tracker: Tracker
    results: dict[int, TicketResult] = field(default_factory=dict)
    measured: dict[tuple[int, int], Barrier] = field(default_factory=dict)

    def announce(self) -> None:
        """What is going to happen."""
        preset, seeds = self.preset, self.options.seeds
        controls = f", {len(self.options.kinds)} controls" if self.options.kinds else ""
        lines = [
            f"{title(preset)} on {self.data}",
            f"{self.tracker.total} trainings of {preset.iterations:,} iterations: {seeds} seed(s) x (dense, "
            f"{preset.levels} prunings{controls}); into {self.directory}",
        ]
        if preset.dataset == "digits" and not self.options.quick and self.options.iterations is None:
            lines.append("This is the paper's full budget; --quick takes minutes.")
        lines += scaled_down(preset)
        self.say(*lines, "")

    def search_all(self) -> None:
        """Every seed, then the controls of the smallest level that may be a winning ticket.

        Which level that is shows only when all seeds are there; the last level's controls are trained with the seed.
        """
        last = self.preset.levels
        for seed in range(self.options.seeds):
            self.search(seed, [last])
            title = f"Seed {seed} ({seed + 1} of {self.options.seeds})"
            show(self.console, seed_grid(_trainings({seed: self.results[seed]}), title))
            self.write()
        level = candidate(summarise(_trainings(self.results)), images=len(self.data.test))
        if not self.options.kinds or level in (None, last):
            return
        self.say(f"Level {level} is the smallest that is as accurate and as quick as dense: its controls follow.", "")
        self.tracker.extend([(level, kind) for kind in self.options.kinds])
        for seed in range(self.options.seeds):
            self.search(seed, [level, last])

    def model(self, seed: int) -> nn.Module:
        """The network of a seed, at initialisation."""
        model = build_model(self.preset.model, self.data, seed, dropout=self.preset.dropout)
        if self.options.init is None:
            return model
        return initialise_(model, self.options.init, torch.Generator().manual_seed(seed))

    def reset(self) -> dict[str, Any]:
        """How random controls draw fresh weights, if not as the network does by itself."""
        scheme = self.options.init
        return {} if scheme is None else {"reset_parameters": lambda model: initialise_(model, scheme)}

    def search(self, seed: int, control_levels: list[int]) -> None:
        """The whole search of one seed; what its directory holds already is read from there."""
        self.tracker.begin_seed(seed)
        self.results[seed] = find_ticket(
            self.model(seed),
            make_train(self.preset, self.data),
            **self.keywords,
            **self.reset(),
            strict=self.options.strict,
            **_from_data(self.options, self.preset, self.data),
            controls=self.options.kinds,
            control_levels=[*([0] if REORDERED in self.options.kinds else []), *control_levels],
            directory=self.directory / f"seed_{seed}",
            seed=seed,
            callbacks=[self.tracker],
        )

    def write(self) -> tuple[Path, Verdict]:
        """report.html and report.json of the seeds finished so far."""
        options, preset = self.options, self.preset
        summary = summarise(_trainings(self.results))
        verdict = judge(summary, images=len(self.data.test))
        level = preset.levels if verdict.level is None else verdict.level
        rates = preset.rates
        if options.rate is not None:
            output = options.rate if find_criterion(options.criterion).at_init else options.rate / 2
            spared = "output*" in self.keywords.get("freeze", ())
            rates = {"all layers": options.rate, **({} if spared else {"output layer": output})}
        named = {name: value for name, value in preset.to_dict().items() if value is not None}
        given = {**named, **self.keywords, "rates": ", ".join(f"{key} {value:g}" for key, value in rates.items())}
        report = Report(
            name=f"{title(preset)} on {preset.dataset}",
            data=f"{self.data} (training / validation / test)",
            command=command_line(options),
            summary=summary,
            verdict=verdict,
            hyperparameters={**given, "seeds": len(self.results), "threads": torch.get_num_threads()},
            versions=facts.versions(),
            machine={**facts.machine(), **facts.kernels(), **facts.environment()},
            crowded=self.tracker.crowded,
            analyses=self.analyses(level),
            tickets=tuple(str(self.ticket(seed, level)) for seed in self.results),
        )
        return write_report(self.directory, report)[0], verdict

    def analyses(self, level: int) -> tuple[Section, ...]:
        """What is to be said about the tickets of ``level`` besides their accuracy."""
        done = [result for result in self.results.values() if len(result.tickets) > level]
        if not done:
            return ()
        model = build_model(self.preset.model, self.data, 0, dropout=self.preset.dropout)
        cost = count_cost(model, done[0].tickets[level].masks, self.data.train.x[:1])
        return analysis_sections(self.results, level, cost, self.barriers(level))

    def barriers(self, level: int) -> dict[str, list[Barrier]]:
        """Of the dense network and of the ticket, for the seeds whose networks were trained in another data order."""
        found: dict[str, list[Barrier]] = {"dense": [], "ticket": []}
        for seed, result in self.results.items():
            for name, at in (("dense", 0), ("ticket", level)):
                if (at, REORDERED) not in result.control_tickets:
                    continue
                if (seed, at) not in self.measured:
                    reordered = result.control_tickets[at, REORDERED]
                    self.measured[seed, at] = order_barrier(
                        self.model(seed), result.tickets[at], reordered, self.validation_error
                    )
                found[name].append(self.measured[seed, at])
        return found

    def validation_error(self, model: nn.Module) -> float:
        """Share of the validation images that ``model`` gets wrong."""
        return 1.0 - evaluate(model, self.data.val)[1]

    def conclude(self) -> None:
        """The verdict, and where everything is."""
        page, verdict = self.write()
        if verdict.rows:
            show(self.console, verdict_grid(verdict, "Verdict"))
        self.say(f"{verdict.title}.", verdict.text, "")
        if verdict.level is not None:
            self.say(f"Ticket: {self.ticket(0, verdict.level)}")
        self.say(f"Report: {page}")
        if self.tracker.crowded is not None:
            self.say(f"Careful with the seconds: {self.tracker.crowded}.")

    def ticket(self, seed: int, level: int) -> Path:
        """Where a ticket is stored."""
        return self.directory / f"seed_{seed}" / f"level_{level:02d}.safetensors"

    def say(self, *lines: str) -> None:
        """Print lines as they are, never wrapped: paths must stay whole."""
        self.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def command_line(options: Options) -> str:
    """The command that repeats or continues a run: every option that is not its default."""
    words = ["lth-sparse", "find", options.model]
    for option in dataclasses.fields(Options)[1:]:
        value = getattr(options, option.name)
        if value == option.default:
            continue
        name = option.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, tuple):
            words += [word for one in value for word in (f"--{name}", str(one))]
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _noted(options: Options) -> dict[str, Any]:
    """Options that a directory remembers where they are given."""
    return ({"plan": True} if options.plan else {}) | ({"init": options.init} if options.init else {})


def _from_data(options: Options, preset: Preset, data: DataSet) -> dict[str, Any]:
    """What the search takes from the data: images for the criterion, the error that rewind="auto" makes barriers of."""
    keywords: dict[str, Any] = {}
    if find_criterion(options.criterion).needs in ("batches", "shape"):
        keywords["score_batches"] = score_batches(preset, data)
    if options.rewind == "auto":
        keywords["rewind_error"] = lambda model: 1.0 - evaluate(model, data.val)[1]
    return keywords


def _plan(options: Options, preset: Preset) -> list[Key]:
    levels: list[Key] = [(level, None) for level in range(preset.levels + 1)]
    dense: list[Key] = [(0, REORDERED)] if REORDERED in options.kinds else []
    return [*levels, *dense, *((preset.levels, kind) for kind in options.kinds)]


def _trainings(results: dict[int, TicketResult]) -> list[Training]:
    return [t for seed, result in results.items() for t in trainings_of(seed, result.levels, result.controls)]
