"""Weights and biases that are views: values and gradients are those of contiguous ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_cases import LAYOUT_MAKERS, masked_weight
from torch import Tensor

from lth_sparse.ops import functional


def every_second(tensor: Tensor) -> Tensor:
    """The same numbers, every second one of a tensor twice as large."""
    wide = torch.full((*tensor.shape, 2), torch.nan, dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


def columns_first(tensor: Tensor) -> Tensor:
    """The same numbers in the memory of the transposed tensor."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def results(operator: Any, x: Tensor, values: Tensor, layout: Any, bias: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in (x, values, bias)]
    y = operator(inputs[0], inputs[1], layout, inputs[2])
    return [y, *torch.autograd.grad(y, inputs, torch.linspace(-1, 1, y.numel()).view(y.shape))]


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("view", [every_second, columns_first])
@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("shape", [(9, 14), (6, 4, 3), (6, 4, 3, 3)])
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_strides_of_values_and_bias_do_not_matter(maker: str, shape: tuple[int, ...], batch: int, view: Any) -> None:
    weight, mask = masked_weight(shape, 0.4)
    layout = LAYOUT_MAKERS[maker](mask)
    operator = {2: functional.linear, 3: functional.conv1d, 4: functional.conv2d}[len(shape)]
    x = torch.randn(batch, shape[1], *(8,) * (len(shape) - 2))
    values, bias = layout.gather(weight.float()), torch.randn(shape[0])
    expected = results(operator, x, values, layout, bias)
    found = results(operator, x, view(values), layout, every_second(bias))
    for own, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(own, truth, rtol=0, atol=0)
