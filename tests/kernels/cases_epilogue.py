"""Activations of the kernels against torch's own; run by test_epilogue.py."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import ACTIVATED, DEVICE

from lth_sparse.kernels.epilogue import ACTIVATIONS, activate


@triton.jit
def kernel(x, y, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, BLOCK)
    tl.store(y + i, activate(tl.load(x + i), ACTIVATION))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_equals_torch(name: str) -> None:
    x = torch.linspace(-12, 12, 256)
    x[:3] = torch.tensor([0.0, -0.0, float("nan")])
    x = x.to(DEVICE)
    y = torch.empty_like(x)
    kernel[(1,)](x, y, ACTIVATION=name, BLOCK=256)
    torch.testing.assert_close(y, ACTIVATED[name](x.double()).float(), rtol=2e-6, atol=1e-6, equal_nan=True)
