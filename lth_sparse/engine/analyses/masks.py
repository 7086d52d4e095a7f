"""Where the survivors are: per layer, per unit, and against another ticket (Frankle & Carbin 2018, appendix F.3).

A unit is an output or input feature of a linear layer, an output or input channel of a convolution. Counts are
compared with a mask of as many weights at uniformly random places, for which everything here has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["Degrees", "LayerStatistics", "Overlap", "connectivity", "layer_statistics", "overlap"]


@dataclass(frozen=True, eq=False)
class Degrees:
    """Live weights of each unit on one side of a layer.

    Attributes:
        counts: int64 ``[units]``.
        possible: weights that a unit has in the dense layer.
    """

    counts: Tensor
    possible: int

    @property
    def mean(self) -> float:
        """Live weights of a unit, on average; 0 for a layer without units."""
        return float(self.counts.double().mean()) if len(self.counts) else 0.0

    @property
    def minimum(self) -> int:
        """Of the unit that has fewest."""
        return int(self.counts.min()) if len(self.counts) else 0

    @property
    def maximum(self) -> int:
        """Of the unit that has most."""
        return int(self.counts.max()) if len(self.counts) else 0

    @property
    def dead(self) -> int:
        """Units without a live weight."""
        return int((self.counts == 0).sum())

    @property
    def dispersion(self) -> float:
        """Variance over the units, divided by that of a random mask with as many weights.

        1 is what chance gives; well below 1 the units share the survivors evenly, well above 1 unevenly. The counts of
        a random mask of n among N places are hypergeometric: with m places a unit their variance is
        ``n (m / N) (1 - m / N) (N - n) / (N - 1)``. NaN where that is 0: one unit, or nothing or everything pruned.
        """
        places, kept = self.possible * len(self.counts), int(self.counts.sum())
        if places < 2:
            return math.nan
        share = self.possible / places
        chance = kept * share * (1 - share) * (places - kept) / (places - 1)
        return float(self.counts.double().var(correction=0)) / chance if chance else math.nan


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """One layer's mask.

    Attributes:
        name, numel, nnz: parameter name, its weights, and those kept.
        incoming: live weights into each output unit.
        outgoing: live weights out of each input unit, to all outputs that are connected to it.
    """

    name: str
    numel: int
    nnz: int
    incoming: Degrees
    outgoing: Degrees

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.nnz / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class Overlap:
    """How much two masks of one layer have in common.

    Attributes:
        name, numel: parameter name and its number of weights.
        first, second, common: weights that the first mask keeps, the second, and both.
    """

    name: str
    numel: int
    first: int
    second: int
    common: int

    @property
    def jaccard(self) -> float:
        """``|A and B| / |A or B|``: 1 for equal masks, 0 for disjoint ones; 1 where both are empty."""
        union = self.first + self.second - self.common
        return self.common / union if union else 1.0

    @property
    def expected(self) -> float:
        """The Jaccard index at the expected overlap ``|A| |B| / N`` of random masks of these counts."""
        common = self.first * self.second / self.numel if self.numel else 0.0
        union = self.first + self.second - common
        return common / union if union else 1.0


def connectivity(mask: Tensor, name: str = "mask") -> LayerStatistics:
    """Count the live weights of a layer and of its units.

    Args:
        mask: bool ``[out, in]`` or ``[out, in / groups, *kernel]``; a grouped convolution's input units are those of
            one group, counted over all groups.
        name: parameter name for the result.

    Raises:
        ArgumentTypeError, ArgumentError: ``mask`` is no bool tensor of at least two dimensions.
    """
    if not isinstance(mask, Tensor):
        raise ArgumentTypeError(expected(name, "a bool tensor", type(mask).__name__))
    if mask.dtype != torch.bool or mask.dim() < 2:
        raise ArgumentError(expected(name, "a bool tensor [out, in, *kernel]", f"{mask.dtype} {list(mask.shape)}"))
    units_out, units_in = mask.shape[:2]
    taps = math.prod(mask.shape[2:])
    counts = mask.cpu().reshape(units_out, units_in, taps).sum(2)
    incoming = Degrees(counts.sum(1), units_in * taps)
    outgoing = Degrees(counts.sum(0), units_out * taps)
    return LayerStatistics(name, mask.numel(), int(counts.sum()), incoming, outgoing)


def layer_statistics(masks: Mapping[str, Tensor]) -> list[LayerStatistics]:
    """:func:`connectivity` of every layer, in the order of ``masks`` (a :class:`lth_sparse.Mask`, or a dict)."""
    return [connectivity(mask, name) for name, mask in masks.items()]


def overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[Overlap]:
    """Compare two tickets' masks layer by layer: those of two seeds, criteria or levels.

    Raises:
        ArgumentError: they name other layers, or layers of other shapes.
    """
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))[0]
        raise ArgumentError(expected("second", "masks of the same layers as first", f"only one of them has {odd!r}"))
    rows = []
    for name, mask in first.items():
        other = second[name].to(mask.device)
        if mask.shape != other.shape:
            raise ArgumentError(expected(f"second[{name!r}]", f"shape {list(mask.shape)}", f"{list(other.shape)}"))
        rows.append(Overlap(name, mask.numel(), int(mask.sum()), int(other.sum()), int((mask & other).sum())))
    return rows
