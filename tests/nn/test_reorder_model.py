"""Orders of a network's channels: hidden blocks come back, the function stays, and counts are those of the masks."""

from __future__ import annotations

import copy

import pytest
import torch
from channel_cases import Squeezed, randomise
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats.reorder import live_blocks
from lth_sparse.nn import channel_groups, permute_channels_, permute_state, reorder_model
from lth_sparse.nn.channels import ChannelGroups, members_of
from lth_sparse.paper import build_model


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(50, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))


def hidden_blocks(
    model: nn.Module, block: tuple[int, int], density: float = 0.15
) -> tuple[dict[str, Tensor], dict[str, Tensor], ChannelGroups]:
    """Masks of whole blocks, and the same with the model's channels in random order."""
    generator = torch.Generator().manual_seed(0)
    (r, c), masks = block, {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            rows, cols = parameter.shape[0], parameter[0].numel()
            live = torch.rand(-(-rows // r), -(-cols // c), generator=generator) < density
            live[0, 0] = True
            mask = live.repeat_interleave(r, 0).repeat_interleave(c, 1)[:rows, :cols]
            masks[name] = mask.reshape(parameter.shape)
    first = next(model.parameters())
    x = torch.zeros(1, 3, 16, 16) if first.dim() == 4 else torch.zeros(1, first.shape[1])
    groups = channel_groups(model, x)
    perms = {group.id: torch.randperm(group.size, generator=generator) for group in groups.free}
    return masks, permute_state(masks, groups, perms), groups


@pytest.mark.parametrize("name", ["mlp", "conv4"])
def test_hidden_blocks_come_back_in_every_inner_layer(name: str) -> None:
    model, block = (mlp(), (16, 16)) if name == "mlp" else (build_model("conv4", (3, 16, 16)), (16, 18))
    masks, shuffled, groups = hidden_blocks(model, block)
    found = reorder_model(shuffled, groups, block)
    for layer, mask in masks.items():
        if layer.startswith(("conv2", "conv3", "conv4", "2.")):
            assert found.blocks_after[layer] <= 1.1 * int((live_blocks(mask, block) > 0).sum())
            assert found.blocks_after[layer] < 0.5 * found.blocks_before[layer]
    assert sum(found.blocks_after.values()) < 0.5 * sum(found.blocks_before.values())


def test_the_order_is_folded_into_the_weights_and_the_counts_are_those_of_its_masks() -> None:
    model = randomise(build_model("conv4", (3, 16, 16)))
    _, shuffled, groups = hidden_blocks(model, (16, 18))
    with torch.no_grad():
        for name, mask in shuffled.items():
            model.get_parameter(name).mul_(mask)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    right = model(x)
    before = copy.deepcopy(shuffled)
    found = reorder_model(shuffled, groups, (16, 18))
    permute_channels_(model, groups, found.perms)
    scale = right.abs().max()
    assert (model(x) - right).abs().max() <= 1e-5 * scale
    moved = permute_state(shuffled, groups, found.perms)
    for name, mask in found.masks.items():
        assert torch.equal(mask, moved[name])
        assert torch.equal(model.get_parameter(name) != 0, mask)
        assert found.blocks_after[name] == int((live_blocks(mask, (16, 18)) > 0).sum())
        assert found.blocks_before[name] == int((live_blocks(shuffled[name], (16, 18)) > 0).sum())
    assert all(torch.equal(before[name], mask) for name, mask in shuffled.items())


def test_a_flattened_channel_moves_its_run_of_columns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
    groups = channel_groups(model, torch.zeros(1, 3, 2, 2))
    mask = torch.zeros(4, 24, dtype=torch.bool)
    mask[:2, 4:8] = mask[:2, 16:20] = True  # channels 1 and 4
    (member,) = members_of(groups[0], {"3.weight": mask}, (2, 8))
    assert (member.extent, member.weight) == (2, 16.0)
    assert member.features.tolist() == [[channel in (1, 4), False] for channel in range(6)]
    found = reorder_model({"3.weight": mask}, groups, (2, 8))
    assert (found.blocks_before, found.blocks_after) == ({"3.weight": 2}, {"3.weight": 1})


@pytest.mark.parametrize(("channels_last", "extent", "features"), [(False, 2, 2), (True, 18, 18)])
def test_the_columns_of_a_convolution_are_its_taps(channels_last: bool, extent: int, features: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    groups = channel_groups(model, torch.zeros(1, 3, 3, 3))
    mask = torch.rand(4, 8, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    (member,) = members_of(groups[0], {"1.weight": mask}, (2, 18), channels_last=channels_last)
    assert member.extent == extent
    assert member.features.shape == (8, features)


def test_fixed_groups_and_blocks_within_a_channel_have_no_members() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    groups = channel_groups(model, torch.zeros(1, 6))
    masks = {"0.weight": torch.ones(8, 6, dtype=torch.bool), "2.weight": torch.ones(4, 8, dtype=torch.bool)}
    assert members_of(groups[1], masks, (2, 2)) == []
    assert members_of(groups[0], masks, (1, 1)) == []
    assert len(members_of(groups[0], masks, (2, 2))) == 2
    assert len(members_of(groups[0], masks, {"2.weight": (2, 2)})) == 1


def test_grouped_convolutions_are_ordered_within_their_groups() -> None:
    model = randomise(Squeezed())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.2
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }
    right = model(x)
    groups = channel_groups(model, x)
    found = reorder_model(masks, groups, dict.fromkeys(masks, (2, 2)))
    assert found.perms
    assert sum(found.blocks_after.values()) < sum(found.blocks_before.values())
    torch.testing.assert_close(permute_channels_(model, groups, found.perms)(x), right, rtol=1e-4, atol=1e-5)


def test_the_same_masks_give_the_same_order_and_full_ones_none() -> None:
    model = mlp()
    _, shuffled, groups = hidden_blocks(model, (8, 8))
    one, other = (reorder_model(shuffled, groups, (8, 8)) for _ in range(2))
    assert one.perms.keys() == other.perms.keys()
    assert all(torch.equal(perm, other.perms[index]) for index, perm in one.perms.items())
    full = {name: torch.ones_like(mask) for name, mask in shuffled.items()}
    empty = {name: torch.zeros_like(mask) for name, mask in shuffled.items()}
    assert reorder_model(full, groups, (8, 8)).perms == {}
    assert reorder_model(empty, groups, (8, 8)).perms == {}


def test_bad_arguments_are_refused() -> None:
    model = mlp()
    masks, _, groups = hidden_blocks(model, (8, 8))
    with pytest.raises(ArgumentError, match="passes"):
        reorder_model(masks, groups, (8, 8), 0)
    with pytest.raises(ArgumentError, match="block"):
        reorder_model(masks, groups, (8, 0))
    with pytest.raises((ArgumentError, ArgumentTypeError), match="masks"):
        reorder_model({"0.weight": torch.rand(96, 50)}, groups, (8, 8))
