"""The block-sparse linear products against plain torch: launched by test_bsr_linear.py, see kernel_cases.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, INTERPRETED, SMALL, check
from kernel_cases import loaded_bounds as loaded_bounds  # every case uses this fixture
from torch import Tensor

from lth_sparse.formats import BSR
from lth_sparse.kernels import bsr_linear
from lth_sparse.kernels.launch import PRODUCTS, Problem, Tile, heuristic
from lth_sparse.ops import cuda
from lth_sparse.ops.library import REFERENCES

#: (M, N, K, block): whole; ragged on all sides; rectangles both ways; sides that are no power of two or below 16;
#: a block larger than a step and than a tile's columns; more rows than tokens; one token.
SIZES = [
    (16, 32, 48, (16, 16)),
    (19, 37, 45, (16, 16)),
    (33, 70, 50, (32, 16)),
    (5, 40, 70, (16, 32)),
    (7, 11, 13, (4, 3)),
    (9, 50, 31, (24, 12)),
    (17, 300, 260, (256, 128)),
    (1, 64, 64, (64, 64)),
]


class Case:
    """Inputs of one layer and its dense truth in float64."""

    def __init__(self, m: int, n: int, k: int, block: tuple[int, int], dtype: torch.dtype, density: float = 0.5):
        rows, cols = -(-n // block[0]), -(-k // block[1])
        blocks = torch.rand(rows, cols) < density
        blocks[0] = False  # a block row without blocks, where there are others
        if rows == 1 and density:
            blocks[0, -1] = True
        mask = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:n, :k]
        self.block, self.layout = block, BSR.from_mask(mask, block)
        self.weight = (torch.randn(n, k) * mask).to(dtype)
        self.values = self.layout.gather(self.weight).to(DEVICE)
        self.x, self.grad, self.bias = (torch.randn(size).to(dtype) for size in ((m, k), (m, n), (n,)))

    def index(self, *names: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self.layout, name).to(DEVICE) for name in names)

    def tile(self, product: str, **fields: Any) -> Tile:
        name = str(self.x.dtype).removeprefix("torch.")
        tile = heuristic(SMALL, Problem(product, name, self.block, self.x.shape[0]))
        return Tile(**(vars(tile) | {"num_stages": 3} | fields))

    def forward(self, x: Tensor | None = None, bias: bool = True, **fields: Any) -> Tensor:
        x = self.x.to(DEVICE) if x is None else x
        tile = self.tile("forward", **fields)
        index = self.index("crow_indices", "col_indices")
        y = bsr_linear.forward(x, self.values, self.bias.to(DEVICE) if bias else None, *index, self.layout.rows, tile)
        return y.cpu()

    def input_gradient(self, grad: Tensor | None = None, **fields: Any) -> Tensor:
        grad = self.grad.to(DEVICE) if grad is None else grad
        tile = self.tile("input_gradient", **fields)
        index = self.index("ccol_indices", "row_indices", "perm")
        return bsr_linear.input_gradient(grad, self.values, *index, self.layout.cols, tile).cpu()

    def weight_gradient(
        self, grad: Tensor | None = None, x: Tensor | None = None, splits: int = 1, **fields: Any
    ) -> Tensor:
        grad = self.grad.to(DEVICE) if grad is None else grad
        x = self.x.to(DEVICE) if x is None else x
        value_mask = self.layout.value_mask.to(DEVICE) if self.layout.value_mask.numel() else None
        tile = self.tile("weight_gradient", **fields)
        index = self.index("crow_indices", "col_indices")
        return bsr_linear.weight_gradient(grad, x, self.block, value_mask, *index, tile, splits).cpu()

    def truth(self, product: str) -> Tensor:
        x, w, grad = self.x.double(), self.weight.double(), self.grad.double()
        if product == "forward":
            return x @ w.t() + self.bias.double()
        return grad @ w if product == "input_gradient" else self.layout.gather(grad.t() @ x)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "k", "block"), SIZES)
def test_equals_dense(m: int, n: int, k: int, block: tuple[int, int], dtype: torch.dtype, product: str) -> None:
    case = Case(m, n, k, block, dtype)
    check(getattr(case, product)(), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("m", "density"), [(5, 0.0), (5, 1.0), (0, 0.5)])
def test_nothing_pruned_everything_pruned_no_tokens(m: int, density: float, product: str) -> None:
    case = Case(m, 40, 33, (16, 16), torch.float32, density)
    check(getattr(case, product)(), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_without_blocks_is_its_bias(dtype: torch.dtype) -> None:
    case = Case(5, 40, 32, (16, 16), dtype)
    assert torch.equal(case.forward()[:, :16], case.bias[:16].expand(5, 16))
    assert torch.equal(case.forward(bias=False)[:, :16], torch.zeros(5, 16, dtype=dtype))


def strided(tensor: Tensor, kind: str) -> Tensor:
    """The same numbers in other strides."""
    if kind == "feature_major":
        return tensor.t().contiguous().t()
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], 2)[:, :, 0]


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("kind", ["feature_major", "every_second"])
def test_strides_are_free(kind: str) -> None:
    case = Case(19, 37, 45, (16, 16), torch.float32)
    x, grad = (strided(tensor.to(DEVICE), kind) for tensor in (case.x, case.grad))
    check(case.forward(x), case.truth("forward"))
    check(case.input_gradient(grad), case.truth("input_gradient"))
    check(case.weight_gradient(grad, x), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
def test_a_gradient_of_stride_zero() -> None:
    case = Case(19, 37, 45, (16, 16), torch.float32)
    case.grad = torch.ones(1, 1).expand(19, 37)
    check(case.input_gradient(), case.truth("input_gradient"))
    check(case.weight_gradient(), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("splits", [2, 3, 5])
def test_split_tokens_add_up(splits: int) -> None:
    """Five parts of three steps: two parts have no tokens and must still write zeros."""
    case = Case(70, 37, 45, (16, 16), torch.float32)
    check(case.weight_gradient(splits=splits, block_k=32), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("block", [(16, 16), (32, 64)])
@pytest.mark.parametrize(("block_m", "block_k"), [(16, 16), (32, 128)])
def test_steps_smaller_and_larger_than_a_block(block: tuple[int, int], block_m: int, block_k: int) -> None:
    case = Case(40, 96, 200, block, torch.float32, 0.7)
    for product in PRODUCTS:
        check(getattr(case, product)(block_m=block_m, block_n=16, block_k=block_k), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
def test_pruned_entries_inside_a_block_get_no_gradient() -> None:
    case = Case(9, 32, 32, (16, 16), torch.float32)
    mask = case.layout.mask() & (torch.rand(32, 32) < 0.5)
    case.layout = BSR.from_mask(mask, (16, 16), "zeros")
    check(case.weight_gradient(), case.truth("weight_gradient"))
    assert torch.count_nonzero(case.weight_gradient()) == mask.sum()


@pytest.mark.usefixtures("seed")
def test_columns_of_pruned_blocks_are_not_read() -> None:
    """A NaN in a feature that no block of a row uses does not reach the row; a dense product would spread it."""
    case = Case(5, 32, 48, (16, 16), torch.float32)
    used = case.layout.mask()[16:].any(0)
    x = case.x.masked_fill(~used, torch.nan).to(DEVICE)
    check(case.forward(x), case.truth("forward"))


@pytest.mark.usefixtures("seed")
def test_many_rows_are_found_by_their_programs() -> None:
    """More block rows than one look of the search holds, of very different length."""
    layout_rows = 1030
    mask = torch.zeros(layout_rows, 40, dtype=torch.bool)
    mask[[0, 700, 1023, 1024, 1029]] = True
    case = Case(2, layout_rows, 40, (1, 4), torch.float32)
    case.layout = BSR.from_mask(mask, (1, 4))
    check(case.weight_gradient(), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed")
def test_the_same_bits_every_time() -> None:
    case = Case(70, 37, 45, (16, 16), torch.float16)
    for product in PRODUCTS:
        assert torch.equal(getattr(case, product)(), getattr(case, product)())
    assert torch.equal(case.weight_gradient(splits=3), case.weight_gradient(splits=3))


def test_a_tile_that_does_not_divide_the_block_is_refused() -> None:
    case = Case(4, 32, 32, (16, 16), torch.float32)
    for product in PRODUCTS:
        with pytest.raises(ValueError, match="block_n: expected a divisor of 16, got 32"):
            getattr(case, product)(block_n=32)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, False], [False, True, False]], ids=str)
def test_the_registered_operators_equal_the_reference(
    wanted: list[bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of entries that are not live count as 0, whatever a caller left in them."""
    if INTERPRETED:
        monkeypatch.setattr(cuda, "_device", lambda index: SMALL)
    layout = BSR.from_mask(torch.rand(37, 45) < 0.05, (16, 16), "zeros").to(DEVICE)
    x, grad, bias, values = (
        torch.randn(size).to(DEVICE, dtype) for size in ((19, 45), (19, 37), (37,), layout.values_shape)
    )
    tail = (list(layout.index), list(layout.shape))
    truth = [REFERENCES["linear_bsr"](x.double(), values.double(), bias.double(), *tail)]
    truth += REFERENCES["linear_bsr_backward"](grad.double(), x.double(), values.double(), *tail, wanted)
    found = [cuda._linear(x, values, bias, *tail), *cuda._linear_backward(grad, x, values, *tail, wanted)]
    for ours, right in zip(found, truth, strict=True):
        assert ours.dtype == dtype
        check(ours.cpu(), right.cpu())
