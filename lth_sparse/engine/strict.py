"""``strict=True``: what must hold in every search is checked while it runs, and the first violation ends it.

    at a level's start   its mask is a subset of its parent's; survivors are those of theta_k bit for bit, and what is
                         pruned is 0; all ranks of a distributed run have the same mask
    after each step      weights, gradients and optimiser moments of pruned weights are exactly 0
    at a level's end     the network still has the level's mask

Most layouts store nothing of a pruned weight, so that there is nothing to revive; what is watched after each step are
the slots inside blocks that no live weight uses, and layers that the training loop made dense. Moments are those of the
optimisers that were attached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth_sparse.engine.distributed import gathered, world
from lth_sparse.errors import InvariantError
from lth_sparse.nn import dense_state_dict, sparse_modules

__all__ = ["Strict"]


class Strict:
    """The checks of one level.

    Args:
        masks: the level's, by parameter name.
        parent: those of the level it was pruned from; None for a level that has none.
        start: dense tensors by name that training must begin with.
    """

    def __init__(
        self, masks: Mapping[str, Tensor], parent: Mapping[str, Tensor] | None, start: Mapping[str, Tensor]
    ) -> None:
        self._masks, self._parent, self._start = masks, parent, start
        self._watched: list[tuple[str, Tensor, Tensor]] = []

    @torch.no_grad()
    def begin(self, model: nn.Module, index: int) -> None:
        """Check the start of a level.

        Raises:
            InvariantError: naming layer and index.
        """
        for name, mask in self._masks.items():
            if self._parent is not None:
                _none(mask.cpu() & ~self._parent[name].cpu(), name, f"level {index} keeps", "its parent pruned")
        _ranks_agree(self._masks, index)
        state = dense_state_dict(model)
        for name, tensor in state.items():
            truth = self._start[name].to(tensor.device)
            if name in self._masks:
                truth = torch.where(self._masks[name].to(tensor.device), truth, torch.zeros_like(truth))
            different = _bits(tensor) != _bits(truth)
            _none(
                different,
                name,
                f"level {index} starts, before its first step, with another value than theta_k has for",
                "",
            )
        self._watched = list(self._places(model))

    @torch.no_grad()
    def step(self, model: nn.Module, attached: Mapping[str, Any], index: int, step: int) -> None:
        """Check what belongs to pruned weights after an optimiser step.

        Raises:
            InvariantError: naming layer, index and step.
        """
        for name, parameter, dead in self._watched:
            _zero(parameter, dead, name, "weight", index, step)
            if parameter.grad is not None:
                _zero(parameter.grad, dead, name, "gradient", index, step)
            for thing in attached.values():
                if isinstance(thing, torch.optim.Optimizer):
                    for key, moment in thing.state.get(parameter, {}).items():
                        if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                            _zero(moment, dead, name, f"optimiser's {key}", index, step)

    @torch.no_grad()
    def end(self, model: nn.Module, index: int) -> None:
        """Check that the network has the mask that it was given, whatever the training loop did to it.

        Raises:
            InvariantError: naming layer and index.
        """
        sparse = {f"{name}.weight": module for name, module in sparse_modules(model)}
        state = dense_state_dict(model)
        for name, mask in self._masks.items():
            kept = sparse[name].mask.cpu() if name in sparse else (state[name] != 0).cpu() | mask.cpu()
            _none(
                kept & ~mask.cpu(),
                name,
                f"level {index} ends, after its last step, with a live weight",
                "the ticket prunes",
            )
            _none(
                mask.cpu() & ~kept,
                name,
                f"level {index} ends, after its last step, without a weight",
                "the ticket keeps",
            )

    def _places(self, model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, parameter, and where in it nothing may ever be: of the layers that have such places."""
        parameters = dict(model.named_parameters())
        sparse = {f"{name}.weight": module for name, module in sparse_modules(model)}
        for name, mask in self._masks.items():
            if name in sparse:
                parameter = sparse[name].values
                ones = torch.ones(mask.shape, dtype=parameter.dtype, device=parameter.device)
                dead = sparse[name].layout.gather(ones) == 0
            elif name in parameters:
                parameter = parameters[name]
                dead = ~mask.to(parameter.device)
            else:
                raise InvariantError(f"strict: {name}: expected the weight of a layer, but the network has none")
            if bool(dead.any()):
                yield name, parameter, dead


def _zero(tensor: Tensor, dead: Tensor, name: str, what: str, index: int, step: int) -> None:
    wrong = dead & (tensor != 0)
    if bool(wrong.any()):
        place = _first(wrong)
        value = float(tensor[tuple(place)])
        raise InvariantError(
            f"strict: {name}{place}: pruned at level {index}, but its {what} is {value} at step {step}"
        )


def _none(wrong: Tensor, name: str, what: str, why: str) -> None:
    if bool(wrong.any()):
        message = f"strict: {name}{_first(wrong)}: {what} this place" + (f", which {why}" if why else "")
        raise InvariantError(f"{message} ({int(wrong.sum())} such places)")


def _first(wrong: Tensor) -> list[int]:
    found: list[int] = wrong.nonzero()[0].tolist()
    return found


def _bits(tensor: Tensor) -> Tensor:
    """The same numbers as integers, for which 0 and -0, and one NaN and another, differ."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not tensor.is_floating_point():
        return tensor
    # -0 is what a mask times a negative weight leaves; as a weight it is 0
    return torch.where(tensor == 0, torch.zeros_like(tensor), tensor).contiguous().view(integers[tensor.element_size()])


def _ranks_agree(masks: Mapping[str, Tensor], index: int) -> None:
    """Compare a hash of the masks over all ranks of the default process group, where there is one."""
    if world() == 1:
        return
    digest = hashlib.sha256()
    for name, mask in masks.items():
        digest.update(name.encode() + np.packbits(mask.cpu().reshape(-1).numpy()).tobytes())
    hashes = gathered(digest.hexdigest())
    for rank, other in enumerate(hashes):
        if other != hashes[0]:
            raise InvariantError(f"strict: level {index}: rank {rank} has other masks than rank 0")
