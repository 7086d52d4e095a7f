"""Features in another order, in the memory format of the input, and back in the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lth_sparse.ops import use_backend
from lth_sparse.ops.permute import permute
from lth_sparse.ops.strides import feature_major, is_channels_last, is_feature_major


def orders(size: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(size)).to(torch.int32)
    return order, order.argsort().to(torch.int32)


FORMATS = {
    "contiguous": lambda x: x,
    "feature_major": feature_major,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "sliced": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
}


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (0, 4), (3, 1), (2, 5, 4), (3, 6, 4, 2), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_equals_indexing_and_keeps_the_format(
    form: str, shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    x = FORMATS[form]((8 * torch.randn(shape)).to(dtype))
    order, place = orders(shape[1])
    with use_backend(backend):
        y = permute(x, order, place)
        assert torch.equal(permute(y, place, order), x)
    assert torch.equal(y, x[:, order.long()])
    assert is_feature_major(y) == is_feature_major(x)
    assert not is_channels_last(x) or is_channels_last(y) or x.numel() == 0


def test_an_empty_order_is_none() -> None:
    x, empty = torch.randn(3, 4), torch.empty(0, dtype=torch.int32)
    assert permute(x, empty, empty) is x


@pytest.mark.parametrize("form", ["contiguous", "feature_major"])
def test_gradients_of_any_order(form: str) -> None:
    x = FORMATS[form](torch.randn(3, 4, dtype=torch.float64)).detach().requires_grad_()
    order, place = orders(4)
    assert torch.autograd.gradcheck(lambda x: permute(x, order, place) ** 2, x)
    assert torch.autograd.gradgradcheck(lambda x: permute(x, order, place) ** 2, x)


@pytest.mark.parametrize("form", FORMATS)
def test_the_operator_is_what_its_fake_says(form: str) -> None:
    x = FORMATS[form](torch.randn(3, 4, 2, 5))
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.lth_sparse.permute.default, (x, orders(4)[0]), test_utils=checks)
