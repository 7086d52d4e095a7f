"""Forward passes in bfloat16: float32 sums of the values as they are, rounded once; every instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse import _C
from lth_sparse.ops.strides import feature_major

BF16 = torch.bfloat16
NAN, INF = float("nan"), float("inf")


def assert_rounded(actual: Tensor, truth: Tensor) -> None:
    """Equal to the truth up to the rounding of a float32 sum and that of the result."""
    assert actual.dtype == BF16
    assert actual.shape == truth.shape
    if truth.numel():
        error = (actual.double() - truth).abs()
        assert (error <= 2**-8 * truth.abs() + 3e-5 * (1 + truth.abs().max())).all(), error.max()


def problem(linear: Any, rows: int, cols: int, batch: int, bits: int = 16) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A layer with empty rows and columns, and its x, values and bias."""
    mask = torch.rand(rows, cols) < 0.4
    mask[::3] = False
    mask[:, 1::3] = False
    layer = linear(mask, bits)
    return layer, torch.randn(batch, cols).to(BF16), torch.randn(layer.nnz).to(BF16), torch.randn(rows).to(BF16)


def truth(layer: Any, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = x.double() @ layer.dense(values).t()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("batch", [*range(10), 16, 17, 128, 150, 300])
@pytest.mark.parametrize("size", [(37, 70), (1, 1), (130, 33), (0, 7), (7, 0)], ids=str)
def test_linear(linear: Any, isa: str, size: tuple[int, int], batch: int) -> None:
    for bits, threads in ((16, 1), (32, 3)):
        layer, x, values, bias = problem(linear, *size, batch, bits)
        assert_rounded(layer.forward(x, values, bias, threads), truth(layer, x, values, bias))
        assert_rounded(layer.forward(x, values, None, threads), truth(layer, x, values, None))


@pytest.mark.parametrize("batch", [1, 2, 5, 8, 17, 130])
def test_the_result_is_that_of_float32_rounded(linear: Any, isa: str, batch: int) -> None:
    layer, x, values, bias = problem(linear, 90, 140, batch)
    single = layer.forward(x.float(), values.float(), bias.float(), 1).to(BF16)
    y = layer.forward(x, values, bias, 1)
    if any("bf16_csr_dot" in name and name.endswith(isa) for name in _C.microkernels()) and batch > 8:
        torch.testing.assert_close(y, single, rtol=2**-7, atol=1e-5)  # sums in another order
    else:
        assert torch.equal(y, single)


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 16, 61, 128, 150])
@pytest.mark.parametrize("strides", ["feature-major", "gaps"])
def test_strides_are_honoured_on_both_sides(linear: Any, isa: str, strides: str, batch: int) -> None:
    layer, x, values, bias = problem(linear, 70, 45, batch)

    def relaid(tensor: Tensor) -> Tensor:
        if strides == "feature-major":
            return tensor.t().contiguous().t()
        wide = torch.full((2 * tensor.shape[0], 3 * tensor.shape[1]), NAN, dtype=tensor.dtype)
        wide[::2, ::3] = tensor
        return wide[::2, ::3]

    y = relaid(torch.full((batch, 70), NAN, dtype=BF16))
    assert_rounded(layer.forward(relaid(x), values, bias, 2, y), truth(layer, x, values, bias))
    if strides == "gaps":
        base = y._base
        assert base is not None
        assert base.isnan().sum() == base.numel() - y.numel()


@pytest.mark.parametrize("batch", [1, 3, 8, 20, 128])
def test_a_nan_or_an_infinity_stays_in_its_sample(linear: Any, isa: str, batch: int) -> None:
    layer, x, values, bias = problem(linear, 40, 50, batch)
    clean = layer.forward(x, values, bias, 1)
    x[0, 0], x[-1, 3] = NAN, INF
    y = layer.forward(x, values, bias, 1)
    spoilt = torch.zeros(y.shape, dtype=torch.bool)
    spoilt[0] |= layer.mask[:, 0]
    spoilt[-1] |= layer.mask[:, 3]
    assert not y[spoilt].isfinite().any()
    assert torch.equal(y[~spoilt], clean[~spoilt])


def test_rounding_is_to_the_nearest_and_ties_to_even(linear: Any, isa: str) -> None:
    parts = torch.tensor([1.0, 2**-8, 2**-9, 2**-20, 2**-7, 3.3895313892515355e38, 2.0**119, NAN]).to(BF16)
    sums = [(0,), (0, 1), (0, 1, 3), (0, 2), (0, 4, 1), (0, 2, 1), (5,), (5, 6), (5, 5), (7, 0), (3,)]
    mask = torch.zeros(len(sums), 2 * len(parts), dtype=torch.bool)
    for row, columns in enumerate(sums):
        for place, c in enumerate(columns):
            mask[row, c + len(parts) * (place > 0 and columns[0] == c)] = True
    layer = linear(mask, 16)
    for batch in (1, 4, 20):
        x = torch.cat([parts, parts]).expand(batch, -1).contiguous()
        y = layer.forward(x, torch.ones(layer.nnz).to(BF16), None, 1)
        rows = [sum((parts[c].float() for c in columns), torch.tensor(0.0)) for columns in sums]
        expected = torch.stack(rows).to(BF16).expand(batch, -1)
        assert torch.equal(y.view(torch.int16)[:, :-2], expected.view(torch.int16)[:, :-2])
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


CONVS = {
    "3x3": (17, 5, 9, 10, 20, (3, 3), {"padding": (1, 1)}),
    "many images of a tiny map": (40, 12, 4, 4, 18, (3, 3), {"padding": (1, 1)}),
    "several pieces": (36, 16, 40, 40, 4, (3, 3), {"padding": (1, 1)}),
    "a register of images": (32, 6, 9, 10, 11, (3, 3), {"padding": (1, 1)}),
    "nearly two registers of images, one column": (61, 5, 7, 1, 6, (3, 1), {"padding": (1, 0)}),
    "registers of images, strided groups": (27, 6, 9, 8, 9, (3, 2), {"stride": (1, 2), "padding": (2, 1), "groups": 3}),
    "registers of images, dilated": (32, 4, 9, 31, 5, (2, 3), {"dilation": (3, 2), "padding": (0, 1)}),
    "registers of images, no row to spare": (64, 3, 30, 30, 4, (3, 3), {"stride": (2, 1), "padding": (1, 1)}),
    "one image": (1, 3, 12, 11, 7, (3, 3), {"padding": (1, 1)}),
    "1x1": (6, 10, 7, 5, 12, (1, 1), {}),
    "1x1 of few pixels": (20, 10, 2, 3, 12, (1, 1), {}),
    "strided groups": (5, 6, 13, 7, 9, (3, 3), {"stride": (2, 2), "padding": (1, 1), "groups": 3}),
    "dilated": (2, 4, 9, 9, 6, (3, 2), {"stride": (1, 2), "padding": (3, 1), "dilation": (2, 3)}),
    "one row": (3, 4, 1, 30, 6, (1, 5), {"padding": (0, 2)}),
    "no images": (0, 3, 6, 6, 4, (3, 3), {"padding": (1, 1)}),
}


@pytest.mark.parametrize("case", CONVS)
def test_convolution(conv: Any, isa: str, case: str) -> None:
    n, channels, height, width, out, kernel, geometry = CONVS[case]
    mask = torch.rand(out, channels // geometry.get("groups", 1), *kernel) < 0.3
    mask[0] = False
    for bits, threads in ((16, 1), (32, 3)):
        layer = conv(mask, bits, **geometry)
        values, bias = torch.randn(layer.nnz).to(BF16), torch.randn(out).to(BF16)
        x = torch.randn(n, channels, height, width).to(BF16)
        grad = torch.zeros(n, out, *layer.out(x))
        for given in (x, feature_major(x)):
            y = layer.forward(given, values, bias, threads)
            assert_rounded(y, layer.truth(grad, x, values, bias)[0])
            single = layer.forward(given.float(), values.float(), bias.float(), threads)
            torch.testing.assert_close(y.float(), single, rtol=2**-7, atol=1e-4)


def test_a_nan_stays_in_its_image(conv: Any, isa: str) -> None:
    layer = conv(torch.rand(6, 4, 3, 3) < 0.5, 16, padding=(1, 1))
    for images in (20, 32):
        x = torch.randn(images, 4, 6, 6).to(BF16)
        x[7] = NAN
        for given in (x, feature_major(x)):
            y = layer.forward(given, torch.randn(layer.nnz).to(BF16), None, 1)
            assert y.isnan().flatten(1).any(1).nonzero().flatten().tolist() == [7]


def test_an_infinity_that_one_weight_reads_stays_an_infinity(linear: Any, conv: Any, isa: str) -> None:
    mask = torch.eye(5, 7).bool()
    y = linear(mask, 16).forward(torch.full((40, 7), INF).to(BF16), torch.ones(5).to(BF16), None, 1)
    assert (y == INF).all()
    layer = conv(mask[:, :, None, None], 16)
    assert (layer.forward(torch.full((32, 7, 3, 3), INF).to(BF16), torch.ones(5).to(BF16), None, 1) == INF).all()
    layer = conv(torch.ones(1, 1, 1, 3).bool(), 16, padding=(0, 1))
    y = layer.forward(torch.full((32, 1, 2, 6), INF).to(BF16), torch.ones(3).to(BF16), None, 1)
    assert (y == INF).all()


def test_there_are_no_gradients(linear: Any) -> None:
    layer, x, values, _ = problem(linear, 5, 6, 3)
    with pytest.raises(ValueError, match=r"dtype: expected 0 \(float32\) or 1 \(float64\), got 2"):
        layer.backward(torch.randn(3, 5).to(BF16), x, values, 1)
    with pytest.raises(ValueError, match=r"dtype: expected 0 \(float32\), 1 \(float64\) or 2 \(bfloat16\), got 3"):
        _C.csr_linear_forward(0, 0, 0, 16, 16, 0, 1, 1, 0, 1, 1, 1, 1, False, 16, 3, 1)
