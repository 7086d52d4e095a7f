"""Permuting channels in all tensors that carry them, so that the model's function stays what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.nn.channels.groups import ChannelGroups, Member
from lth_sparse.nn.masks import check_model

__all__ = ["permute_channels_", "permute_state"]

StateT = TypeVar("StateT", bound=Mapping[str, Tensor])


@torch.no_grad()
def permute_channels_(model: nn.Module, groups: ChannelGroups, perms: Mapping[int, Any]) -> nn.Module:
    """Permute channels of ``model`` in place: channel i of a group becomes what channel ``perm[i]`` was.

    The function of the model stays the same up to the order of its sums; random dropout falls on other channels.
    Parameters stay the objects they were; what an optimiser remembers about them is not permuted.

    Args:
        groups: of this model, see :func:`channel_groups`.
        perms: group id -> permutation ``[size]``, integers.

    Returns:
        The same ``model``.

    Raises:
        ArgumentError, ArgumentTypeError: a group that cannot be permuted, with the reason; something else than a
            permutation; groups of another model. The model is unchanged then.
    """
    tensors = {**dict(check_model(model).named_parameters()), **dict(model.named_buffers())}
    orders = groups.checked(perms)
    members = [(member, order) for index, order in orders.items() for member in groups[index].members]
    for member, order in members:
        if member.name not in tensors:
            raise ArgumentError(expected("groups", "those of this model", f"a group carried by {member.name!r}"))
        _check_fit("groups", member, tensors[member.name], len(order))
    for member, order in members:
        tensor = tensors[member.name]
        tensor.copy_(_permuted(tensor, member, order))
    return model


def permute_state(state: Mapping[str, Tensor], groups: ChannelGroups, perms: Mapping[int, Any]) -> dict[str, Tensor]:
    """A dict of tensors by parameter name (a state_dict, masks, dense weights of a ticket) with its channels permuted.

    The dict may hold any of the model's names: each tensor that carries a group is permuted, others are passed on.
    ``permute_state(model.state_dict(), ...)`` is the state of the permuted model. Tensors are those of the dense model,
    not compact values.

    Returns:
        A dict with the same names in the same order. Tensors that move are copies.

    Raises:
        ArgumentError, ArgumentTypeError: as :func:`permute_channels_`; or a tensor that does not fit its group.
    """
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(expected("state", "a mapping {parameter name: tensor}", type(state).__name__))
    made = dict(state)
    for index, order in groups.checked(perms).items():
        for member in groups[index].members:
            for name in member.names:
                if name in made:
                    _check_fit(f"state[{name!r}]", member, made[name], len(order))
                    made[name] = _permuted(made[name], member, order)
    return made


def _check_fit(argument: str, member: Member, tensor: Tensor, size: int) -> None:
    places = int(member.index.max()) + 1 if size else 0
    if tensor.dim() <= member.axis or tensor.shape[member.axis] < places:
        what = f"a tensor with at least {places} places along axis {member.axis} as {member.name}"
        raise ArgumentError(expected(argument, what, f"shape {list(tensor.shape)}"))


def _permuted(tensor: Tensor, member: Member, order: Tensor) -> Tensor:
    """A copy of ``tensor`` in which channel i lies where channel ``order[i]`` lay."""
    source = torch.arange(tensor.shape[member.axis])
    source[member.index] = member.index[order]
    source = source.to(tensor.device)
    if member.rows is None:
        return tensor.index_select(member.axis, source)
    start, stop = member.rows
    made = tensor.clone()
    made[start:stop] = tensor[start:stop].index_select(member.axis, source)
    return made
