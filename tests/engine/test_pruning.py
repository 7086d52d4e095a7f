"""Criteria inside a search: which weights they see, pruning before training, rounds, and the same masks on resume."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine import ScoringContext
from lth_sparse.engine.criteria import CRITERIA
from lth_sparse.engine.settings import Settings
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError

Search = Callable[..., Any]
AT_INIT = ("snip", "grasp", "synflow")


@pytest.fixture
def batches(data: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = data
    return list(zip(x.split(32), y.split(32), strict=True))


def same(one: Any, other: Any) -> bool:
    """Whether two tickets or masks keep the same weights."""
    one, other = (getattr(thing, "masks", thing) for thing in (one, other))
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def kept_score(ticket: Any, scores: dict[str, torch.Tensor]) -> bool:
    """Whether every survivor scores at least as much as every pruned weight of its layer."""
    return all(float(scores[n][m].min()) >= float(scores[n][~m].max()) for n, m in ticket.masks.items())


# --- what they see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "formula"),
    [
        ("large_final", lambda final, initial: final.abs()),
        ("small_final", lambda final, initial: -final.abs()),
        ("large_init", lambda final, initial: initial.abs()),
        ("small_init", lambda final, initial: -initial.abs()),
        ("magnitude_increase", lambda final, initial: final.abs() - initial.abs()),
        ("movement", lambda final, initial: (final - initial).abs()),
    ],
)
@pytest.mark.parametrize("rewind", ["init", "2it"])
def test_criteria_compare_with_the_weights_at_initialisation(
    search: Search, net: nn.Module, criterion: str, formula: Any, rewind: str
) -> None:
    theta0 = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, second = search(levels=1, criterion=criterion, rewind=rewind, rate=0.5).tickets
    final = first.state_dict("trained")
    assert kept_score(second, {name: formula(final[name], theta0[name]) for name in second.masks})


def test_large_final_is_magnitude(search: Search) -> None:
    masks = [search(levels=2, criterion=name).ticket.masks for name in ("magnitude", "large_final")]
    assert same(*masks[:2])


def test_a_context_has_theta_0_the_mask_and_the_gradient(search: Search, net: nn.Module, batches: Any) -> None:
    theta0 = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    seen: list[tuple[str, int, int]] = []

    def criterion(context: ScoringContext) -> torch.Tensor:
        assert torch.equal(context.initial, theta0[context.name])
        assert not bool(context.weight[~context.mask].any())
        assert context.gradient.shape == context.weight.shape
        seen.append((context.name, context.level, int(context.mask.sum())))
        return context.weight.abs() + torch.rand(context.weight.shape, generator=context.generator) * 1e-3

    result = search(levels=2, criterion=criterion, score_batches=batches, freeze="conv")
    assert [row[:2] for row in seen] == [(n, k) for k in (1, 2) for n in ("fc.weight", "out.weight")]
    assert seen[2][2] == int(result.tickets[1].masks["fc.weight"].sum())


def test_a_gradient_without_batches_names_the_keyword(search: Search) -> None:
    with pytest.raises(ArgumentError, match=r"score_batches: expected .*needs gradients"):
        search(levels=1, criterion=lambda context: context.gradient)


def test_the_loss_is_the_users(search: Search, batches: Any) -> None:
    calls: list[int] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(len(targets))
        return F.cross_entropy(outputs, targets)

    search(levels=1, criterion="taylor", score_batches=lambda: iter(batches), score_loss=loss)
    assert calls == [32, 32, 32]


def test_scoring_leaves_the_callers_random_states_and_model_alone(net: nn.Module, batches: Any) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = ls.levels(net, levels=1, criterion="grasp", score_batches=batches)
    for level in found:
        torch.manual_seed(11)
        torch.rand(level.index + 1)
        expected = torch.random.get_rng_state()
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_batchnorm_statistics_do_not_move_by_scoring(search: Search, make_train: Any, batches: Any) -> None:
    seen: list[float] = []
    train = make_train(watch=lambda model, _: seen.append(float(model.norm.running_mean.abs().sum())))
    search(levels=2, train=train, criterion="taylor", score_batches=batches)
    assert seen == [0.0] * 3


# --- before training ------------------------------------------------------------------------------------------------


def test_snip_keeps_the_largest_products_at_initialisation(net: nn.Module, batches: Any) -> None:
    net.drop.p = 0.0  # type: ignore[union-attr, assignment]
    model = copy.deepcopy(net)
    loss = torch.stack([F.cross_entropy(model(x), y) for x, y in batches]).mean()
    loss.backward()
    scores = {n: (p * p.grad).abs().detach() for n, p in model.named_parameters() if p.grad is not None}
    result = ls.find_ticket(net, lambda m, level: {"a": 1.0}, criterion="snip", rate=0.9, score_batches=batches)
    mask = result.ticket.masks
    assert mask.nnz == 180
    everything = torch.cat([scores[name].reshape(-1) for name in mask])
    kept = torch.cat([scores[name][m] for name, m in mask.items()])
    assert float(kept.min()) == pytest.approx(float(everything.topk(180).values.min()), rel=1e-4)


@pytest.mark.parametrize("criterion", AT_INIT)
def test_training_has_no_say_at_initialisation(search: Search, make_train: Any, batches: Any, criterion: str) -> None:
    options = {"criterion": criterion, "score_batches": batches, "levels": 2, "rate": 0.5, "score_rounds": 2}
    first, second = (search(train=make_train(steps=steps), **options) for steps in (1, 8))
    assert same(first.ticket, second.ticket)
    assert [round(ticket.density, 2) for ticket in first.tickets] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("criterion", AT_INIT)
def test_defaults_are_one_shot_global_and_one_rate(criterion: str) -> None:
    options = {"criterion": criterion, "score_batches": [()], "rate": 0.95}
    chosen = Settings(**options)
    assert (chosen.one_shot, chosen.levels, chosen.scope, chosen.output_rate) == (True, 1, "global", 0.95)
    told = Settings(**options, levels=5, scope="layer", output_rate=0.5)
    assert (told.one_shot, told.levels, told.scope, told.output_rate) == (False, 5, "layer", 0.5)
    assert Settings(**options, rates={"out*": 0.1}).output_rate is None


def test_other_criteria_keep_the_defaults_of_the_paper() -> None:
    chosen = Settings(criterion="movement")
    assert (chosen.one_shot, chosen.levels, chosen.scope, chosen.output_rate) == (False, 15, "layer", None)


@pytest.mark.parametrize("criterion", AT_INIT)
def test_without_a_dense_baseline_level_0_is_not_trained(
    search: Search, make_train: Any, net: nn.Module, batches: Any, criterion: str
) -> None:
    trained: list[int] = []
    train = make_train(watch=lambda model, level: trained.append(level.index))
    options = {"criterion": criterion, "score_batches": batches, "levels": None, "rate": 0.8, "score_rounds": 3}
    result = search(train=train, dense_baseline=False, **options)
    assert trained == [1]
    assert [record.index for record in result.levels] == [0, 1]
    assert same(result.ticket, search(**options).ticket)
    for name, tensor in result.tickets[0].state_dict("trained").items():
        assert torch.equal(tensor, net.state_dict()[name])
    with pytest.raises(ArgumentError, match="metric"):
        result.verdict()


def test_a_target_density_is_reached_without_a_dense_baseline_and_strictly(search: Search) -> None:
    options = {"criterion": "synflow", "score_shape": (1, 6, 6), "levels": None, "rate": 0.5, "target_density": 0.3}
    result = search(**options, dense_baseline=False, strict=True, stop_below=0.0)
    assert [round(record.density, 2) for record in result.levels] == [1.0, 0.5, 0.25]


def test_synflow_needs_a_shape_only(search: Search) -> None:
    result = search(criterion="synflow", levels=None, rate=0.98, score_shape=(1, 6, 6))
    assert result.ticket.masks.nnz == 36
    assert all(bool(mask.any()) for mask in result.ticket.masks.values())


def test_a_users_criterion_may_be_one_at_initialisation(search: Search, net: nn.Module) -> None:
    theta0 = net.fc.weight.detach().clone()  # type: ignore[union-attr, operator]

    def criterion(name: str, weight: torch.Tensor) -> torch.Tensor:
        if name == "fc.weight":
            assert torch.equal(weight, theta0)
        return weight.abs()

    criterion.at_init = True  # type: ignore[attr-defined]
    ticket = search(criterion=criterion, levels=None, rate=0.5, scope="layer").ticket
    assert kept_score(ticket, {name: net.state_dict()[name].abs() for name in ticket.masks})


# --- rounds ---------------------------------------------------------------------------------------------------------


def test_rounds_prune_exponentially_and_score_what_is_left(search: Search) -> None:
    seen: list[int] = []

    def criterion(context: ScoringContext) -> torch.Tensor:
        if context.name == "fc.weight":
            assert not bool(context.weight[~context.mask].any())
            seen.append(int(context.mask.sum()))
        return context.weight.abs()

    result = search(levels=2, criterion=criterion, rate=0.75, score_rounds=4)
    assert seen == [round(1728 * 0.25 ** (r / 4)) for r in range(8)]
    assert [int(t.masks["fc.weight"].sum()) for t in result.tickets] == [1728, 432, 108]
    assert same(result.ticket, search(levels=2, rate=0.75).ticket)  # for |w| it makes no difference


def test_synflow_has_a_hundred_rounds_in_all() -> None:
    rounds = [Settings(criterion="synflow", score_shape=(1,), levels=k).rounds for k in (None, 4, 15)]
    assert rounds == [100, 25, 7]
    assert Settings(criterion="synflow", score_shape=(1,), score_rounds=3).rounds == 3
    assert [Settings().rounds, Settings(score_rounds=2).rounds] == [1, 2]


def test_tied_weights_are_pruned_in_every_round_under_both_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.out(F.relu(self.two(F.relu(self.one(x)))))
            return y

    seen: list[torch.Tensor] = []

    def criterion(context: ScoringContext) -> torch.Tensor:
        assert torch.equal(context.scoring.model().get_parameter(context.name), context.weight)
        seen.append(context.mask)
        return context.weight.abs()

    search = ls.levels(Tied(), levels=1, criterion=criterion, score_rounds=3, rate=0.9, freeze="out")
    assert [level.index for level in search] == [0, 1]
    assert [int(mask.sum()) for mask in seen] == [36, 17, 8]


# --- the same on resume ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["random", "grasp", "synflow", "taylor", "large_init_large_final"])
def test_a_killed_run_ends_with_the_same_tickets(
    search: Search, make_train: Any, batches: Any, tmp_path: Path, criterion: str
) -> None:
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=True)  # type: ignore[arg-type]
    options = {"criterion": criterion, "score_batches": loader, "levels": 3, "rate": 0.3, "seed": 4, "score_rounds": 2}
    whole = search(**options)

    def dies(model: nn.Module, level: Any) -> None:
        if level.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(train=make_train(watch=dies), directory=tmp_path, **options)
    torch.manual_seed(1234)  # what the process drew before must not matter
    resumed = search(directory=tmp_path, **options)
    assert [record.resumed for record in resumed.levels] == [True, True, False, False]
    for one, other in zip(whole.tickets, resumed.tickets, strict=True):
        assert same(one, other)


def test_a_skipped_dense_level_is_resumed_too(search: Search, tmp_path: Path) -> None:
    options = {
        "criterion": "synflow",
        "score_shape": (1, 6, 6),
        "levels": 2,
        "dense_baseline": False,
        "score_rounds": 4,
    }
    first = search(directory=tmp_path, **options)
    again = search(directory=tmp_path, **options)
    assert again.ticket.hash == first.ticket.hash
    assert all(record.resumed for record in again.levels)


@pytest.mark.parametrize(
    "change",
    [
        {"criterion": "taylor"},
        {"score_rounds": 2},
        {"score_loss": F.nll_loss},
        {"dense_baseline": False},
        {"score_shape": (1, 6, 6)},
        {"scope": "erk"},
        {"granularity": "block:2x2"},
    ],
)
def test_another_hyperparameter_is_another_run(
    search: Search, batches: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    options = {"criterion": "snip", "score_batches": batches, "levels": 0, "scope": "layer", "output_rate": 0.1}
    search(directory=tmp_path, **options)
    (name,) = change
    with pytest.raises(RunError, match=f"{name} is .* in this run, but .* was asked for"):
        search(directory=tmp_path, **{**options, **change})


def test_random_states_of_an_old_callable_descend_from_the_seed(search: Search) -> None:
    def criterion(name: str, weight: torch.Tensor) -> torch.Tensor:
        return torch.rand(weight.shape)

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        torch.manual_seed(torch.seed())  # a training that ends in any state
        return {"a": 1.0}

    masks = [search(train=train, criterion=criterion, levels=2, seed=seed).ticket.masks for seed in (1, 1, 2)]
    assert same(*masks[:2])
    assert not same(masks[0], masks[2])


# --- mistakes of the user -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "snip"}, ArgumentError, "score_batches: expected .*criterion='snip', got None"),
        ({"criterion": "gradient"}, ArgumentError, "score_batches: expected .*criterion='gradient', got None"),
        ({"criterion": "synflow"}, ArgumentError, "score_shape: expected .*criterion='synflow', got None"),
        ({"criterion": "snip", "score_batches": [()], "rewind": "5it"}, ArgumentError, "rewind: expected 'init'"),
        ({"criterion": "snip", "score_batches": 4}, ArgumentTypeError, "score_batches: expected"),
        ({"dense_baseline": False}, ArgumentError, "dense_baseline: expected True with criterion='magnitude'"),
        ({"dense_baseline": 1}, ArgumentTypeError, "dense_baseline: expected True or False"),
        ({"score_rounds": 0}, ArgumentError, "score_rounds: expected an int"),
        ({"score_loss": 3}, ArgumentTypeError, "score_loss: expected a callable"),
        ({"score_shape": "mnist"}, ArgumentTypeError, "score_shape: expected"),
    ],
)
def test_keywords_that_do_not_go_together_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Settings(**options)


def test_what_does_not_apply_is_refused_before_training(search: Search) -> None:
    def train(*_: Any) -> dict[str, float]:
        raise AssertionError("trained")

    with pytest.raises(ArgumentError, match=r"granularity: expected .*fc\.weight.*'kernel'"):
        search(train=train, granularity="kernel")
    result = search(levels=1, granularity="kernel", freeze="Linear", rate=0.5)
    assert result.ticket.masks["conv.weight"].reshape(4, 9).sum(1).tolist() in [
        [9 * k for k in kept]
        for kept in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0])
    ]


@pytest.mark.filterwarnings("ignore:.* below min_kept=1")  # a criterion may well give up a layer
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_every_criterion_prunes_in_every_scope_to_the_same_count(
    net: nn.Module, batches: Any, criterion: str, scope: str
) -> None:
    options = {"score_batches": batches, "score_rounds": 2, "output_rate": 0.3}
    found = ls.levels(net, levels=1, rate=0.3, criterion=criterion, scope=scope, **options)
    for level in found:
        assert level.index in (0, 1)
    assert abs(found.result().ticket.masks.nnz - 1800 * 0.7) <= 1.5
