"""`lth-sparse plan`: what pruning a network would gain on this machine, before anyone prunes it.

The network is a preset's, or what a function "package.module:function" returns; files with pickled modules are not
loaded, since reading one runs whatever it holds.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from torch import nn

from lth_sparse import nn as sparse_nn
from lth_sparse._files import atomic_write
from lth_sparse.cli.progress import duration
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn import PlanTable
from lth_sparse.paper import PRESETS, build_model
from lth_sparse.report.tables import Grid, plain_text, rich_table

__all__ = ["network", "parse_block", "parse_densities", "parse_device", "parse_shape", "run", "show"]

#: The batch of the paper, and the images of its data sets.
COLOUR = (3, 32, 32)


def run(
    model: str,
    *,
    shape: str | None = None,
    density: str | None = None,
    block: str | None = None,
    threads: int | None = None,
    predict: bool = False,
    device: str = "cpu",
    channels_last: bool = False,
    json_file: Path | None = None,
    console: Console | None = None,
) -> int:
    """Plan and print; 0.

    Raises:
        LTHSparseError: any of the user's mistakes, before anything is measured where that can be known.
    """
    console = Console() if console is None else console
    densities = (0.5, 0.2, 0.1, 0.05) if density is None else parse_densities(density)
    blocks = None if block is None else parse_block(block)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ArgumentError(expected("--json", "a file in a directory that exists", str(json_file)))
    place = parse_device(device)
    if predict and place.type != "cpu":
        raise ArgumentError(expected("--predict", "--device cpu beside it: the cost model is for CPUs", device))
    if channels_last and blocks is None:
        raise ArgumentError(expected("--channels-last", "--block beside it: the order of blocks", "none"))
    if channels_last and place.type == "cpu":
        what = "--device cuda beside it: CPUs have no kernels for such blocks"
        raise ArgumentError(expected("--channels-last", what, device))
    built, size = network(model, None if shape is None else parse_shape(shape))
    built = built.to(place)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        parameter = next(built.parameters(), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        sample = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(place, dtype)
        if channels_last:
            built = built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            sample = sample.to(memory_format=torch.channels_last) if sample.dim() == 4 else sample
        with Bar(console) as bar:
            table = sparse_nn.plan(
                built, sample, densities=densities, block=blocks, measure=not predict, progress=bar.update,
                channels_last=channels_last,
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    if json_file is not None:
        about = {"model": model, "input": list(size)}
        atomic_write(json_file, (json.dumps({**about, **table.to_dict()}, indent=1) + "\n").encode())
    show(console, table)
    return 0


def network(name: str, size: tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    """The network that the command line names, and the shape of its input."""
    if name in PRESETS:
        preset = PRESETS[name]
        size = size or (preset.batch, *((784,) if preset.model == "lenet" else COLOUR))
        if preset.model == "lenet":
            image = (1, 1, torch.Size(size[1:]).numel())
        elif len(size) == 4:
            image = (size[1], size[2], size[3])
        else:
            raise ArgumentError(expected("--input", f"NxCxHxW for {name}, such as 60x3x32x32", _joined(size)))
        return build_model(preset.model, image, dropout=preset.dropout), size
    if ":" not in name:
        what = f"one of {', '.join(PRESETS)}, or package.module:function"
        pickled = "; modules in files are not loaded, name the function that builds one" if "." in name else ""
        raise ArgumentError(expected("MODEL", what, name) + pickled)
    if size is None:
        raise ArgumentError(expected("--input", "the shape of an input of MODEL, such as 32x3x32x32", "none"))
    return _built(name), size


def _built(name: str) -> nn.Module:
    """The module that ``package.module:function`` returns."""
    module_name, _, path = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it; installed commands do not
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(f"MODEL: cannot find {name} ({' '.join(str(error).split())})") from error
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ArgumentError(f"MODEL: importing {module_name} raised {_words(error)}") from error
    if not callable(found):
        raise ArgumentError(expected("MODEL", "a function that returns a torch.nn.Module", type(found).__name__))
    try:
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # the user's code again
        raise ArgumentError(f"MODEL: {name}() raised {_words(error)}") from error
    if not isinstance(model, nn.Module):
        raise ArgumentError(expected("MODEL", f"a torch.nn.Module from {name}()", type(model).__name__))
    return model


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def parse_device(text: str) -> torch.device:
    """ "cuda:1" -> that device.

    Raises:
        ArgumentError: neither the CPU nor a CUDA device, or one that torch does not find here.
    """
    if not (found := re.fullmatch(r"cpu|cuda(?::(\d+))?", text)):
        raise ArgumentError(expected("--device", "cpu, cuda, or cuda:N", text))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text != "cpu" and int(found[1] or 0) >= count:
        there = f"one of the {count} CUDA device(s) here" if count else "cpu, since torch finds no CUDA device here"
        raise ArgumentError(expected("--device", there, text))
    return torch.device(text)


def parse_shape(text: str) -> tuple[int, ...]:
    """ "60x784" -> (60, 784)."""
    if not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)+", text):
        raise ArgumentError(expected("--input", "sizes joined by x with the batch first, such as 60x784", text))
    return tuple(int(size) for size in re.split("[x,]", text))


def parse_block(text: str) -> tuple[int, int]:
    """ "16x16" -> (16, 16)."""
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise ArgumentError(expected("--block", "rows x columns, such as 16x16", text))
    return int(found[1]), int(found[2])


def parse_densities(text: str) -> tuple[float, ...]:
    """ ".5,.2" or "50%,20%" -> (0.5, 0.2)."""
    found = []
    for word in text.split(","):
        try:
            density = float(word.strip().removesuffix("%")) / (100.0 if word.strip().endswith("%") else 1.0)
        except ValueError:
            density = float("nan")
        if not 0.0 < density < 1.0:
            raise ArgumentError(expected("--density", "shares in (0, 1) such as .5,.2,.1 or 50%,20%", text))
        found.append(density)
    return tuple(found)


def _joined(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def show(console: Console, table: PlanTable) -> None:
    """One table per layout in a terminal, two where it is narrow, or aligned text where there is none."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for layout in table.layouts:
        header, rows = table.grid(layout)
        grid = Grid(table.title(layout), header, tuple(rows), left=2)
        if not console.is_terminal:
            say(plain_text(grid) + "\n")
            continue
        for part in [grid] if grid.width <= console.width else _halves(grid, len(table.densities)):
            console.print(rich_table(part))
    for line in table.notes():
        say(line)


def _halves(grid: Grid, gains: int) -> tuple[Grid, Grid]:
    """Break-even points first, speed-ups below; both name the layers."""
    even = tuple(row[:-gains] for row in grid.rows if row[4])  # totals have no break-even point
    steps = tuple((row[0], row[3], *row[-gains:]) for row in grid.rows)
    headers = (grid.headers[0], grid.headers[3], *grid.headers[-gains:])
    return Grid(grid.title, grid.headers[:-gains], even, left=2), Grid("Speed-up of the step", headers, steps)


class Bar:
    """A bar with the time left while layers are timed; nothing where no terminal is.

    It is drawn by whoever calls `update`: a thread of its own would disturb what is being timed.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.started = console, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Bar:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("measuring {task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0, left="")
            self._bar.start()
        return self

    def update(self, done: float, words: str) -> None:
        """The share of the work that is done, and what is next."""
        if self._bar is None:
            return
        spent = time.monotonic() - self.started
        left = f"about {duration(spent * (1.0 - done) / done)} left" if done > 0.0 else ""
        self._bar.update(self._task, completed=done, description=words, left=left)
        self._bar.refresh()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
