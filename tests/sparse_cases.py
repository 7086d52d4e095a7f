"""Shapes and helpers that the operator tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse.formats import BSR, CSR, Dense, Layout, Reordered, Reordering


def shuffled(mask: Tensor, block: tuple[int, int], channels_last: bool = False) -> Reordered:
    """A reordered layout in any order of rows and columns, not a good one."""
    generator = torch.Generator().manual_seed(len(mask))
    rows, cols = (torch.randperm(size, generator=generator).to(mask.device) for size in mask.shape[:2])
    return Reordered.from_mask(mask, block, "zeros", channels_last, Reordering(rows, cols, block, 0, 0, channels_last))


LAYOUT_MAKERS: dict[str, Callable[[Tensor], Layout]] = {
    "csr": CSR.from_mask,
    "csr_narrow": lambda mask: CSR.from_mask(mask).narrow(),
    "bsr": lambda mask: BSR.from_mask(mask, (4, 3), "zeros"),
    "bsr_vector": lambda mask: BSR.from_mask(mask, (4, 1), "zeros"),
    "bsr_channels_last": lambda mask: BSR.from_mask(mask, (4, 3), "zeros", channels_last=True),
    "bsr_wide": lambda mask: BSR.from_mask(mask, (8, 8), "zeros"),
    "reordered": lambda mask: shuffled(mask, (4, 3)),
    "dense": Dense.from_mask,
}

#: (out, in, batch): odd sizes, one of each, wider than one tile of batch, empty batch.
LINEAR_SIZES = [(300, 784, 60), (7, 5, 3), (1, 1, 1), (33, 65, 129), (10, 300, 0), (5, 17, 257)]

#: (n, channels, height, width, out, kernel, keyword arguments)
CONV_CASES = [
    (2, 3, 8, 9, 5, (3, 3), {"padding": 1}),
    (33, 4, 6, 5, 8, (3, 3), {"padding": 1}),
    (3, 4, 9, 11, 6, (3, 2), {"stride": 2, "padding": (1, 0)}),
    (4, 6, 7, 7, 9, (1, 1), {}),
    (4, 6, 8, 8, 9, (1, 1), {"stride": 2}),
    (2, 6, 10, 9, 4, (3, 3), {"dilation": 2, "padding": 2, "groups": 2}),
    (5, 6, 9, 8, 6, (3, 3), {"groups": 6, "padding": 1}),
    (2, 3, 12, 12, 4, (5, 5), {"stride": (3, 2), "padding": "valid"}),
    (2, 3, 7, 6, 4, (4, 3), {"padding": "same"}),
    (2, 3, 7, 6, 4, (3, 3), {"padding": 1, "padding_mode": "reflect"}),
    (2, 3, 7, 6, 4, (3, 3), {"padding": (2, 1), "padding_mode": "circular"}),
    (0, 3, 7, 6, 4, (3, 3), {"padding": 1}),
    (1, 2, 5, 5, 3, (2, 2), {"stride": 4}),
]

DENSITIES = [0.0, 0.1, 0.6, 1.0]


def masked_weight(shape: tuple[int, ...], density: float, *, empty_row: bool = True) -> tuple[Tensor, Tensor]:
    """float64 weight and mask; the first output keeps nothing when the layer is pruned at all."""
    mask = torch.rand(shape) < density
    if empty_row and density < 1:
        mask[0] = False
    return torch.randn(shape, dtype=torch.float64), mask


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Rounding allowed against the float64 truth."""
    return {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}


def skip_mixed_groups(maker: str, arguments: dict[str, Any]) -> None:
    if maker == "reordered" and arguments.get("groups", 1) > 1:
        pytest.skip("a reordered layout is refused there: it mixes the channels of groups")
