"""bsr_conv2d_forward: block-sparse convolutions against dense fp64, blocks of all shapes, edges, groups, formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse import _C
from lth_sparse.formats import BSR
from lth_sparse.ops.strides import feature_major, is_feature_major

BLOCKS = [(1, 1), (2, 3), (3, 2), (4, 1), (4, 9), (8, 8), (13, 7), (16, 16), (40, 100)]

#: n, channels, height, width, out channels, kernel, stride, padding, dilation, groups
CASES = {
    "3x3": (17, 5, 9, 10, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "many images of a tiny map": (40, 12, 4, 4, 18, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "one image": (1, 3, 12, 11, 7, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "1x1": (6, 10, 7, 5, 12, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "strided": (5, 6, 13, 7, 9, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "groups that blocks straddle": (3, 6, 8, 7, 9, (3, 3), (1, 1), (1, 1), (1, 1), 3),
    "groups of whole blocks": (3, 8, 8, 7, 32, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "dilated": (2, 4, 9, 9, 6, (3, 2), (1, 2), (3, 1), (2, 3), 1),
    "wide": (3, 5, 12, 32, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "wide, odd": (2, 6, 9, 37, 12, (3, 3), (1, 1), (1, 1), (1, 2), 3),
    "no images": (0, 3, 6, 6, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
}


def forward(
    layout: BSR,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    conv: tuple[Any, ...],
    threads: int,
    relu: bool = False,
) -> Tensor:
    """y in the format of x, poisoned before the call."""
    stride, padding, dilation, groups = conv
    rows, _, *kernel = layout.shape
    out = [(x.shape[i + 2] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    y = torch.full((x.shape[0], rows, *out), float("nan"), dtype=x.dtype)
    y = feature_major(y) if is_feature_major(x) else y
    _C.bsr_conv2d_forward(
        x.data_ptr(), values.data_ptr(), layout.value_mask.data_ptr(), 0 if bias is None else bias.data_ptr(),
        y.data_ptr(), layout.crow_indices.data_ptr(), layout.col_indices.data_ptr(),
        *x.shape, rows, groups, *kernel, *stride, *padding, *dilation, *out, is_feature_major(x), relu,
        *layout.block, int(x.dtype == torch.float64), threads,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_masked_dense_layer(near: Any, isa: str, case: str, block: tuple[int, int], density: float) -> None:
    n, channels, height, width, out, kernel, *conv = CASES[case]
    mask = torch.rand(out, channels // conv[3], *kernel) < density
    mask[: out // 3] &= density == 1  # empty block rows
    layout = BSR.from_mask(mask, block, "zeros")
    for dtype, threads in ((torch.float32, 1), (torch.float64, 3)):
        x, bias = torch.randn(n, channels, height, width, dtype=dtype), torch.randn(out, dtype=dtype)
        values = torch.randn(layout.values_shape, dtype=dtype)  # also where the mask has zeros
        weight = layout.scatter(values).double() * mask
        truth = F.conv2d(x.double(), weight, bias.double(), *conv)
        near(forward(layout, x, values, bias, tuple(conv), threads), truth)
        near(forward(layout, x, values, bias, tuple(conv), threads, relu=True), truth.relu())
        y = forward(layout, feature_major(x), values, None, tuple(conv), threads)
        assert is_feature_major(y) == is_feature_major(feature_major(x))
        near(y, truth - bias.double()[:, None, None])


def test_long_reductions_are_done_in_blocks_and_repeat_bit_for_bit(near: Any, isa: str) -> None:
    layout = BSR.from_mask(torch.rand(75, 70, 3, 3) < 0.9, (4, 5), "zeros")
    x, bias, values = torch.randn(6, 70, 9, 9), torch.randn(75), torch.randn(layout.values_shape)
    conv = ((1, 1), (1, 1), (1, 1), 1)
    truth = F.conv2d(x.double(), layout.scatter(values).double(), bias.double(), *conv)
    for threads in (1, 2):
        y = forward(layout, x, values, bias, conv, threads)
        near(y, truth)
        assert torch.equal(y, forward(layout, x, values, bias, conv, threads))


@pytest.mark.parametrize("changed", [{"block_rows": 0}, {"block_cols": 0}, {"crow": 0}, {"groups": 3}, {"threads": 0}])
def test_an_impossible_argument_is_named(changed: dict[str, int]) -> None:
    given = dict.fromkeys(
        ("x", "values", "mask", "bias", "y", "crow", "col", "n", "stride_h", "stride_w", "dilation_h", "dilation_w"), 1
    )
    given |= {"channels": 4, "out_channels": 4, "groups": 2, "height": 8, "width": 8, "kernel_h": 3, "kernel_w": 3}
    given |= {"pad_h": 0, "pad_w": 0, "out_h": 6, "out_w": 6, "dtype": 0, "threads": 1}
    given |= {"block_rows": 2, "block_cols": 2, "feature_major": False, "relu": False}
    name = "channels" if "groups" in changed else next(iter(changed))
    with pytest.raises(ValueError, match=f"{name}: expected"):
        _C.bsr_conv2d_forward(**{**given, **changed})
