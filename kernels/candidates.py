"""Which configurations are worth timing for a problem: the heuristic's, and those around it that can run.

Every field moves by one step of its own, then two fields at once, and so on, until the list is full: a tuner that
stops early has tried the nearest. Bools of ``Tile`` are fields like all others. This module needs no Triton.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from lth_sparse.kernels import launch_csr
from lth_sparse.kernels.launch import DTYPES, Device, Problem, fault, heuristic, padded, stages_for
from lth_sparse.kernels.tiles import CSR_PRODUCTS, LEAST_SIDE, AnyTile, Gather, Scatter, Tile

__all__ = ["LIMIT", "candidates", "shared_bytes"]

#: Configurations of one problem. Compiling one takes a second or two.
LIMIT = 24
#: The largest side of a tile, and the most elements of an accumulator.
LARGEST, ACCUMULATOR = 256, 256 * 128
#: Copies of a step's operands that are worth holding in shared memory.
BUFFERS = (2, 3, 4, 5)
#: Vectors of an accumulator that one thread holds at most, where there are no buffers.
MOST_VECTORS = 4


def candidates(device: Device, problem: Problem, limit: int = LIMIT) -> list[AnyTile]:
    """At most ``limit`` configurations, the heuristic's first, the others by how many of its fields they change.

    Each divides the block's padded side and fits into the device's shared memory, as far as can be told without
    compiling it; that the kernel has a form for every combination of its bools cannot. Of an unstructured weight, whose
    sizes and density must be known, each gives all threads of a program something to do, and none too much.
    """
    first: AnyTile
    if problem.product in CSR_PRODUCTS:
        first = launch_csr.heuristic(device, problem)
        around = _unstructured(device, problem, first)
    else:
        first = heuristic(device, problem)
        around = _around(device, problem, first)
    return list(itertools.islice(dict.fromkeys([first, *around]), limit))


def _around(device: Device, problem: Problem, first: Tile) -> Iterator[AnyTile]:
    """All tiles that can run, fewest changes first; sets of fields take turns, so that each is tried early."""
    gathers = not problem.product.endswith("weight_gradient")
    choices: dict[str, list[Any]] = {name: _steps(getattr(first, name)) for name in ("block_m", "block_n", "block_k")}
    if gathers:  # more rows than tokens are rows of nothing
        choices["block_m"] = [m for m in choices["block_m"] if m <= max(padded(problem.tokens), first.block_m)]
    choices["num_warps"] = [first.num_warps, *(warps for warps in (4, 8, 2) if warps != first.num_warps)]
    choices["buffers"] = [None, *BUFFERS]
    kinds = typing.get_type_hints(Tile)
    for name, kind in kinds.items():
        if kind is bool:
            choices[name] = [getattr(first, name), not getattr(first, name)]

    def changing(names: tuple[str, ...]) -> Iterator[AnyTile]:
        for values in itertools.product(*(choices[name][1:] for name in names)):
            fields = dict(zip(names, values, strict=True))
            buffers = fields.pop("buffers", None)
            tile = replace(first, **fields)
            if buffers is not None:
                tile = replace(tile, num_stages=stages_for(device, tile, buffers, gathers=gathers))
            if _can_run(device, problem, tile, gathers):
                yield tile

    yield from _by_changes(choices, changing)


def _unstructured(device: Device, problem: Problem, first: Gather | Scatter) -> Iterator[AnyTile]:
    """The same for ``csr_linear``."""
    choices: dict[str, list[Any]] = {name: _steps(size, 1) for name, size in vars(first).items()}
    choices["num_warps"] = [4, 8, 2]
    if isinstance(first, Gather):  # more tokens than there are would be nothing
        choices["block_m"] = [m for m in choices["block_m"] if m <= padded(problem.tokens, 1)]

    def changing(names: tuple[str, ...]) -> Iterator[AnyTile]:
        for values in itertools.product(*(choices[name][1:] for name in names)):
            tile = replace(first, **dict(zip(names, values, strict=True)))
            elements = (tile.rows * tile.lanes if isinstance(tile, Gather) else tile.entries) * tile.block_m
            threads = tile.num_warps * (64 if device.hip else 32)
            each = MOST_VECTORS * launch_csr.VECTOR // DTYPES[problem.dtype]
            if threads <= elements <= each * threads and fault(problem, tile) is None:
                yield tile

    yield from _by_changes(choices, changing)


def _by_changes(names: Iterable[str], changing: Callable[[tuple[str, ...]], Iterator[AnyTile]]) -> Iterator[AnyTile]:
    """What changing one, two and three of the fields gives; sets of fields take turns."""
    for changed in range(1, 4):
        turns = itertools.zip_longest(*map(changing, itertools.combinations(names, changed)))
        yield from (tile for tile in itertools.chain.from_iterable(turns) if tile is not None)


def _steps(size: int, least: int = LEAST_SIDE) -> list[int]:
    """A side, half of it and twice of it."""
    return [size, *(step for step in (size // 2, 2 * size) if least <= step <= LARGEST)]


def _can_run(device: Device, problem: Problem, tile: Tile, gathers: bool) -> bool:
    few_warps = tile.num_warps < 4 and tile.block_m * tile.block_n > 64 * 32
    return (
        fault(problem, tile) is None
        and tile.block_m * tile.block_n <= ACCUMULATOR
        and not few_warps
        and shared_bytes(device, problem, tile, gathers=gathers) <= device.shared
    )


def shared_bytes(device: Device, problem: Problem, tile: Tile, *, gathers: bool) -> int:
    """Bytes of shared memory that the operands' buffers take: the inverse of ``stages_for``, at least one buffer."""
    step = (tile.block_m + tile.block_n) * tile.block_k * DTYPES[problem.dtype]
    held = [count for count in range(1, 9) if stages_for(device, tile, count, gathers=gathers) <= tile.num_stages]
    return step * max(held[-1] if held and not device.hip else 1, 1)
