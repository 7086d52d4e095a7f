"""bfloat16 on the CPU: kernels in the forward pass, the reference in the backward pass, both layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_cases import CONV_CASES, LAYOUT_MAKERS, masked_weight, skip_mixed_groups
from torch import Tensor

from lth_sparse.formats import BSR, CSR
from lth_sparse.ops import functional, use_backend

pytestmark = pytest.mark.usefixtures("seed", "poison_empty")

BF16 = torch.bfloat16
SPARSE = [name for name in LAYOUT_MAKERS if name != "dense"]


def assert_rounded(actual: Tensor, truth: Tensor) -> None:
    """Equal to the truth up to the rounding of a float32 sum and that of the result."""
    assert actual.dtype == BF16
    assert actual.shape == truth.shape
    if truth.numel():
        error = (actual.double() - truth).abs()
        assert (error <= 2**-8 * truth.abs() + 3e-5 * (1 + truth.abs().max())).all(), error.max()


def halved(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(BF16) for tensor in tensors]


@pytest.mark.parametrize("maker", SPARSE)
@pytest.mark.parametrize("batch", [*range(10), 17, 128, 150])
def test_linear_is_that_of_the_masked_dense_layer(maker: str, batch: int) -> None:
    weight, mask = masked_weight((45, 38), 0.3)
    weight, x, bias = halved(weight, torch.randn(batch, 38), torch.randn(45))
    layout = LAYOUT_MAKERS[maker](mask)
    exact = F.linear(x.double(), (weight * mask).double(), bias.double())
    wide = torch.randn(batch, 76).to(BF16)
    wide[:, ::2] = x
    for given in (x, functional.feature_major(x), wide[:, ::2]):
        assert_rounded(functional.linear(given, layout.gather(weight), layout, bias), exact)
    relu = functional.linear(x, layout.gather(weight), layout, bias, activation="relu")
    assert torch.equal(relu, functional.linear(x, layout.gather(weight), layout, bias).relu())


@pytest.mark.parametrize("maker", SPARSE)
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_conv2d_is_that_of_the_masked_dense_layer(maker: str, case: Any) -> None:
    n, channels, height, width, out, kernel, options = case
    skip_mixed_groups(maker, options)
    weight, mask = masked_weight((out, channels // options.get("groups", 1), *kernel), 0.4)
    weight, x, bias = halved(weight, torch.randn(n, channels, height, width), torch.randn(out))
    layout = LAYOUT_MAKERS[maker](mask)
    exact = functional.conv2d(
        x.double(), CSR.from_mask(mask).gather((weight * mask).double()), CSR.from_mask(mask), bias.double(), **options
    )
    for given in (x, functional.feature_major(x)):
        y = functional.conv2d(given, layout.gather(weight), layout, bias, **options)
        assert_rounded(y, exact)
        assert torch.equal(
            functional.conv2d(given, layout.gather(weight), layout, bias, activation="relu", **options), y.relu()
        )


@pytest.mark.parametrize("maker", SPARSE)
def test_conv1d_is_that_of_the_masked_dense_layer(maker: str) -> None:
    weight, mask = masked_weight((12, 5, 3), 0.4)
    weight, x = halved(weight, torch.randn(6, 5, 20))
    layout = LAYOUT_MAKERS[maker](mask)
    exact = F.conv1d(x.double(), (weight * mask).double(), stride=2, padding=1)
    assert_rounded(functional.conv1d(x, layout.gather(weight), layout, stride=2, padding=1), exact)


@pytest.mark.parametrize("maker", SPARSE)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_are_those_of_the_reference(maker: str, activation: str | None) -> None:
    weight, mask = masked_weight((20, 15), 0.4)
    layout = LAYOUT_MAKERS[maker](mask)
    leaves = [t.requires_grad_() for t in halved(torch.randn(9, 15), layout.gather(weight), torch.randn(20))]

    def gradients() -> tuple[Tensor, ...]:
        x, values, bias = leaves
        y = functional.linear(x, values, layout, bias, activation)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    found = gradients()
    with use_backend("reference"):
        right = gradients()
    for gradient, expected in zip(found, right, strict=True):
        assert gradient.dtype == BF16
        torch.testing.assert_close(gradient, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("block", [(8, 8), (16, 16), (4, 1), (1, 1), (16, 32)], ids=str)
def test_blocks_of_all_shapes_and_entries_that_are_not_live(block: tuple[int, int], batch: int) -> None:
    weight, mask = masked_weight((50, 60), 0.2)
    layout = BSR.from_mask(mask, block, "zeros")
    weight, x = halved(weight, torch.randn(batch, 60))
    values = layout.gather(weight)
    if layout.value_mask.numel():
        values = values.masked_fill(~layout.value_mask, float("nan"))
    assert_rounded(functional.linear(x, values, layout), F.linear(x.double(), (weight * mask).double()))
