"""The product straight from the bitmap of the dense layout against plain torch: launched by test_bitmap_linear.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kernel_cases import ACTIVATED, DEVICE, DTYPES, INTERPRETED, SMALL, check
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture
from torch import Tensor

from lth_sparse.formats import Dense
from lth_sparse.kernels import bitmap_linear, launch_csr
from lth_sparse.kernels.epilogue import ACTIVATIONS
from lth_sparse.ops import cuda_csr, functional
from lth_sparse.ops.library import REFERENCES

#: (M, N, K): rows of whole words and not; one row, one column; a chunk of the rank over several rows; more tokens than
#: a tile.
SIZES = [
    (1, 20, 64),
    (2, 20, 64),
    (1, 19, 37),
    (5, 19, 37),
    (1, 1, 1),
    (3, 33, 1),
    (16, 20, 110),
    (17, 5, 130),
]


class Case:
    """Inputs of one layer and its dense truth in float64."""

    def __init__(self, m: int, n: int, k: int, dtype: torch.dtype, density: float = 0.4):
        mask = torch.rand(n, k) < density
        if density < 1 and n > 1:
            mask[n // 2] = False
        self.layout = Dense.from_mask(mask)
        self.weight = (torch.randn(n, k) * mask).to(dtype)
        self.x, self.bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype)

    def forward(self, x: Tensor | None = None, bias: bool = True, activation: str = "none", **fields: Any) -> Tensor:
        x = self.x.to(DEVICE) if x is None else x
        tile = dataclasses.replace(
            launch_csr.bitmap(SMALL, str(x.dtype).removeprefix("torch."), x.shape[0], *self.layout.shape), **fields
        )
        precision = "tf32x3" if x.dtype == torch.float32 else "ieee"
        index = [tensor.to(DEVICE) for tensor in self.layout.index]
        values, given = self.layout.gather(self.weight).to(DEVICE), self.bias.to(DEVICE) if bias else None
        y = x.new_empty(x.shape[0], self.layout.rows)
        return bitmap_linear.forward(x, values, given, *index, y, tile, precision, activation).cpu()

    def truth(self) -> Tensor:
        return self.x.double() @ self.weight.double().t() + self.bias.double()


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_equals_dense(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    case = Case(m, n, k, dtype)
    check(case.forward(), case.truth())


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(("m", "n", "k", "dtype"), [(1, 2, 4200, torch.float32), (2, 1, 4128, torch.float16)], ids=str)
def test_rows_over_several_chunks_of_the_rank(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    case = Case(m, n, k, dtype)
    check(case.forward(), case.truth())


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("m", range(1, 18))
def test_every_number_of_few_tokens(m: int) -> None:
    case = Case(m, 3, 40, torch.float32)
    check(case.forward(), case.truth())


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(("m", "k", "density"), [(1, 33, 0.0), (3, 64, 0.0), (1, 64, 1.0), (3, 33, 1.0), (3, 0, 0.5)])
def test_nothing_pruned_everything_pruned_no_features(m: int, k: int, density: float) -> None:
    case = Case(m, 18, k, torch.float32, density)
    check(case.forward(), case.truth())


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("m", [0, 1, 3])
def test_no_tokens_and_no_bias(m: int) -> None:
    case = Case(m, 18, 40, torch.float32)
    check(case.forward(bias=False), case.truth() - case.bias.double())
    assert case.forward().shape == (m, 18)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, splits: int) -> None:
    case = Case(2, 18, 96, torch.float32)
    check(case.forward(activation=activation, splits=splits, unroll=1), ACTIVATED[activation](case.truth()))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(
    ("splits", "unroll", "m", "k"), [(2, 2, 1, 128), (3, 1, 2, 130), (7, 1, 1, 130), (7, 1, 2, 128)]
)
def test_split_columns_add_up(splits: int, unroll: int, m: int, k: int) -> None:
    """Seven parts of fewer words: some have no columns and must still count as zeros."""
    case = Case(m, 3, k, torch.float32)
    check(case.forward(splits=splits, unroll=unroll), case.truth())


@pytest.mark.usefixtures("seed")
def test_the_same_bits_every_time() -> None:
    case = Case(2, 3, 70, torch.float16)
    assert torch.equal(case.forward(splits=3, unroll=1), case.forward(splits=3, unroll=1))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("m", [1, 5])
def test_strides_are_free(m: int) -> None:
    case = Case(m, 18, 45, torch.float32)
    for x in (case.x.t().contiguous().t(), torch.stack([case.x, torch.full_like(case.x, torch.nan)], 2)[:, :, 0]):
        check(case.forward(x.to(DEVICE)), case.truth())


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("m", [1, 2])
def test_weights_past_the_tile_are_not_read(m: int) -> None:
    """The last word of a row holds the first bits of the next, whose values are NaN here."""
    case = Case(m, 6, 45, torch.float32)
    case.weight[3:] = torch.nan
    case.weight *= case.layout.mask()
    found, right = case.forward()[:, :3], case.truth()[:, :3]
    check(found, right)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [0, 1, 4])
def test_the_registered_operator_equals_the_reference(
    m: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        monkeypatch.setattr(cuda_csr, "_device", lambda index: SMALL)
    layout = Dense.from_mask(torch.rand(20, 45) < 0.4).to(DEVICE)
    x, bias = torch.randn(m, 45).to(DEVICE, dtype), torch.randn(20).to(DEVICE, dtype)
    values = torch.randn(layout.nnz, 2).to(DEVICE, dtype)[:, 0]
    tail = (list(layout.index), list(layout.shape))
    for given, name in ((x, "none"), (functional.feature_major(x), "relu")):
        found = cuda_csr._linear_bitmap(given, values, bias, *tail, name)
        right = REFERENCES["linear_bitmap"](given.double(), values.double(), bias.double(), *tail, name)
        assert found.dtype == dtype
        assert found.stride() == right.stride()
        check(found.cpu(), right.cpu())
