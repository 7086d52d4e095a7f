"""The training loop: repeatable from the global generator, recorded as promised, and it learns."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError
from lth_sparse.paper import PRESETS, DataSet, Split, build_model, evaluate, make_train, training
from lth_sparse.paper.training import Batches, score_batches

PRESET = replace(PRESETS["lenet"].quick(), iterations=30, evaluate_every=10, batch=20)


def trained(data: DataSet, level: Any, seed: int, **changes: Any) -> tuple[nn.Module, dict[str, float]]:
    model = build_model("lenet", data, seed=0)
    torch.manual_seed(seed)
    return model, make_train(replace(PRESET, **changes), data)(model, level)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_same_global_seed_same_network_and_history(tiny: DataSet, level: Any, seed: int) -> None:
    first, second = type(level)(), type(level)()
    (a, metrics_a), (b, metrics_b) = trained(tiny, first, 1), trained(tiny, second, 1)
    assert same(a, b)
    assert first.history == second.history
    assert metrics_a == metrics_b


def test_another_global_seed_is_another_data_order(tiny: DataSet, level: Any, seed: int) -> None:
    assert not same(trained(tiny, level, 1)[0], trained(tiny, level, 2)[0])


def test_it_is_adam_on_the_cross_entropy_of_the_batches(tiny: DataSet, level: Any, seed: int) -> None:
    model, _ = trained(tiny, level, 7)
    plain = build_model("lenet", tiny, seed=0)
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(plain.parameters(), lr=PRESET.lr, betas=(0.9, 0.999), eps=1e-8, fused=False)
    for _ in range(6):
        for indices in torch.randperm(100).split(20):
            optimizer.zero_grad()
            F.cross_entropy(plain(tiny.train.x[indices]), tiny.train.y[indices]).backward()
            optimizer.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_it_learns(tiny: DataSet, level: Any, seed: int) -> None:
    _, metrics = trained(tiny, level, 0, iterations=150)
    assert metrics["val_acc"] > 0.9
    assert metrics["test_acc"] > 0.9
    assert metrics["val_loss"] < level.history[0]["val_loss"]


@pytest.mark.parametrize(
    ("iterations", "every", "steps"), [(30, 10, [10, 20, 30]), (25, 10, [10, 20, 25]), (3, 10, [3]), (2, 1, [1, 2])]
)
def test_rows_come_every_few_iterations_and_at_the_end(
    tiny: DataSet, level: Any, seed: int, iterations: int, every: int, steps: list[int]
) -> None:
    _, metrics = trained(tiny, level, 0, iterations=iterations, evaluate_every=every)
    assert [row["step"] for row in level.history] == steps
    assert level.history[-1] == {"step": iterations, **metrics}
    assert list(metrics) == ["val_loss", "val_acc", "test_acc"]
    assert level.steps == iterations


def test_rows_hold_loss_and_accuracy_of_the_right_splits(tiny: DataSet, level: Any, seed: int) -> None:
    model, metrics = trained(tiny, level, 0)
    with torch.no_grad():
        val, test = model(tiny.val.x), model(tiny.test.x)
    assert metrics["val_loss"] == pytest.approx(float(F.cross_entropy(val, tiny.val.y)), rel=1e-6)
    assert metrics["val_acc"] == pytest.approx(float((val.argmax(1) == tiny.val.y).double().mean()))
    assert metrics["test_acc"] == pytest.approx(float((test.argmax(1) == tiny.test.y).double().mean()))


def test_evaluation_in_pieces_is_evaluation_at_once(tiny: DataSet, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("conv2", tiny)
    whole = evaluate(model, tiny.test)
    monkeypatch.setattr(training, "EVALUATION_BATCH", 7)
    assert evaluate(model, tiny.test) == pytest.approx(whole, rel=1e-6)


def test_evaluation_changes_neither_network_nor_mode_nor_random_state(tiny: DataSet, seed: int) -> None:
    model = build_model("conv2", tiny, dropout=0.5).train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    training.measure(model, tiny.val, tiny.test)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert all(p.grad is None for p in model.parameters())


def test_dropout_acts_in_training_and_not_in_evaluation(tiny: DataSet, level: Any, seed: int) -> None:
    model = build_model("conv2", tiny, dropout=0.5)
    modes: Counter[tuple[bool, bool]] = Counter()
    model.fc1_dropout.register_forward_hook(lambda m, *_: modes.update([(m.training, torch.is_grad_enabled())]))
    make_train(replace(PRESET, iterations=3, evaluate_every=3), tiny)(model, level)
    assert modes == {(True, True): 3, (False, False): 2}


def test_a_network_left_in_evaluation_mode_is_trained_all_the_same(tiny: DataSet, level: Any, seed: int) -> None:
    model = build_model("lenet", tiny).eval()
    make_train(PRESET, tiny)(model, level)
    assert model.training


def test_optimiser_and_batches_are_attached_before_the_first_step(tiny: DataSet, level: Any, seed: int) -> None:
    class Strict(type(level)):  # type: ignore[misc]
        def step(self) -> None:
            assert set(self.attached) == {"optimizer", "batches"}
            super().step()

    strict = Strict()
    trained(tiny, strict, 0)
    assert strict.attached["optimizer"].param_groups[0]["lr"] == PRESET.lr


def test_epochs_are_counted_by_the_examples_seen(tiny: DataSet, level: Any, seed: int) -> None:
    trained(tiny, level, 0)
    per_epoch = len(tiny.train) / PRESET.batch
    whole = int(PRESET.iterations / per_epoch)
    assert whole
    assert level.epochs == [math.ceil(epoch * per_epoch) for epoch in range(1, whole + 1)]


def test_adam_starts_afresh_at_every_call(tiny: DataSet, level: Any, seed: int) -> None:
    train = make_train(PRESET, tiny)
    first, second = type(level)(), type(level)()
    train(build_model("lenet", tiny), first)
    train(build_model("lenet", tiny), second)
    steps = [int(s["step"]) for s in second.attached["optimizer"].state.values()]
    assert steps == [PRESET.iterations] * 6


def test_frozen_parameters_stay_as_they_are(tiny: DataSet, level: Any, seed: int) -> None:
    model = build_model("lenet", tiny)
    model.fc1.weight.requires_grad_(False)
    before = model.fc1.weight.clone()
    make_train(PRESET, tiny)(model, level)
    assert torch.equal(model.fc1.weight, before)


def test_a_start_step_leaves_the_rest_of_the_iterations(tiny: DataSet, level: Any, seed: int) -> None:
    level.start_step = 25
    trained(tiny, level, 0)
    assert level.steps == 5
    assert [row["step"] for row in level.history] == [30]


def test_a_start_step_at_the_end_trains_nothing_but_measures(tiny: DataSet, level: Any, seed: int) -> None:
    level.start_step = 30
    model, metrics = trained(tiny, level, 0)
    assert same(model, build_model("lenet", tiny, seed=0))
    assert 0.0 <= metrics["val_acc"] <= 1.0


def test_divergence_is_an_error_that_names_the_iteration(tiny: DataSet, level: Any, seed: int) -> None:
    model = build_model("lenet", tiny)
    with torch.no_grad():
        model.fc1.weight.fill_(float("nan"))
    with pytest.raises(RunError, match=r"training diverged: validation loss is nan at iteration 10 .*lr 0.0012"):
        make_train(PRESET, tiny)(model, level)
    assert level.history == []


def test_threads_are_set_while_training_and_given_back(tiny: DataSet, level: Any, seed: int) -> None:
    before, seen = torch.get_num_threads(), set()
    model = build_model("lenet", tiny)
    model.fc1.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    make_train(PRESET, tiny, threads=3)(model, level)
    assert seen == {3}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"preset": "lenet"}, ArgumentTypeError),
        ({"data": "digits"}, ArgumentTypeError),
        ({"threads": 0}, ArgumentError),
        ({"threads": 1.5}, ArgumentTypeError),
    ],
)
def test_bad_arguments_are_named(tiny: DataSet, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        make_train(**{"preset": PRESET, "data": tiny, **arguments})


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (7, 20), (1, 4), (60, 60)])
def test_batches_are_full_and_every_example_comes_once_an_epoch(n: int, batch: int, seed: int) -> None:
    batches = Batches(n, batch)
    drawn = [batches.next() for _ in range(4 * n)]
    assert all(indices.shape == (batch,) for indices in drawn)
    for epoch in torch.cat(drawn).split(n):
        assert sorted(epoch.tolist()) == list(range(n))


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7])
def test_batches_go_on_from_their_state(steps: int, seed: int) -> None:
    batches = Batches(10, 3)
    for _ in range(steps):
        batches.next()
    state, rng = batches.state_dict(), torch.get_rng_state()
    expected = [batches.next().tolist() for _ in range(9)]
    other = Batches(10, 3)
    other.next()
    other.load_state_dict(state)
    torch.set_rng_state(rng)
    assert [other.next().tolist() for _ in range(9)] == expected


def test_a_split_is_as_long_as_its_labels() -> None:
    assert len(Split(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))) == 3


def test_batches_for_scores_are_the_same_whatever_the_random_states(tiny: DataSet) -> None:
    batches = score_batches(PRESET, tiny)
    torch.manual_seed(99)
    for (x, y), (x_again, y_again) in zip(batches, score_batches(PRESET, tiny), strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    sizes = [len(y) for _, y in batches]
    assert sum(sizes) == min(training.SCORE_IMAGES, len(tiny.train))
    assert set(sizes[:-1]) <= {PRESET.batch}
    places = torch.cat([(tiny.train.x == image).flatten(1).all(1).nonzero()[:1, 0] for x, _ in batches for image in x])
    assert torch.equal(tiny.train.y[places], torch.cat([y for _, y in batches]))
