"""Sparse conv1d and conv2d against float64 masked dense torch: values, gradients, geometry, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_cases import CONV_CASES, LAYOUT_MAKERS, masked_weight, skip_mixed_groups, tolerance
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from lth_sparse.errors import ArgumentError
from lth_sparse.formats import CSR
from lth_sparse.ops import functional, use_backend
from lth_sparse.ops.schemas import OPS
from lth_sparse.ops.strides import feature_major, is_feature_major

# torch's own reference warns that "same" padding with even kernels copies its input
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def truth_of(x: Tensor, weight: Tensor, bias: Tensor, arguments: dict[str, Any]) -> Tensor:
    """torch's module, since torch.nn.functional knows no padding mode."""
    make = nn.Conv2d if weight.dim() == 4 else nn.Conv1d
    channels = weight.shape[1] * arguments.get("groups", 1)
    module = make(channels, weight.shape[0], tuple(weight.shape[2:]), **arguments).double()
    return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_equals_masked_dense(
    maker: str, case: tuple[Any, ...], density: float, dtype: torch.dtype, backend: str
) -> None:
    n, channels, height, width, out, kernel, arguments = case
    skip_mixed_groups(maker, arguments)
    weight, mask = masked_weight((out, channels // arguments.get("groups", 1), *kernel), density)
    x = torch.randn(n, channels, height, width, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(out, dtype=torch.float64, requires_grad=True)
    dense = (weight * mask).requires_grad_()
    truth = truth_of(x, dense, bias, arguments)
    upstream = torch.randn_like(truth)
    true_dx, true_dw, true_db = torch.autograd.grad(truth, (x, dense, bias), upstream)

    layout = LAYOUT_MAKERS[maker](mask)
    ours_x = x.detach().to(dtype).requires_grad_()
    values = layout.gather(weight).to(dtype).requires_grad_()
    ours_bias = bias.detach().to(dtype).requires_grad_()
    with use_backend(backend):
        y = functional.conv2d(ours_x, values, layout, ours_bias, **arguments)
        dx, dvalues, dbias = torch.autograd.grad(y, (ours_x, values, ours_bias), upstream.to(dtype))

    close = tolerance(dtype)
    torch.testing.assert_close(y.double(), truth, **close)
    torch.testing.assert_close(dx.double(), true_dx, **close)
    torch.testing.assert_close(layout.scatter(dvalues.double()), true_dw * mask, **close)
    torch.testing.assert_close(dbias.double(), true_db, **close)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(
    "arguments", [{"padding": 1}, {"stride": 2}, {"padding": "same", "dilation": 2}, {"groups": 2}]
)
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_conv1d_equals_masked_dense(maker: str, arguments: dict[str, Any]) -> None:
    skip_mixed_groups(maker, arguments)
    weight, mask = masked_weight((6, 4 // arguments.get("groups", 1), 3), 0.4)
    layout = LAYOUT_MAKERS[maker](mask)
    x = torch.randn(5, 4, 17, dtype=torch.float64, requires_grad=True)
    values, bias = layout.gather(weight).requires_grad_(), torch.randn(6, dtype=torch.float64)
    dense = (weight * mask).requires_grad_()
    truth = truth_of(x, dense, bias, arguments)
    y = functional.conv1d(x, values, layout, bias, **arguments)
    upstream = torch.randn_like(y)
    torch.testing.assert_close(y, truth)
    dx, dvalues = torch.autograd.grad(y, (x, values), upstream)
    true_dx, true_dw = torch.autograd.grad(truth, (x, dense), upstream)
    torch.testing.assert_close(dx, true_dx)
    torch.testing.assert_close(layout.scatter(dvalues), true_dw * mask)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("strides", ["channels_last", "sliced", "batchless"])
def test_strided_and_batchless_inputs(strides: str) -> None:
    weight, mask = masked_weight((6, 4, 3, 3), 0.4)
    layout = CSR.from_mask(mask)
    x = torch.randn(3, 4, 8, 10, dtype=torch.float64)
    x = {"channels_last": x.to(memory_format=torch.channels_last), "sliced": x[:, :, ::2], "batchless": x[0]}[strides]
    y = functional.conv2d(x, layout.gather(weight), layout, padding=1)
    truth = torch.nn.functional.conv2d(x, weight * mask, padding=1)
    assert y.shape == truth.shape
    torch.testing.assert_close(y, truth.contiguous())


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
@pytest.mark.parametrize("maker", ["csr", "csr_narrow", "bsr", "reordered"])
def test_feature_major_input_gives_feature_major_output(maker: str, case: tuple[Any, ...], backend: str) -> None:
    n, channels, height, width, out, kernel, arguments = case
    skip_mixed_groups(maker, arguments)
    weight, mask = masked_weight((out, channels // arguments.get("groups", 1), *kernel), 0.4)
    layout, bias = LAYOUT_MAKERS[maker](mask), torch.randn(out)
    values = layout.gather(weight).float()
    x = torch.randn(n, channels, height, width)
    with use_backend(backend):
        expected = functional.conv2d(x, values, layout, bias, **arguments)
        y = functional.conv2d(feature_major(x), values, layout, bias, **arguments)
    if arguments.get("padding_mode") is None and arguments.get("padding") != "same":  # else torch pads, contiguously
        assert is_feature_major(y) == is_feature_major(feature_major(expected))
    torch.testing.assert_close(y.contiguous(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("maker", ["csr", "bsr"])
def test_tracing_sees_the_strides_of_feature_major_tensors(maker: str) -> None:
    weight, mask = masked_weight((6, 4, 3, 3), 0.4)
    layout = LAYOUT_MAKERS[maker](mask)
    x, values = feature_major(torch.randn(5, 4, 8, 7)), layout.gather(weight).float()
    arguments = (x, values, None, list(layout.index), list(layout.shape), [2, 1], [1, 0], [1, 1], 1)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPS[layout.kind].conv2d.overload, arguments, test_utils=checks)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = OPS[layout.kind].conv2d(mode.from_tensor(x), *arguments[1:])
    assert fake.stride() == OPS[layout.kind].conv2d(*arguments).stride()


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("formats", [(False, True), (True, False), (True, True)], ids=["x", "grad", "both"])
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
@pytest.mark.parametrize("maker", ["csr", "csr_narrow", "bsr"])
def test_gradients_have_the_format_of_what_they_are_gradients_of(
    maker: str, case: tuple[Any, ...], formats: tuple[bool, bool], backend: str
) -> None:
    n, channels, height, width, out, kernel, arguments = case
    weight, mask = masked_weight((out, channels // arguments.get("groups", 1), *kernel), 0.4)
    layout = LAYOUT_MAKERS[maker](mask)
    inputs = (torch.randn(n, channels, height, width), layout.gather(weight).float(), torch.randn(out))

    def gradients(grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        x, values, bias = (t.detach().requires_grad_() for t in (x, *inputs[1:]))
        y = functional.conv2d(x, values, layout, bias, **arguments)
        return torch.autograd.grad(y, (x, values, bias), grad)

    with use_backend(backend):
        y = functional.conv2d(inputs[0], inputs[1], layout, inputs[2], **arguments)
        grad = torch.randn(y.shape)
        expected = gradients(grad, inputs[0])
        x = feature_major(inputs[0]) if formats[1] else inputs[0]
        found = gradients(feature_major(grad) if formats[0] else grad, x)
    if arguments.get("padding_mode") is None and arguments.get("padding") != "same":  # else torch pads, contiguously
        assert is_feature_major(found[0]) == is_feature_major(x)
    for actual, right in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.contiguous(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("maker", ["csr", "bsr"])
def test_tracing_sees_the_strides_of_feature_major_gradients(maker: str) -> None:
    weight, mask = masked_weight((6, 4, 3, 3), 0.4)
    layout = LAYOUT_MAKERS[maker](mask)
    x, values = feature_major(torch.randn(5, 4, 8, 7)), layout.gather(weight).float()
    conv = ([2, 1], [1, 0], [1, 1], 1)
    y = OPS[layout.kind].conv2d(x, values, None, list(layout.index), list(layout.shape), *conv)
    arguments = (feature_major(torch.randn(y.shape)), x, values, list(layout.index), list(layout.shape), *conv)
    op = OPS[layout.kind].conv2d_backward
    for wanted in ([True, True, True], [True, False, False]):
        torch.library.opcheck(op.overload, (*arguments, wanted), test_utils=("test_schema", "test_faketensor"))
    assert is_feature_major(op(*arguments, [True, True, True])[0])


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_gradcheck_first_and_second_order(maker: str) -> None:
    weight, mask = masked_weight((4, 2, 3, 2), 0.5)
    layout, groups = LAYOUT_MAKERS[maker](mask), 1 if maker == "reordered" else 2
    inputs = (
        torch.randn(2, 2 * groups, 5, 4, dtype=torch.float64, requires_grad=True),
        layout.gather(weight).requires_grad_(),
        torch.randn(4, dtype=torch.float64, requires_grad=True),
    )

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(x, values, layout, bias, stride=2, padding=1, groups=groups)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("formats", [(False, True), (True, False), (True, True)], ids=["x", "grad", "both"])
@pytest.mark.parametrize("maker", ["csr", "csr_narrow", "bsr"])
def test_a_fused_relu_takes_gradients_in_any_format(maker: str, formats: tuple[bool, bool]) -> None:
    weight, mask = masked_weight((6, 4, 3, 3), 0.4)
    layout = LAYOUT_MAKERS[maker](mask)
    inputs = (torch.randn(5, 4, 8, 7), layout.gather(weight).float(), torch.randn(6))
    grad = torch.randn(5, 6, 8, 7)

    def gradients(x: Tensor, grad: Tensor, activation: str | None) -> tuple[Tensor, ...]:
        x, values, bias = (t.detach().requires_grad_() for t in (x, *inputs[1:]))
        y = functional.conv2d(x, values, layout, bias, padding=1, activation=activation)
        return torch.autograd.grad(y if activation else y.relu(), (x, values, bias), grad)

    expected = gradients(inputs[0], grad, None)
    x = feature_major(inputs[0]) if formats[0] else inputs[0]
    for given in (feature_major(grad) if formats[1] else grad, grad.to(memory_format=torch.channels_last)):
        for actual, right in zip(gradients(x, given, "relu"), expected, strict=True):
            torch.testing.assert_close(actual.contiguous(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_gradcheck_of_a_fused_relu(maker: str) -> None:
    weight, mask = masked_weight((4, 2, 3, 3), 0.5)
    layout, groups = LAYOUT_MAKERS[maker](mask), 1 if maker == "reordered" else 2
    inputs = (
        torch.randn(2, 2 * groups, 5, 4, dtype=torch.float64, requires_grad=True),
        layout.gather(weight).requires_grad_(),
        torch.randn(4, dtype=torch.float64, requires_grad=True),
    )

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(x, values, layout, bias, padding=1, groups=groups, activation="relu")

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_a_nan_reaches_only_outputs_that_read_it() -> None:
    mask = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 1] = mask[1, 0, 0, 0] = True
    layout = CSR.from_mask(mask)
    x = torch.ones(9, 1, 6, 6)
    x[4, 0, 2, 5] = float("nan")
    y = functional.conv2d(x, torch.ones(2), layout, padding=1)
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[4, 0, 2, 5] = True  # the centre tap; the corner tap would need column 6, which is padding
    assert torch.equal(y.isnan(), expected)


LAYOUT = CSR.from_mask(torch.ones(4, 2, 3, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.randn(1, 3, 8, 8)}, r"x: expected shape \[N, 2, H, W\] or without N, got \[1, 3, 8, 8\]"),
        ({"x": torch.randn(8, 8)}, "x: expected shape"),
        ({"x": torch.randn(1, 2, 2, 8)}, "x: expected a padded height of at least 3, the kernel's reach, got 2"),
        ({"x": torch.randn(1, 2, 8, 2)}, "x: expected a padded width of at least 3"),
        ({"stride": 0}, "stride: expected an int or 2 ints of at least 1, got 0"),
        ({"stride": (1, 2, 3)}, "stride: expected"),
        ({"stride": 1.5}, "stride: expected"),
        ({"padding": -1}, "padding: expected an int or 2 ints of at least 0"),
        ({"padding": "full"}, "padding: expected an int, one int per dimension, 'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, "stride: expected 1 with padding='same'"),
        ({"dilation": 0}, "dilation: expected"),
        ({"groups": 3}, "groups: expected a positive int that divides the 4 output channels, got 3"),
        ({"groups": 0}, "groups: expected"),
        ({"padding_mode": "mirror"}, "padding_mode: expected one of 'zeros'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    good = {"x": torch.randn(1, 2, 8, 8), "values": torch.randn(72), "layout": LAYOUT}
    with pytest.raises(ArgumentError, match=message):
        functional.conv2d(**(good | arguments))
