"""update_mask_: survivors keep value and optimiser state, what grows starts at 0, and training goes on from there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import make_layout
from lth_sparse.nn import SparseModule, update_entries_, update_mask_
from lth_sparse.nn.dynamic import Entries, dense_gradient
from lth_sparse.nn.stack import LinearStack, SparseLinearStack

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5), (4, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 8)),
    "conv2d": (nn.Conv2d(3, 4, (2, 3), padding="same", padding_mode="circular", dilation=2), (2, 3, 6, 7)),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "dense": {"layout": "dense"},
    "bsr": {"layout": "bsr", "block": (2, 4)},
    "bsr, channels_last": {"layout": "bsr", "block": (2, 2), "channels_last": True},
}
OPTIMISERS: dict[str, Any] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
}


def random_mask(shape: tuple[int, ...], options: dict[str, Any], density: float, seed: int) -> Tensor:
    """A mask that the layout can hold: with blocks, a union of them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    if options["layout"] != "bsr":
        return mask
    sparse = torch.rand(shape, generator=generator) < density / 4
    rest = {name: value for name, value in options.items() if name != "layout"}
    return make_layout("bsr", sparse, cover="train", **rest).mask()


def sparse_layer(kind: str, layout: str, density: float = 0.5, seed: int = 1) -> tuple[SparseModule, Tensor]:
    torch.manual_seed(seed)
    dense, size = LAYERS[kind]
    module = copy.deepcopy(dense).double()
    if layout.endswith("channels_last") and kind == "linear":
        module = nn.Linear(7, 5).double()
    cls = {"linear": ls.nn.SparseLinear, "conv1d": ls.nn.SparseConv1d, "conv2d": ls.nn.SparseConv2d}[kind]
    mask = random_mask(tuple(module.weight.shape), LAYOUTS[layout], density, seed)
    return cls.from_dense(module, mask, **LAYOUTS[layout]), torch.randn(size, dtype=torch.float64)


def dense_state(module: SparseModule, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weight and everything of the optimiser's state that is shaped like it, dense."""
    state = optimizer.state[module.values]
    entries = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == module.values.shape}
    return {"weight": module.weight, **{k: module.layout.scatter(v.clone()) for k, v in entries.items()}}


def train_step(module: SparseModule, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    module(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_survivors_keep_value_and_state_and_what_grows_starts_at_zero(kind: str, layout: str, optimiser: str) -> None:
    module, x = sparse_layer(kind, layout)
    optimizer = OPTIMISERS[optimiser](module.parameters())
    train_step(module, optimizer, x)
    before, old, values = dense_state(module, optimizer), module.mask, module.values
    assert len(before) == (2 if optimiser == "momentum" else 4)
    mask = random_mask(module.layout.shape, LAYOUTS[layout], 0.4, 5)
    assert not torch.equal(mask, old)
    update_mask_(module, mask, optimizer)
    module.layout.validate()
    assert module.values is values
    assert values.grad is None
    assert torch.equal(module.mask, mask)
    for key, tensor in dense_state(module, optimizer).items():
        assert torch.equal(tensor, before[key] * (mask & old)), key
    train_step(module, optimizer, x)
    fresh = type(module).from_dense(module.to_dense(), mask, **LAYOUTS[layout])
    assert module.layout.index[0].dtype == fresh.layout.index[0].dtype
    torch.testing.assert_close(module(x), fresh(x))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("csr", "dense", "bsr")),
    st.sampled_from((0.0, 0.2, 0.6, 1.0)),
    st.sampled_from((0.0, 0.2, 0.6, 1.0)),
    st.integers(0, 10**6),
)
def test_any_mask_follows_any_other(layout: str, before: float, after: float, seed: int) -> None:
    module, x = sparse_layer("linear", layout, before, seed)
    old, weight = module.mask, module.weight
    mask = random_mask((5, 7), LAYOUTS[layout], after, seed + 1)
    update_mask_(module, mask)
    module.layout.validate()
    assert torch.equal(module.mask, mask)
    assert torch.equal(module.weight, weight * (mask & old))
    module(x).sum().backward()
    assert module.values.grad is not None
    assert module.values.grad.shape == module.values.shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_that_go_may_come_again_at_once_and_start_from_zero(layout: str) -> None:
    module, _ = sparse_layer("conv2d", layout)
    entries = Entries.of(module.layout)
    positions, mask = entries.positions(), module.mask
    keep = torch.arange(len(positions)) % 3 != 0
    kept_norms = entries.value_norms(module.values.detach())[keep].sum()
    update_entries_(module, keep, positions[~keep])
    assert torch.equal(module.mask, mask)
    torch.testing.assert_close(module.weight.abs().sum(), kept_norms)
    assert torch.equal(entries.norms(module.weight)[positions] > 0, keep)


def test_parts_of_blocks_that_are_pruned_stay_so_when_other_blocks_change() -> None:
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[0, 0] = False
    mask[2:, 4:] = False
    module = ls.nn.SparseLinear.from_dense(nn.Linear(8, 4), mask, "bsr", (2, 4), cover="zeros")
    update_entries_(module, torch.tensor([True, False, True]), torch.tensor([3]))
    right = torch.ones(4, 8, dtype=torch.bool)
    right[0, 0] = False
    right[:2, 4:] = False
    assert torch.equal(module.mask, right)
    module.layout.validate()
    right[0, 0] = True
    update_mask_(module, right)
    assert torch.equal(module.mask, right)
    assert module.weight[0, 0] == 0


def test_a_graph_that_lives_on_does_not_disturb_the_next_step() -> None:
    module, x = sparse_layer("linear", "csr")
    loss = module(x).square().sum()
    loss.backward(retain_graph=True)  # holds on to the node that accumulates a gradient of the old shape
    seen: list[tuple[int, ...]] = []
    module.values.register_hook(lambda grad: seen.append(tuple(grad.shape)))
    update_mask_(module, torch.ones(5, 7, dtype=torch.bool))
    module(x).sum().backward()
    assert module.values.grad is not None
    assert module.values.grad.shape == (35,)
    assert seen == [(35,)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tied_layers_change_together() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    ls.sparsify_(model, {"0.weight": torch.rand(6, 6) < 0.5}, layout="csr")
    mask = torch.eye(6, dtype=torch.bool)
    update_mask_([model[0], model[2]], mask)
    assert torch.equal(model[0].mask, mask)
    assert torch.equal(model[2].mask, mask)
    model(torch.randn(2, 6)).sum().backward()
    assert model[0].values is model[2].values


def test_the_state_dict_of_a_changed_layer_loads_into_one_of_the_same_mask_alone() -> None:
    module, x = sparse_layer("linear", "csr")
    other, _ = sparse_layer("linear", "csr")
    update_mask_(module, torch.rand(5, 7) < 0.5)
    with pytest.raises(RuntimeError, match="belongs to another mask"):
        other.load_state_dict(module.state_dict())
    update_mask_(other, module.mask)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_dense_gradient_is_that_of_the_dense_layer(kind: str) -> None:
    module, x = sparse_layer(kind, "csr")
    dense: Any = module.to_dense()
    for one in (x, x[0]):
        y = dense(one)
        grad = torch.randn_like(y)
        dense.weight.grad = None
        y.backward(grad)
        torch.testing.assert_close(dense_gradient(module, one, grad), dense.weight.grad)


def test_the_dense_gradient_of_a_stack_is_that_of_its_layers(seed: int) -> None:
    dense = LinearStack(5, 3, 2).double()
    stack = SparseLinearStack.from_dense(dense, torch.rand(6, 5) < 0.5, "bsr", (1, 1))
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    y = dense(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(dense_gradient(stack, x, grad), dense.weight.grad)


def test_arguments_that_cannot_be_are_refused_and_change_nothing() -> None:
    module, x = sparse_layer("linear", "csr")
    mask, values = torch.ones(5, 7, dtype=torch.bool), module.values.detach().clone()
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    lbfgs = torch.optim.LBFGS(module.parameters(), max_iter=2)

    def closure() -> float:
        loss = module(x).sum()
        loss.backward()
        return loss.item()

    lbfgs.step(closure)
    values = module.values.detach().clone()
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((nn.Linear(7, 5), mask), ArgumentTypeError, "^module: expected a sparse layer"),
        ((7, mask), ArgumentTypeError, "^module: expected a sparse layer"),
        (([module, sparse_layer("linear", "csr")[0]], mask), ArgumentError, "^module: expected layers that share"),
        ((module, mask.int()), ArgumentError, "^mask: expected dtype torch.bool"),
        ((module, mask[:3]), ArgumentError, r"^mask: expected shape \[5, 7\] of the weight, got \[3, 7\]"),
        (
            (module, mask, "adam"),
            ArgumentTypeError,
            "^optimizer: expected a torch.optim.Opt.*, got str$",
        ),
        ((module, mask, other), ArgumentError, "^optimizer: expected one that holds the layer's values"),
        ((module, mask, lbfgs), ArgumentError, r"^optimizer: expected state\['\w+'\] of the shape \["),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            update_mask_(*arguments)
    assert torch.equal(module.values.detach(), values)
    blocks, _ = sparse_layer("linear", "bsr")
    part = torch.zeros(5, 7, dtype=torch.bool)
    part[0, :2] = True
    with pytest.raises(ArgumentError, match=r"^mask: expected a union of 2x4 blocks, got 6 pruned weights in blocks"):
        update_mask_(blocks, part)
    semi = ls.nn.SparseLinear.from_dense(nn.Linear(8, 4), torch.eye(4).repeat(1, 2).bool(), "2:4")
    with pytest.raises(ArgumentError, match=r"^module: expected a layer of layout 'csr', 'bsr' or 'dense', got '2:4'"):
        update_mask_(semi, semi.mask)


@pytest.mark.parametrize(
    ("keep", "grown", "message"),
    [
        (torch.ones(3, dtype=torch.bool), torch.tensor([0]), "^keep: expected 2 flags"),
        (torch.ones(2), torch.tensor([1]), "^keep: expected a vector of torch.bool"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([1.0]), "^grown: expected a vector of torch.int64"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([2, 1]), "^grown: expected ascending positions below 4"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([4]), "^grown: expected ascending positions below 4"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([3]), "^grown: expected ascending positions below 4"),
    ],
)
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_impossible_changes_are_refused(layout: str, keep: Tensor, grown: Tensor, message: str) -> None:
    module = ls.nn.SparseLinear.from_dense(nn.Linear(2, 2), torch.eye(2, dtype=torch.bool), layout)
    with pytest.raises(ArgumentError, match=message):
        update_entries_(module, keep, grown)
