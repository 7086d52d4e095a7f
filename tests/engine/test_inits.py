"""Initial weights: their moments, their support, and the same numbers for the same generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine.inits import INITS
from lth_sparse.errors import ArgumentError, ArgumentTypeError


def drawn(scheme: str, layer: nn.Module) -> torch.Tensor:
    model = ls.initialise_(nn.Sequential(layer), scheme, torch.Generator().manual_seed(0))
    assert not model[0].bias.any()  # type: ignore[index]
    return model[0].weight.detach().double()  # type: ignore[index]


@pytest.mark.parametrize("scheme", ["glorot_normal", "glorot_truncated", "kaiming_normal", "signed_constant"])
@pytest.mark.parametrize("layer", [nn.Linear(300, 400), nn.Conv2d(40, 60, 5), nn.Conv1d(100, 300, 3)], ids=str)
def test_deviations(scheme: str, layer: nn.Module) -> None:
    weight = drawn(scheme, layer)
    out, inside, *kernel = weight.shape
    taps = math.prod(kernel)
    sigma = math.sqrt(2 / (inside * taps)) if scheme == "kaiming_normal" else math.sqrt(2 / ((inside + out) * taps))
    assert float(weight.std()) == pytest.approx(sigma, rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * sigma


def test_truncation_is_at_two_deviations_of_what_is_cut() -> None:
    weight = drawn("glorot_truncated", nn.Linear(300, 400))
    sigma = math.sqrt(2 / 700)
    assert float(weight.abs().max()) <= 2 * sigma / 0.879
    assert float(weight.abs().max()) > 2 * sigma


def test_signed_constants_have_one_magnitude() -> None:
    weight = drawn("signed_constant", nn.Linear(30, 40))
    assert len(weight.abs().unique()) == 1
    assert len(weight.unique()) == 2


@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Linear(30, 40), nn.Conv2d(4, 8, 3)], ids=str)
def test_orthogonal(layer: nn.Module) -> None:
    matrix = drawn("orthogonal", layer).flatten(1)
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    torch.testing.assert_close(short @ short.t(), torch.eye(len(short), dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheme", INITS)
def test_the_generator_decides(scheme: str) -> None:
    first, again = (drawn(scheme, nn.Linear(8, 8)) for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(1)
    other = ls.initialise_(nn.Sequential(nn.Linear(8, 8)), scheme)[0].weight.detach().double()  # type: ignore[index]
    assert not torch.equal(first, other)


def test_what_is_no_network_or_scheme_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"scheme: expected one of 'glorot_normal'.*got 'xavier'"):
        ls.initialise_(nn.Linear(2, 2), "xavier")
    with pytest.raises(ArgumentTypeError, match=r"model: expected a torch\.nn\.Module"):
        ls.initialise_(torch.zeros(2), "orthogonal")  # type: ignore[arg-type]


def test_empty_layers_and_other_modules_are_left() -> None:
    norm = nn.BatchNorm1d(4)
    nn.init.constant_(norm.weight, 3.0)
    with pytest.warns(UserWarning, match="zero-element"):  # torch's own, when the layer is made
        empty = nn.Linear(0, 4)
    ls.initialise_(nn.Sequential(empty, norm), "kaiming_normal")
    assert norm.weight.tolist() == [3.0] * 4
