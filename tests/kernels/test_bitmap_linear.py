"""The cases of cases_bitmap_linear.py, interpreted everywhere and compiled where there is a GPU; and decoding on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_cases import run_cases

from lth_sparse.formats import Dense
from lth_sparse.ops import autograd, functional, use_backend

CASES = Path(__file__).with_name("cases_bitmap_linear.py")


def test_every_case_interpreted() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_every_case_on_the_device() -> None:
    run_cases(CASES, interpreted=False)


@pytest.mark.gpu
@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(776,), (1, 776), (2, 3, 776), (16, 776)])
def test_decoding_errs_at_most_twice_as_much_as_dense_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layout = Dense.from_mask(torch.rand(520, 776) < 0.4).to("cuda")
    values = layout.gather(torch.randn(520, 776, device="cuda").to(dtype))
    x, bias = torch.randn(shape, device="cuda").to(dtype), torch.randn(520, device="cuda").to(dtype)
    with torch.no_grad():
        ours = functional.linear(x, values, layout, bias)
        with use_backend("reference"):
            dense = functional.linear(x, values, layout, bias)
            truth = functional.linear(x.double(), values.double(), layout, bias.double())
    allowed = 2 * (dense.double() - truth).abs().max() + 1e-6 * truth.abs().max()
    assert ours.shape == truth.shape
    assert (ours.double() - truth).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "density", "grad", "decodes"),
    [(16, 0.5, False, True), (17, 0.5, False, False), (1, 1.0, False, False), (1, 0.5, True, False)],
)
def test_the_bitmap_is_read_for_few_rows_without_gradients(
    rows: int, density: float, grad: bool, decodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []
    operator = autograd.linear_bitmap

    def seen(*args: Any) -> Tensor:
        called.append(True)
        return operator(*args)

    monkeypatch.setattr(autograd, "linear_bitmap", seen)
    layout = Dense.from_mask(torch.rand(40, 32) < density if density < 1 else torch.ones(40, 32, dtype=torch.bool))
    layout = layout.to("cuda")
    values = torch.randn(layout.nnz, device="cuda", requires_grad=grad)
    functional.linear(torch.randn(rows, 32, device="cuda"), values, layout)
    assert bool(called) == decodes
