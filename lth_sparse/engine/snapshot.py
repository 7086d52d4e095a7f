"""The moment that levels rewind to: weights, buffers (BatchNorm's too), random states, and the state of what the user
attached (optimiser, scheduler, scaler, data order), which is read back through each level's own mask.

An optimiser keeps entries per parameter (momentum and the like), shaped as the parameter. Taken from the dense level,
such an entry is gathered by the layout of the sparse layer before it is loaded; so nothing of a pruned weight ever
comes back.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine import container
from lth_sparse.engine.rng import capture_rng
from lth_sparse.engine.trees import decode, encode
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import Layout
from lth_sparse.nn import dense_state_dict, sparse_modules

__all__ = ["Snapshot", "load_attached", "load_tensors"]

KIND = "snapshot"

#: What the stored state of an optimiser consists of.
OPTIMISER = {"groups", "state", "rest"}


@dataclass(frozen=True)
class Snapshot:
    """What a model and its training were at one moment.

    Attributes:
        step: optimiser steps taken until then.
        tensors: parameters and buffers under the dense model's names, on the CPU; buffers outside the state_dict too.
        rng: random states, see :func:`lth_sparse.engine.rng.capture_rng`.
        attached: name -> state of each attached object; an optimiser's entries are by parameter name.
    """

    step: int
    tensors: dict[str, Tensor]
    rng: dict[str, Any]
    attached: dict[str, Any]

    @classmethod
    def take(cls, model: nn.Module, step: int, attached: Mapping[str, Any]) -> Snapshot:
        """Copy everything; later training changes none of it.

        Raises:
            ArgumentTypeError: an attached object's state_dict holds something that cannot be stored.
        """
        everything = {**dict(model.named_buffers()), **dense_state_dict(model)}
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in everything.items()}
        states = {name: _state(name, thing, model) for name, thing in attached.items()}
        return cls(step, tensors, capture_rng(), states)

    def without_moments(self) -> Snapshot:
        """The same with optimisers that keep their learning rates and lose what they had per parameter."""
        attached = {
            name: {**state, "state": {}} if isinstance(state, dict) and set(state) == OPTIMISER else state
            for name, state in self.attached.items()
        }
        return replace(self, attached=attached)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; errors as in :func:`lth_sparse.engine.container.write`."""
        tensors = {f"model/{name}": tensor for name, tensor in self.tensors.items()}
        extra: dict[str, Tensor] = {}
        content = {
            "step": self.step,
            "rng": encode(self.rng, "rng", extra),
            "attached": encode(self.attached, "attached", extra),
        }
        container.write(path, KIND, {**tensors, **extra}, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read what :meth:`save` wrote; errors as in :func:`lth_sparse.engine.container.read`."""
        tensors, content, _ = container.read(path, KIND)
        model = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
        return cls(content["step"], model, decode(content["rng"], tensors), decode(content["attached"], tensors))


@torch.no_grad()
def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers into a dense model of the same architecture, buffers outside its state_dict too."""
    names = set(model.state_dict())
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in names}, strict=True)
    for name, buffer in model.named_buffers():
        if name not in names and name in tensors:
            buffer.copy_(tensors[name])


def load_attached(name: str, thing: Any, saved: Any, model: nn.Module) -> None:
    """Give an attached object the state it had at the snapshot; an optimiser's is gathered by the layers' layouts.

    Raises:
        ArgumentError: an optimiser with other parameter groups than at level 0.
    """
    if not isinstance(thing, torch.optim.Optimizer):
        thing.load_state_dict(copy.deepcopy(saved))
        return
    places = _places(model)
    current = [[_name(parameter, places) for parameter in group["params"]] for group in thing.param_groups]
    theirs = [group["params"] for group in saved["groups"]]
    if [sorted(names) for names in current] != [sorted(names) for names in theirs]:
        raise ArgumentError(expected(name, "an optimizer over the same parameter groups as at level 0", f"{current}"))
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    count = 0
    for names, group, parameters in zip(current, saved["groups"], thing.param_groups, strict=True):
        indices = list(range(count, count + len(names)))
        groups.append({**copy.deepcopy(group), "params": indices})
        for index, parameter_name, parameter in zip(indices, names, parameters["params"], strict=True):
            if parameter_name in saved["state"]:
                layout = places[id(parameter)][1]
                entry = saved["state"][parameter_name]
                state[index] = {key: _gather(value, layout) for key, value in entry.items()}
        count += len(names)
    thing.load_state_dict({**copy.deepcopy(saved["rest"]), "state": state, "param_groups": groups})


def _state(name: str, thing: Any, model: nn.Module) -> Any:
    """Storable copy of an attached object's state; an optimiser's by the names of the model's parameters."""
    state = thing.state_dict()
    if isinstance(thing, torch.optim.Optimizer):
        places = _places(model)
        groups, entries, count = [], {}, 0
        for group, packed in zip(thing.param_groups, state["param_groups"], strict=True):
            names = [_name(parameter, places) for parameter in group["params"]]
            groups.append({**packed, "params": names})
            for parameter_name in names:
                if count in state["state"]:
                    entries[parameter_name] = state["state"][count]
                count += 1
        rest = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
        state = {"groups": groups, "state": entries, "rest": rest}
    tensors: dict[str, Tensor] = {}
    # Through the stored form also without a run directory, so that a run behaves the same with and without one.
    return decode(encode(state, name, tensors), tensors)


def _places(model: nn.Module) -> dict[int, tuple[str, Layout | None]]:
    """id of a parameter -> its name in the dense model, and the layout through which a sparse layer holds it."""
    places: dict[int, tuple[str, Layout | None]] = {id(p): (name, None) for name, p in model.named_parameters()}
    for name, module in sparse_modules(model):
        if places[id(module.values)][1] is None:
            places[id(module.values)] = (f"{name}.weight", module.layout)
    return places


def _name(parameter: Tensor, places: Mapping[int, tuple[str, Layout | None]]) -> str:
    if id(parameter) not in places:
        got = f"one of shape {list(parameter.shape)}"
        raise ArgumentError(expected("optimizer", "parameters of level.model only", got))
    return places[id(parameter)][0]


def _gather(value: Any, layout: Layout | None) -> Any:
    if isinstance(value, Tensor):
        gathers = layout is not None and value.shape == layout.shape
        return layout.gather(value.to(layout.device)).clone() if gathers else value.clone()  # type: ignore[union-attr]
    return copy.deepcopy(value)
