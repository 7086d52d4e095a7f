"""The command `sweep`: its options, and what it takes over from `find`; `sweeping` does the work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lth_sparse.errors import ArgumentError, expected

if TYPE_CHECKING:
    from lth_sparse.cli.find import Options

__all__ = ["FORWARDS", "sweep"]

#: For typer: whatever `sweep` does not know goes on to `find`.
FORWARDS = {"ignore_unknown_options": True}

TRUE, FALSE = ("yes", "true", "on"), ("no", "false", "off")


def sweep(
    find: Annotated[
        list[str] | None,
        typer.Argument(
            help="Model and options of `lth-sparse find` that all combinations share, such as: conv2 --quick --seeds 5",
            show_default="lenet",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of find and its values, such as rate=0.1,0.2; may be repeated. Every combination is run.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Combinations that run at the same time.", show_default="cores // threads"),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each of them.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run them as tasks of a Ray cluster whose nodes share OUTPUT: auto for the running one, local for one "
            "on this machine, or its address. Needs pip install 'lth_sparse[ray]'.",
            show_default="processes of this machine",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Directory of the report, and of a run directory for each combination.")
    ] = Path("runs/sweep"),
) -> int:
    """Run find for every combination of some options, in parallel processes, and write one report of all.

    The same command goes on where it was stopped. Exit code 1 when a combination failed; the others are run.
    """
    from lth_sparse.cli.sweeping import sweep

    words = list(find or ())
    return sweep(options_of(words), grid_of(grid or (), words), output=output, jobs=jobs, threads=threads, ray=ray)


def options_of(words: Iterable[str]) -> Options:
    """The words of a command line of `find` as options.

    Raises:
        typer's exceptions: as `find` does.
    """
    import dataclasses

    from lth_sparse.cli.commands import app
    from lth_sparse.cli.find import Options

    command: Any = typer.main.get_command(app)
    with command.commands["find"].make_context("lth-sparse sweep", list(words)) as context:
        given = dict(context.params)
    for option in dataclasses.fields(Options):
        if option.name in ("data", "output"):
            given[option.name] = None if given[option.name] is None else Path(given[option.name])
        elif isinstance(option.default, tuple):
            given[option.name] = tuple(given[option.name] or ())
    return Options(**given)


def grid_of(entries: Iterable[str], words: Iterable[str]) -> dict[str, list[Any]]:
    """Option -> values of entries such as "rate=0.1,0.2"; each value read as `find` reads it.

    Raises:
        ArgumentError: an entry without values, or of an option that comes twice or that find has not.
    """
    import dataclasses

    from lth_sparse.cli.find import Options

    defaults = {option.name: option.default for option in dataclasses.fields(Options)}
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        option, equals, values = entry.partition("=")
        name = option.strip().lstrip("-").replace("-", "_")
        texts = [text.strip() for text in values.split(",")]
        if not equals or not all(texts):
            raise ArgumentError(expected("grid", "an option and its values, such as rate=0.1,0.2", repr(entry)))
        if name not in defaults:
            raise ArgumentError(expected("grid", "an option of find, such as rate or rewind", repr(option)))
        if name in grid:
            raise ArgumentError(expected("grid", "every option once, with all its values", f"{option!r} twice"))
        if isinstance(defaults[name], bool):
            grid[name] = [_flag(option, text) for text in texts]
        elif name == "model":
            grid[name] = texts
        else:
            grid[name] = [getattr(options_of([*words, f"--{name.replace('_', '-')}={text}"]), name) for text in texts]
    return grid


def _flag(option: str, text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise ArgumentError(expected(f"grid, {option}", "yes or no", repr(text)))
    return text.lower() in TRUE
