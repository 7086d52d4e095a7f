"""Analyses of tickets: every figure against one counted or derived by hand, or against chance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lth_sparse.engine import Ticket
from lth_sparse.engine.analyses import (
    connectivity,
    count_cost,
    early_stops,
    initial_weights,
    layer_statistics,
    learning_curve,
    linear_barrier,
    movement,
    overlap,
)
from lth_sparse.errors import ArgumentError, ArgumentTypeError


def test_units_are_counted() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    layer = connectivity(mask, "fc.weight")
    assert (layer.name, layer.numel, layer.nnz, layer.density) == ("fc.weight", 6, 2, 2 / 6)
    assert layer.incoming.counts.tolist() == [2, 0]
    assert layer.incoming.possible == 3
    assert (layer.incoming.minimum, layer.incoming.mean, layer.incoming.maximum, layer.incoming.dead) == (0, 1.0, 2, 1)
    assert layer.outgoing.counts.tolist() == [1, 0, 1]
    assert layer.outgoing.possible == 2


def test_a_convolution_counts_channels() -> None:
    mask = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    mask[1, 0] = True
    mask[3, 1, 2, 2] = True
    (layer,) = layer_statistics({"conv.weight": mask})
    assert layer.incoming.counts.tolist() == [0, 9, 0, 1]
    assert layer.incoming.possible == 18
    assert layer.outgoing.counts.tolist() == [9, 1]
    assert layer.outgoing.possible == 36


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_dispersion_of_chance_is_one(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(40):
        flat = torch.zeros(64 * 48, dtype=torch.bool)
        flat[torch.randperm(len(flat), generator=generator)[: int(density * len(flat))]] = True
        layer = connectivity(flat.view(64, 48))
        found.append((layer.incoming.dispersion, layer.outgoing.dispersion))
    for side in zip(*found, strict=True):
        assert sum(side) / len(side) == pytest.approx(1.0, abs=0.1)


def test_dispersion_tells_even_from_uneven() -> None:
    even = torch.eye(32, dtype=torch.bool)
    assert connectivity(even).incoming.dispersion == 0
    uneven = torch.zeros(32, 32, dtype=torch.bool)
    uneven[0] = True
    assert connectivity(uneven).incoming.dispersion > 20
    assert connectivity(uneven).outgoing.dispersion == 0


@pytest.mark.parametrize("mask", [torch.ones(3, 4), torch.zeros(3, 4), torch.ones(1, 4)], ids=["full", "empty", "row"])
def test_dispersion_without_chance_is_nan(mask: Tensor) -> None:
    assert math.isnan(connectivity(mask.bool()).incoming.dispersion)


def test_layers_without_units_count_nothing() -> None:
    layer = connectivity(torch.zeros(0, 5, dtype=torch.bool))
    assert (layer.density, layer.incoming.mean, layer.incoming.minimum, layer.incoming.maximum) == (0, 0, 0, 0)
    assert math.isnan(layer.incoming.dispersion)


def test_a_mask_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="fc: expected a bool tensor, got list"):
        connectivity([True], "fc")  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentError, match=r"mask: expected a bool tensor \[out, in, \*kernel\], got torch.bool \[3\]"
    ):
        connectivity(torch.ones(3, dtype=torch.bool))


def test_overlap_is_counted_and_compared_with_chance() -> None:
    first = torch.tensor([[True, True, False, False]])
    second = torch.tensor([[True, False, True, False]])
    (row,) = overlap({"w": first}, {"w": second})
    assert (row.first, row.second, row.common, row.numel) == (2, 2, 1, 4)
    assert row.jaccard == 1 / 3
    assert row.expected == 1 / 3
    (same,) = overlap({"w": first}, {"w": first})
    assert same.jaccard == 1


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_jaccard_lies_between_nothing_and_all(size: int, first: float, second: float) -> None:
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.rand(size, 1, generator=generator) < share for share in (first, second))
    (row,) = overlap({"w": a}, {"w": b})
    assert 0 <= row.jaccard <= 1
    assert 0 <= row.expected <= 1
    assert row.jaccard == overlap({"w": b}, {"w": a})[0].jaccard


def test_masks_of_other_networks_are_refused() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="only one of them has 'v'"):
        overlap({"w": mask}, {"w": mask, "v": mask})
    with pytest.raises(ArgumentError, match=r"second\['w'\]: expected shape \[2, 2\], got \[4\]"):
        overlap({"w": mask}, {"w": mask.view(4)})


def tickets() -> tuple[Ticket, Ticket]:
    """Four weights: the first two survive, double and turn round; the others shrink by half and stay."""
    initial = torch.tensor([[1.0, 2.0], [-0.5, 4.0]])
    trained = torch.tensor([[2.0, -4.0], [-0.25, 4.0]])
    everything = {"fc.weight": torch.ones(2, 2, dtype=torch.bool)}
    masks = {"fc.weight": torch.tensor([[True, True], [False, False]])}
    state, end = {"fc.weight": initial}, {"fc.weight": trained}
    return Ticket.of(everything, state, end), Ticket.of(masks, state, end, level=1)


def test_movement_of_both_groups() -> None:
    ((survivors, pruned),) = movement(*tickets())
    assert (survivors.count, survivors.distance, survivors.growth) == (2, 3.5, 1.5)
    assert (survivors.outward, survivors.kept_sign) == (1.0, 0.5)
    assert (pruned.count, pruned.distance, pruned.growth) == (2, 0.125, -0.125)
    assert (pruned.outward, pruned.kept_sign) == (0.0, 1.0)


def test_initial_weights_of_the_survivors() -> None:
    (layer,) = initial_weights(*tickets(), bins=4)
    assert layer.edges.tolist() == [-4, -2, 0, 2, 4]
    assert layer.everything.tolist() == [0, 1 / 8, 1 / 8, 2 / 8]
    assert layer.survivors.tolist() == [0, 0, 1 / 4, 1 / 4]
    assert layer.magnitude == 7.5 / 4
    assert layer.survivors_magnitude == 1.5
    assert layer.survivors_std == 0.5


def test_layers_that_are_not_pruned_have_no_two_groups() -> None:
    dense, _ = tickets()
    assert movement(dense, dense) == []
    assert initial_weights(dense, dense) == []


def test_what_is_no_dense_level_is_refused() -> None:
    dense, ticket = tickets()
    with pytest.raises(ArgumentError, match="dense: expected the ticket of level 0, which prunes nothing"):
        movement(ticket, ticket)
    other = {"v": torch.ones(1, 1, dtype=torch.bool)}
    with pytest.raises(ArgumentError, match=r"ticket: expected a mask of fc.weight, \[2, 2\], as dense has"):
        movement(dense, Ticket.of(other, {"v": torch.ones(1, 1)}, {"v": torch.ones(1, 1)}))
    with pytest.raises(ArgumentError, match="bins: expected an int of at least 1, got 0"):
        initial_weights(dense, ticket, bins=0)


def test_a_curve_is_over_the_steps_that_all_seeds_have() -> None:
    first = [{"step": 0, "test_acc": 0.1}, {"step": 10, "test_acc": 0.5}, {"step": 20, "test_acc": 0.9}]
    second = [{"step": 0, "test_acc": 0.3}, {"step": 20, "test_acc": 0.7}, {"step": 15, "val_loss": 1.0}]
    curve = learning_curve([first, second])
    assert curve.steps == (0, 20)
    assert curve.mean == pytest.approx((0.2, 0.8))
    assert curve.minimum == (0.1, 0.7)
    assert curve.maximum == (0.3, 0.9)
    assert curve.seeds == 2


def test_curves_of_nothing_are_refused() -> None:
    with pytest.raises(ArgumentError, match="histories: expected at least one, got none"):
        learning_curve([])
    with pytest.raises(ArgumentError, match="metric: expected one that every history recorded at common steps"):
        learning_curve([[{"step": 0, "test_acc": 1.0}]], "val_loss")


def test_early_stops_are_found_after_the_fact() -> None:
    history = [{"step": 0, "val_loss": 2.0}, {"step": 100, "val_loss": 0.5}, {"step": 200, "val_loss": 0.5}]
    stops = early_stops([history, [{"step": 0, "test_acc": 1.0}]])
    assert stops[0] is not None
    assert stops[0].step == 100
    assert stops[1] is None


def test_the_barrier_between_two_minima() -> None:
    """E(w) = (w^2 - 1)^2 has minima at -1 and 1 and a hill of 1 between them."""
    model = nn.Linear(1, 1, bias=False)

    def error(network: nn.Module) -> float:
        assert not network.training
        weight = float(network.get_parameter("weight").detach())
        return (weight**2 - 1) ** 2

    states = [{"weight": torch.tensor([[value]])} for value in (-1.0, 1.0)]
    barrier = linear_barrier(model, *states, error, points=31)
    assert len(barrier.positions) == 31
    assert (barrier.positions[0], barrier.positions[-1]) == (0, 1)
    assert barrier.height == pytest.approx(1.0, abs=1e-6)
    assert not barrier.stable()
    flat = linear_barrier(model, states[0], states[0], error)
    assert flat.height == 0
    assert flat.stable()


def test_a_barrier_interpolates_statistics_and_keeps_counters() -> None:
    model = nn.BatchNorm1d(1)
    first, second = ({name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(2))
    second["running_mean"] += 2.0
    second["num_batches_tracked"] += 7
    seen = []
    prepared = []

    def error(network: nn.Module) -> float:
        seen.append((float(network.get_buffer("running_mean")), int(network.get_buffer("num_batches_tracked"))))
        return 0.0

    linear_barrier(model, first, second, error, points=3, prepare=lambda network: prepared.append(network.train()))
    assert seen == [(0.0, 0), (1.0, 0), (2.0, 0)]
    assert len(prepared) == 3
    assert float(model.running_mean) == 0.0  # type: ignore[arg-type]


def test_states_of_other_networks_have_no_line_between_them() -> None:
    model = nn.Linear(2, 1, bias=False)
    right, wrong = {"weight": torch.zeros(1, 2)}, {"weight": torch.zeros(2, 2)}
    with pytest.raises(ArgumentError, match=r"second\['weight'\]: expected shape \[1, 2\], got \[2, 2\]"):
        linear_barrier(model, right, wrong, lambda network: 0.0)
    with pytest.raises(ArgumentError, match="first: expected the names of the model's state_dict"):
        linear_barrier(model, {}, right, lambda network: 0.0)
    with pytest.raises(ArgumentError, match="points: expected an int of at least 2, got 1"):
        linear_barrier(model, right, right, lambda network: 0.0, points=1)


def test_multiply_adds_of_a_network_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 7))
    masks = {"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool), "3.weight": torch.ones(7, 100, dtype=torch.bool)}
    masks["0.weight"][:, 0] = True
    cost = count_cost(model, masks, torch.randn(2, 3, 5, 5))
    conv, linear = cost.layers
    assert (conv.positions, linear.positions) == (25, 1)
    assert cost.dense_multiply_adds == 4 * 27 * 25 + 700
    assert cost.multiply_adds == 36 * 25 + 700
    assert cost.share == (36 * 25 + 700) / (4 * 27 * 25 + 700)
    assert cost.value_bytes == 4 * (36 + 700)
    assert cost.dense_bytes == 4 * (108 + 700)
    assert cost.mask_bytes == 14 + 88


def test_a_layer_that_is_used_twice_costs_twice() -> None:
    layer = nn.Linear(4, 4)
    cost = count_cost(nn.Sequential(layer, layer), {"0.weight": torch.ones(4, 4, dtype=torch.bool)}, torch.randn(5, 4))
    assert cost.layers[0].positions == 2


def test_counting_says_what_does_not_fit() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    mask = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ArgumentError, match=r"of a Linear or Conv layer at '1\.weight', got ReLU there"):
        count_cost(model, {"1.weight": mask}, torch.randn(1, 4))
    with pytest.raises(ArgumentError, match=r"masks\['0.weight'\]: expected shape \[4, 4\], got \[2, 2\]"):
        count_cost(model, {"0.weight": mask[:2, :2]}, torch.randn(1, 4))
    with pytest.raises(ArgumentError, match=r"sample: expected a tensor of at least one example"):
        count_cost(model, {"0.weight": mask}, torch.randn(0, 4))
    unused = nn.Sequential(nn.Linear(4, 4))
    unused[0].extra = nn.Linear(4, 4)
    with pytest.raises(ArgumentError, match=r"whose forward pass reaches 0\.extra\.weight, got it is not called"):
        count_cost(unused, {"0.extra.weight": mask}, torch.randn(1, 4))
