"""Masks that keep at most two of every four weights, and a step of a layer with one: for the tests of layout 2:4."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lth_sparse.formats import Layout
from lth_sparse.ops import functional


def semi_mask(shape: tuple[int, ...], share: float, generator: torch.Generator | None = None) -> Tensor:
    """Two random weights of every four in a row, each kept with probability ``share``."""
    rows, cols = shape[0], math.prod(shape[1:])
    two = torch.rand(rows, cols // 4, 4, generator=generator).argsort(2) < 2
    kept = torch.rand(rows, cols // 4, 4, generator=generator) < share
    return (two & kept).view(shape)


def transposable_mask(shape: tuple[int, int], share: float) -> Tensor:
    """The same with at most two of every four weights in a column as well: 4 x 4 tiles with two in each line."""
    tile = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)
    rows, cols = shape
    tiles = [[tile[torch.randperm(4)][:, torch.randperm(4)] for _ in range(cols // 4)] for _ in range(rows // 4)]
    return torch.cat([torch.cat(line, 1) for line in tiles]) & (torch.rand(shape) < share)


def step(x: Tensor, values: Tensor, bias: Tensor | None, layout: Layout, upstream: Tensor, **keywords: Any) -> Any:
    """Output and the gradients of x, values and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, values, *(() if bias is None else (bias,)))]
    y = functional.linear(leaves[0], leaves[1], layout, leaves[2] if bias is not None else None, **keywords)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]
