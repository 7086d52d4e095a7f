"""Groups of like rows by graph and hypergraph partitioners, instead of this library's own search.

Both are optional, ``pip install lth_sparse[partition]``. METIS (package ``pymetis``, licences MIT and Apache-2.0) cuts
a graph in which every row knows those most like it; Mt-KaHyPar (package ``mtkahypar``, licence MIT) a hypergraph whose
edges are the columns, so that it minimises the live blocks of one column's width themselves. What they return is
nearly balanced; rows are moved until every group has exactly the rows of a block.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lth_sparse.errors import BackendError

__all__ = ["PARTITIONERS", "partition"]

#: Parts may be larger than the mean by this share before they are made equal.
IMBALANCE = 0.03


def partition(method: str, live: Tensor, extent: int, near: Tensor, seed: int) -> Tensor:
    """An order of the rows of ``live`` in which each ``extent`` of them are a group of like rows.

    Args:
        method: one of ``PARTITIONERS``.
        live: bool ``[rows, columns]``. Rows without a live entry come last.
        extent: rows in a group.
        near: int32 ``[rows, k]``, the rows most like each; -1 where there are fewer.
        seed: of the partitioner.

    Returns:
        int64 ``[rows]``.

    Raises:
        BackendError: the package is not installed.
    """
    package, parts_of = PARTITIONERS[method]
    module = _import(package, method)
    degrees = live.sum(1)
    rows = degrees.nonzero().view(-1)
    empty = (degrees == 0).nonzero().view(-1)
    count = -(-rows.numel() // extent)
    if count < 2:
        return torch.cat((rows, empty))
    parts = parts_of(module, live, rows, near, count, seed)
    return torch.cat((rows[_equal_groups(parts, extent)], empty))


def _import(package: str, method: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BackendError(
            f"method: expected '{method}' to find the package {package}, but it is not installed; "
            "pip install lth_sparse[partition]"
        ) from error


def _metis(metis: Any, live: Tensor, rows: Tensor, near: Tensor, count: int, seed: int) -> Tensor:
    size = live.shape[0]
    first = torch.repeat_interleave(rows, near.shape[1])
    second = near[rows].reshape(-1).to(torch.int64)
    first, second = first[second >= 0], second[second >= 0]
    pairs = torch.cat((first * size + second, second * size + first)).unique()  # both directions, ascending
    first, second = pairs // size, pairs % size
    halves = zip(first.split(1 << 12), second.split(1 << 12), strict=True)  # at most so many rows at once
    shared = torch.cat([(live[a] & live[b]).sum(1) for a, b in halves])
    place = torch.full((size,), -1, dtype=torch.int64)
    place[rows] = torch.arange(rows.numel())
    starts = torch.zeros(rows.numel() + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(place[first], minlength=rows.numel()), 0, out=starts[1:])
    options = metis.Options(seed=seed % (1 << 31), ufactor=round(1000 * IMBALANCE))
    found = metis.part_graph(
        count,
        metis.CSRAdjacency(starts.tolist(), place[second].tolist()),
        eweights=(shared + 1).tolist(),  # METIS wants positive weights
        options=options,
        recursive=False,
    )
    return torch.tensor(list(found.vertex_part))


def _mtkahypar(mtkahypar: Any, live: Tensor, rows: Tensor, near: Tensor, count: int, seed: int) -> Tensor:
    columns = live[rows].t()
    counts = columns.sum(1)
    places = columns.nonzero()[:, 1].split(counts.tolist())
    edges = [edge.tolist() for edge in places if edge.numel() > 1]
    library = _library(mtkahypar)
    mtkahypar.set_seed(seed % (1 << 31))
    context = library.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(count, IMBALANCE, mtkahypar.Objective.KM1)
    context.logging = False
    graph = library.create_hypergraph(context, rows.numel(), len(edges), edges)
    return torch.tensor(graph.partition(context).get_partition())


#: Mt-KaHyPar's handle by module: it may be initialised once in a process.
_LIBRARIES: dict[str, Any] = {}


def _library(mtkahypar: Any) -> Any:
    if "mtkahypar" not in _LIBRARIES:
        _LIBRARIES["mtkahypar"] = mtkahypar.initialize(torch.get_num_threads(), print_warnings=False)
    return _LIBRARIES["mtkahypar"]


def _equal_groups(parts: Tensor, extent: int) -> Tensor:
    """An order of items by part, where every group but the last has exactly ``extent``: what is over in one part, and
    the smallest parts, fill up the others."""
    groups = [(parts == part).nonzero().view(-1).tolist() for part in parts.unique().tolist()]
    spare = [item for group in groups for item in group[extent:]]
    groups = sorted((group[:extent] for group in groups), key=len, reverse=True)
    order: list[int] = []
    while groups:
        group = groups.pop(0)
        while len(group) < extent and (spare or groups):
            if not spare:
                spare = groups.pop()
            group.append(spare.pop())
        order += group
    return torch.tensor(order + spare)


#: Method -> its package, and the function that gives each of the rows its part.
PARTITIONERS: dict[str, tuple[str, Callable[[Any, Tensor, Tensor, Tensor, int, int], Tensor]]] = {
    "metis": ("pymetis", _metis),
    "mtkahypar": ("mtkahypar", _mtkahypar),
}
