"""The unstructured linear products against plain torch: launched by test_csr_linear.py, see kernel_cases.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kernel_cases import ACTIVATED, DEVICE, DTYPES, INTERPRETED, SMALL, check
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture
from torch import Tensor

from lth_sparse.formats import CSR
from lth_sparse.kernels import csr_linear, launch_csr
from lth_sparse.kernels.epilogue import ACTIVATIONS
from lth_sparse.kernels.launch import PRODUCTS
from lth_sparse.ops import cuda_csr, functional
from lth_sparse.ops.library import REFERENCES

#: (M, N, K): few tokens and many; ragged on all sides; one output, one input, one token; several tiles of tokens; rows
#: long enough for a program of their own.
SIZES = [
    (1, 9, 35),
    (2, 9, 35),
    (5, 8, 32),
    (16, 13, 40),
    (17, 13, 40),
    (64, 16, 16),
    (150, 9, 20),
    (19, 1, 45),
    (19, 45, 1),
    (1, 1, 1),
    (4, 2, 150),
    (20, 2, 150),
]


class Case:
    """Inputs of one layer and its dense truth in float64."""

    def __init__(self, m: int, n: int, k: int, dtype: torch.dtype, density: float = 0.3, narrow: bool = False):
        mask = torch.rand(n, k) < density
        if 0 < density < 1 and n > 1 and k:
            mask[n // 2] = False  # an empty row, an empty column, and a row far longer than the others
            mask[n - 1] = True
            mask[:, k // 2] = False
        self.set_mask(mask, narrow)
        self.weight = (torch.randn(n, k) * mask).to(dtype)
        self.x, self.grad, self.bias = (torch.randn(size).to(dtype) for size in ((m, k), (m, n), (n,)))

    def set_mask(self, mask: Tensor, narrow: bool = False) -> None:
        layout = CSR.from_mask(mask)
        self.layout = layout.narrow() if narrow else layout

    @property
    def values(self) -> Tensor:
        return self.layout.gather(self.weight).to(DEVICE)

    def index(self, *names: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self.layout, name).to(DEVICE) for name in names)

    def about(self, rows: int) -> tuple[Any, ...]:
        dtype = str(self.x.dtype).removeprefix("torch.")
        return SMALL, dtype, self.x.shape[0], rows, self.layout.nnz

    def forward(self, x: Tensor | None = None, bias: bool = True, activation: str = "none", **fields: Any) -> Tensor:
        x = self.x.to(DEVICE) if x is None else x
        tile = dataclasses.replace(launch_csr.gather(*self.about(self.layout.rows)), **fields)
        y = x.new_empty(x.shape[0], self.layout.rows)
        index = self.index("crow_indices", "col_indices")
        given = self.bias.to(DEVICE) if bias else None
        return csr_linear.forward(x, self.values, given, *index, y, tile, activation).cpu()

    def input_gradient(self, grad: Tensor | None = None, **fields: Any) -> Tensor:
        grad = self.grad.to(DEVICE) if grad is None else grad
        tile = dataclasses.replace(launch_csr.gather(*self.about(self.layout.cols)), **fields)
        dx = grad.new_empty(grad.shape[0], self.layout.cols)
        index = self.index("ccol_indices", "row_indices", "perm")
        return csr_linear.input_gradient(grad, self.values, *index, dx, tile).cpu()

    def weight_gradient(self, grad: Tensor | None = None, x: Tensor | None = None, **fields: Any) -> Tensor:
        grad = self.grad.to(DEVICE) if grad is None else grad
        x = self.x.to(DEVICE) if x is None else x
        tile = dataclasses.replace(launch_csr.scatter(*self.about(self.layout.rows)), **fields)
        return csr_linear.weight_gradient(grad, x, *self.index("crow_indices", "col_indices"), tile).cpu()

    def truth(self, product: str) -> Tensor:
        x, w, grad = self.x.double(), self.weight.double(), self.grad.double()
        if product == "forward":
            return x @ w.t() + self.bias.double()
        return grad @ w if product == "input_gradient" else self.layout.gather(grad.t() @ x)

    def check_all(self, **fields: Any) -> None:
        for product in PRODUCTS:
            check(getattr(self, product)(**fields), self.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_equals_dense(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    Case(m, n, k, dtype, narrow=dtype != torch.float32).check_all()


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("m", range(1, 18))
def test_every_number_of_few_tokens(m: int) -> None:
    case = Case(m, 5, 9, torch.float32, narrow=True)
    check(case.forward(), case.truth("forward"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("m", [0, 1, 5, 40])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_pruned_everything_pruned_no_tokens(m: int, density: float) -> None:
    Case(m, 9, 17, torch.float32, density).check_all()


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [3, 40])
def test_a_row_without_weights_is_its_bias(m: int, dtype: torch.dtype) -> None:
    case = Case(m, 20, 32, dtype)
    assert torch.equal(case.forward()[:, 10], case.bias[10].expand(m))
    assert torch.equal(case.forward(bias=False)[:, 10], torch.zeros(m, dtype=dtype))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [3, 40])
def test_activations(m: int, activation: str) -> None:
    case = Case(m, 20, 32, torch.float32)
    check(case.forward(activation=activation), ACTIVATED[activation](case.truth("forward")))


def strided(tensor: Tensor, kind: str) -> Tensor:
    """The same numbers in other strides."""
    if kind == "feature_major":
        return tensor.t().contiguous().t()
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], 2)[:, :, 0]


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("kind", ["feature_major", "every_second"])
@pytest.mark.parametrize("m", [7, 48])
def test_strides_are_free(m: int, kind: str) -> None:
    case = Case(m, 9, 25, torch.float32)
    x, grad = (strided(tensor.to(DEVICE), kind) for tensor in (case.x, case.grad))
    check(case.forward(x), case.truth("forward"))
    check(case.input_gradient(grad), case.truth("input_gradient"))
    check(case.weight_gradient(grad, x), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k"), [(2, 5), (16, 64), (65, 130)])
def test_rearranged_tokens(m: int, k: int, dtype: torch.dtype) -> None:
    x = torch.randn(m, k).to(DEVICE, dtype)
    inside = csr_linear.tokens_inside(x)
    assert inside.shape == (-(-m // 16) * 16, k)
    assert inside.t().is_contiguous()
    assert torch.equal(inside[:m], x)
    assert torch.count_nonzero(inside[m:]) == 0
    outside = csr_linear.tokens_outside(inside, m)
    assert outside.is_contiguous()
    assert torch.equal(outside, x)
    ready = x.t().contiguous().t()
    assert csr_linear.tokens_inside(ready) is ready
    one = x[:1]
    assert csr_linear.tokens_inside(one) is one


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("m", [3, 40])
def test_no_features(m: int) -> None:
    Case(m, 9, 0, torch.float32).check_all()
    Case(m, 0, 9, torch.float32).check_all()


@pytest.mark.usefixtures("seed", "poison_empty")
def test_a_gradient_of_stride_zero() -> None:
    case = Case(19, 17, 25, torch.float32)
    case.grad = torch.ones(1, 1).expand(19, 17)
    check(case.input_gradient(), case.truth("input_gradient"))
    check(case.weight_gradient(), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("splits", [2, 3, 5])
def test_split_tokens_add_up(splits: int) -> None:
    """Five parts of three steps: two parts have no tokens and must still write zeros."""
    case = Case(90, 5, 25, torch.float32)
    check(case.weight_gradient(splits=splits, block_m=32), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(
    ("rows", "lanes", "unroll", "block_m"), [(1, 1, 1, 8), (1, 64, 2, 2), (2, 4, 4, 32), (8, 2, 1, 16)]
)
def test_any_tile_of_the_gather(rows: int, lanes: int, unroll: int, block_m: int) -> None:
    case = Case(5, 5, 20, torch.float32)
    fields = {"rows": rows, "lanes": lanes, "unroll": unroll, "block_m": block_m}
    check(case.forward(**fields), case.truth("forward"))
    check(case.input_gradient(**fields), case.truth("input_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(("entries", "pieces"), [(1, 1), (4, 3), (16, 8)])
def test_any_tile_of_the_weight_gradient(entries: int, pieces: int) -> None:
    case = Case(9, 13, 40, torch.float32)
    check(case.weight_gradient(entries=entries, pieces=pieces), case.truth("weight_gradient"))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("m", [3, 40])
def test_pruned_columns_are_not_read(m: int) -> None:
    """A NaN in a feature that a row does not use does not reach the row; a dense product would spread it."""
    case = Case(m, 20, 48, torch.float32)
    mask = case.layout.mask()
    mask[:, 5] = False
    case.set_mask(mask)
    case.weight *= mask
    x = case.x.clone()
    x[:, 5] = torch.nan
    check(case.forward(x.to(DEVICE)), case.truth("forward"))


@pytest.mark.usefixtures("seed")
def test_the_same_bits_every_time() -> None:
    case = Case(40, 5, 15, torch.float16)
    for product in PRODUCTS:
        assert torch.equal(getattr(case, product)(), getattr(case, product)())
    assert torch.equal(case.weight_gradient(splits=2), case.weight_gradient(splits=2))


#: (M, N, K), strides of x, dtype.
FORMATS = [
    *(
        ((m, 7, 15), kind, torch.float32)
        for m in (1, 9, 40)
        for kind in ("contiguous", "feature_major", "every_second")
    ),
    *(((40, 7, 15), "contiguous", dtype) for dtype in DTYPES[1:]),
    ((40, 1, 15), "contiguous", torch.float32),
    ((0, 7, 15), "contiguous", torch.float32),
]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators want to know of a device; interpreted, there is none."""
    if INTERPRETED:
        monkeypatch.setattr(cuda_csr, "_device", lambda index: SMALL)


def compare(name: str, ours: Any, arguments: tuple[Any, ...], first: int) -> None:
    """An operator's result against its reference in float64: numbers, dtype, and the strides that it owes."""
    wide = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
    found, truth = ours(*arguments), REFERENCES[name](*wide)
    found, truth = ((one,) if isinstance(one, Tensor) else one for one in (found, truth))
    for mine, right in zip(found, truth, strict=True):
        assert mine.dtype == arguments[first].dtype
        assert mine.stride() == right.stride() or mine.numel() < 2
        check(mine.cpu(), right.cpu())


@pytest.mark.usefixtures("seed", "poison_empty", "device")
@pytest.mark.parametrize(("size", "kind", "dtype"), FORMATS)
def test_the_registered_operators_equal_the_reference(size: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    """In every format of x, with strided values, with and without a ReLU and a bias."""
    m, n, k = size
    layout = CSR.from_mask(torch.rand(n, k) < 0.2).narrow().to(DEVICE)
    x, grad, bias = (torch.randn(size).to(DEVICE, dtype) for size in ((m, k), (m, n), (n,)))
    x, values = x if kind == "contiguous" else strided(x, kind), torch.randn(layout.nnz, 2).to(DEVICE, dtype)[:, 0]
    tail = (list(layout.index), list(layout.shape))
    for name, given in (("none", bias), ("relu", None)):
        compare("linear_csr", cuda_csr._linear, (x, values, given, *tail, name), 0)
    activated = torch.randn_like(grad)
    for wanted in ([True] * 3, [True, False, False], [False, True, False]):
        arguments = (grad, x, values, *tail, wanted, activated)
        compare("linear_csr_backward", cuda_csr._linear_backward, arguments, 0)


@pytest.mark.usefixtures("seed", "poison_empty", "device")
@pytest.mark.parametrize("kind", ["contiguous", "feature_major", "channels_last"])
@pytest.mark.parametrize(
    ("n", "stride", "padding"), [(3, [1, 1], [0, 0]), (3, [2, 1], [0, 1]), (1, [1, 3], [2, 0]), (0, [1, 1], [0, 0])]
)
def test_pointwise_convolutions_equal_the_reference(n: int, stride: list[int], padding: list[int], kind: str) -> None:
    layout = CSR.from_mask(torch.rand(6, 5, 1, 1) < 0.4).to(DEVICE)
    x, values, bias = (torch.randn(size).to(DEVICE) for size in ((n, 5, 4, 7), (layout.nnz,), (6,)))
    if kind == "feature_major":
        x = functional.feature_major(x)
    elif kind == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    tail = (list(layout.index), list(layout.shape))
    conv = (stride, padding, [1, 1], 1)
    compare("conv2d_csr", cuda_csr._conv2d, (x, values, bias, *tail, *conv, "relu"), 0)
    grad = torch.randn_like(REFERENCES["conv2d_csr"](x, values, bias, *tail, *conv))
    for wanted in ([True] * 3, [True, False, False], [False, True, False]):
        compare("conv2d_csr_backward", cuda_csr._conv2d_backward, (grad, x, values, *tail, *conv, wanted), 0)


@pytest.mark.usefixtures("seed", "device")
def test_other_convolutions_have_the_reference() -> None:
    layout = CSR.from_mask(torch.rand(6, 2, 3, 3) < 0.4).to(DEVICE)
    x, values = torch.randn(2, 4, 5, 5).to(DEVICE), torch.randn(layout.nnz).to(DEVICE)
    arguments = (x, values, None, list(layout.index), list(layout.shape), [1, 1], [1, 1], [1, 1], 2)
    compare("conv2d_csr", cuda_csr._conv2d, arguments, 0)
