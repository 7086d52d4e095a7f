"""`lth-sparse tune`: time launch configurations of the Triton kernels on this GPU and keep the fastest; export them.

The layers are benchmark cases, or those of a network, with random masks at the densities asked for: of blocks, or of
single weights for the CSR kernels.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from lth_sparse import nn as sparse_nn
from lth_sparse._files import atomic_write
from lth_sparse.benchmarks.cases import select
from lth_sparse.cli.plan import Bar, network, parse_block, parse_densities, parse_shape
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.kernels.candidates import LIMIT
from lth_sparse.kernels.launch import DTYPES
from lth_sparse.ops import tuning
from lth_sparse.ops.cost import random_mask
from lth_sparse.ops.tune_cache import exported

__all__ = ["Options", "run"]

PLACE = "cuda"
CASES, DENSITIES, BLOCKS = "headline", (0.2, 0.1), ((32, 32), (64, 64))
LAYOUTS = ("bsr", "csr")


@dataclass(frozen=True)
class Options:
    """What the command line asks for; None where it is silent."""

    model: str | None = None
    shape: str | None = None
    cases: str | None = None
    density: str | None = None
    blocks: str | None = None
    layout: str = "bsr"
    dtype: str = "bfloat16"
    forward: bool = False
    again: bool = False
    limit: int = LIMIT
    export: Path | None = None


def run(options: Options, console: Console | None = None) -> int:
    """Tune, print and export; 0.

    Raises:
        LTHSparseError: any of the user's mistakes, before anything is measured where that can be known; no GPU.
    """
    console = Console() if console is None else console
    if options.dtype not in DTYPES:
        raise ArgumentError(expected("--dtype", f"one of {', '.join(DTYPES)}", options.dtype))
    if options.export is not None and not options.export.absolute().parent.is_dir():
        raise ArgumentError(expected("--export", "a file in a directory that exists", str(options.export)))
    if options.shape is not None and options.model is None:
        raise ArgumentError(expected("MODEL", "a network that takes --input", "none"))
    if options.layout not in LAYOUTS:
        raise ArgumentError(expected("--layout", f"one of {', '.join(LAYOUTS)}", options.layout))
    if options.layout == "csr" and options.blocks is not None:
        raise ArgumentError(expected("--block", "none beside --layout csr, which has single weights", options.blocks))
    densities = DENSITIES if options.density is None else parse_densities(options.density)
    blocks: tuple[tuple[int, int] | None, ...] = BLOCKS if options.layout == "bsr" else (None,)
    if options.blocks is not None:
        blocks = tuple(map(parse_block, options.blocks.split(",")))
    networks = _networks(options)
    device = tuning.gpu()
    variants = list(itertools.product(networks, blocks, densities))
    for number, ((name, model, sample), block, density) in enumerate(variants, 1):
        built = _pruned(model, block, density).to(device=PLACE, dtype=getattr(torch, options.dtype))
        x = sample.to(device=PLACE, dtype=getattr(torch, options.dtype)).requires_grad_(sample.requires_grad)
        with Bar(console) as bar:
            report = sparse_nn.tune(
                built,
                x,
                gradients=not options.forward,
                again=options.again,
                limit=options.limit,
                progress=bar.update,
            )
        what = f"blocks {block[0]}x{block[1]}" if block else "CSR"
        head = f"[{number}/{len(variants)}] {name}, {what}, density {density:g}"
        console.print(f"{head}\n{report}", markup=False, highlight=False, soft_wrap=True)
    if options.export is not None:
        atomic_write(options.export, exported(device).encode())
        console.print(f"Table: {options.export}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _networks(options: Options) -> list[tuple[str, nn.Module, Tensor]]:
    """Name, dense model and sample of everything to tune; none where an export is all that is asked for."""
    found: list[tuple[str, nn.Module, Tensor]] = []
    if options.model is not None:
        model, size = network(options.model, None if options.shape is None else parse_shape(options.shape))
        found.append((options.model, model, torch.randn(size, generator=torch.Generator().manual_seed(0))))
    if options.cases is not None or (options.model is None and options.export is None):
        for case in select(CASES if options.cases is None else options.cases):
            # A layer inside of a network: the gradient of its input is tuned, too.
            found.append((case.name, nn.Sequential(case.module()), case.input().requires_grad_()))
    return found


def _pruned(model: nn.Module, block: tuple[int, int] | None, density: float) -> nn.Module:
    """A copy whose layers keep random blocks, or random weights as CSR."""
    sparse, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    masks = {
        f"{name}.weight": random_mask(module.weight.shape, density, block, generator)
        for name, module in sparse.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
    }
    sparse_nn.sparsify_(sparse, masks, layout="bsr" if block else "csr", block=block)
    return sparse
