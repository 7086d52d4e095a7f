"""Permuted channels change nothing about a network's function: named architectures, and random programs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from channel_cases import Dense, Gated, HandWritten, Mixer, Shuffled, Squeezed, Vision, encoder, randomise
from channel_programs import Program, programs
from hypothesis import given, settings
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import ChannelGroups, channel_groups, permute_channels_, permute_state
from lth_sparse.paper import build_model


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


IMAGES = normal(3, 3, 8, 8)
TOKENS = normal(2, 9).abs().mul(7).long().clamp(max=18)


def mlp() -> nn.Module:
    return nn.Sequential(
        *(
            nn.Linear(9, 31),
            nn.BatchNorm1d(31),
            nn.Tanh(),
            nn.Linear(31, 17, bias=False),
            nn.LayerNorm(17),
            nn.PReLU(17),
        ),
        *(nn.Dropout(0.0), nn.Linear(17, 4)),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "mlp": (mlp, normal(6, 9), 2),
    "conv6": (lambda: build_model("conv6", (3, 8, 8)), IMAGES, 8),
    "vgg19": (lambda: build_model("vgg19", (3, 32, 32)), normal(32, 3, 32, 32), 16),
    "resnet20": (lambda: build_model("resnet20", (3, 8, 8)), IMAGES, 12),
    "torch's transformer": (encoder, normal(2, 5, 6), 19),
    "a hand-written transformer": (HandWritten, TOKENS, 14),
    "attention by matmul": (lambda: HandWritten(fused=False), TOKENS, 14),
    "gated": (Gated, normal(5, 9), 2),
    "squeezed": (Squeezed, IMAGES, 4),
    "shuffled": (Shuffled, IMAGES, 2),
    "dense": (Dense, IMAGES, 2),
    "vision": (Vision, normal(2, 3, 8, 8), 5),
    "mixer": (Mixer, IMAGES, 3),
}


def random_perms(groups: ChannelGroups, seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.id: torch.randperm(group.size, generator=generator) for group in groups.free}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_random_permutations_of_all_free_groups_keep_the_function(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    build, x, free = MODELS[name]
    model = randomise(build().double()).to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    x = x[:8] if dtype is torch.float64 else x
    groups = channel_groups(model, x)
    assert len(groups.free) == free
    permuted = permute_channels_(copy.deepcopy(model), groups, random_perms(groups))
    for training in (False, True):
        right, got = model.train(training)(x), permuted.train(training)(x)
        # Sixteen layers with the statistics of a batch: 6e-6 to 7e-6 here, as far as float32 is from float64.
        slack = 2 if training and name == "vgg19" else 1
        assert (got - right).abs().max() <= slack * tolerance * right.abs().max().clamp(min=1.0)
    moved = [not torch.equal(one, other) for one, other in zip(model.parameters(), permuted.parameters(), strict=True)]
    assert sum(moved) >= free


@pytest.mark.parametrize("name", ["mlp", "resnet20", "a hand-written transformer"])
def test_permute_state_is_the_state_of_the_permuted_model(name: str) -> None:
    build, x, _ = MODELS[name]
    model = randomise(build())
    groups = channel_groups(model, x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = permute_state(before, groups, random_perms(groups))
    permute_channels_(model, groups, random_perms(groups))
    assert list(state) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key


def test_masks_follow_the_weights() -> None:
    model = randomise(build_model("resnet20", (3, 8, 8)))
    masks = {name: parameter > 0 for name, parameter in model.named_parameters() if parameter.dim() > 1}
    groups = channel_groups(model, IMAGES)
    perms = random_perms(groups)
    moved = permute_state(masks, groups, perms)
    permute_channels_(model, groups, perms)
    assert all(torch.equal(moved[name], model.get_parameter(name) > 0) for name in masks)


def test_the_inverse_permutation_brings_everything_back() -> None:
    model = randomise(Squeezed())
    before = copy.deepcopy(model.state_dict())
    groups = channel_groups(model, IMAGES)
    perms = random_perms(groups)
    permute_channels_(model, groups, perms)
    permute_channels_(model, groups, {index: perm.argsort() for index, perm in perms.items()})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_gradients_are_permuted_too() -> None:
    model = randomise(mlp().double())
    x = torch.randn(6, 9, dtype=torch.float64)
    groups = channel_groups(model, x)
    permuted = permute_channels_(copy.deepcopy(model), groups, random_perms(groups))
    for net in (model, permuted):
        net(x).square().sum().backward()
    grads = permute_state({n: p.grad for n, p in model.named_parameters()}, groups, random_perms(groups))
    for name, parameter in permuted.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-9, atol=1e-12)


def test_parameters_stay_the_objects_they_were() -> None:
    model = mlp()
    groups = channel_groups(model, torch.randn(6, 9))
    before = [id(parameter) for parameter in model.parameters()]
    permute_channels_(model, groups, random_perms(groups))
    assert [id(parameter) for parameter in model.parameters()] == before


@settings(max_examples=60, deadline=None, derandomize=True)
@given(programs())
def test_random_programs_keep_their_function(model: Program) -> None:
    randomise(model.double())
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups = channel_groups(model, x)
    permuted = permute_channels_(copy.deepcopy(model), groups, random_perms(groups))
    for training in (False, True):
        right, got = model.train(training)(x), permuted.train(training)(x)
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("perms", "message"),
    [
        ({0: torch.zeros(31, dtype=torch.int64)}, "each of 0 to 30 once"),
        ({0: torch.arange(30)}, r"integers \[31\]"),
        ({0: torch.rand(31)}, r"integers \[31\]"),
        ({2: torch.arange(4)}, "is an output of the model"),
        ({9: torch.arange(4)}, "ids of groups"),
        ({"fc": torch.arange(4)}, "ids of groups"),
        ([torch.arange(4)], "a mapping"),
    ],
)
def test_bad_permutations_are_refused_and_nothing_moves(perms: object, message: str) -> None:
    model = mlp()
    groups = channel_groups(model, torch.randn(6, 9))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=message):
        permute_channels_(model, groups, perms)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_groups_of_another_model_are_refused() -> None:
    groups = channel_groups(mlp(), torch.randn(6, 9))
    perms = random_perms(groups)
    with pytest.raises(ArgumentError, match="groups: expected"):
        permute_channels_(nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)), groups, perms)
    with pytest.raises(ArgumentError, match="state"):
        permute_state({"0.weight": torch.zeros(3, 9)}, groups, perms)
    with pytest.raises(ArgumentTypeError, match="state"):
        permute_state([torch.zeros(3)], groups, perms)  # type: ignore[arg-type]
