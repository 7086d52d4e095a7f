"""csr_linear_*: y = x W^T + b and its gradients against dense fp64, for every instruction set, type and index width."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse import _C

#: (rows, cols, batch): LeNet's, odd ones, single ones, more than one strip, none at all
SIZES = [
    (300, 784, 60),
    (17, 33, 129),
    (100, 5, 7),
    (1, 1, 1),
    (3, 300, 1),
    (40, 33, 300),
    (9, 11, 0),
    (0, 7, 5),
    (7, 0, 5),
]


def problem(
    linear: Any, rows: int, cols: int, batch: int, density: float, bits: int, dtype: torch.dtype
) -> tuple[Any, ...]:
    """A layer and its x, values, bias and grad; one row and one column in three have no weights."""
    mask = torch.rand(rows, cols) < density
    if 0 < density < 1:
        mask[::3] = False
        mask[:, 1::3] = False
    layer = linear(mask, bits)
    return (
        layer,
        torch.randn(batch, cols, dtype=dtype),
        torch.randn(layer.nnz, dtype=dtype),
        torch.randn(rows, dtype=dtype),
        torch.randn(batch, rows, dtype=dtype),
    )


def relaid(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "feature-major":
        return tensor.t().contiguous().t()
    if layout == "gaps":
        wide = torch.full((2 * tensor.shape[0], 3 * tensor.shape[1]), float("nan"), dtype=tensor.dtype)
        wide[::2, ::3] = tensor
        return wide[::2, ::3]
    return tensor


@pytest.mark.parametrize("density", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_is_that_of_the_masked_dense_layer(
    linear: Any, near: Any, variant: Any, size: Any, density: float
) -> None:
    layer, x, values, bias, grad = problem(linear, *size, density, variant.index_bits, variant.dtype)
    near(layer.forward(x, values, bias, variant.threads), layer.truth(grad, x, values, bias)[0])


@pytest.mark.parametrize("density", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_those_of_the_masked_dense_layer(
    linear: Any, near: Any, variant: Any, size: Any, density: float
) -> None:
    layer, x, values, bias, grad = problem(linear, *size, density, variant.index_bits, variant.dtype)
    truth = layer.truth(grad, x, values, bias)
    for gradient, expected in zip(layer.backward(grad, x, values, variant.threads), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("wanted", ["dx", "dvalues", "dbias", "dx dvalues", "dvalues dbias", ""])
def test_gradients_that_are_not_wanted_are_left_out(linear: Any, near: Any, variant: Any, wanted: str) -> None:
    layer, x, values, bias, grad = problem(linear, 33, 65, 70, 0.2, variant.index_bits, variant.dtype)
    truth = dict(zip(("dx", "dvalues", "dbias"), layer.truth(grad, x, values, bias)[1:], strict=True))
    got = dict(zip(("dx", "dvalues", "dbias"), layer.backward(grad, x, values, variant.threads, wanted), strict=True))
    for name, gradient in got.items():
        assert (gradient is not None) == (name in wanted.split())
        if gradient is not None:
            near(gradient, truth[name])


@pytest.mark.parametrize("batch", [*range(21), 31, 32, 33])
@pytest.mark.parametrize("layer_size", [(37, 70), (9, 260)], ids=str)
def test_small_batches(linear: Any, near: Any, isa: str, layer_size: tuple[int, int], batch: int) -> None:
    for dtype, bits, threads in ((torch.float32, 16, 1), (torch.float64, 32, 2), (torch.float32, 32, 3)):
        layer, x, values, bias, grad = problem(linear, *layer_size, batch, 0.4, bits, dtype)
        truth = layer.truth(grad, x, values, bias)
        near(layer.forward(x, values, bias, threads), truth[0])
        for wanted in ("dx dvalues dbias", "dx", "dvalues"):
            got = layer.backward(grad, x, values, threads, wanted)
            for gradient, expected in zip(got, truth[1:], strict=True):
                if gradient is not None:
                    near(gradient, expected)


@pytest.mark.parametrize("batch", [1, 3, 8, 16, 17, 32, 48])
def test_a_weight_too_large_for_the_cache(linear: Any, near: Any, variant: Any, batch: int) -> None:
    layer, x, values, bias, grad = problem(linear, 610, 530, batch, 0.95, variant.index_bits, variant.dtype)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, variant.threads), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, variant.threads), truth[1:], strict=True):
        near(gradient, expected)


def test_a_weight_that_comes_from_memory(linear: Any, near: Any, isa: str) -> None:
    layer, x, values, bias, grad = problem(linear, 1500, 2100, 2, 1.0, 16, torch.float32)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, 2), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, 2), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6])
def test_a_strip_too_large_for_the_cache_is_read_in_blocks(linear: Any, near: Any, isa: str, density: float) -> None:
    layer, x, values, bias, grad = problem(linear, 120, 5000, 130, density, 16, torch.float32)
    near(layer.forward(x, values, bias, 2), layer.truth(grad, x, values, bias)[0])


@pytest.mark.parametrize("length", [*range(18), 63, 64, 65])
def test_rows_of_every_length(linear: Any, near: Any, isa: str, length: int) -> None:
    for batch, dtype in ((1, torch.float32), (2, torch.float64), (4, torch.float32), (7, torch.float32)):
        mask = torch.zeros(5, 70, dtype=torch.bool)
        mask[1, 70 - length :] = True
        mask[3, :length] = True
        layer = linear(mask, 16)
        x, grad = torch.randn(batch, 70, dtype=dtype), torch.randn(batch, 5, dtype=dtype)
        values, bias = torch.randn(layer.nnz, dtype=dtype), torch.randn(5, dtype=dtype)
        truth = layer.truth(grad, x, values, bias)
        near(layer.forward(x, values, bias, 2), truth[0])
        for gradient, expected in zip(layer.backward(grad, x, values, 2), truth[1:], strict=True):
            near(gradient, expected)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 16, 32, 61, 128, 150])
@pytest.mark.parametrize("out", ["batch-major", "feature-major", "gaps"])
@pytest.mark.parametrize("into", ["batch-major", "feature-major", "gaps"])
def test_any_strides_give_the_same(linear: Any, near: Any, isa: str, into: str, out: str, batch: int) -> None:
    layer, x, values, bias, grad = problem(linear, 35, 50, batch, 0.2, 16, torch.float32)
    truth = layer.truth(grad, x, values, bias)
    nans = torch.full_like(truth[0], float("nan")), torch.full_like(truth[1], float("nan"))
    y, dx = (relaid(t.float(), out) for t in nans)
    x, grad = relaid(x, into), relaid(grad, into)
    near(layer.forward(x, values, bias, 2, y), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, 2, dx=dx), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("batch", [0, *range(1, 9), 13, 16, 60, 129])
def test_a_fused_relu_is_that_of_the_output_and_keeps_nan(linear: Any, near: Any, variant: Any, batch: int) -> None:
    layer, x, values, bias, grad = problem(linear, 40, 300, batch, 0.3, variant.index_bits, variant.dtype)
    y = layer.forward(x, values, bias, variant.threads, relu=True)
    near(y, layer.truth(grad, x, values, bias)[0].relu())
    for poison in (float("nan"), float("inf")):
        x[batch // 2 : batch // 2 + 1, 8] = poison
        y = layer.forward(x, values, bias, variant.threads, relu=True)
        plain = layer.forward(x, values, bias, variant.threads)
        torch.testing.assert_close(y, plain.relu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("cols", [600, 5000])
def test_a_fused_relu_comes_after_the_last_block_of_the_reduction(
    linear: Any, near: Any, isa: str, cols: int, density: float
) -> None:
    layer, x, values, bias, grad = problem(linear, 70, cols, 130, density, 16, torch.float32)
    near(layer.forward(x, values, bias, 2, relu=True), layer.truth(grad, x, values, bias)[0].relu())


@pytest.mark.parametrize("layout", ["batch-major", "feature-major", "gaps"])
@pytest.mark.parametrize("batch", [*range(9), 13, 16, 32, 60, 129])
def test_gradients_count_where_the_activation_passed_them_on(
    linear: Any, near: Any, isa: str, batch: int, layout: str
) -> None:
    layer, x, values, bias, grad = problem(linear, 37, 70, batch, 0.3, 16, torch.float32)
    activated = layer.forward(x, values, bias, 2, relu=True)
    activated.flatten()[::5] = float("nan")  # passes a gradient on, as in torch
    truth = layer.truth(torch.ops.aten.threshold_backward(grad, activated, 0), x, values, bias)
    activated = relaid(activated, layout)
    for into, wanted in itertools.product(
        ("batch-major", "feature-major"), ("dx dvalues dbias", "dx", "dvalues", "dbias")
    ):
        found = layer.backward(relaid(grad, into), x, values, 2, wanted, activated=activated)
        for name, gradient, expected in zip(("dx", "dvalues", "dbias"), found, truth[1:], strict=True):
            assert (gradient is not None) == (name in wanted.split())
            if gradient is not None:
                near(gradient, expected)


def test_strided_outputs_leave_the_gaps_alone(linear: Any, isa: str) -> None:
    layer, x, values, bias, _ = problem(linear, 35, 50, 20, 0.2, 16, torch.float32)
    whole = torch.full((40, 70), 7.0)
    layer.forward(x, values, bias, 2, whole[::2, ::2])
    assert (whole[1::2] == 7).all()
    assert (whole[:, 1::2] == 7).all()


def test_without_bias_the_sum_starts_from_zero(linear: Any, near: Any, variant: Any) -> None:
    layer, x, values, _, grad = problem(linear, 20, 30, 25, 0.2, variant.index_bits, variant.dtype)
    near(layer.forward(x, values, None, variant.threads), layer.truth(grad, x, values, None)[0])


def tiles() -> list[tuple[str, str, str, int, int]]:
    """(instruction set, value type, operation, samples in a strip, index width) of each microkernel that runs here."""
    found = []
    for name in _C.microkernels():
        rest, isa = name.split("__")
        dtype, layout, operation, tile, index = rest.split("_")
        if layout == "csr" and isa in _C.isas():
            registers, lanes = map(int, tile.split("x"))
            found.append((isa, dtype, operation, registers * lanes, int(index[1:])))
    return found


@pytest.mark.parametrize(("isa", "dtype", "operation", "lanes", "bits"), tiles(), indirect=["isa"])
@pytest.mark.parametrize("missing", [0, 1])
def test_every_microkernel_on_full_and_ragged_strips(
    linear: Any, near: Any, isa: str, dtype: str, operation: str, lanes: int, bits: int, missing: int
) -> None:
    kind = torch.float32 if dtype == "f32" else torch.float64
    layer, x, values, bias, grad = problem(linear, 19, 23, lanes - missing, 0.4, bits, kind)
    truth = layer.truth(grad, x, values, bias)
    if operation in ("spmm", "few"):
        near(layer.forward(x, values, bias, 1), truth[0])
    if operation in ("spmm", "scatter", "fewgrad"):
        near(layer.backward(grad, x, values, 1, "dx")[0], truth[1])
    if operation in ("backward", "scatter", "fewgrad"):
        near(layer.backward(grad, x, values, 1, "dx dvalues")[1], truth[2])
    if operation in ("sddmm", "scatter", "fewgrad"):
        near(layer.backward(grad, x, values, 1, "dvalues")[1], truth[2])


def test_a_batch_larger_than_the_scratch_memory_is_done_in_rounds(linear: Any, near: Any, isa: str) -> None:
    layer, x, values, bias, grad = problem(linear, 40, 2100, 1500, 0.01, 16, torch.float64)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, 2), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, values, 2), truth[1:], strict=True):
        near(gradient, expected)


def test_more_threads_than_rows_and_columns(linear: Any, near: Any, isa: str) -> None:
    layer, x, values, bias, grad = problem(linear, 3, 2, 40000, 1.0, 16, torch.float32)
    truth = layer.truth(grad, x, values, bias)
    near(layer.forward(x, values, bias, 7), truth[0])
    dx, _, _ = layer.backward(grad, x, values, 7)
    near(dx, truth[1])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 8, 13, 21])
def test_a_nan_in_x_reaches_only_its_sample_and_its_column(
    linear: Any, variant: Any, batch: int, poison: float
) -> None:
    layer, x, values, bias, grad = problem(linear, 30, 40, batch, 0.2, variant.index_bits, variant.dtype)
    x[batch - 1, 8] = poison
    y = layer.forward(x, values, bias, variant.threads)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[batch - 1] = layer.mask[:, 8]
    assert torch.equal(~y.isfinite(), touched)
    dx, dvalues, _ = layer.backward(grad, x, values, variant.threads)
    assert dx.isfinite().all()
    assert torch.equal(~dvalues.isfinite(), layer.mask.nonzero()[:, 1] == 8)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 8, 13, 21])
def test_a_nan_in_grad_reaches_only_its_sample_and_its_row(
    linear: Any, variant: Any, batch: int, poison: float
) -> None:
    layer, x, values, _, grad = problem(linear, 30, 40, batch, 0.2, variant.index_bits, variant.dtype)
    grad[batch - 1, 4] = poison
    dx, dvalues, dbias = layer.backward(grad, x, values, variant.threads)
    touched = torch.zeros_like(dx, dtype=torch.bool)
    touched[batch - 1] = layer.mask[4]
    assert torch.equal(~dx.isfinite(), touched)
    assert torch.equal(~dvalues.isfinite(), layer.mask.nonzero()[:, 0] == 4)
    assert torch.equal(~dbias.isfinite(), torch.arange(30) == 4)


@pytest.mark.parametrize("batch", [1, 3, 8, 16, 40])
def test_a_nan_that_no_weight_reads_reaches_nothing(linear: Any, variant: Any, batch: int) -> None:
    layer, x, values, bias, grad = problem(linear, 30, 40, batch, 0.2, variant.index_bits, variant.dtype)
    x[:, 1] = float("nan")
    assert layer.forward(x, values, bias, variant.threads).isfinite().all()
    assert all(g.isfinite().all() for g in layer.backward(grad, x, values, variant.threads))


def test_a_call_sees_nothing_of_the_one_before(linear: Any, near: Any, variant: Any) -> None:
    layer, x, values, bias, grad = problem(linear, 30, 40, 21, 0.2, variant.index_bits, variant.dtype)
    truth = layer.truth(grad, x, values, bias)
    ruined = torch.full_like(x, float("nan")), torch.full_like(grad, float("nan"))
    layer.forward(ruined[0], values, bias, variant.threads)
    near(layer.forward(x, values, bias, variant.threads), truth[0])
    layer.backward(ruined[1], ruined[0], values, variant.threads)
    for gradient, expected in zip(layer.backward(grad, x, values, variant.threads), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("batch", [1, 2, 5, 16, 70])
def test_the_same_call_gives_the_same_bits(linear: Any, variant: Any, batch: int) -> None:
    layer, x, values, bias, grad = problem(linear, 200, 150, batch, 0.2, variant.index_bits, variant.dtype)
    first = layer.forward(x, values, bias, variant.threads), *layer.backward(grad, x, values, variant.threads)
    again = layer.forward(x, values, bias, variant.threads), *layer.backward(grad, x, values, variant.threads)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_calls_from_several_python_threads_do_not_disturb_each_other(linear: Any, isa: str) -> None:
    problems = [problem(linear, 50, 20 * i + 10, 30 + i, 0.3, 16, torch.float32) for i in range(6)]
    expected = [layer.forward(x, values, bias, 2) for layer, x, values, bias, _ in problems]
    wrong: list[int] = []

    def work(i: int) -> None:
        layer, x, values, bias, _ = problems[i]
        for _ in range(20):
            if not torch.equal(layer.forward(x, values, bias, 2), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_python_threads_run_during_a_call(linear: Any) -> None:
    layer, x, values, bias, _ = problem(linear, 1500, 1500, 3000, 1.0, 16, torch.float64)
    call = threading.Thread(target=layer.forward, args=(x, values, bias, 1))
    ticks = 0
    call.start()
    while call.is_alive():
        call.join(0.001)
        ticks += 1
    assert ticks > 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 3}, r"dtype: expected 0 \(float32\), 1 \(float64\) or 2 \(bfloat16\), got 3"),
        ({"index_bits": 8}, "index_bits: expected 16 or 32, got 8"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"batch": -1}, "batch: expected at least 0, got -1"),
        ({"rows": -2}, "rows: expected at least 0, got -2"),
        ({"cols": -3}, "cols: expected at least 0, got -3"),
        ({"x": 0}, "x: expected a pointer, got 0"),
        ({"y": 0}, "y: expected a pointer, got 0"),
        ({"crow": 0}, "crow: expected a pointer, got 0"),
    ],
    ids=str,
)
def test_an_impossible_argument_is_named(changed: dict[str, int], message: str) -> None:
    ones = dict.fromkeys(("x", "values", "bias", "y", "crow", "col", "batch", "rows", "cols"), 1)
    strides = dict.fromkeys(("x_batch_stride", "x_feature_stride", "y_batch_stride", "y_feature_stride", "relu"), 1)
    with pytest.raises(ValueError, match=message):
        _C.csr_linear_forward(**{**ones, **strides, "index_bits": 16, "dtype": 0, "threads": 1, **changed})
