"""Blocks of channels_last weights: what the operators make of them where no kernel exists, and the format they keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.formats import BSR
from lth_sparse.ops import backend_of, functional
from lth_sparse.ops.plan import choose_layout, fast_kinds
from lth_sparse.ops.schemas import OPS
from lth_sparse.ops.strides import empty_owed, feature_major, is_channels_last, is_feature_major, kept_format

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
SIZE = (3, 4, 7, 8)


def case() -> tuple[BSR, Tensor, Tensor]:
    layout = BSR.from_mask(torch.rand(6, 4, 3, 3) < 0.3, (2, 3), "zeros", channels_last=True)
    return layout, layout.gather(torch.randn(layout.shape)), torch.randn(6)


def formatted(x: Tensor, kind: str) -> Tensor:
    if kind == "feature_major":
        return feature_major(x)
    return x.contiguous(memory_format=torch.channels_last) if kind == "channels_last" else x


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "feature_major"])
def test_results_and_gradients_have_the_format_of_the_input(kind: str) -> None:
    layout, values, bias = case()
    x = formatted(torch.randn(SIZE), kind).requires_grad_()
    y = functional.conv2d(x, values, layout, bias, stride=2, padding=1, activation="relu")
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    for image in (y, dx):
        assert is_channels_last(image) == (kind == "channels_last")
        assert is_feature_major(image) == (kind == "feature_major")


@pytest.mark.usefixtures("seed")
def test_the_order_of_a_contiguous_weight_gives_contiguous_images_as_ever() -> None:
    layout = BSR.from_mask(torch.rand(6, 4, 3, 3) < 0.3, (2, 3), "zeros")
    x = formatted(torch.randn(SIZE), "channels_last")
    assert functional.conv2d(x, layout.gather(torch.randn(layout.shape)), layout).is_contiguous()


def test_images_that_are_both_count_as_channels_last() -> None:
    one_channel, like = torch.randn(2, 1, 4, 5), torch.empty(0)
    assert is_channels_last(empty_owed(one_channel, like, (2, 3, 4, 5), True))
    assert empty_owed(one_channel, like, (2, 3, 4, 5), False).is_contiguous()
    assert is_channels_last(kept_format(torch.randn(2, 3, 4, 5), one_channel, True))
    assert kept_format(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), True).is_contiguous()
    assert not is_channels_last(torch.randn(2, 3))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
def test_opcheck(kind: str) -> None:
    layout, values, bias = case()
    x = formatted(torch.randn(SIZE), kind)
    tail = (list(layout.index), list(layout.shape), [2, 1], [1, 0], [1, 1], 1)
    ops = OPS["bsr"]
    for name in ("none", "relu"):
        torch.library.opcheck(ops.conv2d.overload, (x, values, bias, *tail, name, True), test_utils=CHECKS)
    y = ops.conv2d(x, values, bias, *tail, "relu", True)
    for wanted, activated in (([True, True, True], None), ([True, False, True], y)):
        arguments = (torch.randn_like(y), x, values, *tail, wanted, activated, True)
        torch.library.opcheck(ops.conv2d_backward.overload, arguments, test_utils=CHECKS)


@pytest.mark.usefixtures("seed")
def test_second_derivatives() -> None:
    layout, values, _ = case()
    x = torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    leaves = (x, values.double().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x, v: functional.conv2d(x, v, layout, padding=1), leaves, fast_mode=True)


def test_no_kernel_on_the_cpu_and_it_says_so() -> None:
    for dims, backend in ((2, "cpu"), (3, "reference"), (4, "reference")):
        assert backend_of("bsr", "cpu", torch.float32, dims, channels_last=True).split("-")[0] == backend
    weight = torch.randn(8, 8, 3, 3)
    assert fast_kinds(("csr", "bsr"), weight) == ["csr", "bsr"]
    assert fast_kinds(("csr", "bsr"), weight, channels_last=True) == ["csr"]
    mask = torch.zeros(8, 8, 3, 3, dtype=torch.bool)
    mask[:4, :4, 1, 1] = True
    options = {"block": (4, 4), "kinds": ("bsr", "dense")}
    assert choose_layout(weight, mask, **options).note == "by density, not measured"
    assert choose_layout(weight, mask, **options, channels_last=True).note == "no kernel for torch.float32 on cpu"
    assert choose_layout(torch.randn(8, 8), torch.eye(8) > 0, **options, channels_last=True).kind == "bsr"


# Dynamo itself instantiates autograd.Function while tracing one
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("seed")
def test_compile_fullgraph_trains_like_eager_and_keeps_the_format() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    masks = {name: torch.rand_like(p) < 0.4 for name, p in model.named_parameters() if p.dim() > 1}
    ls.sparsify_(model, masks, layout="bsr", block=(2, 2), cover="zeros", channels_last=True)
    x = formatted(torch.randn(SIZE), "channels_last")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    assert is_channels_last(y)
    assert not y.is_contiguous()
    y.square().sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for mine, eager in zip(ours, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(mine, eager)
