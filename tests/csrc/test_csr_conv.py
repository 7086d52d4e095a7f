"""csr_conv2d_*: convolutions and gradients against dense fp64: strides, paddings, dilations, groups of all kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lth_sparse import _C
from lth_sparse.ops.strides import feature_major, is_feature_major

#: n, channels, height, width, out channels, kernel, stride, padding, dilation, groups
CASES = {
    "3x3": (2, 3, 8, 8, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "wider than one strip": (7, 16, 14, 15, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "full images": (32, 24, 8, 8, 28, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "first layer": (60, 1, 10, 10, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "one image": (1, 1, 28, 28, 5, (5, 5), (1, 1), (2, 2), (1, 1), 1),
    "many images": (129, 2, 5, 5, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "tiny map": (20, 40, 4, 4, 40, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "1x1": (4, 8, 16, 16, 8, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1 strided": (4, 8, 15, 16, 8, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "1x1 padded": (2, 3, 5, 5, 4, (1, 1), (1, 1), (2, 1), (1, 1), 1),
    "strided": (5, 6, 13, 7, 8, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "unequal": (3, 4, 9, 11, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    "row kernel": (2, 2, 3, 40, 4, (1, 7), (1, 1), (0, 3), (1, 1), 1),
    "depthwise": (5, 6, 13, 7, 6, (3, 3), (1, 1), (1, 1), (1, 1), 6),
    "depthwise strided": (5, 6, 13, 7, 12, (3, 3), (2, 2), (1, 1), (1, 1), 6),
    "even kernel": (3, 4, 10, 10, 4, (4, 4), (2, 2), (1, 1), (1, 1), 4),
    "stride over kernel": (2, 3, 8, 8, 4, (2, 2), (5, 5), (0, 0), (1, 1), 1),
    "stride over kernel, groups": (2, 4, 12, 12, 4, (2, 2), (3, 3), (0, 0), (1, 1), 2),
    "dilated": (2, 2, 9, 9, 2, (3, 3), (1, 1), (0, 0), (3, 3), 1),
    "dilated, strided": (2, 3, 8, 8, 4, (3, 3), (2, 2), (0, 0), (3, 3), 1),
    "padding over kernel": (2, 3, 6, 6, 4, (3, 3), (1, 3), (5, 6), (2, 1), 1),
    "as large as the image": (1, 3, 5, 5, 4, (5, 5), (1, 1), (0, 0), (1, 1), 1),
    "7x7, stride 3": (2, 5, 17, 19, 7, (7, 7), (3, 3), (4, 4), (1, 1), 1),
    "wide": (2, 20, 24, 32, 9, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "wide, odd": (3, 6, 11, 37, 10, (3, 5), (1, 1), (0, 2), (2, 1), 2),
    "wide, strided": (2, 9, 20, 45, 6, (3, 3), (2, 2), (1, 1), (1, 2), 3),
    "wide, depthwise": (3, 8, 16, 16, 8, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    "wide, padding over kernel": (1, 3, 5, 33, 4, (3, 3), (1, 1), (4, 5), (1, 1), 1),
    "wide 1x1": (5, 12, 14, 14, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "no images": (0, 3, 6, 6, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
}


def problem(conv: Any, case: str, density: float, bits: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """A layer and its x, values, bias and grad; one output channel in three has no weights."""
    n, channels, height, width, out, kernel, stride, padding, dilation, groups = CASES[case]
    mask = torch.rand(out, channels // groups, *kernel) < density
    if 0 < density < 1:
        mask[1::3] = False
    layer = conv(mask, bits, stride, padding, dilation, groups)
    x = torch.randn(n, channels, height, width, dtype=dtype)
    grad = torch.randn(n, out, *layer.out(x), dtype=dtype)
    return layer, x, torch.randn(layer.nnz, dtype=dtype), torch.randn(out, dtype=dtype), grad


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_forward_is_that_of_the_masked_dense_layer(
    conv: Any, near: Any, variant: Any, case: str, density: float
) -> None:
    layer, x, values, bias, grad = problem(conv, case, density, variant.index_bits, variant.dtype)
    near(layer.forward(x, values, bias, variant.threads), layer.truth(grad, x, values, bias)[0])


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_forward_of_feature_major_input_writes_feature_major_output(
    conv: Any, near: Any, variant: Any, case: str, density: float
) -> None:
    layer, x, values, bias, grad = problem(conv, case, density, variant.index_bits, variant.dtype)
    y = layer.forward(feature_major(x), values, bias, variant.threads)
    assert is_feature_major(y) == is_feature_major(feature_major(x))
    near(y, layer.truth(grad, x, values, bias)[0])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 13, 17, 33, 50, 70])
@pytest.mark.parametrize("case", ["wider than one strip", "tiny map", "1x1", "1x1 strided", "unequal", "7x7, stride 3"])
def test_any_number_of_images_in_both_formats(conv: Any, near: Any, isa: str, case: str, n: int) -> None:
    layer, x, values, bias, _ = problem(conv, case, 0.3, 16, torch.float32)
    x = torch.randn(n, *x.shape[1:])
    truth = layer.truth(torch.zeros(n, layer.rows, *layer.out(x)), x, values, bias)[0]
    for threads in (1, 3):
        near(layer.forward(x, values, bias, threads), truth)
        near(layer.forward(feature_major(x), values, bias, threads), truth)


@pytest.mark.parametrize("n", [17, 20, 40, 60, 100])
@pytest.mark.parametrize("case", ["wider than one strip", "wide", "unequal", "1x1"])
def test_feature_major_images_that_leave_their_last_vector_partly_empty(
    conv: Any, near: Any, variant: Any, case: str, n: int
) -> None:
    layer, x, values, bias, _ = problem(conv, case, 0.3, variant.index_bits, variant.dtype)
    x = torch.randn(n, *x.shape[1:], dtype=variant.dtype)
    truth = layer.truth(torch.zeros(n, layer.rows, *layer.out(x)), x, values, bias)[0]
    near(layer.forward(feature_major(x), values, bias, variant.threads), truth)


@pytest.mark.parametrize(
    "case", ["3x3", "full images", "wide", "wide, strided", "many images", "wide 1x1", "depthwise"]
)
def test_relu_is_that_of_torch_and_keeps_nan(conv: Any, near: Any, variant: Any, case: str) -> None:
    layer, x, values, bias, grad = problem(conv, case, 0.3, variant.index_bits, variant.dtype)
    truth = layer.truth(grad, x, values, bias)[0].relu()
    for given in (x, feature_major(x)):
        y = layer.forward(given, values, bias, variant.threads, relu=True)
        near(y, truth)
        assert y.min() == 0
        spoiled = given.clone()
        spoiled[0, 0, 0, 0] = float("nan")
        y = layer.forward(spoiled, values, bias, variant.threads)
        assert torch.equal(layer.forward(spoiled, values, bias, variant.threads, relu=True).isnan(), y.isnan())


@pytest.mark.parametrize("density", [0.1, 0.6])
@pytest.mark.parametrize("width", [31, 48])
def test_one_image_at_a_time_in_several_bands_and_blocks(
    conv: Any, near: Any, variant: Any, width: int, density: float
) -> None:
    layer = conv(torch.rand(20, 70, 3, 3) < density, variant.index_bits, (1, 1), (1, 1))
    x = torch.randn(2, 70, 50, width, dtype=variant.dtype)
    values, bias = torch.randn(layer.nnz, dtype=variant.dtype), torch.randn(20, dtype=variant.dtype)
    truth = layer.truth(torch.zeros(2, 20, 50, width), x, values, bias)[0]
    near(layer.forward(x, values, bias, variant.threads), truth)
    near(layer.forward(x, values, None, variant.threads, relu=True), (truth - bias.double()[:, None, None]).relu())


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_masked_dense_layer(
    conv: Any, near: Any, variant: Any, case: str, density: float
) -> None:
    layer, x, values, bias, grad = problem(conv, case, density, variant.index_bits, variant.dtype)
    truth = layer.truth(grad, x, values, bias)
    for gradient, expected in zip(layer.backward(grad, x, values, variant.threads), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("wanted", ["dx", "dvalues", "dbias", "dx dvalues", "dvalues dbias", ""])
@pytest.mark.parametrize("case", ["3x3", "even kernel", "1x1 strided"])
def test_gradients_that_are_not_wanted_are_left_out(conv: Any, near: Any, variant: Any, case: str, wanted: str) -> None:
    layer, x, values, bias, grad = problem(conv, case, 0.3, variant.index_bits, variant.dtype)
    truth = dict(zip(("dx", "dvalues", "dbias"), layer.truth(grad, x, values, bias)[1:], strict=True))
    got = dict(zip(("dx", "dvalues", "dbias"), layer.backward(grad, x, values, variant.threads, wanted), strict=True))
    for name, gradient in got.items():
        assert (gradient is not None) == (name in wanted.split())
        if gradient is not None:
            near(gradient, truth[name])


def test_without_bias_the_sum_starts_from_zero(conv: Any, near: Any, variant: Any) -> None:
    layer, x, values, _, grad = problem(conv, "3x3", 0.3, variant.index_bits, variant.dtype)
    near(layer.forward(x, values, None, variant.threads), layer.truth(grad, x, values, None)[0])


def test_offsets_beyond_16_bits(conv: Any, near: Any, isa: str) -> None:
    layer = conv(torch.rand(300, 300, 3, 3) < 0.003, 16, (1, 1), (1, 1))
    x, values, bias = torch.randn(2, 300, 3, 80), torch.randn(layer.nnz), torch.randn(300)
    grad = torch.randn(2, 300, 3, 80)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, 2), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, 2), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("density", [0.3, 0.9])
def test_reductions_longer_than_a_cache_are_done_in_blocks(conv: Any, near: Any, variant: Any, density: float) -> None:
    mask = torch.rand(75, 70, 3, 3) < density
    mask[5, :40] = False  # rows whose first blocks are empty
    mask[:, 7:9] = False
    layer = conv(mask, variant.index_bits, (1, 1), (1, 1))
    x, values, bias = (torch.randn(shape, dtype=variant.dtype) for shape in ((6, 70, 9, 9), (layer.nnz,), (75,)))
    grad = torch.randn(6, 75, 9, 9, dtype=variant.dtype)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, variant.threads), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, variant.threads), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("threads", [1, 3])
def test_images_taller_than_a_band_of_rows(conv: Any, near: Any, isa: str, threads: int, stride: int) -> None:
    layer = conv(torch.rand(33, 35, 3, 3) < 0.1, 16, (stride, stride), (1, 1))
    x, values, bias = torch.randn(17, 35, 60, 18), torch.randn(layer.nnz), torch.randn(33)
    grad = torch.randn(17, 33, *layer.out(x))
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, threads), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, threads), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_so_many_weights_that_all_threads_sort_them(conv: Any, near: Any, isa: str, threads: int) -> None:
    layer = conv(torch.rand(150, 160, 3, 3) < 0.4, 16, (1, 1), (1, 1))
    assert layer.nnz > 1 << 16
    x, values, bias = torch.randn(3, 160, 3, 4), torch.randn(layer.nnz), torch.randn(150)
    grad = torch.randn(3, 150, 3, 4)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, threads), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, threads), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("threads", [4, 6, 9])
def test_more_threads_than_rows_share_the_channels(conv: Any, near: Any, isa: str, threads: int) -> None:
    layer = conv(torch.rand(200, 160, 1, 3) < 0.2, 16)
    x, values, bias = torch.randn(64, 160, 2, 10), torch.randn(layer.nnz), torch.randn(200)
    grad = torch.randn(64, 200, 2, 8)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, threads), truth[0])
    for wanted in ("dx dvalues dbias", "dx", "dvalues"):
        got = layer.backward(grad, x, values, threads, wanted)
        for gradient, expected in zip(got, truth[1:], strict=True):
            if gradient is not None:
                near(gradient, expected)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "case", ["3x3", "strided", "even kernel", "depthwise", "dilated", "padding over kernel", "wide", "wide, strided"]
)
def test_a_nan_in_x_reaches_only_the_outputs_that_read_it(conv: Any, variant: Any, case: str, poison: float) -> None:
    layer, x, values, bias, grad = problem(conv, case, 0.4, variant.index_bits, variant.dtype)
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    for pixel in ((0, 1, 0, 0), (-1, -1, -1, -1), (1, 0, 3, 2)):
        spoiled = x.clone()
        spoiled[pixel] = poison
        readers = F.conv2d((~spoiled.isfinite()).double(), layer.mask.double(), None, *geometry) > 0
        assert torch.equal(~layer.forward(spoiled, values, bias, variant.threads).isfinite(), readers)
        dx, dvalues, dbias = layer.backward(grad, spoiled, values, variant.threads)
        assert dx.isfinite().all()
        assert dbias.isfinite().all()
        group_rows, group_channels = layer.rows // layer.groups, layer.mask.shape[1]
        row, channel, _, _ = layer.mask.nonzero(as_tuple=True)
        other = row // group_rows * group_channels + channel != pixel[1] % x.shape[1]
        assert dvalues[other].isfinite().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", ["3x3", "strided", "even kernel", "depthwise", "dilated", "padding over kernel"])
def test_a_nan_in_grad_reaches_only_the_pixels_its_output_read(
    conv: Any, variant: Any, case: str, poison: float
) -> None:
    layer, x, values, _, grad = problem(conv, case, 0.4, variant.index_bits, variant.dtype)
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    for pixel in ((0, 0, 0, 0), (-1, -1, -1, -1), (1, 0, 1, 1)):
        spoiled = grad.clone()
        spoiled[pixel] = poison
        zeros = torch.zeros(x.shape, dtype=torch.float64, requires_grad=True)
        y = F.conv2d(zeros, layer.mask.double(), None, *geometry)
        (readers,) = torch.autograd.grad(y, zeros, (~spoiled.isfinite()).double())
        dx, dvalues, dbias = layer.backward(spoiled, x, values, variant.threads)
        assert torch.equal(~dx.isfinite(), readers > 0)
        rows = torch.arange(layer.rows) == pixel[1] % layer.rows
        assert torch.equal(~dbias.isfinite(), rows)
        assert dvalues[~rows[layer.mask.nonzero()[:, 0]]].isfinite().all()


def test_pixels_that_no_output_reads_have_gradient_zero(conv: Any, isa: str) -> None:
    layer, x, values, _, grad = problem(conv, "stride over kernel", 1.0, 16, torch.float32)
    x[:, :, 2:5] = float("nan")
    dx, dvalues, _ = layer.backward(grad, x, values, 2)
    assert (dx[:, :, 2:5] == 0).all()
    assert (dx[:, :, :, 2:5] == 0).all()
    assert dvalues.isfinite().all()


def test_a_call_sees_nothing_of_the_one_before(conv: Any, near: Any, variant: Any) -> None:
    layer, x, values, bias, grad = problem(conv, "unequal", 0.4, variant.index_bits, variant.dtype)
    truth = layer.truth(grad, x, values, bias)
    ruined = torch.full_like(x, float("nan")), torch.full_like(grad, float("nan"))
    layer.forward(ruined[0], values, bias, variant.threads)
    near(layer.forward(x, values, bias, variant.threads), truth[0])
    layer.backward(ruined[1], ruined[0], values, variant.threads)
    for gradient, expected in zip(layer.backward(grad, x, values, variant.threads), truth[1:], strict=True):
        near(gradient, expected)


def test_the_same_call_gives_the_same_bits(conv: Any, variant: Any) -> None:
    layer, x, values, bias, grad = problem(conv, "wider than one strip", 0.4, variant.index_bits, variant.dtype)
    first = layer.forward(x, values, bias, variant.threads), *layer.backward(grad, x, values, variant.threads)
    again = layer.forward(x, values, bias, variant.threads), *layer.backward(grad, x, values, variant.threads)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 3}, r"dtype: expected 0 \(float32\), 1 \(float64\) or 2 \(bfloat16\), got 3"),
        ({"index_bits": 8}, "index_bits: expected 16 or 32, got 8"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"groups": 0}, "groups: expected at least 1, got 0"),
        ({"groups": 3}, "channels: expected a multiple of groups, got 4"),
        ({"out_channels": 5}, "out_channels: expected a multiple of groups, got 5"),
        ({"stride_h": 0}, "stride_h: expected at least 1, got 0"),
        ({"dilation_w": 0}, "dilation_w: expected at least 1, got 0"),
        ({"pad_w": -1}, "pad_w: expected at least 0, got -1"),
        ({"out_h": 7}, "out_h: expected 6, got 7"),
        ({"width": 3}, "out_w: expected 1, got 6"),
        ({"x": 0}, "x: expected a pointer, got 0"),
        ({"crow": 0}, "crow: expected a pointer, got 0"),
    ],
    ids=str,
)
def test_an_impossible_argument_is_named(changed: dict[str, int], message: str) -> None:
    given = dict.fromkeys(
        ("x", "values", "bias", "y", "crow", "col", "n", "stride_h", "stride_w", "dilation_h", "dilation_w"), 1
    )
    given |= {"channels": 4, "out_channels": 4, "groups": 2, "height": 8, "width": 8, "kernel_h": 3, "kernel_w": 3}
    given |= {"pad_h": 0, "pad_w": 0, "out_h": 6, "out_w": 6, "index_bits": 16, "dtype": 0, "threads": 1}
    given |= {"feature_major": False, "relu": False}
    with pytest.raises(ValueError, match=message):
        _C.csr_conv2d_forward(**{**given, **changed})
