"""shrink_: dead channels go, the function stays; in training too where that is claimed; and what stays says why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from channel_cases import Gated, HandWritten, randomise
from channel_programs import Program, programs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, InvariantError
from lth_sparse.nn import ShrinkReport, shrink_
from lth_sparse.nn.channels import shrink as shrinking
from lth_sparse.paper import build_model


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def dying(model: nn.Module, seed: int = 0, gone: float = 0.3) -> dict[str, Tensor]:
    """Random masks in which whole rows and whole columns are pruned, those of the last layer's outputs excepted."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and isinstance(model.get_submodule(name.rpartition(".")[0]), (nn.Linear, nn.Conv2d)):
            mask = torch.rand(parameter.shape, generator=generator) < 0.5
            mask[torch.rand(parameter.shape[0], generator=generator) < gone] = False
            mask[:, torch.rand(parameter.shape[1], generator=generator) < gone] = False
            masks[name] = mask
    return masks


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(9, 20), activation(), nn.Linear(20, 15), activation(), nn.Linear(15, 4))


def only(rows: dict[str, list[int]], model: nn.Module) -> dict[str, Tensor]:
    """Masks that prune just these rows."""
    masks = {}
    for name, dead in rows.items():
        masks[name] = torch.ones_like(model.get_parameter(name), dtype=torch.bool)
        masks[name][dead] = False
    return masks


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, normal(6, 9)),
    "sigmoid": (lambda: mlp(nn.Sigmoid), normal(6, 9)),
    "conv6": (lambda: build_model("conv6", (3, 16, 16)), normal(2, 3, 16, 16)),
    "vgg19": (lambda: build_model("vgg19", (3, 16, 16)), normal(2, 3, 16, 16)),
    "resnet20": (lambda: build_model("resnet20", (3, 8, 8)), normal(2, 3, 8, 8)),
}


@pytest.mark.parametrize("exact", ["inference", "training"])
@pytest.mark.parametrize("name", MODELS)
def test_the_smaller_model_computes_the_same_in_eval_mode(name: str, exact: str) -> None:
    build, x = MODELS[name]
    model = build().double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(tensor + torch.linspace(-0.4, 0.6, len(tensor)).abs())
    x, masks = x.double(), dying(model)
    right = masked(copy.deepcopy(model), masks)(x)
    before = sum(parameter.numel() for parameter in model.parameters())
    report = shrink_(model, masks, sample_input=x, exact=exact)
    assert (model(x) - right).abs().max() <= 1e-12 * right.abs().max()
    assert report.removed > 0
    assert report.parameters_before == before
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.multiply_adds_after < report.multiply_adds_before
    assert all(mask.shape == model.get_parameter(key).shape for key, mask in report.masks.items())
    if exact == "training":
        assert not any(group.learning for group in report.groups)
        assert not report.added_biases
    else:
        ls.sparsify_(model, report.masks, layout="csr")
        assert (model(x) - right).abs().max() <= 1e-12 * right.abs().max()


def trained(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor, steps: int = 3) -> nn.Module:
    """A few masked steps of SGD with momentum and weight decay."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        masked(model, masks)
    return model


@pytest.mark.parametrize("name", ["mlp", "conv6", "resnet20"])
def test_training_the_survivors_is_step_for_step_what_the_full_model_would_do(name: str) -> None:
    build, x = MODELS[name]
    model, x = build().double(), x.double()
    with torch.no_grad():  # biases of both signs, so that some constants learn and others do not
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 and key.endswith("bias"):
                parameter.copy_(torch.linspace(-0.5, 0.5, len(parameter)).roll(len(parameter) // 3))
    masks = dying(model)
    full = masked(copy.deepcopy(model), masks)
    report = shrink_(model, masks, sample_input=x, exact="training")
    assert report.removed > 0
    trained(full, masks, x)
    trained(model, report.masks, x)
    for training in (False, True):
        right, got = full.train(training)(x), model.train(training)(x)
        assert (got - right).abs().max() <= 1e-9 * right.abs().max()


@st.composite
def pruned_programs(draw: Callable[..., object]) -> tuple[Program, dict[str, Tensor]]:
    model = draw(programs())
    assert isinstance(model, Program)
    return model, dying(model, seed=int(str(draw(st.integers(0, 1000)))), gone=0.5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pruned_programs(), st.sampled_from(["inference", "training"]))
def test_random_pruned_programs_keep_their_function(pruned: tuple[Program, dict[str, Tensor]], exact: str) -> None:
    model, masks = pruned
    randomise(model.double())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.sub_(0.9)  # around 0, so that ReLU stops some of the constants
    x = normal(3, 3, 6, 6).double()
    full = masked(copy.deepcopy(model), masks)
    report = shrink_(model, masks, sample_input=x, exact=exact)
    torch.testing.assert_close(model.eval()(x), full.eval()(x), rtol=1e-8, atol=1e-8)
    if exact == "training":
        trained(full, masks, x, 2)
        trained(model, report.masks, x, 2)
        torch.testing.assert_close(model(x), full(x), rtol=1e-6, atol=1e-6)


def test_a_constant_goes_into_the_next_bias() -> None:
    model = mlp(nn.Sigmoid)
    masks = only({"0.weight": [3, 7]}, model)
    full = masked(copy.deepcopy(model), masks)
    constants = torch.sigmoid(full[0].bias[[3, 7]])
    report = shrink_(model, masks, sample_input=normal(2, 9))
    assert report.groups[0].removed == (3, 7)
    assert report.groups[0].learning == 2
    torch.testing.assert_close(model[2].bias, full[2].bias + full[2].weight[:, [3, 7]] @ constants)
    assert (model[0].out_features, model[2].in_features) == (18, 18)


def test_a_reader_without_bias_gets_one_and_the_report_says_so() -> None:
    model = nn.Sequential(nn.Linear(9, 8), nn.Sigmoid(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    masks = only({"0.weight": [0], "2.weight": [1, 2]}, model)
    x = normal(5, 9)
    right = masked(copy.deepcopy(model), masks)(x)
    report = shrink_(model, masks, sample_input=x)
    assert report.added_biases == ("2",)
    assert model[2].bias.shape == (model[2].out_features,)
    torch.testing.assert_close(model(x), right)


@pytest.mark.parametrize(("padding", "mode", "removed"), [(0, "zeros", 1), (1, "zeros", 0), (1, "reflect", 1)])
def test_a_constant_before_zero_padding_stays(padding: int, mode: str, removed: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sigmoid(), nn.Conv2d(5, 4, 3, padding=padding, padding_mode=mode))
    x, masks = normal(2, 3, 8, 8), only({"0.weight": [2]}, model)
    right = masked(copy.deepcopy(model), masks)(x)
    report = shrink_(model, masks, sample_input=x)
    torch.testing.assert_close(model(x), right)
    assert report.removed == removed
    if not removed:
        assert report.groups[0].kept == {"'2' reads another constant than 0, which its padding ends": 1}
        assert "which its padding ends" in str(report)


def test_batch_norm_turns_a_dead_filter_into_a_constant_of_its_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
    randomise(model).eval()
    x, masks = normal(2, 3, 8, 8), only({"0.weight": [0, 4]}, model)
    right = masked(copy.deepcopy(model), masks)(x)
    learning = shrink_(copy.deepcopy(model), masks, sample_input=x, exact="training")
    assert learning.removed == 0
    assert "which training needs there" in str(learning)
    report = shrink_(model, masks, sample_input=x)
    assert report.groups[0].removed == (0, 4)
    torch.testing.assert_close(model(x), right)
    norm = model[1]
    assert norm.num_features == 3
    assert [len(tensor) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)] == [3] * 4


def test_a_constant_that_is_above_0_in_training_mode_alone_still_learns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.5, -0.5, -0.5, 1.0]))
        model[1].running_mean.copy_(torch.tensor([2.0, 2.0, -2.0, 0.0]))  # eval: below 0, below 0, above 0
    masks, x = only({"0.weight": [0, 1, 2]}, model), normal(2, 3, 4, 4)
    report = shrink_(model, masks, sample_input=x, exact="training")
    assert report.groups[0].removed == (1,)
    assert sum(report.groups[0].kept.values()) == 2


def test_activations_that_write_in_place_count() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.relu, self.two = nn.Linear(9, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            view = y.view(y.shape[0], 6)
            self.relu(y)  # nobody takes what it returns
            return self.two(y) + self.two(view)

    model = InPlace()
    masks, x = only({"one.weight": [0, 1]}, model), normal(4, 9)
    with torch.no_grad():
        model.one.bias[:2] = torch.tensor([-1.0, 1.0])
    right = masked(copy.deepcopy(model), masks)(x)
    report = shrink_(model, masks, sample_input=x)
    torch.testing.assert_close(model(x), right)
    assert report.removed == 0  # what the view holds then is not known


def test_a_residual_channel_goes_only_when_it_is_dead_in_all_members() -> None:
    model = build_model("resnet20", (3, 8, 8)).eval()
    writers = ["conv1.weight", *(f"block{i}.conv2.weight" for i in (1, 2, 3))]
    x = normal(2, 3, 8, 8)
    some = copy.deepcopy(model)
    report = shrink_(some, only({name: [5] for name in writers[:-1]}, model), sample_input=x)
    assert some.get_parameter("conv1.weight").shape[0] == 16
    report = shrink_(model, only({name: [5] for name in writers}, model), sample_input=x)
    assert report.groups[0].removed == (5,)
    assert all(model.get_parameter(name).shape[0] == 15 for name in writers)
    assert model.get_parameter("block4.shortcut.weight").shape[1] == 15


def test_depthwise_convolutions_shrink_with_their_channels() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.InstanceNorm2d(6)),
        *(nn.PReLU(6), nn.Conv2d(6, 4, 1)),
    )
    masks = {"5.weight": torch.ones(4, 6, 1, 1, dtype=torch.bool)}
    masks["5.weight"][:, [1, 2]] = False
    x = normal(2, 3, 5, 5)
    right = masked(copy.deepcopy(model), masks)(x)
    report = shrink_(model, masks, sample_input=x, exact="training")
    assert report.removed == 2
    assert (model[2].groups, model[2].in_channels, model[3].num_features, model[4].num_parameters) == (4, 4, 4, 4)
    torch.testing.assert_close(model(x), right)


def test_death_spreads_forwards_and_backwards() -> None:
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(6, 6, bias=False), nn.ReLU())))
    model.append(nn.Linear(6, 2))
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    for name in ("0.weight", "2.weight", "4.weight"):
        masks[name].fill_diagonal_(True)
    masks["0.weight"][0, 0] = False  # channel 0 dies at the start, and 1 is read by nobody at the end
    masks["6.weight"][:, 2:] = True
    report = shrink_(model, masks, sample_input=normal(3, 6), exact="training")
    assert [group.removed for group in report.groups] == [(0, 1)] * 3


def test_a_layer_keeps_one_channel_when_all_are_dead() -> None:
    model = mlp()
    masks = only({"0.weight": list(range(20))}, model)
    x = normal(3, 9)
    right = masked(copy.deepcopy(model), masks)(x)
    report = shrink_(model, masks, sample_input=x)
    assert model[0].out_features == 1
    assert "a layer needs at least one channel" in report.groups[0].kept
    torch.testing.assert_close(model(x), right)


def test_what_the_code_counts_is_kept_with_its_reason() -> None:
    gated = randomise(Gated())
    report = shrink_(gated, only({"up.weight": [0, 11], "stem.weight": [1]}, gated), sample_input=normal(3, 9))
    assert report.removed == 0
    assert any("takes a slice" in reason or "chunk" in reason for group in report.groups for reason in group.kept)
    gpt, tokens = randomise(HandWritten()), torch.zeros(1, 5, dtype=torch.int64)
    masks = only({"up.weight": [3], "attention.0.out.weight": [1]}, gpt)
    report = shrink_(gpt, masks, sample_input=tokens)
    assert [(group.name, group.removed) for group in report.groups if group.removed] == [("up.weight", (3,))]


def test_masks_of_torch_and_zeros_are_found_and_become_plain_weights() -> None:
    model = mlp()
    prune.ln_structured(model[0], "weight", amount=5, n=2, dim=0)
    with torch.no_grad():
        model[2].weight[:3] = 0
    x = normal(4, 9)
    right = model(x).detach()
    report = shrink_(model, sample_input=x)
    assert (model[0].out_features, model[2].out_features) == (15, 12)
    assert list(report.masks) == ["0.weight", "2.weight"]
    assert [name for name, _ in model.named_parameters()] == [f"{i}.{n}" for i in (0, 2, 4) for n in ("weight", "bias")]
    torch.testing.assert_close(model(x), right)


def test_tied_layers_shrink_together_and_share_no_constant() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.middle, self.two = nn.Linear(9, 7), nn.Linear(7, 7), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.one(x))
            return self.two(torch.sigmoid(self.middle(torch.tanh(self.middle(x)))))

    model = randomise(Tied())
    masks = only({"one.weight": [0], "middle.weight": [0]}, model)
    x = normal(3, 9)
    right = masked(copy.deepcopy(model), masks)(x)
    report = shrink_(model, masks, sample_input=x)
    torch.testing.assert_close(model(x), right)
    assert report.removed == 0  # the middle layer sees another constant in each of its calls


def test_a_reader_in_training_alone_keeps_its_channels() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.aux = nn.Linear(9, 7), nn.Linear(7, 4), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = torch.relu(self.one(x))
            return (self.two(x), self.aux(x)) if self.training else (self.two(x),)

    model = Auxiliary()
    masks = {"two.weight": torch.ones(4, 7, dtype=torch.bool)}
    masks["two.weight"][:, 3] = False
    assert shrink_(model, masks, sample_input=normal(3, 9)).removed == 0
    masks["aux.weight"] = torch.ones(2, 7, dtype=torch.bool)
    masks["aux.weight"][:, 3] = False
    assert shrink_(model, masks, sample_input=normal(3, 9)).removed == 1
    assert model.train()(normal(3, 9))[1].shape == (3, 2)


def state_of(model: nn.Module) -> list[object]:
    return [*map(id, model.parameters()), *map(id, model.modules()), str(model)]


def test_whatever_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    prune.ln_structured(model[0], "weight", amount=5, n=2, dim=0)
    before, x = state_of(model), normal(4, 9)
    right = model(x).detach()

    def wrong(walk: object, groups: object, dead: object, masks: Mapping[str, Tensor], *rest: object) -> object:
        with torch.no_grad():
            model[4].bias = nn.Parameter(model[4].bias + 1)
        return dict(masks)

    with monkeypatch.context() as patch:
        patch.setattr(shrinking, "_remove", wrong)
        with pytest.raises(InvariantError, match="computes something else"):
            shrink_(model, sample_input=x)
    with pytest.raises(ArgumentError, match="sample_input"):
        shrink_(model, sample_input=normal(4, 8))
    assert state_of(model) == before
    assert torch.equal(model(x), right)


def test_bad_arguments_are_refused() -> None:
    model, x = mlp(), normal(4, 9)
    with pytest.raises(ArgumentError, match="exact: expected 'inference' or 'training'"):
        shrink_(model, only({"0.weight": [0]}, model), sample_input=x, exact="never")
    with pytest.raises(ArgumentError, match="none"):
        shrink_(model, sample_input=x)
    with pytest.raises(ArgumentError, match="masks"):
        shrink_(model, {"0.weight": torch.ones(3, 3, dtype=torch.bool)}, sample_input=x)
    ls.sparsify_(model, only({"0.weight": [0]}, model), layout="csr")
    with pytest.raises(ArgumentError, match="densify_"):
        shrink_(model, sample_input=x)


def test_nothing_dead_removes_nothing() -> None:
    model = mlp()
    report = shrink_(model, {"0.weight": torch.ones(20, 9, dtype=torch.bool)}, sample_input=normal(4, 9))
    assert isinstance(report, ShrinkReport)
    assert (report.removed, report.groups) == (0, ())
    assert report.parameters_before == report.parameters_after
