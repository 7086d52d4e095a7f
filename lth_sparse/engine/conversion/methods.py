"""Methods of conversion: how the mask of one layer becomes one that fast kernels like, and what each of them costs.

A method takes a layer's mask and the magnitudes of its trained weights, and returns the mask that the converted layer
has and, where they differ, the one that its blocks store. Nothing here knows of networks, permutations or time.

    cover     every live weight is kept: the blocks that hold one are stored, with zeros or with theta_k elsewhere
    drop      of these blocks only the ones that carry most: to a share of the magnitude, a number of live weights in
              each, or a share of all blocks; by default blocks of as many weights as the ticket has
    vectors   the same with r x 1 columns: r neighbouring rows share each of their inputs
    refill    the k rows (filters) with the largest masked L1 norm, all their weights; k = live // columns, so that no
              layer grows (Chen et al. 2022, algorithm 1)
    refill+   k + extra (rows - k) of them
    regroup   rows that share columns are grouped; each group keeps the same columns, the most used ones, all of their
              weights and nothing else (Chen et al. 2022, section 3.3, after Rumi et al. 2020)
    2:4       of each four consecutive weights of a row the two largest live ones
    shrink    no mask changes: dead rows, channels and units leave the network, see ``shrinking.py``
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lth_sparse.engine.granularity import Granularity
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.bsr import check_block
from lth_sparse.formats.layout import matrix_view

__all__ = ["METHODS", "Method", "Remade", "refilled_rows", "regrouped"]

#: Blocks by target where none is asked for. CPU kernels like a column shared by four rows; tensor cores whole tiles.
BLOCKS: dict[str, tuple[int, int]] = {"cpu": (4, 1), "cuda": (32, 32)}
TARGETS = tuple(BLOCKS)
PADDINGS = ("zeros", "theta")
ORDERS = ("fold", "edge", "none")
#: Options that are numbers.
NUMBERS = ("magnitude", "least", "density", "growth", "extra", "ratio")


@dataclass(frozen=True)
class Remade:
    """A layer's mask after a method.

    Attributes:
        mask: bool, shape of the weight: what is live.
        layout: kind of layout that it is made for.
        cover: ``"zeros"`` where pruned weights lie inside its blocks.
    """

    mask: Tensor
    layout: str
    cover: str | None = None


@dataclass(frozen=True)
class Method:
    """A method and its options; ``Method.parse("drop:16x16:growth=1.5")`` reads the spelling of the command line.

    Attributes:
        name: one of ``METHODS``.
        block: ``(rows, cols)`` of a block; by default the target's, ``r x 1`` for vectors and regroup.
        padding: ``"zeros"``: pruned weights inside a block stay pruned, and groups of four with fewer than two live
            weights stay so. ``"theta"``: blocks and groups are filled with weights that start at theta_k. By default
            cover and 2:4 fill nothing, all others fill.
        magnitude: drop: keep the fewest blocks that hold this share of the layer's magnitude, sum |w|.
        least: drop: keep the blocks with so many live weights.
        density: drop: keep this share of all blocks, those of largest magnitude.
        growth: drop, with none of these three: keep blocks of so many times the weights that the layer has.
        extra: refill+: share of the remaining rows that it keeps beyond refill's.
        ratio: regroup: a group has the fewest columns that, times 1 / ratio, exceed what each row loses.
        reorder: what brings weights together before blocks are made. ``"fold"``: channels are permuted through the
            layers, see ``order.py``. ``"edge"``: each layer by itself, with an index at its edges (layout
            ``"reordered"``). ``"none"``: nothing.
        shrink: refill, refill+: remove dead channels from the network afterwards, see ``shrinking.py``.
    """

    name: str
    block: tuple[int, int] | None = None
    padding: str | None = None
    magnitude: float | None = None
    least: int | None = None
    density: float | None = None
    growth: float = 1.0
    extra: float = 0.05
    ratio: float = 1.5
    reorder: str = "fold"
    shrink: bool = False

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ArgumentError(expected("method", f"one of {', '.join(METHODS)}", repr(self.name)))
        if self.padding is None:
            object.__setattr__(self, "padding", self._usual)
        if self.padding not in PADDINGS:
            raise ArgumentError(expected("padding", " or ".join(map(repr, PADDINGS)), repr(self.padding)))
        if self.block is not None:
            object.__setattr__(self, "block", check_block(self.block))
            if self.name not in BLOCKED:
                raise ArgumentError(expected("block", f"None with method {self.name!r}, which has none", self.block))
            if self.name in UPRIGHT and self.block[1] != 1:
                raise ArgumentError(expected("block", f"(rows, 1) with method {self.name!r}", self.block))
        if not isinstance(self.shrink, bool):
            raise ArgumentTypeError(expected("shrink", "True or False", self.shrink))
        if self.shrink and self.name not in ("refill", "refill+"):
            raise ArgumentError(expected("shrink", f"False with method {self.name!r}", True))
        if self.reorder not in ORDERS:
            raise ArgumentError(expected("reorder", f"one of {', '.join(map(repr, ORDERS))}", repr(self.reorder)))
        given = [name for name in ("magnitude", "least", "density") if getattr(self, name) is not None]
        if given and self.name not in ("drop", "vectors"):
            raise ArgumentError(expected(given[0], f"None with method {self.name!r}", getattr(self, given[0])))
        if len(given) > 1:
            raise ArgumentError(expected("method", "one of magnitude, least and density", " and ".join(given)))
        for name in ("magnitude", "density"):
            if getattr(self, name) is not None:
                _share(name, getattr(self, name))
        if self.least is not None and (type(self.least) is not int or self.least < 1):
            raise ArgumentError(expected("least", "a whole number of live weights, 1 or more", self.least))
        if not 0.0 <= _number("extra", self.extra) < 1.0:
            raise ArgumentError(expected("extra", "a share in [0, 1)", self.extra))
        for name in ("ratio", "growth"):
            if not 0.0 < _number(name, getattr(self, name)) < math.inf:
                raise ArgumentError(expected(name, "a positive number", getattr(self, name)))

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``name[:RxC][:zeros|theta][:edge|unordered][:shrink][:number=...]``.

        Such as ``"drop:16x16:zeros"``, ``"vectors:8x1:growth=1.5"``, ``"refill+:shrink:extra=0.1"`` or ``"2:4"``.

        Raises:
            ArgumentError, ArgumentTypeError: anything else.
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(expected("method", "a string or a Method", text))
        name, words = (text[:3], text[4:].split(":")) if text.startswith("2:4") else (text.split(":")[0], [])
        words = words if text.startswith("2:4") else text.split(":")[1:]
        options: dict[str, Any] = {}
        for word in filter(None, words):
            if found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word):
                options["block"] = (int(found[1]), int(found[2]))
            elif word in PADDINGS:
                options["padding"] = word
            elif word in ("edge", "unordered"):
                options["reorder"] = "none" if word == "unordered" else word
            elif word == "shrink":
                options["shrink"] = True
            elif found := re.fullmatch(rf"({'|'.join(NUMBERS)})=(\d+|\d*\.\d+)", word):
                options[found[1]] = int(found[2]) if found[1] == "least" and found[2].isdigit() else float(found[2])
            else:
                what = "name[:RxC][:zeros or theta][:edge or unordered][:number=...], such as 'drop:16x16:growth=1.5'"
                raise ArgumentError(expected("method", what, repr(text)))
        return cls(name, **options)

    @property
    def _usual(self) -> str:
        return "zeros" if self.name in ("cover", "2:4") else "theta"

    @property
    def text(self) -> str:
        """The spelling that :meth:`parse` reads."""
        words = [self.name] + ([f"{self.block[0]}x{self.block[1]}"] if self.block else [])
        words += [str(self.padding)] * (self.padding != self._usual)
        words += {"edge": ["edge"], "none": ["unordered"]}.get(self.reorder, [])
        words += ["shrink"] * self.shrink
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = {name: getattr(self, name) for name in NUMBERS}
        return ":".join([*words, *(f"{name}={value:.12g}" for name, value in given.items() if value != defaults[name])])

    @property
    def adds(self) -> bool:
        """Whether the method puts weights into the mask that the ticket does not have."""
        if self.name in ("refill", "refill+", "regroup"):
            return True
        return self.padding == "theta" and self.name in ("cover", "drop", "vectors", "2:4")

    def for_target(self, target: str) -> Method:
        """The same with the block of the target, where none was given."""
        if self.name not in BLOCKED or self.block is not None:
            return self
        block = (16 if self.name == "regroup" else 4, 1) if self.name in UPRIGHT else BLOCKS[target]
        return dataclasses.replace(self, block=block)

    def granularity(self, channels_last: bool) -> Granularity:
        """The tiles that a method with blocks decides about."""
        assert self.block is not None  # for_target has seen to it
        order = ":channels_last" if channels_last else ""
        return Granularity.parse(f"block:{self.block[0]}x{self.block[1]}{order}")

    def remake(self, mask: Tensor, magnitude: Tensor, initial: Tensor | None, channels_last: bool = False) -> Remade:
        """What becomes of one layer.

        Args:
            mask: bool, shape of the weight ``[out, in / groups, *kernel]``.
            magnitude: |w| of the trained weights, same shape, zero where pruned.
            initial: theta_k, dense; ``"2:4"`` chooses by it which weights it adds. None where nothing is added.
            channels_last: blocks are cut from ``[out, *kernel, in]``.
        """
        return METHODS[self.name](self, mask, magnitude, initial, channels_last)


def _cover(method: Method, mask: Tensor, _m: Tensor, _i: Tensor | None, channels_last: bool) -> Remade:
    tile = method.granularity(channels_last)
    return _blocks(method, mask, tile.expand(tile.pool(mask) > 0, mask.shape))


def _drop(method: Method, mask: Tensor, magnitude: Tensor, _i: Tensor | None, channels_last: bool) -> Remade:
    tile = method.granularity(channels_last)
    live, weight = tile.pool(mask), tile.pool(magnitude.to(torch.float64) * mask)
    if method.least is not None:
        kept = live >= method.least
    else:
        # Largest first, the earlier of equals; blocks without a live weight come last whatever they weigh.
        order = weight.masked_fill(live == 0, -1.0).argsort(descending=True, stable=True)
        kept = torch.zeros_like(live, dtype=torch.bool)
        kept[order[: _how_many(method, tile, mask, live, weight[order])]] = True
    return _blocks(method, mask, tile.expand(kept & (live > 0), mask.shape))


def _how_many(method: Method, tile: Granularity, mask: Tensor, live: Tensor, sorted_weight: Tensor) -> int:
    """Blocks that drop keeps, of those with a live weight."""
    occupied = int((live > 0).sum())
    if method.magnitude is not None:
        sums = sorted_weight.clamp_min(0.0).cumsum(0)
        total = float(sums[-1]) if sums.numel() else 0.0
        # The first sum that reaches the share; rounding must not ask for a block more than there is.
        return min(occupied, int((sums < method.magnitude * total * (1.0 - 1e-12)).sum()) + 1)
    if method.density is not None:
        return min(occupied, math.ceil(method.density * live.numel()))
    assert tile.rows is not None
    assert tile.cols is not None
    return min(occupied, max(1, round(method.growth * int(mask.sum()) / (tile.rows * tile.cols))) if occupied else 0)


def _blocks(method: Method, mask: Tensor, stored: Tensor) -> Remade:
    """A union of blocks, of which the padding is live or is not."""
    if method.padding == "theta":
        return Remade(stored, "bsr")
    live = mask & stored
    return Remade(live, "bsr", None if torch.equal(live, stored) else "zeros")


def _refill(method: Method, mask: Tensor, magnitude: Tensor, _i: Tensor | None, _c: bool) -> Remade:
    rows = refilled_rows(mask, magnitude, method.extra if method.name == "refill+" else 0.0)
    return Remade(Granularity.parse("row").expand(rows, mask.shape), "csr")


def refilled_rows(mask: Tensor, magnitude: Tensor, extra: float = 0.0) -> Tensor:
    """Bool ``[out]``: the rows that refill keeps, at least one where anything is live.

    ``k = floor(live / columns + extra (rows - live / columns))`` as in the authors' code; the earlier of equals.
    """
    matrix = matrix_view(mask)
    rows, cols = matrix.shape
    even = int(matrix.sum()) / cols if cols else 0.0
    # 1e-9: 0.29 * 100 must count as 29.
    k = min(rows, max(1, math.floor(even + extra * (rows - even) + 1e-9))) if even else 0
    norm = Granularity.parse("row").pool(magnitude.to(torch.float64) * mask)
    kept = torch.zeros(rows, dtype=torch.bool)
    kept[norm.argsort(descending=True, stable=True)[:k]] = True
    return kept


def _regroup(method: Method, mask: Tensor, _m: Tensor, _i: Tensor | None, _c: bool) -> Remade:
    assert method.block is not None
    return Remade(regrouped(mask, method.block[0], method.ratio), "bsr")


def regrouped(mask: Tensor, height: int, ratio: float = 1.5) -> Tensor:
    """Groups of ``height`` neighbouring rows, each with the same columns in all its rows and no other weight.

    A group takes its most used columns, the fewest n for which every row has less than ``n / ratio`` live weights
    outside them: so dense blocks hold the bulk of each row (Chen et al. 2022, section 3.3, whose t1 is ``ratio``). The
    columns that all of its rows use it takes as well, which the paper may leave out. A group without a live weight
    keeps none. Rows that belong together are brought together by the reordering before.

    Args:
        mask: bool, shape of the weight.
        height: rows in a group; the last may have fewer.
        ratio: the larger, the more columns.
    """
    matrix = matrix_view(mask)
    remade = torch.zeros_like(matrix)
    for start in range(0, matrix.shape[0], height):
        group = matrix[start : start + height]
        used = group.sum(0)
        order = used.argsort(descending=True, stable=True)
        left = group.sum(1, keepdim=True) - group[:, order].cumsum(1)  # [rows, n]: live weights outside n + 1 columns
        enough = torch.arange(1, matrix.shape[1] + 1) > ratio * left.amax(0)
        (found,) = enough.nonzero(as_tuple=True)
        if found.numel():
            columns = order[: max(int(found[0]) + 1, int((used == group.shape[0]).sum()))]
            remade[start : start + height, columns[used[columns] > 0]] = True
    return remade.reshape(mask.shape)


def _two_of_four(method: Method, mask: Tensor, magnitude: Tensor, initial: Tensor | None, _c: bool) -> Remade:
    tile = Granularity.parse("2:4")
    kept = tile.protected(magnitude, mask).reshape(mask.shape)
    if method.padding == "theta" and initial is not None:
        # The live ones above all others: what is added are the largest |theta_k| among the pruned.
        scores = initial.abs().to(torch.float64)
        scores = scores + kept * (1.0 + float(scores.max()) if scores.numel() else 1.0)
        kept = tile.protected(scores, torch.ones_like(mask)).reshape(mask.shape)
    return Remade(kept, "2:4")


def _unchanged(_method: Method, mask: Tensor, _m: Tensor, _i: Tensor | None, _c: bool) -> Remade:
    return Remade(mask, "csr")


Remake = Callable[[Method, Tensor, Tensor, "Tensor | None", bool], Remade]

METHODS: dict[str, Remake] = {
    "cover": _cover,
    "drop": _drop,
    "vectors": _drop,
    "refill": _refill,
    "refill+": _refill,
    "regroup": _regroup,
    "2:4": _two_of_four,
    "shrink": _unchanged,
}
#: Methods with a block, and those of them whose blocks are one column wide.
BLOCKED = ("cover", "drop", "vectors", "regroup")
UPRIGHT = ("vectors", "regroup")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(expected(name, "a number", value))
    return float(value)


def _share(name: str, value: Any) -> None:
    if not 0.0 < _number(name, value) <= 1.0:
        raise ArgumentError(expected(name, "a share in (0, 1]", value))
