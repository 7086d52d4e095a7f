"""Layers of a plain architecture take the sizes that a smaller state dict has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_sparse.errors import ArgumentError
from lth_sparse.nn.resize import resize_


def network(channels: int, units: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, units),
        nn.LayerNorm(units),
        nn.Linear(units, 5, bias=False),
    )


def test_the_large_architecture_becomes_the_small_one(seed: int) -> None:
    small, large = network(4, 6), network(8, 20)
    state = small.state_dict()
    resize_(large, {name: tensor.shape for name, tensor in state.items()})
    large.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(large(x), small(x))
    assert str(large) == str(small)


def test_what_has_its_size_keeps_its_parameters() -> None:
    model = network(4, 6)
    before = dict(model.named_parameters())
    resize_(model, {name: tensor.shape for name, tensor in model.state_dict().items()})
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


def test_frozen_stays_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    resize_(model, {"0.weight": (2, 4), "0.bias": (2,)})
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    assert model[0].out_features == 2


@pytest.mark.parametrize("shapes", [{"0.weight": (2, 4, 1)}, {"1.weight": (3, 8)}])
def test_what_has_no_size_of_its_own_is_refused_and_nothing_changed(shapes: dict[str, tuple[int, ...]]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Embedding(3, 4))
    with pytest.raises(ArgumentError, match="model: expected a layer"):
        resize_(model, {"0.bias": (2,), **shapes})
    assert model[0].bias.shape == (3,)
