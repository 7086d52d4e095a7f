"""What well-known code got wrong, each shown to be absent: one test for every line of that list."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.errors import LTHSparseError
from lth_sparse.nn import dense_state_dict, masks_of, sparse_modules

Search = Callable[..., Any]
LAYOUTS = [("csr", "weight"), ("dense", "weight"), ("bsr", "block:2x2")]


def watched(search: Search, **options: Any) -> tuple[Any, list[Any]]:
    """A search of two levels, and of each training: its level, and the weights before and after."""
    seen: list[Any] = []

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        before = {name: tensor.clone() for name, tensor in dense_state_dict(model).items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        level.attach(optimizer=optimizer)
        fresh = not optimizer.state
        generator = torch.Generator().manual_seed(3)
        for _ in range(4):
            x = torch.rand(12, 1, 6, 6, generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(12) % 3).backward()
            optimizer.step()
            level.step()
        seen.append((model, fresh, before, {name: t.clone() for name, t in dense_state_dict(model).items()}))
        return {"test_acc": 0.5}

    return search(levels=2, rate=0.4, train=train, **options), seen


def test_negative_weights_are_neither_pruned_first_nor_frozen(search: Search) -> None:
    """`w < eps` instead of `|w| < eps` takes every negative weight for a pruned one."""
    result, seen = watched(search)
    _, _, before, after = seen[1]
    trained, mask = result.tickets[0].state_dict("trained")["fc.weight"], result.tickets[1].masks["fc.weight"]
    assert bool((trained[mask] < 0).any())
    assert float(trained[mask].abs().min()) >= float(trained[~mask].abs().max())
    negative = mask & (before["fc.weight"] < 0)
    assert bool(negative.any())
    assert bool((after["fc.weight"] != before["fc.weight"])[negative].all())


def test_every_level_begins_with_theta_0_and_without_momentum(search: Search, net: nn.Module) -> None:
    """Weights that are never reset, or that are while the optimiser keeps what it had."""
    result, seen = watched(search)
    theta = net.state_dict()
    for level, (_, fresh, before, after) in enumerate(seen):
        assert fresh
        for name, mask in result.tickets[level].masks.items():
            assert torch.equal(before[name], theta[name] * mask), (level, name)
            assert not torch.equal(after[name], before[name])
        assert torch.equal(before["norm.running_var"], theta["norm.running_var"])
    # And an optimiser that a loop keeps from one level to the next holds no parameter of the next.
    kept = [{id(parameter) for parameter in model.parameters()} for model, *_ in seen]
    assert not kept[0] & kept[1]
    assert not kept[1] & kept[2]


@pytest.mark.parametrize(("layout", "granularity"), LAYOUTS)
@pytest.mark.parametrize("make", ["momentum", "Adam", "AdamW"])
def test_momentum_and_decay_revive_nothing(net: nn.Module, layout: str, granularity: str, make: str) -> None:
    """Optimisers of the dense network, their moments full, train on as those of a sparse one."""

    def optimiser(model: nn.Module) -> torch.optim.Optimizer:
        if make == "momentum":
            return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        return getattr(torch.optim, make)(model.parameters(), 0.01, weight_decay=0.1)

    def train(model: nn.Module, level: ls.engine.Level) -> dict[str, float]:
        optimizer = optimiser(model)
        level.attach(optimizer=optimizer)  # from step 2 of the dense level, where moments of all weights are full
        for _ in range(level.start_step, 5):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.rand(12, 1, 6, 6)), torch.arange(12) % 3).backward()
            optimizer.step()
            level.step()
        if level.index:
            for _, module in sparse_modules(model):
                moments = [
                    v for v in optimizer.state[module.values].values() if isinstance(v, torch.Tensor) and v.dim()
                ]
                assert moments
                assert all(moment.shape == module.values.shape for moment in moments)
        return {"test_acc": 0.5}

    options: dict[str, Any] = {"layout": layout, "granularity": granularity, "rewind": "2it", "prune": "fc.weight"}
    result = ls.find_ticket(net, train, levels=2, rate=0.4, strict=True, **options)
    for ticket in result.tickets[1:]:
        trained, mask = ticket.state_dict("trained")["fc.weight"], ticket.masks["fc.weight"]
        assert not bool(trained[~mask].any())
        assert bool((trained != 0)[mask].all())


@pytest.mark.parametrize(("layout", "granularity"), LAYOUTS)
def test_retraining_forgets_no_mask(search: Search, layout: str, granularity: str) -> None:
    result, seen = watched(search, layout=layout, granularity=granularity, prune="fc.weight")
    for level in (1, 2):
        model, mask = seen[level][0], result.tickets[level].masks["fc.weight"]
        assert torch.equal(masks_of(model)["fc.weight"], mask)
        assert not bool(seen[level][3]["fc.weight"][~mask].any())
        assert not bool((mask & ~result.tickets[level - 1].masks["fc.weight"]).any())


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_equal_weights_are_not_all_pruned_at_once(search: Search, net: nn.Module, scope: str) -> None:
    """`> sorted[k]` prunes every weight that equals the threshold."""
    with torch.no_grad():
        for parameter in (net.fc.weight, net.out.weight):  # type: ignore[union-attr]
            parameter.fill_(0.5)  # type: ignore[operator]
    result = search(
        levels=1, rate=0.25, output_rate=0.25, scope=scope, freeze="conv", train=lambda *_: {"test_acc": 0.5}
    )
    pruned = [int((~result.ticket.masks[name]).sum()) for name in ("fc.weight", "out.weight")]
    assert sum(pruned) == round(0.25 * (12 * 144 + 36))


def test_no_layer_is_pruned_to_nothing_without_a_word(search: Search) -> None:
    with pytest.warns(UserWarning, match=r"out\.weight: level 1 would prune it below min_kept=1; it keeps 1 weights"):
        result = search(levels=1, rate=0.999, output_rate=0.999, freeze="conv", train=lambda *_: {"test_acc": 0.5})
    assert int(result.ticket.masks["out.weight"].sum()) == 1


def test_a_checkpoint_holds_the_masks(search: Search, net: nn.Module, tmp_path: Any) -> None:
    result, seen = watched(search, layout="csr")
    state = seen[2][0].state_dict()
    again = result.tickets[2].apply(net, layout="csr")
    again.load_state_dict(state)
    assert masks_of(again).equals(result.tickets[2].masks)
    with pytest.raises((RuntimeError, LTHSparseError), match="mask"):  # a network with another mask is refused
        result.tickets[1].apply(net, layout="csr").load_state_dict(state)
    result.ticket.save(tmp_path / "ticket.safetensors")
    assert ls.Ticket.load(tmp_path / "ticket.safetensors").masks.equals(result.ticket.masks)


@pytest.mark.parametrize(("layout", "granularity"), LAYOUTS)
def test_a_pruned_network_can_be_copied(search: Search, net: nn.Module, layout: str, granularity: str) -> None:
    result, _ = watched(search, granularity=granularity, prune="fc.weight")
    block = (2, 2) if layout == "bsr" else None
    model = result.ticket.apply(net, layout=layout, block=block)
    twin = copy.deepcopy(model)
    twin(torch.rand(4, 1, 6, 6)).sum().backward()
    before = model.fc.values.detach().clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        twin.fc.values.add_(1.0)  # type: ignore[union-attr, operator]
    assert torch.equal(model.fc.values, before)  # type: ignore[union-attr]
    assert masks_of(twin).equals(masks_of(model))
    assert model.fc.values.grad is None  # type: ignore[union-attr]
