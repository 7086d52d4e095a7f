"""A stack of linear layers as the grouped 1x1 convolution that it is on a GPU: images of one pixel, channels side by
side. Launched by test_stack.py, see kernel_cases.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, INTERPRETED, SMALL, check
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture

from lth_sparse.formats import BSR
from lth_sparse.ops import cuda, cuda_conv


@pytest.fixture(autouse=True)
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted kernels run on CPU tensors, which have no device to ask."""
    torch.manual_seed(0)
    if INTERPRETED:
        monkeypatch.setattr(cuda, "_device", lambda index: SMALL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k", "block"), [(19, 16, 24, (8, 16)), (1, 6, 5, (3, 5))])
def test_forward_and_gradients(m: int, n: int, k: int, block: tuple[int, int], dtype: torch.dtype) -> None:
    groups = 3
    kept = torch.rand(groups * n // block[0], -(-k // block[1])) < 0.6
    kept[0] = False
    mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:, :k]
    layout = BSR.from_mask(mask, block)
    weight = (torch.randn(groups * n, k) * mask).to(dtype)
    x, grad, bias = (torch.randn(*size).to(dtype) for size in ((m, groups, k), (m, groups, n), (groups * n,)))
    index = [tensor.to(DEVICE) for tensor in layout.index]
    values = layout.gather(weight).to(DEVICE)
    images = x.reshape(m, groups * k, 1, 1).to(DEVICE)
    conv: Any = ([groups * n, k, 1, 1], [1, 1], [0, 0], [1, 1], groups)
    y = cuda_conv._conv2d(images, values, bias.to(DEVICE), index, *conv)
    assert y.is_contiguous()
    upstream = grad.reshape(m, groups * n, 1, 1).to(DEVICE)
    dx, dvalues, dbias = cuda_conv._conv2d_backward(upstream, images, values, index, *conv, [True] * 3)
    w = weight.double().view(groups, n, k)
    check(y.cpu().view(m, groups, n), torch.einsum("mgk,gnk->mgn", x.double(), w) + bias.double().view(groups, n))
    check(dx.cpu().view(m, groups, k), torch.einsum("mgn,gnk->mgk", grad.double(), w))
    true_dw = torch.einsum("mgn,mgk->gnk", grad.double(), x.double()).reshape(groups * n, k)
    check(dvalues.cpu(), layout.gather(true_dw))
    check(dbias.cpu(), grad.double().sum(0).flatten())
