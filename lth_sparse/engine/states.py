"""What a model's state_dict holds: tensors only, and which of its names are further names of the same tensor."""

from __future__ import annotations

from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, expected

__all__ = ["aliases_of", "tensors_of"]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
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
    tensors_of(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        earlier = first.setdefault(id(tensor), name)
        if earlier != name:
            aliases[name] = earlier
    return aliases
