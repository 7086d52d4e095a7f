"""`lth-sparse find`: one search per seed into OUTPUT/seed_K, then tables, the verdict and the report.

Everything that a seed finishes is on disk before the next begins, so the same command goes on where it was stopped.
OUTPUT/find.json says what is being trained; a directory with other settings is refused, as levels trained differently
must not be mixed. The number of seeds may grow, and controls may be added.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lth_sparse._files import atomic_write
from lth_sparse.cli.progress import Key, Tracker
from lth_sparse.engine import TicketResult, find_ticket
from lth_sparse.engine.settings import Settings
from lth_sparse.errors import ArgumentError, RunError, TicketError, expected
from lth_sparse.paper import PRESETS, DataSet, Preset, build_model, load_dataset, make_train
from lth_sparse.report import Summary, Training, facts, judge, summarise, trainings_of
from lth_sparse.report.html import Report, write_report
from lth_sparse.report.tables import Grid, plain_text, rich_table, seed_grid, verdict_grid
from lth_sparse.report.verdict import Verdict

__all__ = ["Options", "command_line", "preset_of", "run"]

CONTROLS = ("reinit", "shuffled")
INTERRUPTED = 130
TITLES = {"lenet": "LeNet-300-100", "conv2": "Conv-2", "conv4": "Conv-4", "conv6": "Conv-6"}
FORMAT = 1


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
    scope: str = "layer"
    rate: float | None = None
    controls: bool = True
    output: Path | None = None
    layout: str = "auto"
    threads: int | None = None


def run(options: Options, console: Console | None = None) -> int:
    """Search, print and report; 0, or 130 when interrupted.

    Raises:
        LTHSparseError: any of the user's mistakes, before the first training where that can be known.
    """
    console = Console() if console is None else console
    preset = preset_of(options)
    keywords = _search_keywords(options, preset)
    Settings(**keywords)  # wrong ones raise here, before a directory remembers them
    data = load_dataset(preset.dataset, options.data, side=preset.side if preset.dataset == "digits" else None)
    directory = options.output or Path("runs") / f"{preset.name}-{preset.dataset}"
    options = dataclasses.replace(options, output=directory)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    _claim(directory, preset, keywords)
    _announce(console, options, preset, data, directory)
    results: dict[int, TicketResult] = {}
    tracker = Tracker(console, options.seeds, _plan(options, preset), preset.iterations)
    tracker.crowded = _crowded_before(directory)
    try:
        with tracker:
            for seed in range(options.seeds):
                tracker.begin_seed(seed)
                model = build_model(preset.model, data, seed, dropout=preset.dropout)
                results[seed] = find_ticket(
                    model,
                    make_train(preset, data),
                    **keywords,
                    controls=CONTROLS if options.controls else (),
                    directory=directory / f"seed_{seed}",
                    seed=seed,
                    callbacks=[tracker],
                )
                trainings = _trainings({seed: results[seed]})
                show(console, seed_grid(trainings, f"Seed {seed} ({seed + 1} of {options.seeds})"))
                _write(directory, options, preset, data, keywords, results, tracker.crowded)
    except KeyboardInterrupt:
        print(f"lth-sparse: stopped; go on with: {command_line(options)}", file=sys.stderr)
        return INTERRUPTED
    page, summary, verdict = _write(directory, options, preset, data, keywords, results, tracker.crowded)
    _conclude(console, directory, page, summary, verdict)
    if tracker.crowded is not None:
        console.print(f"Careful with the seconds: {tracker.crowded}.", markup=False, highlight=False, soft_wrap=True)
    return 0


def preset_of(options: Options) -> Preset:
    """The hyperparameters asked for.

    Raises:
        ArgumentError: an unknown model or data set, or a value that a preset cannot have.
    """
    if options.model not in PRESETS:
        raise ArgumentError(expected("model", f"one of {', '.join(PRESETS)}", repr(options.model)))
    preset = PRESETS[options.model]
    if options.quick:
        preset = preset.quick()
    dataset = options.dataset
    if dataset is None:
        dataset = PRESETS[options.model].dataset if options.data is not None else "digits"
    changes: dict[str, Any] = {"dataset": dataset, "iterations": options.iterations, "levels": options.levels}
    return dataclasses.replace(preset, **{name: value for name, value in changes.items() if value is not None})


def command_line(options: Options) -> str:
    """The command that repeats or continues a run: every option that is not its default."""
    words = ["lth-sparse", "find", options.model]
    for field in dataclasses.fields(Options)[1:]:
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}" if value else f"--no-{field.name}")
        else:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)


def show(console: Console, grid: Grid) -> None:
    """A table that fits the terminal; aligned text, never wrapped, for anything else."""
    if console.is_terminal:
        console.print(rich_table(grid if grid.width <= console.width else grid.narrow()))
    else:
        console.print(plain_text(grid) + "\n", markup=False, highlight=False, soft_wrap=True)


def _search_keywords(options: Options, preset: Preset) -> dict[str, Any]:
    pruning = {"rates": preset.rates} if options.rate is None else {"rate": options.rate}
    return {
        "levels": preset.levels,
        **pruning,
        "rewind": options.rewind,
        "scope": options.scope,
        "layout": options.layout,
    }


def _plan(options: Options, preset: Preset) -> list[Key]:
    levels: list[Key] = [(level, None) for level in range(preset.levels + 1)]
    return levels + [(preset.levels, kind) for kind in CONTROLS if options.controls]


def _claim(directory: Path, preset: Preset, keywords: dict[str, Any]) -> None:
    """Make the directory and note the settings in it, or check that those noted are the same.

    Raises:
        RunError: not writable, or other settings. TicketError: the note is damaged.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run directory {directory}: {error.strerror or error}") from error
    note = directory / "find.json"
    ours = json.loads(json.dumps({"format": FORMAT, **preset.to_dict(), **keywords}))
    advice = "choose another --output, or delete the directory to start over"
    if not note.exists():
        atomic_write(note, (json.dumps(ours, indent=2) + "\n").encode())
        return
    try:
        theirs = dict(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TicketError(f"{note}: damaged ({error}); {advice}") from error
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            had, wanted = theirs.get(name, "nothing"), ours.get(name, "nothing")
            raise RunError(f"{directory}: holds a run with {name} {had!r}, but {wanted!r} was asked for; {advice}")


def _crowded_before(directory: Path) -> str | None:
    """What an earlier part of this run said about other work on the machine; its seconds are in the report too."""
    try:
        said = json.loads((directory / "report.json").read_text(encoding="utf-8"))["crowded"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if isinstance(said, str) else None


def _announce(console: Console, options: Options, preset: Preset, data: DataSet, directory: Path) -> None:
    trainings = options.seeds * len(_plan(options, preset))
    lines = [
        f"{_title(preset)} on {data}",
        f"{trainings} trainings of {preset.iterations:,} iterations: {options.seeds} seed(s) x (dense, "
        f"{preset.levels} prunings{', 2 controls' if options.controls else ''}); into {directory}",
    ]
    if preset.dataset == "digits" and not options.quick and options.iterations is None:
        lines.append("This is the paper's full budget; --quick takes minutes.")
    console.print("\n".join(lines) + "\n", markup=False, highlight=False, soft_wrap=True)


def _title(preset: Preset) -> str:
    return TITLES.get(preset.model, preset.model) + (" with dropout" if preset.dropout else "")


def _trainings(results: dict[int, TicketResult]) -> list[Training]:
    return [t for seed, result in results.items() for t in trainings_of(seed, result.levels, result.controls)]


def _write(
    directory: Path,
    options: Options,
    preset: Preset,
    data: DataSet,
    keywords: dict[str, Any],
    results: dict[int, TicketResult],
    crowded: str | None,
) -> tuple[Path, Summary, Verdict]:
    """report.html and report.json of the seeds finished so far."""
    summary = summarise(_trainings(results))
    verdict = judge(summary, images=len(data.test))
    level = preset.levels if verdict.level is None else verdict.level
    rates = preset.rates if options.rate is None else {"all layers": options.rate, "output layer": options.rate / 2}
    named = {name: value for name, value in preset.to_dict().items() if value is not None}
    given = {**named, **keywords, "rates": ", ".join(f"{key} {value:g}" for key, value in rates.items())}
    report = Report(
        name=f"{_title(preset)} on {preset.dataset}",
        data=f"{data} (training / validation / test)",
        command=command_line(options),
        summary=summary,
        verdict=verdict,
        hyperparameters={**given, "seeds": len(results), "threads": torch.get_num_threads()},
        versions=facts.versions(),
        machine={**facts.machine(), **facts.kernels(), **facts.environment()},
        crowded=crowded,
        tickets=tuple(str(_ticket(directory, seed, level)) for seed in results),
    )
    return write_report(directory, report)[0], summary, verdict


def _ticket(directory: Path, seed: int, level: int) -> Path:
    return directory / f"seed_{seed}" / f"level_{level:02d}.safetensors"


def _conclude(console: Console, directory: Path, page: Path, summary: Summary, verdict: Verdict) -> None:
    if verdict.rows:
        show(console, verdict_grid(verdict, "Verdict"))
    lines = [f"{verdict.title}.", verdict.text, ""]
    if verdict.level is not None:
        lines.append(f"Ticket: {_ticket(directory, summary.seeds[0], verdict.level)}")
    lines.append(f"Report: {page}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
