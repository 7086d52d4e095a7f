"""Calls into ``lth_sparse._C`` with an index made here, from nothing but a mask, and dense fp64 torch as the truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse import _C
from lth_sparse.ops.strides import feature_major, is_feature_major

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}

#: Codes by which _C knows a dtype.
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


@dataclass(frozen=True)
class Variant:
    """What a kernel is called with besides its tensors."""

    isa: str
    dtype: torch.dtype
    index_bits: int
    threads: int

    def __str__(self) -> str:
        return f"{self.isa}-f{8 * self.dtype.itemsize}-i{self.index_bits}-t{self.threads}"


# Every instruction set with every type; index widths and threads alternate: they share no line of code with those.
VARIANTS = [
    Variant(isa, *rest)
    for isa, rest in itertools.product(
        _C.isas(), ((torch.float32, 16, 1), (torch.float64, 32, 1), (torch.float32, 32, 2), (torch.float64, 16, 3))
    )
]


@pytest.fixture(autouse=True)
def few_threads_for_torch_and_as_many_as_asked_for_here() -> Iterator[None]:
    """The truth of small problems on one thread, which is faster; kernels share even the smallest work."""
    threads, grain = torch.get_num_threads(), _C.set_thread_grain(1)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    _C.set_thread_grain(grain)


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """Every instruction set of this machine, with both value types, both index widths, one to three threads."""
    before = _C.isa()
    _C.set_isa(request.param.isa)
    torch.manual_seed(0)
    yield request.param
    _C.set_isa(before)


@pytest.fixture(params=_C.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine, in use."""
    before = _C.isa()
    _C.set_isa(request.param)
    torch.manual_seed(0)
    yield request.param
    _C.set_isa(before)


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def strides(matrix: Tensor | None) -> tuple[int, int]:
    return (0, 0) if matrix is None else (matrix.stride(0), matrix.stride(1))


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def assert_near(actual: Tensor, truth: Tensor) -> None:
    """Equal up to rounding, relative to the largest element of the truth."""
    assert actual.shape == truth.shape
    if truth.numel() == 0:
        return
    error = (actual.double() - truth).abs().max().item()
    assert error <= TOLERANCE[actual.dtype] * (1 + truth.abs().max().item()), f"error {error}"


class Index:
    """CSR and CSC index of a mask [rows, ...], in the types that the kernels take."""

    def __init__(self, mask: Tensor, bits: int) -> None:
        flat = mask.flatten(1)
        self.rows, self.cols = flat.shape
        self.mask, self.bits = mask, bits
        narrow = torch.uint16 if bits == 16 else torch.int32
        row, col = flat.nonzero(as_tuple=True)
        perm = torch.argsort(col * self.rows + row)
        self.nnz = len(row)
        self.crow = F.pad(flat.sum(1).cumsum(0), (1, 0)).int()
        self.ccol = F.pad(flat.sum(0).cumsum(0), (1, 0)).int()
        self.col, self.row, self.perm = col.int().to(narrow), row[perm].int().to(narrow), perm.int()

    def dense(self, values: Tensor) -> Tensor:
        weight = torch.zeros(self.mask.shape, dtype=torch.float64)
        weight[self.mask] = values.double()
        return weight


class Linear(Index):
    """csr_linear_*: outputs are poisoned before the call, so that an element that is not written shows up."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        threads: int,
        y: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        if y is None:
            y = poisoned((x.shape[0], self.rows), x.dtype)
        _C.csr_linear_forward(
            address(x), address(values), address(bias), address(y), address(self.crow), address(self.col),
            x.shape[0], self.rows, self.cols, *x.stride(), *y.stride(), relu,
            self.bits, CODES[x.dtype], threads,
        )  # fmt: skip
        return y

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        values: Tensor,
        threads: int,
        wanted: str = "dx dvalues dbias",
        dx: Tensor | None = None,
        activated: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if dx is None and "dx" in wanted:
            dx = poisoned((x.shape[0], self.cols), x.dtype)
        dvalues = poisoned((self.nnz,), x.dtype) if "dvalues" in wanted else None
        dbias = poisoned((self.rows,), x.dtype) if "dbias" in wanted else None
        _C.csr_linear_backward(
            address(grad), address(activated), address(x), address(values), address(dx), address(dvalues),
            address(dbias), address(self.crow), address(self.col), address(self.ccol), address(self.row),
            address(self.perm), x.shape[0], self.rows, self.cols, *grad.stride(), *strides(activated), *x.stride(),
            *strides(dx), self.bits, CODES[x.dtype], threads,
        )  # fmt: skip
        return dx, dvalues, dbias

    def truth(self, grad: Tensor, x: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """y, dx, dvalues, dbias in double precision."""
        weight, grad, x = self.dense(values), grad.double(), x.double()
        y = x @ weight.t() + (0 if bias is None else bias.double())
        return y, grad @ weight, (grad.t() @ x)[self.mask], grad.sum(0)


class Conv(Index):
    """csr_conv2d_*, likewise."""

    def __init__(
        self,
        mask: Tensor,
        bits: int,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__(mask, bits)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def out(self, x: Tensor) -> tuple[int, int]:
        height, width = (
            (x.shape[i + 2] + 2 * self.padding[i] - self.dilation[i] * (self.mask.shape[i + 2] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        )
        return height, width

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        return (
            *x.shape, self.rows, self.groups, *self.mask.shape[2:],
            *self.stride, *self.padding, *self.dilation, *self.out(x),
        )  # fmt: skip

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None, threads: int, relu: bool = False) -> Tensor:
        """y has the format of x: feature-major or contiguous."""
        y = poisoned((x.shape[0], self.rows, *self.out(x)), x.dtype)
        if is_feature_major(x):
            y = feature_major(y)
        _C.csr_conv2d_forward(
            address(x), address(values), address(bias), address(y), address(self.crow), address(self.col),
            *self.sizes(x), is_feature_major(x), relu, self.bits, CODES[x.dtype], threads,
        )  # fmt: skip
        return y

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        values: Tensor,
        threads: int,
        wanted: str = "dx dvalues dbias",
        activated: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """``grad`` and ``x`` contiguous or feature-major, ``activated`` as ``grad``."""
        formats = is_feature_major(grad), is_feature_major(x)
        dx = poisoned(tuple(x.shape), x.dtype) if "dx" in wanted else None
        if dx is not None and formats[1]:
            dx = feature_major(dx)
        dvalues = poisoned((self.nnz,), x.dtype) if "dvalues" in wanted else None
        dbias = poisoned((self.rows,), x.dtype) if "dbias" in wanted else None
        _C.csr_conv2d_backward(
            address(grad), address(activated), address(x), address(values),
            address(dx), address(dvalues), address(dbias),
            address(self.ccol), address(self.row), address(self.perm), *self.sizes(x), *formats,
            self.bits, CODES[x.dtype], threads,
        )  # fmt: skip
        return dx, dvalues, dbias

    def truth(self, grad: Tensor, x: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """y, dx, dvalues, dbias in double precision."""
        weight, x = self.dense(values).requires_grad_(), x.double().requires_grad_()
        b = torch.zeros(self.rows, dtype=torch.float64) if bias is None else bias.double()
        b.requires_grad_()
        y = F.conv2d(x, weight, b, self.stride, self.padding, self.dilation, self.groups)
        dx, dweight, db = torch.autograd.grad(y, (x, weight, b), grad.double())
        return y.detach(), dx, dweight[self.mask], db


@pytest.fixture
def linear() -> type[Linear]:
    """The class Linear above: importlib mode has no other way to share it."""
    return Linear


@pytest.fixture
def conv() -> type[Conv]:
    """The class Conv above."""
    return Conv


@pytest.fixture
def near() -> object:
    """assert_near above."""
    return assert_near
