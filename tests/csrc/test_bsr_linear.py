"""bsr_linear_*: y = x W^T + b and its gradients against dense fp64: every instruction set, type and kind of block."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse import _C

#: single rows, single columns, panels of every height, odd rests, larger than the layer
BLOCKS = [(4, 1), (1, 4), (1, 1), (2, 1), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (3, 5), (16, 1), (5, 2), (7, 3)]

#: (rows, cols, batch): odd ones, single ones, several strips, less than one register, none at all
SIZES = [
    (150, 120, 60),
    (17, 33, 129),
    (64, 64, 16),
    (150, 70, 2),
    (1, 1, 1),
    (3, 90, 1),
    (40, 33, 300),
    (9, 11, 0),
    (0, 7, 5),
    (7, 0, 5),
]


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def strides(matrix: Tensor | None) -> tuple[int, int]:
    return (0, 0) if matrix is None else (matrix.stride(0), matrix.stride(1))


def blocked(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """[rows, cols] -> [block rows, block columns, r, c], zero beyond the edge."""
    (rows, cols), (r, c) = matrix.shape, block
    padded = matrix.new_zeros(-(-rows // r) * r, -(-cols // c) * c)
    padded[:rows, :cols] = matrix
    return padded.view(padded.shape[0] // r, r, padded.shape[1] // c, c).transpose(1, 2)


class Layer:
    """A BSR index made from nothing but a mask; entries that are not live hold NaN, outputs are poisoned."""

    def __init__(self, mask: Tensor, block: tuple[int, int], dtype: torch.dtype) -> None:
        self.mask, self.block, self.dtype = mask, block, dtype
        self.rows, self.cols = mask.shape
        blocks = blocked(mask, block)
        kept = blocks.flatten(2).any(2)
        self.kept = kept.nonzero(as_tuple=True)
        live = blocks[self.kept].contiguous()
        self.live = None if live.all() else live
        self.weight = torch.randn(mask.shape, dtype=torch.float64).to(dtype).double() * mask
        self.values = blocked(self.weight, block)[self.kept].to(dtype).masked_fill(~live, float("nan"))
        row, col = self.kept
        perm = torch.argsort(col * kept.shape[0] + row)
        self.crow = F.pad(kept.sum(1).cumsum(0), (1, 0)).int()
        self.ccol = F.pad(kept.sum(0).cumsum(0), (1, 0)).int()
        self.col, self.row, self.perm = col.int(), row[perm].int(), perm.int()

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        return x.shape[0], self.rows, self.cols, *self.block

    def poisoned(self, *shape: int) -> Tensor:
        return torch.full(shape, float("nan"), dtype=self.dtype)

    def forward(
        self, x: Tensor, bias: Tensor | None, threads: int, y: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        y = self.poisoned(x.shape[0], self.rows) if y is None else y
        _C.bsr_linear_forward(
            address(x), address(self.values), address(self.live), address(bias), address(y), address(self.crow),
            address(self.col), *self.sizes(x), *x.stride(), *y.stride(), relu, int(self.dtype == torch.float64),
            threads,
        )  # fmt: skip
        return y

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        threads: int,
        wanted: str = "dx dvalues dbias",
        dx: Tensor | None = None,
        activated: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if dx is None and "dx" in wanted:
            dx = self.poisoned(x.shape[0], self.cols)
        dvalues = self.poisoned(*self.values.shape) if "dvalues" in wanted else None
        dbias = self.poisoned(self.rows) if "dbias" in wanted else None
        _C.bsr_linear_backward(
            address(grad), address(activated), address(x), address(self.values), address(self.live), address(dx),
            address(dvalues), address(dbias), address(self.ccol), address(self.row), address(self.perm),
            *self.sizes(x), *grad.stride(), *strides(activated), *x.stride(), *strides(dx),
            int(self.dtype == torch.float64), threads,
        )  # fmt: skip
        return dx, dvalues, dbias

    def truth(self, grad: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """y, dx, dvalues, dbias in double precision; the gradient of an entry that is not live is 0."""
        grad, x = grad.double(), x.double()
        y = x @ self.weight.t() + (0 if bias is None else bias.double())
        return y, grad @ self.weight, blocked((grad.t() @ x) * self.mask, self.block)[self.kept], grad.sum(0)


def problem(
    block: tuple[int, int], size: tuple[int, int, int], dtype: torch.dtype, density: float = 0.3, holes: bool = False
) -> tuple[Any, ...]:
    """A layer of whole blocks, or with pruned weights inside of them, and its x, bias and grad."""
    rows, cols, batch = size
    kept = torch.rand(-(-rows // block[0]), -(-cols // block[1])) < density
    mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :cols]
    if holes:
        mask = mask & (torch.rand(rows, cols) < 0.6)
    layer = Layer(mask.contiguous(), block, dtype)
    return (
        layer,
        torch.randn(batch, cols, dtype=dtype),
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


def check(near: Any, layer: Layer, x: Tensor, bias: Tensor, grad: Tensor, threads: int) -> None:
    truth = layer.truth(grad, x, bias)
    near(layer.forward(x, bias, threads), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, threads), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_output_and_gradients_are_those_of_the_masked_dense_layer(
    near: Any, variant: Any, block: tuple[int, int], size: Any
) -> None:
    check(near, *problem(block, size, variant.dtype), variant.threads)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("block", [(4, 1), (4, 4), (16, 16)], ids=str)
def test_empty_and_full_weights(near: Any, variant: Any, block: tuple[int, int], density: float) -> None:
    check(near, *problem(block, (50, 70, 90), variant.dtype, density), variant.threads)


@pytest.mark.parametrize("batch", [2, 45])
@pytest.mark.parametrize("block", [block for block in BLOCKS if block != (1, 1)], ids=str)
def test_pruned_entries_count_as_zero_whatever_they_hold_and_get_no_gradient(
    near: Any, variant: Any, block: tuple[int, int], batch: int
) -> None:
    layer, x, bias, grad = problem(block, (70, 61, batch), variant.dtype, 0.5, holes=True)
    check(near, layer, x, bias, grad, variant.threads)
    _, dvalues, _ = layer.backward(grad, x, variant.threads)
    assert layer.live is not None
    assert (dvalues[~layer.live] == 0).all()


@pytest.mark.parametrize("wanted", ["dx", "dvalues", "dbias", "dx dvalues", "dvalues dbias", ""])
@pytest.mark.parametrize("block", [(4, 1), (6, 2), (1, 4), (8, 8)], ids=str)
def test_gradients_that_are_not_wanted_are_left_out(
    near: Any, variant: Any, block: tuple[int, int], wanted: str
) -> None:
    layer, x, bias, grad = problem(block, (33, 65, 70), variant.dtype, holes=True)
    names = "dx", "dvalues", "dbias"
    truth = dict(zip(names, layer.truth(grad, x, bias)[1:], strict=True))
    got = dict(zip(names, layer.backward(grad, x, variant.threads, wanted), strict=True))
    for name, gradient in got.items():
        assert (gradient is not None) == (name in wanted.split())
        if gradient is not None:
            near(gradient, truth[name])


@pytest.mark.parametrize("batch", [1, 16, 61, 150])
@pytest.mark.parametrize("out", ["batch-major", "feature-major", "gaps"])
@pytest.mark.parametrize("into", ["batch-major", "feature-major", "gaps"])
@pytest.mark.parametrize("block", [(4, 1), (4, 4)], ids=str)
def test_any_strides_give_the_same(
    near: Any, isa: str, block: tuple[int, int], into: str, out: str, batch: int
) -> None:
    layer, x, bias, grad = problem(block, (35, 50, batch), torch.float32)
    truth = layer.truth(grad, x, bias)
    y, dx = (relaid(torch.full_like(t, float("nan")).float(), out) for t in truth[:2])
    x, grad = relaid(x, into), relaid(grad, into)
    near(layer.forward(x, bias, 2, y), truth[0])
    for gradient, expected in zip(layer.backward(grad, x, 2, dx=dx), truth[1:], strict=True):
        near(gradient, expected)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 60, 129])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_fused_relu_is_that_of_the_output_and_keeps_nan(
    near: Any, variant: Any, block: tuple[int, int], batch: int
) -> None:
    layer, x, bias, grad = problem(block, (37, 45, batch), variant.dtype, holes=True)
    y = layer.forward(x, bias, variant.threads, relu=True)
    near(y, layer.truth(grad, x, bias)[0].relu())
    for poison in (float("nan"), float("inf")):
        x[batch - 1, 3] = poison
        y = layer.forward(x, bias, variant.threads, relu=True)
        torch.testing.assert_close(y, layer.forward(x, bias, variant.threads).relu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["batch-major", "feature-major", "gaps"])
@pytest.mark.parametrize("batch", [0, 1, 3, 16, 60, 129])
@pytest.mark.parametrize("block", [(4, 1), (5, 3), (7, 3), (16, 16)], ids=str)
def test_gradients_count_where_the_activation_passed_them_on(
    near: Any, isa: str, block: tuple[int, int], batch: int, layout: str
) -> None:
    layer, x, bias, grad = problem(block, (37, 45, batch), torch.float32, holes=True)
    activated = layer.forward(x, bias, 2, relu=True)
    activated.flatten()[::5] = float("nan")  # passes a gradient on, as in torch
    truth = layer.truth(torch.ops.aten.threshold_backward(grad, activated, 0), x, bias)
    activated = relaid(activated, layout)
    for into, wanted in itertools.product(
        ("batch-major", "feature-major"), ("dx dvalues dbias", "dx", "dvalues", "dbias")
    ):
        found = layer.backward(relaid(grad, into), x, 2, wanted, activated=activated)
        for name, gradient, expected in zip(("dx", "dvalues", "dbias"), found, truth[1:], strict=True):
            assert (gradient is not None) == (name in wanted.split())
            if gradient is not None:
                near(gradient, expected)


def test_strided_outputs_leave_the_gaps_alone(isa: str) -> None:
    layer, x, bias, _ = problem((4, 4), (35, 50, 20), torch.float32)
    whole = torch.full((40, 70), 7.0)
    layer.forward(x, bias, 2, whole[::2, ::2])
    assert (whole[1::2] == 7).all()
    assert (whole[:, 1::2] == 7).all()


@pytest.mark.parametrize("block", [(4, 1), (3, 2)], ids=str)
def test_without_bias_the_sum_starts_from_zero(near: Any, variant: Any, block: tuple[int, int]) -> None:
    layer, x, _, grad = problem(block, (20, 30, 25), variant.dtype)
    near(layer.forward(x, None, variant.threads), layer.truth(grad, x, None)[0])


def tiles() -> list[tuple[str, torch.dtype, str, int, int]]:
    """(instruction set, value type, operation, rows, samples in a strip) of each bsr microkernel that runs here."""
    found = []
    for name in _C.microkernels():
        rest, isa = name.split("__")
        dtype, layout, operation, tile, index = rest.split("_")
        if layout == "bsr" and index == "i32" and isa in _C.isas():
            rows, registers, lanes = map(int, tile.split("x"))
            found.append((isa, torch.float32 if dtype == "f32" else torch.float64, operation, rows, registers * lanes))
    return found


@pytest.mark.parametrize(("isa", "dtype", "operation", "rows", "lanes"), tiles(), indirect=["isa"])
@pytest.mark.parametrize("missing", [0, 1])
def test_every_microkernel_on_full_and_ragged_strips(
    near: Any, isa: str, dtype: torch.dtype, operation: str, rows: int, lanes: int, missing: int
) -> None:
    layer, x, bias, grad = problem((rows, 1), (8 * rows, 23, lanes - missing), dtype, 0.4)
    truth = layer.truth(grad, x, bias)
    if operation == "spmm":
        near(layer.forward(x, bias, 1), truth[0])
        near(layer.backward(grad, x, 1, "dx")[0], truth[1])
    else:
        wanted = "dx dvalues" if operation == "backward" else "dvalues"
        near(layer.backward(grad, x, 1, wanted)[1], truth[2])


@pytest.mark.parametrize("block", [(4, 1), (5, 2), (4, 4), (64, 64)], ids=str)
def test_large_layers_are_done_in_bands_and_rounds(near: Any, isa: str, block: tuple[int, int]) -> None:
    check(near, *problem(block, (6100, 290, 700), torch.float32, 0.02), 2)


@pytest.mark.parametrize("block", [(4, 1), (4, 4), (64, 64)], ids=str)
def test_more_threads_than_blocks(near: Any, isa: str, block: tuple[int, int]) -> None:
    check(near, *problem(block, (3, 2, 3000), torch.float32, 1.0), 7)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("block", [(4, 1), (2, 4)], ids=str)
def test_a_nan_reaches_only_its_sample_and_its_blocks(variant: Any, block: tuple[int, int], poison: float) -> None:
    layer, x, bias, grad = problem(block, (32, 40, 21), variant.dtype)
    touched = [torch.zeros_like(t, dtype=torch.bool) for t in (grad, x)]
    x[20, 8] = poison
    touched[0][20] = layer.mask[:, 8]
    assert torch.equal(~layer.forward(x, bias, variant.threads).isfinite(), touched[0])
    dx, dvalues, _ = layer.backward(grad, x, variant.threads)
    assert dx.isfinite().all()
    column = layer.kept[1][:, None, None] * block[1] + torch.arange(block[1])
    assert torch.equal(~dvalues.isfinite(), (column == 8).expand(dvalues.shape))
    x[20, 8], grad[20, 4] = 1, poison
    dx, dvalues, dbias = layer.backward(grad, x, variant.threads)
    touched[1][20] = layer.mask[4]
    assert torch.equal(~dx.isfinite(), touched[1])
    row = layer.kept[0][:, None, None] * block[0] + torch.arange(block[0])[:, None]
    assert torch.equal(~dvalues.isfinite(), (row == 4).expand(dvalues.shape))
    assert torch.equal(~dbias.isfinite(), torch.arange(32) == 4)


@pytest.mark.parametrize("block", [(4, 1), (5, 3), (8, 8)], ids=str)
def test_a_call_sees_nothing_of_the_one_before(near: Any, variant: Any, block: tuple[int, int]) -> None:
    layer, x, bias, grad = problem(block, (30, 41, 21), variant.dtype, holes=True)
    ruined = torch.full_like(x, float("nan")), torch.full_like(grad, float("nan"))
    layer.forward(ruined[0], bias, variant.threads)
    layer.backward(ruined[1], ruined[0], variant.threads)
    check(near, layer, x, bias, grad, variant.threads)


@pytest.mark.parametrize("block", [(4, 1), (5, 3), (8, 8)], ids=str)
def test_the_same_call_gives_the_same_bits(variant: Any, block: tuple[int, int]) -> None:
    layer, x, bias, grad = problem(block, (200, 150, 70), variant.dtype)
    first = layer.forward(x, bias, variant.threads), *layer.backward(grad, x, variant.threads)
    again = layer.forward(x, bias, variant.threads), *layer.backward(grad, x, variant.threads)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 3}, r"dtype: expected 0 \(float32\), 1 \(float64\) or 2 \(bfloat16\), got 3"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"batch": -1}, "batch: expected at least 0, got -1"),
        ({"block_rows": 0}, "block_rows: expected at least 1, got 0"),
        ({"block_cols": 0}, "block_cols: expected at least 1, got 0"),
        ({"x": 0}, "x: expected a pointer, got 0"),
        ({"y": 0}, "y: expected a pointer, got 0"),
        ({"crow": 0}, "crow: expected a pointer, got 0"),
    ],
    ids=str,
)
def test_an_impossible_argument_is_named(changed: dict[str, int], message: str) -> None:
    names = ("x", "values", "mask", "bias", "y", "crow", "col", "batch", "rows", "cols", "block_rows", "block_cols")
    strides = ("x_batch_stride", "x_feature_stride", "y_batch_stride", "y_feature_stride", "relu")
    with pytest.raises(ValueError, match=message):
        _C.bsr_linear_forward(**{**dict.fromkeys(names + strides, 1), "dtype": 0, "threads": 1, **changed})
