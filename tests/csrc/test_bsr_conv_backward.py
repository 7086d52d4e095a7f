"""bsr_conv2d_backward: block-sparse gradients against dense fp64, blocks of all shapes, both formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse import _C
from lth_sparse.formats import BSR
from lth_sparse.ops.strides import feature_major, is_feature_major

BLOCKS = [(1, 1), (2, 3), (3, 2), (4, 1), (4, 9), (8, 8), (12, 5), (13, 7), (16, 16), (40, 100)]

#: n, channels, height, width, out channels, kernel, stride, padding, dilation, groups
CASES = {
    "3x3": (17, 5, 9, 10, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "over the edge": (16, 3, 4, 8, 18, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "one image": (1, 3, 12, 11, 7, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "1x1": (6, 10, 7, 5, 12, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "strided": (5, 6, 13, 7, 9, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "groups that blocks straddle": (3, 6, 8, 7, 9, (3, 3), (1, 1), (1, 1), (1, 1), 3),
    "groups of whole panels": (3, 8, 8, 7, 24, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "dilated": (2, 4, 9, 9, 6, (3, 2), (1, 2), (3, 1), (2, 3), 1),
    "planes": (2, 5, 11, 19, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "no images": (0, 3, 6, 6, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
}


def poisoned(wanted: bool, shape: Any, dtype: torch.dtype) -> Tensor | None:
    return torch.full(tuple(shape), float("nan"), dtype=dtype) if wanted else None


def backward(
    layout: BSR,
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    conv: Any,
    threads: int,
    wanted: str = "dx dvalues dbias",
    activated: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    rows, _, *kernel = layout.shape
    dx = poisoned("dx" in wanted, x.shape, x.dtype)
    dx = feature_major(dx) if dx is not None and is_feature_major(x) else dx
    dvalues = poisoned("dvalues" in wanted, values.shape, x.dtype)
    dbias = poisoned("dbias" in wanted, (rows,), x.dtype)
    stride, padding, dilation, groups = conv
    _C.bsr_conv2d_backward(
        grad.data_ptr(), 0 if activated is None else activated.data_ptr(),
        x.data_ptr(), values.data_ptr(), layout.value_mask.data_ptr(),
        *(0 if t is None else t.data_ptr() for t in (dx, dvalues, dbias)),
        layout.ccol_indices.data_ptr(), layout.row_indices.data_ptr(), layout.perm.data_ptr(),
        *x.shape, rows, groups, *kernel, *stride, *padding, *dilation, *grad.shape[2:],
        is_feature_major(grad), is_feature_major(x), *layout.block, int(x.dtype == torch.float64), threads,
    )  # fmt: skip
    return dx, dvalues, dbias


def truth_of(layout: BSR, mask: Tensor, grad: Tensor, x: Tensor, values: Tensor, conv: Any) -> tuple[Tensor, ...]:
    """dx, dense dW (zero where the mask is) and dbias in double precision."""
    weight = (layout.scatter(values).double() * mask).requires_grad_()
    x = x.double().requires_grad_()
    dx, dweight = torch.autograd.grad(F.conv2d(x, weight, None, *conv), (x, weight), grad.double())
    return dx, dweight * mask, grad.double().sum((0, 2, 3))


def problem(case: str, block: tuple[int, int], density: float, dtype: torch.dtype) -> Any:
    n, channels, height, width, out, kernel, *conv = CASES[case]
    mask = torch.rand(out, channels // conv[3], *kernel) < density
    mask[: out // 3] &= density == 1  # empty block rows
    layout = BSR.from_mask(mask, block, "zeros")
    x = torch.randn(n, channels, height, width, dtype=dtype)
    values = torch.randn(layout.values_shape, dtype=dtype)  # also where the mask has zeros
    y = F.conv2d(x, layout.scatter(values), None, *conv)
    return layout, mask, torch.randn_like(y), x, values, conv


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_masked_dense_layer(near: Any, isa: str, case: str, block: tuple[int, int], density: float) -> None:
    for dtype, threads in ((torch.float32, 1), (torch.float64, 3)):
        layout, mask, grad, x, values, conv = problem(case, block, density, dtype)
        dx, dweight, dbias = truth_of(layout, mask, grad, x, values, conv)
        live = layout.value_mask if layout.value_mask.numel() else torch.ones(values.shape, dtype=torch.bool)
        for inputs in ((grad, x), (feature_major(grad), feature_major(x)), (grad, feature_major(x))):
            found = backward(layout, *inputs, values, conv, threads)
            assert is_feature_major(found[0]) == is_feature_major(inputs[1])
            near(found[0], dx)
            near(layout.scatter(found[1]), dweight)
            near(found[2], dbias)
            assert not found[1][~live].any()


@pytest.mark.parametrize("wanted", ["dx", "dvalues", "dbias", "dvalues dbias"])
@pytest.mark.parametrize("block", [(2, 3), (8, 8)], ids=str)
def test_gradients_that_are_not_wanted_are_left_out(near: Any, isa: str, block: tuple[int, int], wanted: str) -> None:
    layout, mask, grad, x, values, conv = problem("3x3", block, 0.3, torch.float32)
    dx, dweight, dbias = truth_of(layout, mask, grad, x, values, conv)
    found = backward(layout, grad, x, values, conv, 2, wanted)
    for name, actual, expected in zip(("dx", "dvalues", "dbias"), found, (dx, dweight, dbias), strict=True):
        assert (actual is not None) == (name in wanted.split())
        if actual is not None:
            near(layout.scatter(actual) if name == "dvalues" else actual, expected)


@pytest.mark.parametrize("major", [False, True], ids=["contiguous", "feature-major"])
@pytest.mark.parametrize("block", [(2, 3), (8, 8), (13, 7)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_fused_relu_stops_the_gradient_where_torch_does(
    isa: str, case: str, block: tuple[int, int], major: bool
) -> None:
    layout, _, grad, x, values, conv = problem(case, block, 0.3, torch.float32)
    activated = torch.randn_like(grad)
    activated.view(-1)[::17] = float("nan")
    before = torch.ops.aten.threshold_backward(grad, activated, 0)
    grad[activated <= 0] = float("inf")  # not to be seen
    grad, x, activated, before = (feature_major(t) if major else t for t in (grad, x, activated, before))
    expected = backward(layout, before, x, values, conv, 2)
    found = backward(layout, grad, x, values, conv, 2, activated=activated)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_long_reductions_are_done_in_blocks_and_repeat_bit_for_bit(near: Any, isa: str, threads: int) -> None:
    layout = BSR.from_mask(torch.rand(150, 20, 3, 3) < 0.9, (4, 5), "zeros")
    x, grad, values = torch.randn(16, 20, 6, 8), torch.randn(16, 150, 6, 8), torch.randn(layout.values_shape)
    conv = ((1, 1), (1, 1), (1, 1), 1)
    truth = truth_of(layout, layout.scatter(torch.ones(layout.values_shape)), grad, x, values, conv)
    found = backward(layout, grad, x, values, conv, threads)
    for actual, expected in zip((found[0], layout.scatter(found[1]), found[2]), truth, strict=True):
        near(actual, expected)
    again = backward(layout, grad, x, values, conv, threads)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("changed", [{"block_rows": 0}, {"block_cols": 0}, {"ccol": 0}, {"groups": 3}, {"threads": 0}])
def test_an_impossible_argument_is_named(changed: dict[str, int]) -> None:
    given = dict.fromkeys(("grad", "x", "values", "mask", "dx", "dvalues", "dbias", "ccol", "row", "perm", "n"), 1)
    given |= dict.fromkeys(("stride_h", "stride_w", "dilation_h", "dilation_w", "threads"), 1)
    given |= {"channels": 4, "out_channels": 4, "groups": 2, "height": 8, "width": 8, "kernel_h": 3, "kernel_w": 3}
    given |= {"pad_h": 0, "pad_w": 0, "out_h": 6, "out_w": 6, "dtype": 0, "block_rows": 2, "block_cols": 2}
    given |= {"activated": 0, "grad_feature_major": False, "x_feature_major": False}
    name = "channels" if "groups" in changed else next(iter(changed))
    with pytest.raises(ValueError, match=f"{name}: expected"):
        _C.bsr_conv2d_backward(**{**given, **changed})
