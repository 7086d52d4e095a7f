"""The state_dict of a search's model: tensors only, and which of its names mean the same tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, expected

__all__ = ["aliases_of", "checked_state", "stored_names"]


def checked_state(model: nn.Module) -> dict[str, Tensor]:
    """state_dict, checked to hold tensors only."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            got = f"a {type(value).__name__} at {name!r}"
            raise ArgumentError(expected("model", "tensors only in its state_dict", got))
    return state


def aliases_of(model: nn.Module) -> dict[str, str]:
    """Names in the state_dict of parameters and buffers that appear in it under an earlier name."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    checked_state(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        earlier = first.setdefault(id(tensor), name)
        if earlier != name:
            aliases[name] = earlier
    return aliases


def stored_names(state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> list[str]:
    """The names under which tensors are stored: all but the aliases."""
    return [name for name in state if name not in aliases]
