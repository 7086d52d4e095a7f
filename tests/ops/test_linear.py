"""Sparse linear against float64 masked dense torch: values, gradients, shapes, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sparse_cases import DENSITIES, LAYOUT_MAKERS, LINEAR_SIZES, masked_weight, tolerance
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import CSR
from lth_sparse.ops import functional, use_backend


def gradients(y: Tensor, upstream: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, inputs, upstream))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("sizes", LINEAR_SIZES)
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_equals_masked_dense(
    maker: str, sizes: tuple[int, int, int], density: float, dtype: torch.dtype, backend: str
) -> None:
    out, features, batch = sizes
    weight, mask = masked_weight((out, features), density)
    x = torch.randn(batch, features, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(out, dtype=torch.float64, requires_grad=True)
    dense = (weight * mask).requires_grad_()
    truth = F.linear(x, dense, bias)
    upstream = torch.randn_like(truth)
    true_dx, true_dw, true_db = gradients(truth, upstream, x, dense, bias)

    layout = LAYOUT_MAKERS[maker](mask)
    ours_x = x.detach().to(dtype).requires_grad_()
    values = layout.gather(weight).to(dtype).requires_grad_()
    ours_bias = bias.detach().to(dtype).requires_grad_()
    with use_backend(backend):
        y = functional.linear(ours_x, values, layout, ours_bias)
        dx, dvalues, dbias = gradients(y, upstream.to(dtype), ours_x, values, ours_bias)

    close = tolerance(dtype)
    torch.testing.assert_close(y.double(), truth, **close)
    torch.testing.assert_close(dx.double(), true_dx, **close)
    torch.testing.assert_close(layout.scatter(dvalues.double()), true_dw * mask, **close)
    torch.testing.assert_close(dbias.double(), true_db, **close)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (2, 0, 5), (1, 1, 1, 5)])
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_any_number_of_leading_dimensions(maker: str, shape: tuple[int, ...]) -> None:
    weight, mask = masked_weight((7, 5), 0.5)
    layout = LAYOUT_MAKERS[maker](mask)
    x = torch.randn(shape, dtype=torch.float64)
    y = functional.linear(x, layout.gather(weight), layout)
    torch.testing.assert_close(y, F.linear(x, weight * mask))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("strides", ["feature_major", "every_second", "expanded"])
def test_strided_inputs_and_gradients(strides: str) -> None:
    weight, mask = masked_weight((31, 18), 0.3)
    x = {
        "feature_major": torch.randn(18, 23, dtype=torch.float64).t(),
        "every_second": torch.randn(23, 36, dtype=torch.float64)[:, ::2],
        "expanded": torch.randn(1, 18, dtype=torch.float64).expand(23, 18),
    }[strides]
    layout = CSR.from_mask(mask)
    values = layout.gather(weight).requires_grad_()
    x = x.detach().requires_grad_()
    y = functional.linear(x, values, layout)
    upstream = torch.randn(31, 23, dtype=torch.float64).t()
    dx, dvalues = gradients(y, upstream, x, values)
    torch.testing.assert_close(y, x @ (weight * mask).t())
    torch.testing.assert_close(dx, upstream @ (weight * mask))
    torch.testing.assert_close(layout.scatter(dvalues), (upstream.t() @ x) * mask)
    (dx_of_sum,) = torch.autograd.grad(functional.linear(x, values, layout).sum(), x)  # a gradient of stride 0
    torch.testing.assert_close(dx_of_sum, torch.ones_like(y) @ (weight * mask))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_wanted_gradients_are_made(wanted: tuple[bool, bool]) -> None:
    weight, mask = masked_weight((9, 8), 0.5)
    layout = CSR.from_mask(mask)
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=wanted[0])
    values = layout.gather(weight).requires_grad_(wanted[1])
    functional.linear(x, values, layout).sum().backward()
    assert ((x.grad is not None), (values.grad is not None)) == wanted


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("maker", LAYOUT_MAKERS)
def test_gradcheck_first_and_second_order(maker: str) -> None:
    weight, mask = masked_weight((6, 5), 0.5)
    layout = LAYOUT_MAKERS[maker](mask)
    inputs = (
        torch.randn(3, 5, dtype=torch.float64, requires_grad=True),
        layout.gather(weight).requires_grad_(),
        torch.randn(6, dtype=torch.float64, requires_grad=True),
    )

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, values, layout, bias)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_float16_runs_the_reference() -> None:
    weight, mask = masked_weight((6, 5), 0.5)
    layout = CSR.from_mask(mask)
    x = torch.randn(3, 5).half()
    y = functional.linear(x, layout.gather(weight).half(), layout)
    torch.testing.assert_close(y, F.linear(x, (weight * mask).half()))


def test_autocast_keeps_the_values_dtype() -> None:
    weight, mask = masked_weight((6, 5), 0.5)
    layout = CSR.from_mask(mask)
    values = layout.gather(weight).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = functional.linear(torch.randn(3, 5).bfloat16(), values, layout)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert values.grad is not None


def test_a_nan_reaches_only_outputs_that_read_it() -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 0] = mask[1, 1] = True
    layout = CSR.from_mask(mask)
    x = torch.ones(2, 4)
    x[0, 0] = float("nan")
    y = functional.linear(x, torch.ones(2), layout)
    assert torch.equal(y.isnan(), torch.tensor([[True, False, False], [False, False, False]]))


LAYOUT = CSR.from_mask(torch.ones(3, 4, dtype=torch.bool))
CONV_LAYOUT = CSR.from_mask(torch.ones(3, 4, 1, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.randn(2, 5)}, ArgumentError, r"x: expected shape \[\*, 4\], got \[2, 5\]"),
        ({"x": torch.tensor(1.0)}, ArgumentError, r"x: expected shape \[\*, 4\], got \[\]"),
        ({"x": [1.0]}, ArgumentTypeError, "x: expected a tensor, got list"),
        (
            {"x": torch.randn(2, 4).double()},
            ArgumentError,
            "x: expected dtype torch.float32 of values, got torch.float64",
        ),
        ({"x": torch.randn(2, 4, device="meta")}, ArgumentError, "x: expected device cpu of values, got meta"),
        ({"values": torch.randn(5)}, ArgumentError, r"values: expected shape \[12\], got \[5\]"),
        ({"values": torch.ones(12, dtype=torch.int64)}, ArgumentError, "values: expected a floating dtype"),
        ({"values": None}, ArgumentTypeError, "values: expected a tensor, got NoneType"),
        ({"layout": "csr"}, ArgumentTypeError, "layout: expected a .*Layout, got str"),
        ({"layout": CONV_LAYOUT}, ArgumentError, "layout: expected one of a 2-D weight"),
        ({"bias": torch.randn(4)}, ArgumentError, r"bias: expected torch.float32 \[3\] on cpu, or None, got"),
        ({"bias": torch.randn(3).double()}, ArgumentError, "bias: expected torch.float32"),
        ({"bias": 1.0}, ArgumentError, "bias: expected .* got float"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    good = {"x": torch.randn(2, 4), "values": torch.randn(12), "layout": LAYOUT, "bias": torch.randn(3)}
    with pytest.raises(error, match=message):
        functional.linear(**(good | arguments))
