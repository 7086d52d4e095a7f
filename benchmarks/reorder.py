"""Reordering: what of hidden blocks each method finds again, on shuffled masks, and how few blocks it leaves a ticket.

    python -m lth_sparse.benchmarks.reorder [--methods greedy,metis,mtkahypar] [--largest 4096] [--csv FILE]
    python -m lth_sparse.benchmarks.reorder --ticket level_14.safetensors [--steps]

A hidden mask keeps a share of its blocks. Some of their weights are then pruned ("missing"), some weights outside of
them are kept ("stray"; a share of the weights inside), and rows and columns are shuffled. What counts as found:

    recovered = blocks that are hidden / blocks of the result, fullest first, that hold as many live weights as those do

At equal weights held, block counts compare densities. It is strict where there are stray weights: a single row in a
wrong place is made up for by many blocks of strays. Beside it `fill`: live weights in as many blocks of the result as
are hidden, fullest first, over those in the hidden ones. 1 is the mask before it was shuffled; an order that packs
stray weights as well may exceed it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lth_sparse.engine import Ticket
from lth_sparse.errors import LTHSparseError
from lth_sparse.formats import BSR, CSR, Dense, Layout, Reordered
from lth_sparse.formats.partition import PARTITIONERS
from lth_sparse.formats.reorder import Reordering, live_blocks, reorder
from lth_sparse.ops.measure import measure
from lth_sparse.report.tables import Grid, plain_text

from .machine import ABOUT, about, torch_threads
from .measure import write_csv

__all__ = ["CASES", "COLUMNS", "HiddenBlocks", "Recovery", "recover"]

#: (missing, stray): each alone and both.
NOISE = ((0.05, 0.0), (0.2, 0.0), (0.0, 0.05), (0.0, 0.1), (0.0, 0.2), (0.1, 0.1), (0.2, 0.2))
SIZES = (256, 512, 1024, 2048, 4096)
BLOCKS = ((16, 16), (32, 32), (4, 1), (8, 1), (1, 16), (4, 16), (16, 8), (32, 16), (8, 4))
DENSITIES = (0.05, 0.1, 0.2, 0.3)

#: Blocks in which a ticket's layers are reordered.
TICKET_BLOCKS = ((4, 1), (8, 1), (4, 4), (8, 8), (16, 16))

COLUMNS = (
    *("mask", "rows", "cols", "block", "density", "missing", "stray", "method", "exchanges"),
    *("hidden", "needed", "recovered", "fill", "blocks_before", "blocks_after", "seconds", "cpu_seconds"),
    *ABOUT,
)


@dataclass(frozen=True)
class HiddenBlocks:
    """A mask whose blocks are hidden by a shuffle.

    Attributes:
        rows, cols, block: of the mask; blocks at its edges may be cut.
        density: share of the blocks that are kept.
        missing: share of the weights inside them that are pruned.
        stray: weights kept outside of them, over those kept inside.
        seed: of all that is random.
    """

    rows: int
    cols: int
    block: tuple[int, int]
    density: float
    missing: float
    stray: float
    seed: int

    def draw(self) -> tuple[Tensor, Tensor]:
        """The shuffled mask, and live weights of the hidden blocks ``[block_rows, block_cols]``, strays not counted."""
        generator = torch.Generator().manual_seed(self.seed)
        r, c = self.block
        grid = -(-self.rows // r), -(-self.cols // c)
        kept = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
        order = torch.randperm(kept.numel(), generator=generator)
        kept[order[: max(1, round(self.density * kept.numel()))]] = True
        full = kept.view(grid).repeat_interleave(r, 0).repeat_interleave(c, 1)[: self.rows, : self.cols]
        inside = full & (torch.rand(full.shape, generator=generator) >= self.missing)
        outside = (~full).reshape(-1).nonzero().view(-1)
        strays = round(self.stray * int(inside.sum()))
        mask = inside.flatten().clone()
        mask[outside[torch.randperm(outside.numel(), generator=generator)[:strays]]] = True
        rows = torch.randperm(self.rows, generator=generator)
        cols = torch.randperm(self.cols, generator=generator)
        return mask.view_as(full)[rows][:, cols], live_blocks(inside, self.block)

    @property
    def name(self) -> str:
        """Such as ``"1024x1024 in 16x16"``."""
        return f"{self.rows}x{self.cols} in {self.block[0]}x{self.block[1]}"


#: Ten of every size: blocks, densities and noise take turns, none in step with another.
CASES: tuple[HiddenBlocks, ...] = tuple(
    HiddenBlocks(size, size, BLOCKS[i % len(BLOCKS)], DENSITIES[i % len(DENSITIES)], *NOISE[i % len(NOISE)], seed=i)
    for i, size in enumerate(itertools.islice(itertools.cycle(SIZES), 50))
)


@dataclass(frozen=True)
class Recovery:
    """What one method made of one mask; ``recovered`` and ``fill`` as above, of hidden blocks with a live weight."""

    hidden: int
    needed: int
    fill: float
    order: Reordering
    seconds: float
    cpu_seconds: float

    @property
    def recovered(self) -> float:
        """Hidden blocks over those needed to hold as many weights."""
        return self.hidden / self.needed


def recover(case: HiddenBlocks, method: str = "greedy", exchanges: bool = True) -> Recovery:
    """Reorder a shuffled mask and count its blocks."""
    mask, hidden = case.draw()
    order, seconds, cpu = _timed(mask, case.block, method, exchanges)
    count, weights = int((hidden > 0).sum()), int(hidden.sum())
    held = live_blocks(mask, case.block, order.rows, order.cols).flatten().sort(descending=True).values.cumsum(0)
    needed = int((held < weights).sum()) + 1
    return Recovery(count, needed, float(held[count - 1]) / weights, order, seconds, cpu)


def _timed(mask: Tensor, block: tuple[int, int], method: str, exchanges: bool) -> tuple[Reordering, float, float]:
    """The order, and seconds by the clock and of this process."""
    start, begin = time.perf_counter(), time.process_time()
    order = reorder(mask, block, method=method, exchanges=exchanges)
    return order, time.perf_counter() - start, time.process_time() - begin


def hidden_rows(cases: Sequence[HiddenBlocks], methods: Sequence[str], largest_other: int) -> Iterator[dict[str, str]]:
    """A row for each mask and method, with and without the exchanges that follow it; partitioners, which are slow, up
    to masks of ``largest_other`` rows."""
    for number, case in enumerate(cases):
        for method, exchanges in itertools.product(methods, (True, False)):
            if method != "greedy" and case.rows > largest_other:
                continue
            found = recover(case, method, exchanges)
            yield {
                **_described(f"hidden {number}", (case.rows, case.cols), case.block, method, exchanges, found.order),
                "density": f"{case.density:g}",
                "missing": f"{case.missing:g}",
                "stray": f"{case.stray:g}",
                "hidden": str(found.hidden),
                "needed": str(found.needed),
                "recovered": f"{found.recovered:.4f}",
                "fill": f"{found.fill:.4f}",
                "seconds": f"{found.seconds:.3f}",
                "cpu_seconds": f"{found.cpu_seconds:.3f}",
            }


def ticket_rows(masks: dict[str, Tensor], methods: Sequence[str]) -> Iterator[dict[str, str]]:
    """A row for each layer, block and method."""
    for (name, mask), block in itertools.product(masks.items(), TICKET_BLOCKS):
        for method, exchanges in itertools.product(methods, (True, False)):
            order, seconds, cpu = _timed(mask, block, method, exchanges)
            live, (r, c) = int(mask.sum()), block
            yield {
                **_described(name, (mask.shape[0], mask[0].numel()), block, method, exchanges, order),
                "density": f"{live / mask.numel():.4f}",
                "fill": f"{live / max(order.blocks_after * r * c, 1):.4f}",
                "seconds": f"{seconds:.3f}",
                "cpu_seconds": f"{cpu:.3f}",
            }


def _described(
    mask: str, size: tuple[int, int], block: tuple[int, int], method: str, exchanges: bool, order: Reordering
) -> dict[str, str]:
    return {
        **dict.fromkeys(COLUMNS, ""),
        "mask": mask,
        "rows": str(size[0]),
        "cols": str(size[1]),
        "block": f"{block[0]}x{block[1]}",
        "method": method,
        "exchanges": str(exchanges),
        "blocks_before": str(order.blocks_before),
        "blocks_after": str(order.blocks_after),
    }


def step_grid(masks: dict[str, Tensor], batch: int, blocks: Sequence[tuple[int, int]] = TICKET_BLOCKS) -> Grid:
    """Forward pass and training step of linear layers in CSR, in blocks, in reordered blocks and dense, interleaved."""
    rows = []
    for name, mask in masks.items():
        if mask.dim() != 2:
            continue
        layouts: dict[str, Layout] = {"csr": CSR.from_mask(mask).narrow(), "dense": Dense.from_mask(mask)}
        for block in blocks:
            shape = f"{block[0]}x{block[1]}"
            layouts[f"bsr {shape}"] = BSR.from_mask(mask, block, "zeros")
            layouts[f"reordered {shape}"] = Reordered.from_mask(mask, block, "zeros")
        weight, x = torch.randn(mask.shape) * mask, torch.randn(batch, mask.shape[1])
        times = measure(weight, layouts, x, torch.zeros(mask.shape[0]))
        csr = times["csr"]
        for candidate, timing in times.items():
            layout = layouts.get(candidate)
            stored = layout.values_shape if layout is not None and layout.kind != "dense" else mask.shape
            rows.append(
                (
                    name,
                    candidate,
                    f"{torch.Size(stored).numel() / max(int(mask.sum()), 1):.2f}",
                    f"{1e6 * timing.forward:.1f}",
                    f"{csr.forward / timing.forward:.2f}x",
                    f"{1e6 * timing.training:.1f}",
                    f"{csr.training / timing.training:.2f}x",
                )
            )
    header = ("layer", "layout", "stored / live", "forward us", "of csr", "step us", "of csr")
    return Grid(f"Linear layers, batch {batch}: times over CSR's", header, tuple(rows), left=2)


def table(rows: Sequence[dict[str, str]], title: str) -> Grid:
    """The columns of ``COLUMNS`` that say something, machine and date aside."""
    names = [name for name in COLUMNS if name not in ABOUT and any(row[name] for row in rows)]
    return Grid(title, tuple(names), tuple(tuple(row[name] for name in names) for row in rows))


def summary(rows: Sequence[dict[str, str]]) -> str:
    """One line for each method: how much it recovered at least, and how long it took at most."""
    lines = []
    for method, exchanges in dict.fromkeys((row["method"], row["exchanges"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["exchanges"]) == (method, exchanges) and row["recovered"]]
        if mine:
            least = min(float(row["recovered"]) for row in mine)
            longest = max(float(row["cpu_seconds"]) for row in mine)
            enough = sum(float(row["recovered"]) >= 0.9 for row in mine)
            words = method + ("" if exchanges == "True" else " without exchanges")
            found = f"{enough} of {len(mine)} recovered to 90%, least {least:.1%}"
            lines.append(f"{words}: {found}, at most {longest:.1f} processor seconds")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for and print it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lth_sparse.benchmarks.reorder", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="greedy", help=f"comma separated: greedy, {', '.join(PARTITIONERS)}")
    parser.add_argument("--largest", type=int, default=4096, help="rows of the largest masks")
    parser.add_argument("--largest-other", type=int, default=512, help="the same for methods other than greedy")
    parser.add_argument("--ticket", type=Path, help="reorder the masks of this ticket instead")
    parser.add_argument("--steps", action="store_true", help="with --ticket: time its linear layers in each layout")
    parser.add_argument("--batch", type=int, default=60, help="samples of --steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="append the rows to this file, with machine and versions")
    chosen = parser.parse_args(arguments)
    methods = chosen.methods.split(",")
    try:
        with torch_threads(chosen.threads):
            if chosen.ticket is None:
                cases = [case for case in CASES if case.rows <= chosen.largest]
                rows = list(hidden_rows(cases, methods, chosen.largest_other))
                print(plain_text(table(rows, "Hidden blocks, shuffled")), summary(rows), sep="\n\n")
            else:
                masks = dict(Ticket.load(chosen.ticket).masks)
                rows = list(ticket_rows(masks, methods))
                print(plain_text(table(rows, f"Masks of {chosen.ticket.name}")))
                if chosen.steps:
                    print(plain_text(step_grid(masks, chosen.batch)))
        if chosen.csv:
            where = about()
            write_csv(chosen.csv, [{**row, **where} for row in rows], COLUMNS)
    except LTHSparseError as error:
        print(f"lth_sparse: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
