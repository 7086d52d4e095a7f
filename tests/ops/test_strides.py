"""Feature-major strides: recognised exactly, converted both ways, and kept by the operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lth_sparse.formats import CSR
from lth_sparse.ops import functional, use_backend
from lth_sparse.ops.library import is_plain
from lth_sparse.ops.strides import (
    batch_major,
    empty_activations,
    feature_major,
    flattened,
    is_feature_major,
    kept_format,
)

SHAPES = [(2, 3), (5, 3, 4, 6), (5, 1, 4, 6), (5, 3, 1, 1), (33, 2, 7)]
#: One sample or one feature, or nothing at all: contiguous whatever the strides say.
AMBIGUOUS = [(4, 1), (1, 5), (1, 3, 4, 4), (0, 3), (3, 0), (5, 1, 1, 1), (7,)]


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = feature_major(x)
    assert is_feature_major(y)
    assert not is_feature_major(x)
    assert feature_major(y) is y
    assert torch.equal(y, x)
    assert y.movedim(0, -1).is_contiguous()
    assert is_feature_major(empty_activations(x, shape, True))
    assert empty_activations(x, shape, False).is_contiguous()
    back = batch_major(y)
    assert back.is_contiguous()
    assert torch.equal(back, x)
    assert torch.equal(flattened(y), x.flatten(1))
    assert flattened(y).data_ptr() == y.data_ptr()
    assert torch.autograd.gradcheck(lambda x: batch_major(feature_major(x)), x)


@pytest.mark.parametrize("shape", AMBIGUOUS)
def test_what_is_contiguous_as_well_counts_as_contiguous(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    y = feature_major(x)
    assert not is_feature_major(y)
    assert torch.equal(y, x)
    assert torch.equal(batch_major(y), x)


def test_slices_and_channels_last_are_not_feature_major() -> None:
    x = feature_major(torch.randn(4, 6))
    assert not is_feature_major(x[:2])  # a pitch larger than the batch
    assert is_feature_major(x[:, :2])
    assert not is_feature_major(torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last))
    assert kept_format(torch.randn(4, 2).t(), torch.randn(2, 3)).is_contiguous()


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("batch", [2, 16, 37, 128])
def test_linear_keeps_the_format_in_both_directions(batch: int, backend: str) -> None:
    layout = CSR.from_mask(torch.rand(20, 30) < 0.4).narrow()
    values = torch.randn(layout.nnz, dtype=torch.float64, requires_grad=True)
    right_x = torch.randn(batch, 30, dtype=torch.float64, requires_grad=True)
    x = feature_major(right_x.detach()).requires_grad_()
    with use_backend(backend):
        y, right = functional.linear(x, values, layout), functional.linear(right_x, values, layout)
        assert is_feature_major(y)
        assert right.is_contiguous()
        torch.testing.assert_close(y, right)
        upstream = torch.randn(batch, 20, dtype=torch.float64)
        for gradient in (upstream, feature_major(upstream)):
            dx, dvalues = torch.autograd.grad(y, (x, values), gradient, retain_graph=True)
            right_dx, right_dvalues = torch.autograd.grad(right, (right_x, values), gradient, retain_graph=True)
            assert is_feature_major(dx)
            assert right_dx.is_contiguous()
            torch.testing.assert_close(dx, right_dx)
            torch.testing.assert_close(dvalues, right_dvalues)


@pytest.mark.usefixtures("seed")
def test_leading_dimensions_keep_it_where_they_are_one_matrix() -> None:
    layout = CSR.from_mask(torch.rand(6, 5) < 0.5)
    x = feature_major(torch.randn(12, 5)).view(3, 4, 5)
    y = functional.linear(x, torch.randn(layout.nnz), layout)
    assert y.stride() == (4, 1, 12)


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.11, of any use of it
@pytest.mark.usefixtures("seed")
def test_whoever_watches_operators_still_sees_them() -> None:
    layout = CSR.from_mask(torch.rand(6, 5) < 0.5)
    x, values = torch.randn(3, 5, requires_grad=True), torch.randn(layout.nnz, requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(functional.linear(x, values, layout).sum(), (x, values))

    assert is_plain(x)
    with Seen() as seen:
        step()
    ops = [name for name in seen.names if name.startswith("lth_sparse::")]
    assert ops == ["lth_sparse::linear_csr", "lth_sparse::linear_csr_backward"]
    with torch.profiler.profile() as profile:
        step()
    names = {event.key for event in profile.key_averages()}
    assert {"lth_sparse::linear_csr", "lth_sparse::linear_csr_backward"} <= names


@pytest.mark.usefixtures("seed")
def test_a_tensor_that_escaped_a_transform_still_works() -> None:
    layout, leaked = CSR.from_mask(torch.rand(6, 5) < 0.5), []
    values = torch.randn(layout.nnz)

    def loss(x: Tensor) -> Tensor:
        leaked.append(x)
        return x.square().sum()

    x = torch.randn(3, 5)
    torch.func.grad(loss)(x)
    torch.testing.assert_close(functional.linear(leaked[0], values, layout), functional.linear(x, values, layout))
