"""gradient, taylor, snip, grasp and synflow against autograd, finite differences and figures by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lth_sparse.engine.criteria import ScoreData, Scoring, find_criterion, score
from lth_sparse.engine.snapshot import load_tensors
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError

NAMES = ["0.weight", "2.weight"]


@pytest.fixture
def mlp(seed: int) -> nn.Sequential:
    """A smooth network in float64, so that finite differences mean something."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(3)]


def scoring_of(model: nn.Module, data: ScoreData, masks: dict[str, Tensor] | None = None, **options: Any) -> Scoring:
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    weights = {f"{name}.weight": state[f"{name}.weight"] for name in names}
    masks = masks or {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}
    weights = {name: torch.where(masks[name], w, 0.0) for name, w in weights.items()}

    def build() -> nn.Module:
        fresh = copy.deepcopy(model)
        load_tensors(fresh, {**state, **weights})
        return fresh

    return Scoring(weights, masks, state, build, data, **options)


def scores_of(criterion: str, scoring: Scoring) -> dict[str, Tensor]:
    rule = find_criterion(criterion)
    return {name: score(rule, name, scoring.weights[name], scoring.masks[name], scoring) for name in scoring.weights}


def mean_loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([F.cross_entropy(model(x), y) for x, y in batches]).mean()


def test_gradient_and_taylor_are_those_of_the_mean_loss(mlp: nn.Sequential, batches: Any) -> None:
    parameters = [mlp.get_parameter(name) for name in NAMES]
    expected = torch.autograd.grad(mean_loss(mlp, batches), parameters)
    scoring = scoring_of(mlp, ScoreData(batches))
    for name, weight, g in zip(NAMES, parameters, expected, strict=True):
        torch.testing.assert_close(scores_of("gradient", scoring)[name], g.abs())
        torch.testing.assert_close(scores_of("taylor", scoring)[name], (weight * g).abs().detach())
        torch.testing.assert_close(scores_of("snip", scoring)[name], (weight * g).abs().detach())


def test_taylor_predicts_the_change_of_the_loss(mlp: nn.Sequential, batches: Any) -> None:
    with torch.no_grad():
        mlp[0].weight[0, 0] = 1e-5  # type: ignore[index]
        before = mean_loss(mlp, batches)
        predicted = float(scores_of("taylor", scoring_of(mlp, ScoreData(batches)))["0.weight"][0, 0])
        mlp[0].weight[0, 0] = 0.0  # type: ignore[index]
        change = abs(float(mean_loss(mlp, batches) - before))
    assert predicted == pytest.approx(change, rel=1e-3)


def test_gradients_are_those_of_the_masked_network(mlp: nn.Sequential, batches: Any) -> None:
    masks = {name: torch.rand(mlp.get_parameter(name).shape) > 0.5 for name in NAMES}
    masked = copy.deepcopy(mlp)
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
    expected = torch.autograd.grad(mean_loss(masked, batches), [masked.get_parameter(name) for name in NAMES])
    found = scores_of("gradient", scoring_of(mlp, ScoreData(batches), masks))
    for name, g in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(found[name], g.abs())


def test_grasp_keeps_what_the_gradients_norm_would_lose(mlp: nn.Sequential, batches: Any) -> None:
    # d/dw of |g|^2 / 2 is H g. Removing a small w changes |g|^2 / 2 by -w (H g): the score is what is lost.
    def flow() -> float:
        g = torch.autograd.grad(mean_loss(mlp, batches), [mlp.get_parameter(name) for name in NAMES])
        return sum(float((one**2).sum()) for one in g) / 2

    found = scores_of("grasp", scoring_of(mlp, ScoreData(batches)))
    for name, at in (("0.weight", (2, 3)), ("0.weight", (0, 1)), ("2.weight", (1, 4))):
        weight = mlp.get_parameter(name)
        step, value = 1e-5, float(weight[at].detach())
        flows = []
        for moved in (value + step, value - step):
            with torch.no_grad():
                weight[at] = moved
            flows.append(flow())
        with torch.no_grad():
            weight[at] = value
        slope = (flows[0] - flows[1]) / (2 * step)
        assert float(found[name][at]) == pytest.approx(value * slope, rel=1e-4)


def test_grasp_leaves_pruned_weights_out_of_the_flow(mlp: nn.Sequential, batches: Any) -> None:
    masks = {name: torch.rand(mlp.get_parameter(name).shape) > 0.4 for name in NAMES}
    with torch.no_grad():
        for name, mask in masks.items():
            mlp.get_parameter(name).mul_(mask)
    parameters = [mlp.get_parameter(name) for name in NAMES]
    g = torch.autograd.grad(mean_loss(mlp, batches), parameters, create_graph=True)
    flow = sum(((one * masks[name]) ** 2).sum() for name, one in zip(NAMES, g, strict=True)) / 2
    assert isinstance(flow, Tensor)
    products = torch.autograd.grad(flow, parameters)
    found = scores_of("grasp", scoring_of(mlp, ScoreData(batches), masks))
    for name, weight, product in zip(NAMES, parameters, products, strict=True):
        torch.testing.assert_close(found[name], (weight * product).detach())


def test_gradients_are_computed_once_for_all_layers(mlp: nn.Sequential, batches: Any) -> None:
    passes: list[int] = []

    def counted() -> Any:
        passes.append(1)
        return batches

    scores_of("taylor", scoring_of(mlp, ScoreData(counted)))
    assert len(passes) == 1


def test_every_pass_meets_the_same_shuffle_and_the_same_dropout(seed: int) -> None:
    model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3))
    data = torch.utils.data.TensorDataset(torch.randn(20, 6), torch.randint(3, (20,)))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    torch.manual_seed(5)
    first = scores_of("grasp", scoring_of(model, ScoreData(loader), seed=1))
    torch.manual_seed(6)
    again = scores_of("grasp", scoring_of(model, ScoreData(loader), seed=1))
    other = scores_of("grasp", scoring_of(model, ScoreData(loader), seed=2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_a_weight_that_does_not_reach_the_loss_has_score_zero(batches: Any) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Linear(6, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    model = Aside().double()
    for criterion in ("gradient", "grasp"):
        assert not bool(scores_of(criterion, scoring_of(model, ScoreData(batches)))["aside.weight"].any())


def test_weights_that_are_not_trained_have_gradients_all_the_same(mlp: nn.Sequential, batches: Any) -> None:
    mlp.requires_grad_(False)
    assert bool(scores_of("taylor", scoring_of(mlp, ScoreData(batches)))["0.weight"].any())
    assert not any(p.requires_grad for p in mlp.parameters())


# --- synflow --------------------------------------------------------------------------------------------------------


def synflow_of(model: nn.Module, *shape: int, **options: Any) -> dict[str, Tensor]:
    return scores_of("synflow", scoring_of(model, ScoreData(shape=shape), **options))


def test_synflow_of_two_layers_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))  # type: ignore[operator]
        model[2].weight.copy_(torch.tensor([[-5.0, 6.0]]))  # type: ignore[operator]
    found = synflow_of(model, 2)
    # |w| of the first layer times |w| of the second behind it; the hidden units are 1 + 2 = 3 and 3 + 4 = 7.
    assert found["0.weight"].tolist() == [[5.0, 10.0], [18.0, 24.0]]
    assert found["2.weight"].tolist() == [[15.0, 42.0]]


def test_synflow_is_conserved_from_layer_to_layer(seed: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 7, bias=False), nn.ReLU(),
        nn.Linear(7, 3, bias=False),
    )  # fmt: skip
    totals = [float(scores.sum()) for scores in synflow_of(model, 2, 4, 4).values()]
    assert totals == pytest.approx([totals[0]] * 3)


def test_synflow_sees_no_data_no_dropout_and_no_running_mean(seed: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.9), nn.Linear(6, 2))
    first = synflow_of(model, 4)
    batches = [(torch.randn(3, 4), torch.zeros(3))]
    given = scores_of("synflow", scoring_of(model, ScoreData(batches), seed=8))
    assert all(torch.equal(first[name], given[name]) for name in first)
    model[1].running_mean.fill_(1e6)  # type: ignore[union-attr, operator]
    assert torch.equal(synflow_of(model, 4)["0.weight"], first["0.weight"])
    assert bool((first["0.weight"] > 0).all())


def test_synflow_does_not_care_for_signs(mlp: nn.Sequential) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    before = synflow_of(model, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    after = synflow_of(model, 6)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_flow_that_vanishes_or_overflows_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        model[2].weight.fill_(1e200)  # type: ignore[operator]
        model[0].weight.fill_(1e200)  # type: ignore[operator]
    with pytest.raises(RunError, match="overflows"):
        synflow_of(model, 3)
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator]
        model[2].weight.zero_()  # type: ignore[operator]
    with pytest.raises(RunError, match="nothing flows"):
        synflow_of(model, 3)


def test_a_shape_that_the_model_does_not_take_names_score_shape() -> None:
    with pytest.raises(ArgumentError, match=r"score_shape: expected the shape of one input .*got \(5,\)"):
        synflow_of(nn.Sequential(nn.Linear(3, 2)), 5)


# --- mistakes of the user -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": 3}, ArgumentTypeError, "score_batches: expected an iterable of"),
        ({"batches": "train"}, ArgumentTypeError, "score_batches: expected an iterable of"),
        ({"batches": torch.ones(2, 2)}, ArgumentTypeError, "score_batches: expected an iterable of"),
        ({"batches": iter([])}, ArgumentError, "score_batches: expected batches that can be iterated anew"),
        ({"loss": "mse"}, ArgumentTypeError, "score_loss: expected a callable"),
        ({"shape": 28}, ArgumentTypeError, "score_shape: expected the shape of one input"),
        ({"shape": (1, 0)}, ArgumentError, "score_shape: expected the shape of one input"),
        ({"shape": (1, 2.0)}, ArgumentError, "score_shape: expected the shape of one input"),
    ],
)
def test_bad_data_names_its_keyword(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ScoreData(**options)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (None, ArgumentError, "score_batches: expected .*needs gradients, got None"),
        ([], ArgumentError, "score_batches: expected at least one batch"),
        ([torch.ones(2, 6)], ArgumentTypeError, r"score_batches: expected pairs \(inputs, targets\), got Tensor"),
        (lambda: None, ArgumentTypeError, "score_batches: expected .*a callable that returned None"),
    ],
)
def test_bad_batches_are_found_out(mlp: nn.Module, batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        scores_of("gradient", scoring_of(mlp, ScoreData(batches)))


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda out, y: 1.0, ArgumentTypeError, "score_loss: expected a scalar tensor as its result, got float"),
        (lambda out, y: out, ArgumentError, r"score_loss: expected a scalar tensor, got .*\[8, 3\]"),
        (lambda out, y: out.detach().sum(), ArgumentError, "score_loss: expected a loss that depends on the weights"),
        (lambda out, y: out.sum() * torch.nan, ArgumentError, "score_loss: expected a finite loss, got nan"),
    ],
)
def test_a_bad_loss_is_found_out(mlp: nn.Module, batches: Any, loss: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        scores_of("gradient", scoring_of(mlp, ScoreData(batches, loss)))
