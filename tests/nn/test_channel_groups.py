"""channel_groups: what belongs together, what must stay where it is and why, and what cannot be followed at all."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from channel_cases import Dense, HandWritten, Mixer, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import channel_groups, permute_channels_
from lth_sparse.paper import build_model


class Between(nn.Module):
    """A linear layer, something, a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x)))


def reasons(model: nn.Module, x: Tensor | None = None) -> list[str | None]:
    groups = channel_groups(model, torch.randn(4, 6) if x is None else x)
    return [group.reason for group in groups.of("one.weight", 0)]


def test_a_group_names_every_tensor_that_carries_it() -> None:
    groups = channel_groups(build_model("conv6", (3, 8, 8)), torch.randn(1, 3, 8, 8))
    (last,) = groups.of("conv6.weight", 0)
    carried = [(member.name, member.axis, member.repeat) for member in last.members]
    assert carried == [("conv6.weight", 0, 1), ("conv6.bias", 0, 1), ("fc1.weight", 1, 1)]
    groups = channel_groups(build_model("conv6", (3, 16, 16)), torch.randn(1, 3, 16, 16))
    (last,) = groups.of("conv6.weight", 0)
    assert [member.repeat for member in last.members] == [1, 1, 4]
    assert last.members[2].index[:3].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert groups.of("conv1.weight", 1) == []  # the image's own channels


def test_residual_additions_merge_groups() -> None:
    groups = channel_groups(build_model("resnet20", (3, 8, 8)), torch.randn(1, 3, 8, 8))
    (stem,) = groups.of("conv1.weight", 0)
    assert groups.of("block3.conv2.weight", 0) == [stem]
    assert groups.of("block3.bn2.running_var", 0) == [stem]
    assert groups.of("block4.shortcut.weight", 1) == [stem]
    assert groups.of("block4.conv2.weight", 0) != [stem]
    assert stem.name == "conv1.weight"


def test_concatenated_channels_are_segments_of_their_reader() -> None:
    groups = channel_groups(Dense(), torch.randn(1, 3, 8, 8))
    one, two = groups.of("three.weight", 1)
    assert (one.size, two.size) == (7, 6)
    (place,) = [member for member in one.members if (member.name, member.axis) == ("three.weight", 1)]
    assert place.index.ravel().tolist() == list(range(9, 16))  # behind two's 6 outputs and the image's 3 channels


def test_tied_weights_are_one_tensor_under_all_its_names() -> None:
    model = HandWritten()
    groups = channel_groups(model, torch.zeros(1, 5, dtype=torch.int64))
    (stream,) = groups.of("head.weight", 1)
    assert groups.of("embed.weight", 1) == [stream]
    assert {name for member in stream.members for name in member.names} >= {"embed.weight", "head.weight"}
    assert groups.of("head.weight", 0)[0].reason == "it is an output of the model"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.roll(x, 1, -1), "roll in the model's forward is not one of the operations"),
        (lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]], "takes places from a list or a mask"),
        (lambda x: x.cumsum(-1), "cumsum in the model's forward is not one of"),
        (lambda x: x.sort(-1).values, "sort in the model's forward is not one of"),
        (lambda x: x + x.argmax(-1, keepdim=True), "argmax in the model's forward mixes them by their places"),
        (lambda x: x + torch.arange(8), "combines it with a constant tensor|places are fixed"),
        (lambda x: F.conv1d(x[:, None], torch.ones(1, 1, 1))[:, 0], "conv1d .* is not one of"),
        (lambda x: torch.add(x, 1, out=torch.empty(4, 8)), "add in the model's forward is not one of"),
        (lambda x: x.max(-1, keepdim=True).values * x, "max in the model's forward is not one of"),
        (lambda x: F.max_pool1d(x[:, None], 3, 1, 1)[:, 0], "max_pool1d .* mixes them by their places"),
        (lambda x: x.view(torch.int32).view(torch.float32), "as another dtype"),
    ],
)
def test_what_is_not_equivariant_fixes_its_channels_with_a_reason(function: Any, reason: str) -> None:
    found = reasons(Between(function))
    assert found
    for each in found:
        assert each is not None
        assert re.search(reason, each), each


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(-1),
        lambda x: F.normalize(x, dim=-1),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: x.clamp(0, 1) ** 2,
        lambda x: F.dropout(x, 0.0),
        lambda x: x.unsqueeze(1).expand(-1, 2, -1).mean(1),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x.t().movedim(0, 1).T.permute(1, 0),
        lambda x: torch.stack([x, 2 * x]).sum(0),
        lambda x: x.view(4, 1, -1).squeeze(1).float(),
        lambda x: (2.0 - x) / 3,
    ],
)
def test_equivariant_functions_leave_channels_free(function: Any) -> None:
    assert reasons(Between(function)) == [None]


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def test_a_layer_of_ones_own_is_followed_into_its_weight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(), OwnLinear(20, 6), nn.ReLU(), OwnLinear(6, 2, bias=False))
    model[4].weight = nn.Parameter(torch.randn(2, 6))
    groups = channel_groups(model, torch.randn(2, 3, 2, 2))
    assert [(group.name, group.size, group.free) for group in groups] == [
        ("0.weight", 5, True),
        ("2.weight", 6, True),
        ("4.weight", 2, False),
    ]
    assert groups[0].members[-1].repeat == 4


def test_a_parameter_that_a_rule_loses_stays() -> None:
    class Lost(Between):
        def __init__(self) -> None:
            super().__init__(F.relu)
            self.raw = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x) @ self.raw.roll(1, 0) + self.raw.argmax(0))

    model = Lost()
    groups = channel_groups(model, torch.randn(4, 6))
    assert all(not group.free for axis in (0, 1) for group in groups.of("raw", axis))


def test_a_slice_assigned_in_place_is_refused() -> None:
    def half(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] = 0
        return x

    with pytest.raises(ArgumentError, match=r"x\[:, :4\] = 0 it raised: .* item assignment"):
        reasons(Between(half))


def test_a_slice_by_a_size_of_the_sample_is_not_taken_for_the_model() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)[:, : x.shape[0]])

    model = Sliced()
    assert all("may depend on the sample" in str(reason) for reason in reasons(model))
    constant = Between(lambda x: torch.cat([x[:, : x.shape[1] // 2], x[:, 4:]], 1))
    assert reasons(constant) == [None, None]


def test_the_input_and_what_is_added_to_it_stay() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.two(F.relu(self.one(x))))

    groups = channel_groups(Residual(), torch.randn(4, 6))
    assert "places are fixed" in groups.of("two.weight", 0)[0].reason
    assert groups.of("one.weight", 0)[0].free


def test_a_branch_that_only_training_takes_counts_too() -> None:
    class Auxiliary(Between):
        def forward(self, x: Tensor) -> Any:
            y = self.one(x)
            return (self.two(y), y.roll(1, -1)) if self.training else self.two(y)

    model = Auxiliary(F.relu).eval()
    assert "roll" in str(reasons(model)[0])
    assert not model.training


def test_tokens_and_channels_of_a_mixer_are_told_apart() -> None:
    groups = channel_groups(Mixer(), torch.randn(2, 3, 8, 8))
    assert groups.of("tokens.0.weight", 0)[0].free
    assert groups.of("tokens.0.weight", 1) == []
    assert groups.of("channels.0.weight", 1)[0] is groups.of("patches.weight", 0)[0]


def test_heads_are_groups_of_their_own() -> None:
    model = nn.MultiheadAttention(12, 3, batch_first=True, bias=False)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.attention, self.two = nn.Linear(6, 12), model, nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return self.two(self.attention(x, x, x)[0])

    groups = channel_groups(Net(), torch.randn(2, 5, 6))
    inner = groups.of("attention.in_proj_weight", 0)
    assert [(group.size, group.rigid is not None) for group in inner] == [(4, True)] * 6
    queries = inner[0].members[0].index
    assert queries.tolist() == [[0, 12], [1, 13], [2, 14], [3, 15]]  # with the keys of their head
    assert groups.of("attention.out_proj.weight", 1) == inner[3:]


def test_weights_masked_by_torch_are_permuted_with_their_masks() -> None:
    model = randomise(Between(F.relu))
    prune.random_unstructured(model.get_submodule("one"), "weight", amount=0.5)
    prune.random_unstructured(model.get_submodule("two"), "weight", amount=0.5)
    x = torch.randn(4, 6)
    right = model(x)
    groups = channel_groups(model, x)
    (hidden,) = groups.of("one.weight", 0)
    assert {"one.weight_orig", "one.weight_mask", "two.weight_orig"} <= {m.name for m in hidden.members}
    permute_channels_(model, groups, {hidden.id: torch.arange(8).flip(0)})
    torch.testing.assert_close(model(x), right)


def test_modules_with_more_than_a_mask_on_them_fix_their_channels() -> None:
    normed = Between(F.relu)
    parametrizations.weight_norm(normed.get_submodule("two"))
    assert "more than a mask" in str(reasons(normed)[0])
    hooked = Between(F.relu)
    hooked.get_submodule("two").register_forward_hook(lambda module, args, output: output)
    assert "has forward hooks" in str(reasons(hooked)[0])
    sparse = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    ls.sparsify_(sparse, {"2.weight": torch.rand(3, 8) < 0.5}, layout="csr")
    assert "densify_" in channel_groups(sparse, torch.randn(4, 6))[0].reason


def test_parameters_that_are_views_of_each_other_stay() -> None:
    model = Between(F.relu)
    model.two.weight = nn.Parameter(model.one.weight.detach().view(6, 8)[:3])
    assert "views of the same memory" in str(reasons(model)[0])


def test_the_model_is_left_as_it_was() -> None:
    model = build_model("resnet20", (3, 8, 8)).train()
    model.get_submodule("block1").eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    attributes, state = sorted(vars(model)), torch.get_rng_state()
    channel_groups(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    assert sorted(vars(model)) == attributes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_a_forward_stores_on_its_module_is_gone_again() -> None:
    class Remembering(Between):
        def forward(self, x: Tensor) -> Tensor:
            self.last = self.one(x)
            return self.two(self.last + torch.ones(8))

    model = Remembering(F.relu)
    attributes = sorted(vars(model))
    assert "places are fixed" in str(reasons(model)[0])
    assert sorted(vars(model)) == attributes


def branches(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (branches, "return x if x.sum"),
        (lambda x: x.view(int(x.abs().sum().clamp(4, 4)), -1), "int"),
        (lambda x: x * float(x.mean()), "float"),
    ],
)
def test_code_that_depends_on_values_is_refused_with_its_line(function: Any, line: str) -> None:
    with pytest.raises(ArgumentError, match="can be traced") as caught:
        channel_groups(nn.Sequential(Between(function)), torch.randn(4, 6))
    message = str(caught.value)
    assert "in module '0'" in message
    assert "test_channel_groups.py line" in message
    assert line in message
    assert "must not branch on values" in message


def test_bad_samples_are_refused() -> None:
    with pytest.raises(ArgumentError, match="mat1 and mat2"):
        channel_groups(Between(F.relu), torch.randn(4, 7))
    with pytest.raises(ArgumentError, match="too many positional arguments"):
        channel_groups(Between(F.relu), (torch.randn(4, 6), 1))
    with pytest.raises(ArgumentTypeError, match="sample_input"):
        channel_groups(Between(F.relu), [torch.randn(4, 6)])
    with pytest.raises(ArgumentTypeError, match="model"):
        channel_groups(torch.zeros(1), torch.randn(4, 6))  # type: ignore[arg-type]


def test_samples_may_be_tuples_and_mappings() -> None:
    class Two(Between):
        def forward(self, x: Tensor, scale: float = 1.0, *, other: Tensor | None = None) -> Tensor:
            y = self.one(x) * scale
            return self.two(y if other is None else y + self.one(other))

    model, x = Two(F.relu), torch.randn(4, 6)
    for sample in ((x,), (x, 2.0), {"x": x, "other": x}):
        assert [group.free for group in channel_groups(model, sample)] == [True, False]


def test_a_zero_batch_gives_the_same_groups() -> None:
    groups = channel_groups(Between(F.relu), torch.randn(0, 6))
    assert [group.size for group in groups] == [8, 3]


def test_the_table_names_sizes_reasons_and_carriers() -> None:
    text = str(channel_groups(Between(F.relu), torch.randn(4, 6)))
    assert "one.weight[0], one.bias[0], two.weight[1]" in text
    assert "it is an output of the model" in text
    assert "8 channels are free" in text
