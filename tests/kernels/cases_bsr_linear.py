"""The block-sparse linear products against plain torch: launched by test_bsr_linear.py, see kernel_cases.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import ACTIVATED, DEVICE, DTYPES, INTERPRETED, SMALL, check
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture
from torch import Tensor

from lth_sparse.formats import BSR
from lth_sparse.kernels import bsr_linear, bsr_linear_backward
from lth_sparse.kernels.epilogue import ACTIVATIONS
from lth_sparse.kernels.launch import PRODUCTS, Problem, Tile, heuristic
from lth_sparse.ops import cuda
from lth_sparse.ops.library import REFERENCES
from lth_sparse.ops.strides import empty_activations, feature_major, is_feature_major

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


HAS_TMA = INTERPRETED or (torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0))


class Case:
    """Inputs of one layer and its dense truth in float64."""

    def __init__(
        self, m: int, n: int, k: int, block: tuple[int, int], dtype: torch.dtype, density: float = 0.5,
        skewed: bool = False,
    ):  # fmt: skip
        rows, cols = -(-n // block[0]), -(-k // block[1])
        blocks = torch.rand(rows, cols) < density
        if skewed:
            blocks[-1] = blocks[rows // 2] = blocks[:, 1] = blocks[:, -1] = True
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

    def forward(self, x: Tensor | None = None, bias: bool = True, activation: str = "none", **fields: Any) -> Tensor:
        x = self.x.to(DEVICE) if x is None else x
        tile = self.tile("forward", **fields)
        index = self.index("col_indices", "row_work", "row_splits")
        y = empty_activations(x, (x.shape[0], self.layout.rows), is_feature_major(x))
        bsr_linear.forward(x, self.values, self.bias.to(DEVICE) if bias else None, *index, y, tile, activation)
        return y.cpu()

    def input_gradient(self, grad: Tensor | None = None, activated: Tensor | None = None, **fields: Any) -> Tensor:
        grad = self.grad.to(DEVICE) if grad is None else grad
        tile = self.tile("input_gradient", **fields)
        index = self.index("row_indices", "perm", "column_work", "column_splits")
        dx = grad.new_empty(grad.shape[0], self.layout.cols)
        return bsr_linear.input_gradient(grad, self.values, *index, dx, tile, activated).cpu()

    def gradients(
        self, grad: Tensor | None = None, x: Tensor | None = None, splits: int = 1, *,
        activated: Tensor | None = None, bias: bool = True, **fields: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Of the values and of the bias."""
        grad = self.grad.to(DEVICE) if grad is None else grad
        x = self.x.to(DEVICE) if x is None else x
        value_mask = self.layout.value_mask.to(DEVICE) if self.layout.value_mask.numel() else None
        tile = self.tile("weight_gradient", **fields)
        index = self.index("crow_indices", "col_indices")
        dvalues, dbias = bsr_linear.weight_gradient(
            grad, x, self.block, value_mask, *index, tile, splits, activated=activated, bias=bias
        )
        return dvalues.cpu(), None if dbias is None else dbias.cpu()

    def weight_gradient(self, *args: Any, **fields: Any) -> Tensor:
        return self.gradients(*args, bias=False, **fields)[0]

    def truth(self, product: str, activated: Tensor | None = None) -> Tensor:
        x, w, grad = self.x.double(), self.weight.double(), self.grad.double()
        if activated is not None:
            grad = grad.masked_fill(activated.cpu() <= 0, 0.0)
        if product == "forward":
            return x @ w.t() + self.bias.double()
        if product == "bias_gradient":
            return grad.sum(0)
        return grad @ w if product == "input_gradient" else self.layout.gather(grad.t() @ x)

    def activated(self) -> Tensor:
        """What a ReLU may have given: positive, zero, and negative for a caller's own inventions."""
        choice = torch.tensor([1.0, 0.0, -1.0])[torch.randint(3, self.grad.shape)]
        return choice.to(DEVICE, self.grad.dtype)


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


def skewed(dtype: torch.dtype, m: int = 19) -> Case:
    """Rows and columns far over twice the mean, and a row without blocks; edges inside blocks on all sides."""
    case = Case(m, 56 * 12 - 8, 72 * 13 - 24, (56, 72), dtype, 0.05, skewed=True)
    assert case.layout.row_splits.shape[0] == 2
    assert case.layout.column_splits.shape[0] == 2
    return case


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_divided_rows_and_every_activation(dtype: torch.dtype, activation: str) -> None:
    case = skewed(dtype)
    check(case.forward(activation=activation), ACTIVATED[activation](case.truth("forward")))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_divided_rows_in_front_of_a_relu(dtype: torch.dtype) -> None:
    case = skewed(dtype)
    check(case.input_gradient(), case.truth("input_gradient"))
    activated = case.activated()
    check(case.input_gradient(activated=activated), case.truth("input_gradient", activated))


@pytest.mark.usefixtures("seed", "poison_empty")
def test_divided_rows_in_feature_major() -> None:
    case = skewed(torch.float32, m=5)
    check(case.forward(feature_major(case.x.to(DEVICE))), case.truth("forward"))


@pytest.mark.usefixtures("seed", "poison_empty")
def test_one_divided_row() -> None:
    """The only row with blocks, in as many parts as its 40 blocks of 64 positions allow."""
    mask = torch.zeros(64, 64 * 40, dtype=torch.bool)
    mask[16:32] = True
    case = Case(3, *mask.shape, (16, 64), torch.float32, 0.0)
    case.layout, case.weight = BSR.from_mask(mask, (16, 64)), torch.randn(mask.shape) * mask
    case.values = case.layout.gather(case.weight).to(DEVICE)
    assert case.layout.row_splits.tolist() == [[1, 0, 2]]
    check(case.forward(), case.truth("forward"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_without_blocks_is_its_bias(dtype: torch.dtype) -> None:
    case = Case(5, 40, 32, (16, 16), dtype)
    assert torch.equal(case.forward()[:, :16], case.bias[:16].expand(5, 16))
    assert torch.equal(case.forward(bias=False)[:, :16], torch.zeros(5, 16, dtype=dtype))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "density"), [(40, 0.5), (40, 0.0), (0, 0.5)])
def test_the_bias_has_its_gradient_with_and_without_blocks(
    m: int, density: float, dtype: torch.dtype, splits: int
) -> None:
    case = Case(m, 70, 50, (32, 16), dtype, density)
    for activated in (None, case.activated()):
        dvalues, dbias = case.gradients(splits=splits, block_k=16, activated=activated)
        assert dbias is not None
        check(dvalues, case.truth("weight_gradient", activated))
        check(dbias, case.truth("bias_gradient", activated))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_of_the_layer_lets_the_gradient_pass_as_in_torch(dtype: torch.dtype) -> None:
    case = Case(9, 32, 32, (16, 16), dtype, 1.0)
    activated = case.activated()
    activated[3] = torch.nan
    check(case.input_gradient(activated=activated), case.truth("input_gradient", activated))
    check(case.weight_gradient(activated=activated), case.truth("weight_gradient", activated))


#: Elements in 16 bytes, of which rows must be multiples; Triton 3.4's interpreter wants 16 elements.
STEP = 8 if bsr_linear.PIPELINES_DESCRIPTORS else 16
#: Tiles by descriptor: whole, with edges over both ends of a matrix, rectangles, few tokens, divided rows.
TMA = [
    (130, 128, 128, (64, 64), 0.5),
    (70, 200, 328, (64, 128), 0.5),
    (1, 190, 136, (128, 64), 0.7),
    (19, 64 * 12 - 8, 64 * 13 - 24, (64, 64), 0.05),
]


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if HAS_TMA and dtype.itemsize == 2], ids=str)
@pytest.mark.parametrize(("m", "n", "k", "block", "density"), TMA)
def test_tiles_by_descriptor(
    m: int, n: int, k: int, block: tuple[int, int], density: float, dtype: torch.dtype
) -> None:
    case = Case(m, n, k + -k % STEP, block, dtype, density, skewed=density < 0.1)
    fields = {"tma": True, "block_k": 64}
    check(case.forward(activation="relu", **fields), case.truth("forward").relu())
    grad = F.pad(case.grad, (0, -n % STEP)).to(DEVICE)[:, :n]
    check(case.input_gradient(grad, **fields), case.truth("input_gradient"))
    activated = F.pad(case.activated(), (0, -n % STEP))[:, :n]
    check(case.input_gradient(grad, activated, **fields), case.truth("input_gradient", activated))


def test_a_tile_by_descriptor_is_refused_where_it_does_not_fit() -> None:
    case = Case(4, 64, 64, (64, 64), torch.float16)
    with pytest.raises(ValueError, match="block_k: expected a divisor of 64 for tiles by descriptor, got 128"):
        case.forward(tma=True, block_k=128)
    shifted = torch.zeros(4 * 64 + 1, dtype=torch.float16, device=DEVICE)[1:].view(4, 64)
    for x in (case.x.to(DEVICE).t().contiguous().t(), case.x.to(DEVICE)[:, :1].expand(4, 64), shifted):
        with pytest.raises(ValueError, match="x: expected a tensor that allows_tma"):
            case.forward(x, tma=True, block_k=64)
    for case in (Case(4, 64, 64, (64, 64), torch.float32), Case(4, 64, 64, (32, 64), torch.float16)):
        assert not bsr_linear.allows_tma(case.x, case.block, case.layout.nblocks)


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
    activated = case.activated()
    check(case.forward(x), case.truth("forward"))
    check(case.input_gradient(grad), case.truth("input_gradient"))
    check(case.weight_gradient(grad, x), case.truth("weight_gradient"))
    for layer in (activated, strided(activated, kind)):
        check(case.input_gradient(grad, layer), case.truth("input_gradient", activated))
        check(case.weight_gradient(grad, x, activated=layer), case.truth("weight_gradient", activated))


def test_runs_are_what_triton_can_be_sure_of() -> None:
    wide = torch.zeros(32, 64, dtype=torch.float16, device=DEVICE)
    assert bsr_linear.has_runs(wide, 16)
    assert bsr_linear.has_runs(wide.t(), 16)
    assert bsr_linear.has_runs(wide[:, :40], 8)
    assert bsr_linear.has_runs(wide[:1], 16)
    for x, red in (
        (wide, 1), (wide, 12), (wide[:, 1:], 16), (wide[:, :41], 16), (wide[:, :41].contiguous(), 16),
        (wide[:, ::2], 16), (wide.t()[:9], 16), (wide[:, :1].t(), 16),
    ):  # fmt: skip
        assert not bsr_linear.has_runs(x, red)
        assert bsr_linear.has_runs(x.float(), red)


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
def test_many_rows_are_found_by_their_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More block rows than one look of the search holds, of very different length."""
    monkeypatch.setattr(bsr_linear_backward, "MOST_SEARCHED", 32)
    layout_rows = 70
    mask = torch.zeros(layout_rows, 40, dtype=torch.bool)
    mask[[0, 20, 31, 32, 63, 64, 69]] = True
    case = Case(2, layout_rows, 40, (1, 4), torch.float32)
    case.layout = BSR.from_mask(mask, (1, 4))
    check(case.weight_gradient(), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed")
def test_the_same_bits_every_time() -> None:
    case = Case(70, 37, 45, (16, 16), torch.float16)
    for product in PRODUCTS:
        assert torch.equal(getattr(case, product)(), getattr(case, product)())
    assert torch.equal(case.weight_gradient(splits=3), case.weight_gradient(splits=3))
    case = skewed(torch.float16, m=5)
    assert torch.equal(case.forward(), case.forward())
    assert torch.equal(case.input_gradient(), case.input_gradient())


def test_a_tile_that_does_not_divide_the_block_is_refused() -> None:
    case = Case(4, 32, 32, (16, 16), torch.float32)
    for product in PRODUCTS:
        with pytest.raises(ValueError, match="block_n: expected a divisor of 16, got 32"):
            getattr(case, product)(block_n=32)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("wanted", "activation", "density", "memory"),  # few blocks: the ReLU's gradient needs no pass of its own
    [
        ([True, True, True], "none", 0.05, "contiguous"),
        ([True, True, True], "relu", 0.05, "feature_major"),
        ([True, True, True], "relu", 0.9, "contiguous"),
        ([True, False, False], "relu", 0.05, "contiguous"),
        ([False, True, False], "none", 0.9, "feature_major"),
        ([False, False, True], "relu", 0.05, "contiguous"),
        ([True, False, True], "relu", 0.05, "contiguous"),
    ],
    ids=str,
)
def test_the_registered_operators_equal_the_reference(
    wanted: list[bool],
    density: float,
    activation: str,
    memory: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values of entries that are not live count as 0, whatever a caller left in them."""
    if INTERPRETED:
        monkeypatch.setattr(cuda, "_device", lambda index: SMALL)
    layout = BSR.from_mask(torch.rand(37, 125) < density, (16, 16), "zeros").to(DEVICE)
    x, grad, bias, values = (
        torch.randn(size).to(DEVICE, dtype) for size in ((19, 125), (19, 37), (37,), layout.values_shape)
    )
    x = feature_major(x) if memory == "feature_major" else x
    tail = (list(layout.index), list(layout.shape))
    truth = [REFERENCES["linear_bsr"](x.double(), values.double(), bias.double(), *tail, activation)]
    y = cuda._linear(x, values, bias, *tail, activation)
    activated = y if activation == "relu" else None
    wide = None if activated is None else activated.double()
    truth += REFERENCES["linear_bsr_backward"](grad.double(), x.double(), values.double(), *tail, wanted, wide)
    found = [y, *cuda._linear_backward(grad, x, values, *tail, wanted, activated)]
    for ours, right in zip(found, truth, strict=True):
        assert ours.dtype == dtype
        assert ours.stride() == right.stride()
        check(ours.cpu(), right.cpu())
