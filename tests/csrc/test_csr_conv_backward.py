"""csr_conv2d_backward in both formats of its two inputs, any number of images, and what must not leak between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse.ops.strides import feature_major, is_feature_major

# n, channels, (height, width), out channels, kernel, stride, padding, dilation, groups
CASES: dict[str, tuple[Any, ...]] = {
    "3x3": (5, 6, (9, 7), 8, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "valid": (16, 3, (6, 8), 5, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    "whole registers": (16, 4, (4, 8), 6, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "more images than a vector": (33, 3, (4, 5), 4, (3, 2), (1, 1), (1, 0), (1, 1), 1),
    "blocks of images": (150, 2, (3, 3), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "pointwise": (4, 7, (5, 6), 9, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise, whole registers": (16, 7, (4, 4), 9, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "strided": (3, 4, (9, 10), 6, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "strided pointwise": (5, 4, (7, 9), 6, (1, 1), (3, 2), (0, 0), (1, 1), 1),
    "dilated": (6, 4, (11, 12), 3, (3, 3), (1, 1), (2, 3), (2, 3), 1),
    "dilated and strided": (7, 2, (13, 12), 3, (2, 3), (2, 3), (3, 1), (3, 2), 1),
    "grouped": (5, 6, (6, 5), 9, (3, 3), (1, 1), (1, 1), (1, 1), 3),
    "depthwise": (20, 6, (7, 7), 6, (3, 3), (1, 1), (1, 1), (1, 1), 6),
    "wide padding": (3, 2, (3, 4), 4, (2, 2), (1, 1), (3, 4), (1, 1), 1),
    "tall": (2, 3, (40, 33), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    # as wide out as in: one image at a time, several rows in a strip
    "bands of planes": (2, 3, (45, 33), 70, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "wide planes": (3, 3, (9, 32), 5, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "narrow planes": (2, 3, (30, 5), 6, (3, 5), (1, 1), (1, 2), (1, 1), 1),
    "dilated planes": (2, 4, (13, 21), 3, (3, 3), (1, 1), (0, 2), (2, 2), 1),
    "planes of single rows": (2, 4, (1, 70), 3, (1, 3), (1, 1), (0, 1), (1, 1), 1),
    "planes with rows of padding": (3, 3, (6, 20), 4, (2, 3), (1, 1), (4, 1), (1, 1), 1),
    "grouped planes": (2, 6, (9, 18), 9, (3, 1), (1, 1), (1, 0), (1, 1), 3),
    "pointwise planes": (2, 6, (14, 14), 9, (1, 1), (1, 1), (0, 0), (1, 1), 1),
}


def problem(conv: Any, case: str, density: float, bits: int, dtype: torch.dtype, n: int | None = None) -> Any:
    images, channels, size, out, kernel, stride, padding, dilation, groups = CASES[case]
    mask = torch.rand(out, channels // groups, *kernel) < density
    mask[0] = False  # an output channel without weights
    layer = conv(mask, bits, stride, padding, dilation, groups)
    x = torch.randn(images if n is None else n, channels, *size, dtype=dtype)
    values = torch.randn(layer.nnz, dtype=dtype)
    grad = torch.randn(len(x), out, *layer.out(x), dtype=dtype)
    return layer, grad, x, values


def in_format(tensor: Tensor, major: bool) -> Tensor:
    return feature_major(tensor) if major else tensor


@pytest.mark.parametrize("formats", [(False, True), (True, False), (True, True)], ids=["x", "grad", "both"])
@pytest.mark.parametrize("density", [0.05, 0.6])
@pytest.mark.parametrize("case", CASES)
def test_feature_major_gradients_are_those_of_the_masked_dense_layer(
    conv: Any, near: Any, variant: Any, case: str, density: float, formats: tuple[bool, bool]
) -> None:
    layer, grad, x, values = problem(conv, case, density, variant.index_bits, variant.dtype)
    _, *truth = layer.truth(grad, x, values, None)
    x = in_format(x, formats[1])
    found = layer.backward(in_format(grad, formats[0]), x, values, variant.threads)
    assert is_feature_major(found[0]) == is_feature_major(x)
    for actual, expected in zip(found, truth, strict=True):
        near(actual, expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 15, 17, 31, 64, 100])
@pytest.mark.parametrize("case", ["3x3", "pointwise", "strided", "grouped"])
def test_any_number_of_images(conv: Any, near: Any, isa: str, case: str, n: int) -> None:
    layer, grad, x, values = problem(conv, case, 0.4, 16, torch.float32, n)
    _, *truth = layer.truth(grad, x, values, None)
    for formats in ((False, False), (True, True)):
        found = layer.backward(in_format(grad, formats[0]), in_format(x, formats[1]), values, 2)
        for actual, expected in zip(found, truth, strict=True):
            near(actual, expected)


@pytest.mark.parametrize("wanted", ["dx", "dvalues", "dbias", "dx dbias", "dvalues dbias"])
@pytest.mark.parametrize("case", ["3x3", "whole registers", "strided"])
def test_feature_major_gradients_that_are_not_wanted_are_left_out(
    conv: Any, near: Any, variant: Any, case: str, wanted: str
) -> None:
    layer, grad, x, values = problem(conv, case, 0.4, variant.index_bits, variant.dtype)
    _, *truth = layer.truth(grad, x, values, None)
    found = layer.backward(feature_major(grad), feature_major(x), values, variant.threads, wanted)
    for name, actual, expected in zip(("dx", "dvalues", "dbias"), found, truth, strict=True):
        assert (actual is not None) == (name in wanted.split())
        if actual is not None:
            near(actual, expected)


@pytest.mark.parametrize("major", [False, True], ids=["contiguous", "feature-major"])
@pytest.mark.parametrize("case", ["3x3", "whole registers", "pointwise, whole registers", "strided", "tall"])
def test_a_nan_in_an_image_of_grad_stays_in_that_image(conv: Any, isa: str, case: str, major: bool) -> None:
    layer, grad, x, values = problem(conv, case, 0.5, 16, torch.float32)
    clean = layer.backward(in_format(grad, major), in_format(x, major), values, 2)[0]
    grad[1, 2] = float("nan")
    dx = layer.backward(in_format(grad, major), in_format(x, major), values, 2)[0]
    others = torch.arange(len(x)) != 1
    assert torch.equal(dx[others], clean[others])
    weight, poisoned = layer.dense(values), torch.zeros_like(grad, dtype=torch.float64)
    poisoned[1, 2] = 1
    weight[weight != 0] = 1
    reached = torch.nn.grad.conv2d_input(
        x.shape, weight, poisoned, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    assert torch.equal(dx.isnan(), reached > 0)


@pytest.mark.parametrize("case", ["3x3", "whole registers", "strided"])
def test_a_nan_in_a_channel_of_x_stays_in_the_weights_that_read_it(conv: Any, isa: str, case: str) -> None:
    layer, grad, x, values = problem(conv, case, 0.5, 16, torch.float32)
    for major in (False, True):
        clean = layer.backward(in_format(grad, major), in_format(x, major), values, 2)[1]
        poisoned = x.clone()
        poisoned[0, 1, 2, 3] = float("nan")
        found = layer.backward(in_format(grad, major), in_format(poisoned, major), values, 2)[1]
        elsewhere = layer.mask.nonzero()[:, 1] != 1
        assert torch.equal(found[elsewhere], clean[elsewhere])


@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "feature-major"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_call_gives_the_same_bits(conv: Any, isa: str, case: str, formats: tuple[bool, bool]) -> None:
    layer, grad, x, values = problem(conv, case, 0.4, 16, torch.float32)
    arguments = in_format(grad, formats[0]), in_format(x, formats[1]), values, 2
    first, again = layer.backward(*arguments), layer.backward(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("major", [False, True], ids=["contiguous", "feature-major"])
@pytest.mark.parametrize("n", [0, 2])
def test_nothing_is_pruned_and_all_is_pruned(conv: Any, near: Any, isa: str, n: int, major: bool) -> None:
    for density in (0.0, 2.0):
        layer, grad, x, values = problem(conv, "3x3", density, 16, torch.float32, n)
        _, *truth = layer.truth(grad, x, values, None)
        for actual, expected in zip(
            layer.backward(in_format(grad, major), in_format(x, major), values, 2), truth, strict=True
        ):
            near(actual, expected)


@pytest.mark.parametrize("major", [False, True], ids=["contiguous", "feature-major"])
@pytest.mark.parametrize("threads", [1, 3])
def test_output_channels_in_blocks_and_shifts_left_out_at_the_border(
    conv: Any, near: Any, isa: str, threads: int, major: bool
) -> None:
    layer = conv(torch.rand(160, 24, 3, 3) < 0.5, 16, (1, 1), (1, 1))
    x, values = torch.randn(32, 24, 6, 8), torch.randn(layer.nnz)
    grad = torch.randn(32, 160, 6, 8)
    _, *truth = layer.truth(grad, x, values, None)
    for actual, expected in zip(
        layer.backward(in_format(grad, major), in_format(x, major), values, threads), truth, strict=True
    ):
        near(actual, expected)


ODD = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0)


def activations(like: Tensor) -> Tensor:
    """What a ReLU gave, and what it cannot give: below zero, infinite, not a number."""
    activated = torch.randn_like(like)
    some = activated.view(-1)[:: max(1, like.numel() // 40)]
    some.copy_(torch.tensor(ODD * len(some), dtype=like.dtype)[: len(some)])
    return activated


@pytest.mark.parametrize("formats", [(False, False), (True, False), (True, True)], ids=["contiguous", "grad", "both"])
@pytest.mark.parametrize("case", CASES)
def test_a_fused_relu_stops_the_gradient_where_torch_does(
    conv: Any, variant: Any, case: str, formats: tuple[bool, bool]
) -> None:
    layer, grad, x, values = problem(conv, case, 0.3, variant.index_bits, variant.dtype)
    activated = activations(grad)
    grad[(activated <= 0) & (torch.rand_like(grad) < 0.1)] = float("nan")  # not to be seen
    before = torch.ops.aten.threshold_backward(grad, activated, 0)
    x, grad, activated = in_format(x, formats[1]), in_format(grad, formats[0]), in_format(activated, formats[0])
    expected = layer.backward(in_format(before, formats[0]), x, values, variant.threads)
    found = layer.backward(grad, x, values, variant.threads, activated=activated)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("wanted", ["dx", "dvalues", "dbias", "dx dbias", "dvalues dbias"])
@pytest.mark.parametrize("major", [False, True], ids=["contiguous", "feature-major"])
@pytest.mark.parametrize("case", ["3x3", "strided", "wide planes", "narrow planes", "wide padding"])
def test_each_gradient_alone_behind_a_fused_relu(
    conv: Any, near: Any, isa: str, case: str, major: bool, wanted: str
) -> None:
    layer, grad, x, values = problem(conv, case, 0.4, 16, torch.float32)
    activated = activations(grad)
    _, *truth = layer.truth(torch.ops.aten.threshold_backward(grad, activated, 0), x, values, None)
    tensors = (in_format(tensor, major) for tensor in (grad, x))
    found = layer.backward(*tensors, values, 2, wanted, in_format(activated, major))
    for name, actual, expected in zip(("dx", "dvalues", "dbias"), found, truth, strict=True):
        assert (actual is not None) == (name in wanted.split())
        if actual is not None:
            near(actual, expected)


@pytest.mark.parametrize("major", [False, True], ids=["contiguous", "feature-major"])
@pytest.mark.parametrize("case", CASES)
def test_channels_of_nan_stay_in_the_weights_between_them(conv: Any, isa: str, case: str, major: bool) -> None:
    """All of an input and of an output channel: what lies beside them in memory, and beyond the ends of strips."""
    layer, grad, x, values = problem(conv, case, 0.7, 16, torch.float32)
    grad, x = in_format(grad, major), in_format(x, major)
    clean = layer.backward(grad, x, values, 2)
    rows, channels = layer.mask.nonzero()[:, :2].T
    per_group, group_rows = layer.mask.shape[1], layer.mask.shape[0] // layer.groups
    x = x.clone()
    x[:, 1] = float("nan")
    dx, dvalues, dbias = layer.backward(grad, x, values, 2)
    assert torch.equal(dx, clean[0])
    assert torch.equal(dbias, clean[2])
    elsewhere = rows // group_rows * per_group + channels != 1
    assert torch.equal(dvalues[elsewhere], clean[1][elsewhere])
    grad = grad.clone()
    grad[:, 2] = float("inf")
    _, dvalues, dbias = layer.backward(grad, x, values, 2)
    elsewhere &= rows != 2
    assert torch.equal(dvalues[elsewhere], clean[1][elsewhere])
    assert torch.equal(dbias.isfinite(), torch.arange(len(dbias)) != 2)


@pytest.mark.parametrize("n", [2, 12, 20, 60])
@pytest.mark.parametrize("size", [(5, 5), (4, 8), (3, 33)], ids=str)
def test_feature_major_strips_end_where_the_row_does(
    conv: Any, near: Any, isa: str, n: int, size: tuple[int, int]
) -> None:
    """The tensors end with the memory they lie in, so that reading on would meet what is not theirs."""
    layer = conv(torch.rand(5, 3, 3, 3) < 0.5, 16, (1, 1), (1, 1))
    x, values, grad = torch.randn(n, 3, *size), torch.randn(layer.nnz), torch.randn(n, 5, *size)
    _, *truth = layer.truth(grad, x, values, None)
    spare = torch.full((x.numel() + 64,), float("nan"))
    inside = spare[: x.numel()].view(3, *size, n).movedim(-1, 0).copy_(x)
    assert is_feature_major(inside)
    for actual, expected in zip(layer.backward(feature_major(grad), inside, values, 2), truth, strict=True):
        near(actual, expected)
