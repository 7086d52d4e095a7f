"""Training compact values is training a masked dense network, and costs less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import lth_sparse as ls

OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "SGD with momentum and decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "bsr": {"layout": "bsr", "block": (2, 3), "cover": "zeros"},
    "reordered": {"layout": "reordered", "block": (2, 3), "cover": "zeros"},
    "dense": {"layout": "dense"},
}


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(6, 3, 7, 7, generator=generator, dtype=torch.float64),
            torch.randint(4, (6,), generator=generator),
        )
        for _ in range(count)
    ]


def train(model: nn.Module, make: Callable[..., Optimizer], steps: int, masks: dict[str, Tensor] | None = None) -> None:
    """Train; with ``masks``, as a dense network whose gradients and weights are masked at every step."""
    optimiser = make(model.parameters())
    model.eval()  # dropout off, so that both networks see the same
    for x, y in batches(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, mask in (masks or {}).items():
            weight = model.get_parameter(name)
            assert weight.grad is not None
            weight.grad.mul_(mask)
        optimiser.step()
        with torch.no_grad():
            for name, mask in (masks or {}).items():
                model.get_parameter(name).mul_(mask)


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_sixty_steps_equal_those_of_the_masked_dense_network(
    make: Any, options: Any, net: nn.Module, masks_for: Any, apply_masks: Any
) -> None:
    net.double()
    masks = masks_for(net)
    dense = apply_masks(copy.deepcopy(net), masks)
    ls.sparsify_(net, masks, **options)
    train(dense, make, 60, masks)
    train(net, make, 60)
    state = ls.dense_state_dict(net)
    for name, right in dense.state_dict().items():
        torch.testing.assert_close(state[name], right, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_pruned_weights_are_exactly_zero_after_training(
    make: Any, options: Any, net: nn.Module, masks_for: Any
) -> None:
    masks = masks_for(net)
    ls.sparsify_(net.double(), masks, **options)
    train(net, make, 10)
    state = ls.dense_state_dict(net)
    assert all(bool((state[name][~mask] == 0).all()) for name, mask in masks.items())
    assert all(bool((state[name][mask] != 0).all()) for name, mask in masks.items())


def test_the_momentum_of_dense_training_cannot_revive_a_pruned_weight(net: nn.Module, masks_for: Any) -> None:
    make = OPTIMISERS["SGD with momentum and decay"]
    masks = masks_for(net.double())
    train(net, make, 5)
    ls.sparsify_(net, masks, layout="csr")
    train(net, make, 5)
    ls.densify_(net)
    assert all(torch.equal(net.get_parameter(name) != 0, mask) for name, mask in masks.items())


def test_frozen_weights_stay_frozen(net: nn.Module, masks_for: Any) -> None:
    net.double().get_parameter("fc1.weight").requires_grad_(False)
    ls.sparsify_(net, masks_for(net), layout="csr")
    before = net.get_parameter("fc1.values").clone()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    train(net, lambda _: torch.optim.SGD(trained, lr=0.1), 2)
    assert net.get_parameter("fc1.values").grad is None
    assert torch.equal(net.get_parameter("fc1.values"), before)


def held(model: nn.Module, optimiser: Optimizer) -> int:
    """Bytes of parameters, buffers (all index tensors) and optimiser state."""
    states = [tensor for state in optimiser.state.values() for tensor in state.values() if isinstance(tensor, Tensor)]
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *states))


def test_a_ninety_percent_sparse_model_with_adam_holds_under_a_quarter_of_the_dense_bytes(seed: int) -> None:
    dense = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    sparse = copy.deepcopy(dense)
    masks = {f"{i}.weight": torch.rand(dense[i].weight.shape) < 0.1 for i in (0, 2, 4)}
    ls.sparsify_(sparse, masks, layout="csr")
    sizes = []
    for model in (dense, sparse):
        optimiser = torch.optim.Adam(model.parameters())
        model(torch.randn(4, 784)).sum().backward()
        optimiser.step()
        sizes.append(held(model, optimiser))
    assert sizes[1] < 0.25 * sizes[0]


def test_clipping_and_flat_gradients_see_live_weights_only(net: nn.Module, masks_for: Any, images: Tensor) -> None:
    masks = masks_for(net)
    ls.sparsify_(net, masks, layout="csr")
    net(images).sum().backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    for name, mask in masks.items():
        grad = net.get_parameter(name.replace("weight", "values")).grad
        assert grad is not None
        assert grad.numel() == int(mask.sum())
