"""strict=True: quiet on a sound search, and every violation named with layer, index and step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine.strict import Strict
from lth_sparse.errors import ArgumentTypeError, InvariantError

Search = Callable[..., Any]
LAYOUTS = [("auto", "weight"), ("csr", "weight"), ("dense", "weight"), ("bsr", "block:5x5")]


@pytest.mark.parametrize(("layout", "granularity"), LAYOUTS)
@pytest.mark.parametrize("rewind", ["init", "4it", "lr"])
def test_a_sound_search_passes(search: Search, layout: str, granularity: str, rewind: str) -> None:
    options = {"layout": layout, "granularity": granularity, "rewind": rewind, "levels": 2, "controls": ("shuffled",)}
    strict, loose = search(strict=True, **options), search(**options)
    assert strict.tickets == loose.tickets


def breaking(make_train: Any, level_index: int, break_it: Callable[[nn.Module, Any], None]) -> Any:
    """The usual training, but at step 3 of a level something is done to the network or its optimiser."""
    train = make_train()

    class Meddling:
        def __init__(self, level: Any) -> None:
            self.level, self.optimizer = level, None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.level, name)

        def attach(self, **things: Any) -> None:
            self.optimizer = things["optimizer"]
            self.level.attach(**things)

        def step(self) -> int:
            if self.level.index == level_index and self.level.steps == 2:
                break_it(self.level.model, self.optimizer)
            steps: int = self.level.step()
            return steps

    return lambda model, level: train(model, Meddling(level))


BLOCKS = {"layout": "bsr", "granularity": "block:5x5", "levels": 1, "strict": True}


def padding(model: nn.Module) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Values of a layer whose blocks reach over the edge, and a slot outside the matrix."""
    layer = model.fc
    places = (~layer.layout.value_mask).nonzero()  # type: ignore[union-attr, operator]
    return layer.values, tuple(places[0].tolist())  # type: ignore[union-attr, return-value]


def test_a_revived_weight_is_named(search: Search, make_train: Any) -> None:
    def revive(model: nn.Module, optimizer: Any) -> None:
        values, place = padding(model)
        with torch.no_grad():
            values[place] = 0.5

    message = r"fc\.weight\[\d+, \d+, \d+\]: pruned at level 1, but its weight is 0\.5 at step 3"
    with pytest.raises(InvariantError, match=message):
        search(train=breaking(make_train, 1, revive), **BLOCKS)


def test_a_gradient_of_a_pruned_weight_is_named(search: Search, make_train: Any) -> None:
    def leak(model: nn.Module, optimizer: Any) -> None:
        values, place = padding(model)
        assert values.grad is not None
        values.grad[place] = 2.0

    with pytest.raises(InvariantError, match=r"fc\.weight\[.*\]: .* its gradient is 2\.0 at step 3"):
        search(train=breaking(make_train, 1, leak), **BLOCKS)


def test_a_moment_of_a_pruned_weight_is_named(search: Search, make_train: Any) -> None:
    def remember(model: nn.Module, optimizer: Any) -> None:
        values, place = padding(model)
        optimizer.state[values]["momentum_buffer"][place] = 1.0

    with pytest.raises(InvariantError, match=r"its optimiser's momentum_buffer is 1\.0 at step 3"):
        search(train=breaking(make_train, 1, remember), **BLOCKS)


def test_a_network_that_was_made_dense_is_caught_at_the_end(search: Search, make_train: Any) -> None:
    train = make_train()

    def densify(model: nn.Module, level: Any) -> dict[str, float]:
        metrics: dict[str, float] = train(model, level)
        if level.index == 1:
            ls.densify_(model)
            with torch.no_grad():
                model.fc.weight.add_(1.0)  # type: ignore[union-attr, operator]
        return metrics

    with pytest.raises(InvariantError, match=r"fc\.weight\[0, \d+\]: level 1 ends, .* with a live weight this place"):
        search(levels=1, train=densify, strict=True)


def net() -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ls.sparsify_(model, {"0.weight": mask}, layout="csr")
    return model, {"0.weight": mask}, start


def test_survivors_must_be_those_of_theta_bit_for_bit() -> None:
    model, masks, start = net()
    Strict(masks, None, start).begin(model, 2)
    start["0.weight"][2, 1] = torch.nextafter(start["0.weight"][2, 1], torch.tensor(9.0))
    message = r"0\.weight\[2, 1\]: level 2 starts, .* with another value than theta_k has for this place \(1 such"
    with pytest.raises(InvariantError, match=message):
        Strict(masks, None, start).begin(model, 2)


def test_biases_must_be_those_of_theta_too() -> None:
    model, masks, start = net()
    start["0.bias"][1] += 1
    with pytest.raises(InvariantError, match=r"0\.bias\[1\]"):
        Strict(masks, None, start).begin(model, 1)


def test_a_mask_must_be_a_subset_of_its_parents() -> None:
    model, masks, start = net()
    parent = {"0.weight": masks["0.weight"].clone()}
    parent["0.weight"][0, 3] = False
    message = r"0\.weight\[0, 3\]: level 1 keeps this place, which its parent pruned \(1 such places\)"
    with pytest.raises(InvariantError, match=message):
        Strict(masks, parent, start).begin(model, 1)


def test_ranks_with_other_masks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks, start = net()

    def gather(hashes: list[Any], own: str) -> None:
        hashes[:] = [own, own, "another"]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(InvariantError, match="strict: level 4: rank 2 has other masks than rank 0"):
        Strict(masks, None, start).begin(model, 4)


def test_strict_is_true_or_false(search: Search) -> None:
    with pytest.raises(ArgumentTypeError, match="strict: expected True or False, got 1"):
        search(strict=1)
