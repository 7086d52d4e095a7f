"""SET, RigL and GradualPruning: equal to the masked dense simulation, exact counts, resumable, deterministic."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from dynamic_cases import END, EVERY, OPTIMISERS, STEPS, Simulation, batch, gradients, sparse_net, train
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.engine.dynamic.regrowth import _sample
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import masks_of, sparse_modules
from lth_sparse.nn.dynamic import Entries


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_rigl_equals_the_masked_dense_simulation_step_for_step(optimiser: str, layout: str) -> None:
    model, simulation = sparse_net(layout), Simulation(optimiser)
    optimizer = OPTIMISERS[optimiser](model.parameters())
    rigl = ls.RigL(model, optimizer, drop=0.3, every=EVERY, end=END)
    for step in range(STEPS):
        (changed,) = train(model, optimizer, rigl, range(step, step + 1))
        dense = simulation.step(step)
        before = {name: mask.clone() for name, mask in simulation.masks.items()}
        if (step + 1) % EVERY == 0:
            simulation.rigl(step + 1, dense)
            assert any(not torch.equal(mask, before[name]) for name, mask in simulation.masks.items())
        assert changed == ((step + 1) % EVERY == 0)
        assert masks_of(model).equals(simulation.masks)
        state = ls.dense_state_dict(model)
        for name, tensor in simulation.model.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", ["csr", "dense", "bsr"])
@pytest.mark.parametrize("cls", [ls.SET, ls.RigL])
def test_counts_stay_exact_and_the_exchanged_share_decays(cls: Any, layout: str) -> None:
    model = sparse_net(layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    method = cls(model, optimizer, drop=0.5, every=1, end=10, seed=4)
    assert [method.drop_fraction(step) for step in (0, 5, 10, 11)] == pytest.approx([0.5, 0.25, 0.0, 0.0])
    parameters = [id(parameter) for parameter in model.parameters()]
    for step in range(12):
        before = {name: (Entries.of(module.layout), module.mask) for name, module in sparse_modules(model)}
        values = {name: module.weight for name, module in sparse_modules(model)}
        (changed,) = train(model, optimizer, method, range(step, step + 1))
        assert changed == (step + 1 < 10)
        for name, module in sparse_modules(model):
            entries, mask = before[name]
            after = Entries.of(module.layout)
            module.layout.validate()
            assert module.values.shape == entries.layout.values_shape
            gone = int((entries.flags() & ~after.flags()).sum())
            assert gone <= int(method.drop_fraction(step + 1) * entries.layout.values_shape[0])
            new = module.mask & ~mask
            assert not bool(module.weight[new].any())
            assert not bool(optimizer.state[module.values]["momentum_buffer"].isnan().any())
            assert values[name].shape == module.weight.shape
    assert [id(parameter) for parameter in model.parameters()] == parameters


@pytest.mark.parametrize("cls", [ls.SET, ls.RigL])
def test_what_is_dropped_and_grown_at_once_keeps_its_value_and_momentum(cls: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()
    ls.sparsify_(model, {"1.weight": torch.rand(3, 50) < 0.9}, layout="csr")
    layer: Any = model[1]
    optimizer = OPTIMISERS["momentum"](model.parameters())
    method = cls(model, optimizer, drop=0.5, every=1, end=math.inf)
    gradients(model, 0)
    optimizer.step()
    mask, count = layer.mask, layer.nnz

    def both() -> tuple[Tensor, Tensor]:
        return layer.weight, layer.layout.scatter(optimizer.state[layer.values]["momentum_buffer"])

    before = both()
    assert method.step()
    assert layer.nnz == count
    stays = layer.mask & mask
    assert int(stays.sum()) >= 2 * count - 150 > count // 2 + 20  # more than are not dropped: some came back
    for old, new in zip(before, both(), strict=True):
        assert torch.equal(new, old * stays)


def test_a_fully_dense_layer_and_frozen_ones_keep_their_masks() -> None:
    model = sparse_net()
    model.twice.values.requires_grad_(False)  # type: ignore[union-attr]
    before = masks_of(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    method = ls.SET(model, optimizer, drop=0.5, every=1, end=math.inf, freeze="conv")
    assert [place.name for place in method.places] == ["fc.weight", "out.weight"]
    assert train(model, optimizer, method) == [True] * STEPS
    after = masks_of(model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight"]
    assert method.drop_fraction(10**9) == 0.5


@pytest.mark.parametrize("name", ["SET", "RigL", "GradualPruning"])
@pytest.mark.parametrize("killed", [3, 4, 6])
def test_a_killed_training_resumes_bit_for_bit(name: str, killed: int) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = sparse_net()
        optimizer = OPTIMISERS["adam"](model.parameters())
        options: dict[str, Any] = {"density": 0.1} if name == "GradualPruning" else {"drop": 0.4, "seed": 1}
        return model, optimizer, getattr(ls, name)(model, optimizer, every=EVERY, end=END, **options)

    whole = start()
    train(*whole)
    model, optimizer, method = start()
    train(model, optimizer, method, range(killed))
    things = {"method": method, "model": model, "optimizer": optimizer}
    saved = copy.deepcopy({key: thing.state_dict() for key, thing in things.items()})
    resumed = start()
    resumed[2].load_state_dict(saved["method"])
    resumed[0].load_state_dict(saved["model"])
    resumed[1].load_state_dict(saved["optimizer"])
    train(*resumed, range(killed, STEPS))
    assert masks_of(resumed[0]).equals(masks_of(whole[0]))
    for key, tensor in whole[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[key].double(), tensor.double()), key


def test_seeds_decide_and_the_global_generator_does_not() -> None:
    found = []
    for seed, noise in ((1, 10), (1, 20), (2, 10)):
        model = sparse_net()
        torch.manual_seed(noise)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        state = torch.get_rng_state()
        train(model, optimizer, ls.SET(model, optimizer, every=EVERY, end=END, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        found.append(masks_of(model))
    assert found[0].equals(found[1])
    assert not found[0].equals(found[2])


@pytest.mark.parametrize(("total", "count"), [(5, 0), (5, 2), (5, 4), (5, 5), (0, 0)])
def test_samples_are_distinct_ascending_and_even(total: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(max(total, 1))
    for _ in range(600):
        sample = _sample(total, count, generator)
        assert sample.numel() == count
        assert bool((sample.diff() > 0).all())
        hits[sample] += 1
    if total:
        assert bool(((hits / 600 - count / total).abs() < 0.09).all())


def test_hooks_are_there_in_the_step_before_a_change_alone_and_nothing_is_kept() -> None:
    model = sparse_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rigl = ls.RigL(model, optimizer, every=3, end=8)
    watched = []
    for step in range(10):
        watched.append(bool(model.fc._forward_hooks))  # type: ignore[union-attr]
        train(model, optimizer, rigl, range(step, step + 1))
        assert not rigl._gradients._passes
    assert watched == [step in (2, 5) for step in range(10)]


def test_a_fused_activation_is_seen_through() -> None:
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 3)).double()
        ls.sparsify_(model, {f"{i}.weight": torch.rand(model[i].weight.shape) < 0.4 for i in (1, 3)}, layout="csr")
        assert ls.nn.fuse_relu_(model, fused) == fused
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        assert any(train(model, optimizer, ls.RigL(model, optimizer, every=EVERY, end=END)))
        found.append((masks_of(model), model[1].weight))
    assert found[0][0].equals(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_several_backward_passes_before_a_step_add_up() -> None:
    models = [sparse_net(), sparse_net()]
    for model, parts in zip(models, ([slice(0, 6)], [slice(0, 2), slice(2, 6)]), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        rigl = ls.RigL(model, optimizer, every=1, end=10)
        x, y = batch(0)
        model(x)  # a pass without a way back counts for nothing
        with torch.no_grad():
            copy.deepcopy(model)(x)
        for part in parts:
            nn.functional.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
        optimizer.step()
        assert rigl.step()
    assert masks_of(models[0]).equals(masks_of(models[1]))


def test_ranks_add_their_gradients_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reduced: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: reduced.append(tensor.mul_(2)))
    model = sparse_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rigl = ls.RigL(model, optimizer, every=1, end=10)
    train(model, optimizer, rigl, range(1))
    assert [tuple(tensor.shape) for tensor in reduced] == [(4, 2, 3, 3), (12, 100), (12, 12)]


def test_a_gradient_that_is_not_finite_leaves_the_layer_as_it_is() -> None:
    model = sparse_net()
    before = masks_of(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rigl = ls.RigL(model, optimizer, every=1, end=10)
    (model(batch(0)[0]).sum() * math.inf).backward()  # no optimizer.step(): as a GradScaler skips it
    assert rigl.step() is False
    assert masks_of(model).equals(before)
    assert train(model, optimizer, rigl, range(1)) == [True]


def test_a_layer_that_took_no_part_and_a_change_in_place_are_errors() -> None:
    model = sparse_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rigl = ls.RigL(model, optimizer, every=1, end=10)
    with pytest.raises(ArgumentError, match=r"^model: expected a forward and a backward pass .* none of 'conv.weight'"):
        rigl.step()
    rigl = ls.RigL(model, optimizer, every=1, end=10)
    x, _ = batch(0)
    model(x).sum().backward()
    x.zero_()
    with pytest.raises(ArgumentError, match=r"^model: expected inputs .* a change at 'conv.weight'"):
        rigl.step()


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = sparse_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    method = ls.SET(model, optimizer, every=1, end=10)
    with torch.no_grad():
        model.fc.values[0] = math.nan  # type: ignore[union-attr,index,operator]
    with pytest.raises(ArgumentError, match=r"^model: expected finite weights in 'fc.weight' at step 1"):
        method.step()


@pytest.mark.parametrize("layout", ["csr", "dense", "bsr"])
def test_gradual_pruning_follows_the_cubic_schedule(layout: str) -> None:
    model = sparse_net(layout)
    optimizer = OPTIMISERS["momentum"](model.parameters())
    name, module = next((n, m) for n, m in sparse_modules(model) if n == "fc")
    entries = Entries.of(module.layout)
    first, last = 1 - module.values.shape[0] / entries.size, 0.95
    pruning = ls.GradualPruning(model, optimizer, density=0.05, start=2, every=3, end=13)  # n = 3: steps 5, 8, 11
    for step in range(1, 15):
        weight, mask = module.weight, module.mask
        (changed,) = train(model, optimizer, pruning, range(step, step + 1))
        assert changed == (step in (5, 8, 11))
        share = min(max((step - 2) // 3, 0), 3) / 3
        right = last + (first - last) * (1 - share) ** 3
        assert module.values.shape[0] == round((1 - right) * entries.size)
        assert not bool((module.mask & ~mask).any())
        assert weight.shape == module.weight.shape
    assert pruning.sparsity(f"{name}.weight", 11) == pytest.approx(0.95)
    assert optimizer.state[module.values]["momentum_buffer"].shape == module.values.shape


def test_gradual_pruning_drops_the_smallest_and_takes_a_density_for_each_layer() -> None:
    model = sparse_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    density = {"conv.weight": 0.0, "fc.weight": 0.1, "twice.weight": 0.3, "out.weight": 1.0}
    density["twice.weight"] = model.twice.density  # type: ignore[union-attr,assignment]
    pruning = ls.GradualPruning(model, optimizer, density=density, every=1, end=1)
    weight = model.fc.weight  # type: ignore[union-attr]
    train(model, optimizer, pruning, range(1))
    smallest_kept = model.fc.values.abs().min()  # type: ignore[union-attr,operator]
    assert model.conv.nnz == 0  # type: ignore[union-attr]
    assert model.fc.nnz == 120  # type: ignore[union-attr]
    assert int((weight.abs() >= smallest_kept).sum()) == 120  # type: ignore[union-attr,operator]
    assert {name: module.nnz for name, module in sparse_modules(model)}["out"] == 36


def make(cls: Any, model: nn.Module | None = None, optimizer: Any = None, **options: Any) -> Any:
    model = sparse_net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1) if optimizer is None else optimizer
    return cls(model, optimizer, **{"end": 100, **options})


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (ls.SET, {"drop": 0.0}, r"^drop: expected a share in \(0, 1\], got 0.0"),
        (ls.RigL, {"drop": True}, r"^drop: expected a share"),
        (ls.RigL, {"every": 0}, "^every: expected a number of steps"),
        (ls.SET, {"end": -1}, "^end: expected a positive number"),
        (ls.SET, {"end": math.nan}, "^end: expected a positive number"),
        (ls.SET, {"seed": "1"}, "^seed: expected an int"),
        (ls.SET, {"freeze": "nothing"}, "^freeze: expected names or globs"),
        (ls.SET, {"optimizer": 3}, "^optimizer: expected a torch.optim.Optimizer"),
        (ls.SET, {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)}, "^optimizer: .*'conv.weight'"),
        (ls.SET, {"model": nn.Sequential(nn.Linear(2, 2))}, "^model: expected a model with sparse layers"),
        (ls.GradualPruning, {"density": 0.9}, r"^density: expected a share in \[0, 0.\d+\], the density of 'conv"),
        (ls.GradualPruning, {"density": {"fc.weight": 0.1}}, "^density: expected one for each of conv.weight"),
        (ls.GradualPruning, {"density": 0.1, "start": 50, "every": 51}, "^end: expected a step at least every=51"),
        (ls.GradualPruning, {"density": 0.1, "end": math.inf}, "^end: expected a step"),
        (ls.GradualPruning, {"density": 0.1, "start": -1}, "^start: expected a step"),
    ],
)
def test_impossible_arguments_are_refused_by_name(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make(cls, **options)


def test_layers_that_cannot_change_are_refused_by_name() -> None:
    semi = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    ls.sparsify_(semi, {"0.weight": torch.eye(4).repeat(1, 2).bool()}, layout="2:4")
    with pytest.raises(ArgumentError, match=r"^model: expected layers of layout .*'2:4' at '0.weight'"):
        make(ls.SET, semi)
    blocks = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    ls.sparsify_(blocks, {"0.weight": torch.eye(4).repeat(1, 2).bool()}, layout="bsr", block=(2, 2), cover="zeros")
    with pytest.raises(ArgumentError, match=r"^model: '0.weight': mask: expected a union of 2x2 blocks"):
        make(ls.SET, blocks)


def test_states_of_other_methods_and_layers_are_refused() -> None:
    state = make(ls.SET).state_dict()
    with pytest.raises(ArgumentError, match=r"^state: expected the state_dict of a RigL"):
        make(ls.RigL).load_state_dict(state)
    with pytest.raises(ArgumentError, match=r"^state: expected masks of fc.weight"):
        make(ls.SET, freeze="conv").load_state_dict(state)
    with pytest.raises(ArgumentError, match=r"^state: expected the state_dict of a SET, got int"):
        make(ls.SET).load_state_dict(3)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["csr", "dense", "bsr"])
@pytest.mark.parametrize("name", ["SET", "RigL", "GradualPruning"])
def test_masks_change_on_a_gpu_as_on_the_cpu(name: str, layout: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = sparse_net(layout).to(device)
        optimizer = OPTIMISERS["adam"](model.parameters())
        options: dict[str, Any] = {"density": 0.1} if name == "GradualPruning" else {"drop": 0.4, "seed": 1}
        method = getattr(ls, name)(model, optimizer, every=EVERY, end=END, **options)
        assert train(model, optimizer, method) == [step % EVERY == EVERY - 1 for step in range(STEPS)]
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        for _, module in sparse_modules(model):
            assert module.layout.device.type == device
            module.layout.validate()
        found.append(masks_of(model))
    assert found[0].equals(found[1])
