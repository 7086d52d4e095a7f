"""`lth-sparse convert TICKET --target cpu`: every method on one ticket, the ledger, and the best point on its front.

The run directory that `lth-sparse find` has written says which network and data a ticket belongs to, and holds theta_k
of the weights that a method may add; for any other ticket, options say so. Everything is checked before the first
network is trained, and every file is written completely or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lth_sparse.cli.plan import Bar, network, parse_shape
from lth_sparse.cli.progress import crowding
from lth_sparse.engine import Ticket
from lth_sparse.engine.conversion import STANDARD, Best, Ledger, Method, ledger
from lth_sparse.engine.snapshot import Snapshot
from lth_sparse.errors import ArgumentError, LTHSparseError, RunError, TicketError, expected
from lth_sparse.ops.memory import keep_memory
from lth_sparse.paper import PRESETS, DataSet, Preset, load_dataset
from lth_sparse.paper.conversion import ledger_of
from lth_sparse.report import facts
from lth_sparse.report.conversion import ConversionReport, ledger_grid, notes_of, write_conversion
from lth_sparse.report.tables import show

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """The command line; None means what the run directory or the preset says."""

    ticket: Path
    target: str = "cpu"
    budget_loss: float = 0.5
    retrain: int | None = None
    repeats: int = 1
    methods: str | None = None
    network: str | None = None
    shape: str | None = None
    quick: bool = False
    dataset: str | None = None
    data: Path | None = None
    dense: Path | None = None
    compare: tuple[str, ...] = ()
    output: Path | None = None
    report: Path | None = None
    threads: int | None = None
    seconds: float = 1.0


def run(options: Options, console: Console | None = None) -> int:
    """Measure, print, choose and write; 0.

    Raises:
        LTHSparseError: any of the user's mistakes, before anything is trained where that can be known.
    """
    console = Console() if console is None else console
    ticket = Ticket.load(options.ticket)
    directory = options.report or Path("runs") / f"convert-{options.ticket.stem}-{ticket.hash[:8]}"
    output = options.output or directory / "ticket.safetensors"
    _check(options, directory, output)
    theta, found = _theta(options)
    methods, left_out = _methods(options, theta is not None)
    others = {name: Ticket.load(path) for name, path in _compared(options.compare)}
    before = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_memory()
    crowded = crowding()
    try:
        with Bar(console) as bar:
            common: dict[str, Any] = {"target": options.target, "dense": theta, "others": others}
            common |= {"seconds": options.seconds, "progress": bar.update, "methods": methods}
            name, book = _ledger(options, ticket, common)
    finally:
        torch.set_num_threads(before)
    best = book.best(options.budget_loss)
    assert best.entry.ticket is not None  # all but the dense network have one
    best.entry.ticket.save(output)
    report = ConversionReport(
        name=name,
        command=command_line(options),
        ledger=book,
        best=best,
        facts={"ticket": str(options.ticket), "theta_k": found, "budget": f"{options.budget_loss:g} points"},
        versions=facts.versions(),
        machine={**facts.machine(), "threads": str(book.threads), **facts.kernels(), **facts.environment()},
        crowded=crowded or crowding(),
    )
    page, _ = write_conversion(directory, report)
    _say(console, book, best, [*notes_of(book), *left_out], report.crowded)
    console.print(f"Ticket: {output}\nReport: {page}", markup=False, highlight=False, soft_wrap=True)
    return 0


def command_line(options: Options) -> str:
    """The command that repeats a conversion: every option that is not its default."""
    words = ["lth-sparse", "convert", str(options.ticket), "--target", options.target]
    for option in dataclasses.fields(Options)[2:]:
        value = getattr(options, option.name)
        if value == option.default:
            continue
        name = "--input" if option.name == "shape" else "--" + option.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(name)
        elif isinstance(value, tuple):
            words += [word for one in value for word in (name, str(one))]
        else:
            words += [name, str(value)]
    return shlex.join(words)


def _check(options: Options, directory: Path, output: Path) -> None:
    """Refuse what could only fail at the end, and make the directory."""
    if options.target not in STANDARD:
        raise ArgumentError(expected("--target", " or ".join(STANDARD), options.target))
    if not options.budget_loss >= 0.0:
        raise ArgumentError(expected("--budget-loss", "percentage points, 0 or more", options.budget_loss))
    if output.suffix != ".safetensors":
        raise ArgumentError(expected("--output", "a file name that ends in .safetensors", str(output)))
    if output.resolve() == options.ticket.resolve():
        raise ArgumentError(expected("--output", "another file than the ticket itself", str(output)))
    if (directory / "report.json").exists():
        raise ArgumentError(expected("--report", "a directory without the report of a search", str(directory)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the directory {directory}: {error.strerror or error}") from error
    if not output.absolute().parent.is_dir():
        raise ArgumentError(expected("--output", "a file in a directory that exists", str(output)))


def _theta(options: Options) -> tuple[Ticket | dict[str, Tensor] | None, str]:
    """theta_k of all weights and where it was found: the file named, the search's rewind point, or level 0."""
    if options.dense is not None:
        return _theta_in(options.dense), str(options.dense)
    for name in ("rewind.safetensors", "level_00.safetensors"):
        path = options.ticket.parent / name
        if path.exists() and path.resolve() != options.ticket.resolve():
            return _theta_in(path), str(path)
    return None, "none"


def _theta_in(path: Path) -> Ticket | dict[str, Tensor]:
    return Snapshot.load(path).tensors if path.name == "rewind.safetensors" else Ticket.load(path)


def _methods(options: Options, theta: bool) -> tuple[list[Method], list[str]]:
    """Methods, and what is said about those that cannot be carried out."""
    words = STANDARD[options.target] if options.methods is None else options.methods.split(",")
    methods = [Method.parse(word.strip()) for word in words]
    adding = [method for method in methods if method.adds]
    if theta or not adding:
        return methods, []
    what = "--dense FILE, the ticket of level 0: there is none beside the ticket"
    if options.methods is not None:
        raise ArgumentError(expected("--dense", f"{what}, and {adding[0].text} adds weights", "none"))
    names = ", ".join(method.text for method in adding)
    return [method for method in methods if not method.adds], [f"Left out, as they add weights: {names}; {what}."]


def _compared(words: tuple[str, ...]) -> list[tuple[str, Path]]:
    """ "block IMP=runs/x/level_10.safetensors" -> name and path."""
    found = []
    for word in words:
        name, equals, path = word.partition("=")
        if not name or not equals or not path:
            raise ArgumentError(expected("--compare", "NAME=TICKET", word))
        found.append((name, Path(path)))
    return found


def _ledger(options: Options, ticket: Ticket, common: dict[str, Any]) -> tuple[str, Ledger]:
    """What the ticket is called, and its ledger."""
    if options.network is not None and ":" in options.network:
        return _own(options, ticket, common)
    preset = _preset(options)
    data = _data(options, preset)
    name = f"{preset.name}, level {ticket.level}"
    book = ledger_of(preset, data, ticket, steps=options.retrain, repeats=options.repeats, **common)
    return name, book


def _own(options: Options, ticket: Ticket, common: dict[str, Any]) -> tuple[str, Ledger]:
    """A network of the user's own: without data nothing is retrained, and random images are what it is timed on."""
    if options.retrain:
        raise ArgumentError(expected("--retrain", "a network of the paper, whose data are known", options.network))
    assert options.network is not None
    model, size = network(options.network, None if options.shape is None else parse_shape(options.shape))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator)
    with torch.no_grad():
        y = model.eval()(x)
    if not isinstance(y, Tensor) or y.dim() != 2:
        got = f"shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ArgumentError(expected("--network", "one that returns [batch, classes]", got))
    targets = torch.randint(y.shape[1], (y.shape[0],), generator=generator)
    return options.network, ledger(ticket, model=model, sample=(x, targets), **common)


def _preset(options: Options) -> Preset:
    """The preset that is named, or that the run directory remembers."""
    if options.network is not None:
        if options.network not in PRESETS:
            what = f"one of {', '.join(PRESETS)}, or package.module:function"
            raise ArgumentError(expected("--network", what, options.network))
        preset = PRESETS[options.network]
        preset = preset.quick() if options.quick else preset
        return preset if options.dataset is None else preset.on(options.dataset)
    note = options.ticket.absolute().parent.parent / "find.json"
    if not note.exists():
        what = "the network of a ticket that lies in no run directory of lth-sparse find"
        raise ArgumentError(expected("--network", what, "none"))
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        return Preset.from_dict(known)
    except (OSError, ValueError, KeyError, TypeError, LTHSparseError) as error:
        raise TicketError(f"{note}: damaged ({error}); name the network with --network") from error


def _data(options: Options, preset: Preset) -> DataSet:
    return load_dataset(preset.dataset, options.data, side=preset.side if preset.dataset == "digits" else None)


def _say(console: Console, book: Ledger, best: Best, notes: list[str], crowded: str | None) -> None:
    show(console, ledger_grid(book))
    lines = [*notes, best.text]
    if crowded is not None:
        lines.append(f"Careful with the times: {crowded}.")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
