"""Erdos-Renyi-Kernel densities (Mocanu et al. 2018; Evci et al. 2020, 1911.11134, section 3): small layers keep more.

The density of layer l is proportional to (out + in + kh + kw) / (out * in * kh * kw), at most 1; what a full layer
cannot hold goes to the others. So layer l has a quota proportional to q_l = out + in + kh + kw weights (the sum of the
sizes of its weight), up to its n_l.

Whole weights are dealt out by Webster's rule: the c-th weight of layer l comes at (2 c - 1) / (2 q_l), the lowest
first, equal ones by the order of the layers. Totals are exact, each layer is within a weight or so of its quota, and a
smaller total never gives any layer more, so that masks stay nested over levels, which rounding by largest remainders
would not grant.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["erk_counts"]


def erk_counts(shapes: Sequence[Sequence[int]], total: int, least: Sequence[int] | None = None) -> list[int]:
    """How many of ``total`` weights each layer keeps.

    Args:
        shapes: of the weights.
        total: kept by all layers together; raised to the sum of ``least``, lowered to the number of weights.
        least: each layer keeps at least so many, or all when it has fewer.
    """
    sizes = [math.prod(shape) for shape in shapes]
    quotas = [sum(shape) for shape in shapes]
    floor = [min(size, bound) for size, bound in zip(sizes, least or [0] * len(sizes), strict=True)]
    total = min(max(total, sum(floor)), sum(sizes))

    def dealt(until: Fraction) -> list[int]:
        """Counts once every weight that comes before or at ``until`` is dealt out."""
        counts = [int(until * quota + Fraction(1, 2)) for quota in quotas]
        return [min(max(c, bound), size) for c, bound, size in zip(counts, floor, sizes, strict=True)]

    low, high = Fraction(0), Fraction(1)
    while sum(dealt(high)) < total:
        high *= 2
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(dealt(middle)) <= total else (low, middle)
    counts = dealt(low)
    coming = [
        (Fraction(2 * count + 1, 2 * quota), i)
        for i, (count, quota, size) in enumerate(zip(counts, quotas, sizes, strict=True))
        if count < size
    ]
    heapq.heapify(coming)
    for _ in range(total - sum(counts)):
        _, i = heapq.heappop(coming)
        counts[i] += 1
        if counts[i] < sizes[i]:
            heapq.heappush(coming, (Fraction(2 * counts[i] + 1, 2 * quotas[i]), i))
    return counts
