"""What the tuner times: calls of operators as they are recorded, with their gradients, and calls made of a problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError
from lth_sparse.formats import make_layout
from lth_sparse.kernels import launch
from lth_sparse.kernels.launch import Problem
from lth_sparse.ops import functional, tuning
from lth_sparse.ops.tuning import record

PROBLEM = Problem("forward", "float16", (64, 64), 4096, 1024, 1024, 0.1)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dims", [2, 4])
def test_calls_of_operators_are_recorded_with_their_gradients(dims: int) -> None:
    weight = torch.randn(6, 5) if dims == 2 else torch.randn(6, 5, 3, 3)
    layout = make_layout("bsr", torch.ones_like(weight, dtype=torch.bool), block=(3, 5))
    values = layout.gather(weight).requires_grad_()
    x = torch.randn(7, 5, *(4,) * (dims - 2), requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    operator: Any = functional.linear if dims == 2 else functional.conv2d
    options: dict[str, Any] = {} if dims == 2 else {"stride": 2, "padding": 1}
    found = list(record(lambda: operator(x, values, layout, bias, activation="relu", **options)))
    name = "linear_bsr" if dims == 2 else "conv2d_bsr"
    assert [call.name for call in found] == [name, f"{name}, gradient of input", f"{name}, gradient of weight"]
    right = operator(x, values, layout, bias, activation="relu", **options)
    torch.testing.assert_close(found[0].run(), right.detach())
    (dx, none, _), (nothing, dvalues, _) = found[1].run(), found[2].run()
    assert (dx.shape, none.numel(), nothing.numel(), dvalues.shape) == (x.shape, 0, 0, values.shape)
    torch.testing.assert_close(found[2].run()[1], dvalues)


def test_a_backward_gets_what_its_forward_got() -> None:
    """Options with defaults included: a convolution's groups, and whatever an operator is told beyond them."""
    schema = "option(Tensor x, int option=1) -> Tensor"
    library = torch.library.Library("lth_sparse", "FRAGMENT")
    library.define(schema)
    library.define("option_backward(Tensor grad, Tensor x, bool[] wanted, int other=7, int option=1) -> Tensor")
    seen: list[Any] = []
    library.impl("option", lambda x, option=1: x * option, "CompositeExplicitAutograd")
    library.impl(
        "option_backward",
        lambda grad, x, wanted, other=7, option=1: seen.append((list(wanted), other, option)) or grad.clone(),
        "CompositeExplicitAutograd",
    )
    x = torch.ones(3, requires_grad=True)
    for call in record(lambda: torch.ops.lth_sparse.option(x, 5)):
        call.run()
    assert seen == [([True, False, False], 7, 5), ([False, True, False], 7, 5)]
    library._destroy()


def test_gradients_that_nobody_needs_are_not_recorded() -> None:
    layout = make_layout("csr", torch.ones(3, 4, dtype=torch.bool))
    x, values = torch.randn(2, 4), torch.randn(12, requires_grad=True)

    def run() -> Tensor:
        return functional.linear(x, values, layout)

    assert [call.name for call in record(run)] == ["linear_csr", "linear_csr, gradient of weight"]
    assert [call.name for call in record(run, gradients=False)] == ["linear_csr"]
    assert list(record(lambda: torch.relu(x))) == []


@pytest.mark.parametrize("product", launch.PRODUCTS)
def test_a_problem_is_made_into_a_call_of_its_size(product: str) -> None:
    problem = Problem(product, "float32", (4, 8), 5, rows=30, cols=50, density=0.5)
    (call,) = tuning.calls_of_problem(problem, "cpu")
    sizes = {"forward": [(5, 30)], "input_gradient": [(5, 50), (0,), (0,)], "weight_gradient": [(0,), (28, 4, 8), (0,)]}
    result = call.run()
    assert [tuple(one.shape) for one in ([result] if isinstance(result, Tensor) else result)] == sizes[product]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"product": "conv_forward"}, "problem.product: expected one of forward"),
        ({"dtype": "float64"}, "problem.dtype: expected one of float16"),
        ({"rows": None}, "problem: expected positive rows, cols and tokens"),
        ({"density": 0.0}, "problem: expected positive rows, cols and tokens"),
        ({"tokens": 0}, "problem: expected positive rows, cols and tokens"),
    ],
)
def test_a_problem_that_cannot_be_made_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        tuning.calls_of_problem(replace(PROBLEM, **change), "cpu")
