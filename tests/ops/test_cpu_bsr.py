"""Block-sparse linear layers on the CPU kernels: formats of activations, masks inside blocks, odd values."""

from __future__ import annotations

import pytest
import torch
from sparse_cases import masked_weight, tolerance

from lth_sparse.formats import BSR
from lth_sparse.ops import functional, use_backend
from lth_sparse.ops.strides import feature_major, is_feature_major

BLOCKS = [(4, 1), (2, 3), (8, 8)]


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("batch", [2, 17, 130])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_results_have_the_format_of_the_input(block: tuple[int, int], batch: int) -> None:
    weight, mask = masked_weight((31, 18), 0.3)
    layout = BSR.from_mask(mask, block, "zeros")
    values = layout.gather(weight).requires_grad_()
    upstream = torch.randn(batch, 31, dtype=torch.float64)
    for relay in (feature_major, torch.Tensor.contiguous):
        x = relay(torch.randn(batch, 18, dtype=torch.float64)).requires_grad_()
        y = functional.linear(x, values, layout)
        dx, dvalues = torch.autograd.grad(y, (x, values), upstream)
        assert is_feature_major(y) == is_feature_major(dx) == is_feature_major(x)
        assert y.is_contiguous() == dx.is_contiguous() == x.is_contiguous()
        torch.testing.assert_close(y, x @ (weight * mask).t())
        torch.testing.assert_close(dx, upstream @ (weight * mask))
        torch.testing.assert_close(layout.scatter(dvalues), (upstream.t() @ x) * mask)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("strides", ["every_second", "expanded"])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_strided_inputs_and_gradients(block: tuple[int, int], strides: str) -> None:
    weight, mask = masked_weight((31, 18), 0.3)
    x = {
        "every_second": torch.randn(23, 36, dtype=torch.float64)[:, ::2],
        "expanded": torch.randn(1, 18, dtype=torch.float64).expand(23, 18),
    }[strides].requires_grad_()
    layout = BSR.from_mask(mask, block, "zeros")
    values = layout.gather(weight)
    y = functional.linear(x, values, layout)
    torch.testing.assert_close(y, x @ (weight * mask).t())
    (dx,) = torch.autograd.grad(y.sum(), x)  # a gradient of stride 0
    torch.testing.assert_close(dx, torch.ones_like(y) @ (weight * mask))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_what_stands_at_pruned_entries_never_matters(block: tuple[int, int], dtype: torch.dtype) -> None:
    weight, mask = masked_weight((30, 25), 0.4)
    layout = BSR.from_mask(mask, block, "zeros")
    values = layout.gather(weight).to(dtype).masked_fill(~layout.value_mask, float("nan")).requires_grad_()
    x = torch.randn(20, 25, dtype=dtype, requires_grad=True)
    y = functional.linear(x, values, layout)
    dx, dvalues = torch.autograd.grad(y.sum(), (x, values))
    torch.testing.assert_close(y.double(), x.double() @ (weight * mask).t(), **tolerance(dtype))
    torch.testing.assert_close(dx.double(), (weight * mask).sum(0).expand(20, -1), **tolerance(dtype))
    assert (dvalues[~layout.value_mask] == 0).all()


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_values_of_any_strides_are_read_as_they_mean(block: tuple[int, int]) -> None:
    weight, mask = masked_weight((16, 24), 0.4)
    layout = BSR.from_mask(mask, block, "zeros")
    dense = layout.gather(weight)
    values = dense.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    y = functional.linear(x, values, layout)
    torch.testing.assert_close(y, x @ (weight * mask).t())
    dx, dvalues = torch.autograd.grad(y.sum(), (x, values))
    torch.testing.assert_close(dx, (weight * mask).sum(0).expand(5, -1))
    torch.testing.assert_close(layout.scatter(dvalues), x.sum(0).expand(16, -1) * mask)


@pytest.mark.usefixtures("seed")
def test_float16_runs_the_reference() -> None:
    weight, mask = masked_weight((8, 6), 0.5)
    layout = BSR.from_mask(mask, (4, 1), "zeros")
    x, values = torch.randn(3, 6).half(), layout.gather(weight).half()
    y = functional.linear(x, values, layout)
    with use_backend("reference"):
        assert torch.equal(y, functional.linear(x, values, layout))
