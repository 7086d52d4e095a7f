"""What all dynamic methods share: the layers they change, the count of steps, and a state that resumes bit for bit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth_sparse.engine.selection import matching
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import BSR, Layout
from lth_sparse.nn import SparseModule, masks_of, sparse_modules, update_entries_, update_mask_
from lth_sparse.nn.dynamic import Entries

__all__ = ["DynamicMethod", "Place"]


@dataclass(frozen=True)
class Place:
    """One weight: its dense parameter name and the layers that use it, more than one when it is tied."""

    name: str
    modules: list[SparseModule]

    @property
    def layout(self) -> Layout:
        """Where its live weights are now."""
        return self.modules[0].layout

    @property
    def values(self) -> nn.Parameter:
        """Its compact parameter."""
        return self.modules[0].values


class DynamicMethod(ABC):
    """Base of the methods; see :class:`lth_sparse.SET`, :class:`lth_sparse.RigL`, :class:`lth_sparse.GradualPruning`.

    Attributes:
        steps: calls of :meth:`step` so far.
        places: the weights whose masks change.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int, end: float, freeze: str | Iterable[str]
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ArgumentError(expected("every", "a number of steps, an int of at least 1", every))
        number("end", end, "a positive number of steps", lambda steps: steps > 0)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentTypeError(expected("optimizer", "a torch.optim.Optimizer", type(optimizer).__name__))
        self._optimizer, self._every, self._end = optimizer, every, end
        self.steps = 0
        self.places = _places(model, freeze)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for place in self.places:
            if id(place.values) not in held:
                what = "one that trains all sparse layers (freeze=... leaves a layer's mask alone)"
                raise ArgumentError(expected("optimizer", what, f"one without the values of {place.name!r}"))

    def step(self) -> bool:
        """Count an optimiser step, and change the masks when it is time; True when a mask has changed.

        Call it after each ``optimizer.step()``, before the gradients are needed again.
        """
        self.steps += 1
        changed = self._due(self.steps) and self._update()
        self._prepare()
        return changed

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors: the count of steps, the masks in eight weights to a byte, and what the method draws."""
        masks = {place.name: _pack(place.layout.mask()) for place in self.places}
        return {"method": type(self).__name__, "steps": self.steps, "masks": masks, **self._own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken. Gives the model the masks of then, so load it **before** the states
        of the model (which want those masks) and of the optimiser.

        Raises:
            ArgumentError: the state of another method or of other layers.
        """
        wanted = {"method", "steps", "masks", *self._own_state()}
        if not isinstance(state, Mapping) or set(state) != wanted or state["method"] != type(self).__name__:
            got = f"keys {sorted(state)}" if isinstance(state, Mapping) else type(state).__name__
            raise ArgumentError(expected("state", f"the state_dict of a {type(self).__name__}", got))
        sizes = {place.name: -(-place.layout.numel // 8) for place in self.places}
        if {name: packed.numel() for name, packed in state["masks"].items()} != sizes:
            raise ArgumentError(expected("state", f"masks of {', '.join(sizes)}", ", ".join(state["masks"])))
        for place in self.places:
            mask = _unpack(state["masks"][place.name], place.layout.shape).to(place.layout.device)
            if not torch.equal(mask, place.layout.mask()):
                update_mask_(place.modules, mask, self._optimizer)
        self.steps = state["steps"]
        self._load_own_state(state)
        self._prepare()

    @abstractmethod
    def _due(self, step: int) -> bool:
        """Whether the masks change after this step."""

    @abstractmethod
    def _update(self) -> bool:
        """Change the masks; True when one has changed."""

    def _prepare(self) -> None:  # noqa: B027  # most methods need nothing
        """Get ready for the next step."""

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # where there is none
        """Take back what :meth:`_own_state` gave."""

    def _norms(self, place: Place, entries: Entries) -> Tensor:
        """Magnitude of each entry; weights that are not finite are refused, for they have no order."""
        norms = entries.value_norms(place.values.detach())
        if not bool(norms.isfinite().all()):
            what = f"finite weights in {place.name!r} at step {self.steps}"
            raise ArgumentError(expected("model", what, "NaN or infinity; training has diverged"))
        return norms

    def _change(self, place: Place, keep: Tensor, grown: Tensor) -> None:
        update_entries_(place.modules, keep, grown, self._optimizer)


def number(name: str, value: object, what: str, fits: Any) -> float:
    """``value`` as a float where it is a number and ``fits``; infinity may do, NaN never."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or math.isnan(value) or not fits(value):  # type: ignore[arg-type]
        raise ArgumentError(expected(name, what, value))
    return float(value)  # type: ignore[arg-type]


def _places(model: nn.Module, freeze: str | Iterable[str]) -> list[Place]:
    """The trainable weights of sparse layers, without those that ``freeze`` names."""
    names = list(masks_of(model))
    if not names:
        raise ArgumentError(expected("model", "a model with sparse layers (see lth_sparse.sparsify_)", "none"))
    frozen = matching(freeze, names, "freeze")
    grouped: dict[int, list[SparseModule]] = {}
    for _, module in sparse_modules(model):
        grouped.setdefault(id(module.values), []).append(module)
    places = [Place(name, modules) for name, modules in zip(names, grouped.values(), strict=True) if name not in frozen]
    places = [place for place in places if place.values.requires_grad]
    if not places:
        raise ArgumentError(expected("model", "a sparse layer to train", "frozen ones alone"))
    for place in places:
        layout = place.layout
        if layout.kind not in ("csr", "bsr", "dense"):
            got = f"{layout.kind!r} at {place.name!r}"
            raise ArgumentError(expected("model", "layers of layout 'csr', 'bsr' or 'dense'", got))
        if isinstance(layout, BSR):
            try:
                Entries.of(layout).flags_of(layout.mask())
            except ArgumentError as error:
                raise ArgumentError(f"model: {place.name!r}: {error}") from error
    return places


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy()))


def _unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    flat = np.unpackbits(packed.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(flat.astype(bool)).view(shape)
