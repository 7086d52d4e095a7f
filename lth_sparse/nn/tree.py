"""Who holds which module and which weight in a model: what must be known before a module can be replaced in place.

A module may be registered under several names, and a parameter in several modules (tied weights). Both must be
converted once and stay shared, or be refused.
"""

from __future__ import annotations

import difflib
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import parametrize

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn.base import SparseModule
from lth_sparse.nn.layers import DENSE_CLASSES
from lth_sparse.nn.reparam import dense_type, lost_hooks, parametrizations, refusal, weight_mask, weight_parameter

__all__ = ["ModuleTree", "check_root", "current_mask", "extent", "qualified", "refusal_of", "weight_of"]


def qualified(module_name: str, parameter: str) -> str:
    """Dotted parameter name; the root module's name is empty."""
    return f"{module_name}.{parameter}" if module_name else parameter


def weight_of(module: nn.Module) -> Parameter | None:
    """The trainable tensor behind the module's weight: ``values`` of a sparse module, else the dense one."""
    return module.values if isinstance(module, SparseModule) else weight_parameter(module)


def current_mask(module: nn.Module) -> Tensor | None:
    """The mask that the weight has now: a sparse module's, or that of one of torch's pruning tools; else None."""
    return module.mask if isinstance(module, SparseModule) else weight_mask(module)


def refusal_of(module: nn.Module) -> str | None:
    """Why the module cannot be replaced by a sparse one; None when it can."""
    return lost_hooks(module) if isinstance(module, SparseModule) else refusal(module, tuple(DENSE_CLASSES))


def check_root(model: nn.Module) -> None:
    """Raise when the whole model is one layer: in place it can only be replaced inside another module."""
    if isinstance(model, SparseModule) or dense_type(model) in DENSE_CLASSES:
        sparse = isinstance(model, SparseModule)
        way = "to_dense()" if sparse else f"lth_sparse.nn.{DENSE_CLASSES[dense_type(model)].__name__}.from_dense"
        got = f"a {type(model).__name__}, which cannot replace itself; use {way}"
        raise ArgumentError(expected("model", "a module that contains layers", got))


class ModuleTree:
    """Names, places and parameter holders of all modules of ``model``.

    Attributes:
        modules: every module once.
        names: id of a module -> its first dotted name.
        slots: id of a module -> every ``(parent, child name)`` under which it is registered.
        parameters: id of a parameter -> the parameter.
        holders: id of a parameter -> every ``(module, parameter name)`` that uses it, by the names of the dense model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = list(model.modules())
        self.names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
        self.slots: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        self.parameters: dict[int, Parameter] = {}
        self.holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for parent in self.modules:
            for name, child in parent._modules.items():
                if child is not None:
                    self.slots[id(child)].append((parent, name))
            if isinstance(parent, parametrize.ParametrizationList):
                continue  # its parameters count as those of the module it belongs to
            for name, parameter in parent._parameters.items():
                self._hold(parent, "weight" if name == "values" else name.removesuffix("_orig"), parameter)
            for name, chain in parametrizations(parent).items():
                for parameter in chain.parameters(recurse=False):
                    self._hold(parent, name, parameter)

    def _hold(self, module: nn.Module, name: str, parameter: Parameter | None) -> None:
        if parameter is not None:
            self.parameters[id(parameter)] = parameter
            self.holders[id(parameter)].append((module, name))

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        """Put ``new`` wherever ``old`` is registered."""
        for parent, name in self.slots[id(old)]:
            parent._modules[name] = new

    def locate(self, name: str) -> nn.Module:
        """The module whose weight has the dense parameter name ``name``; an error that names it when there is none."""
        path, _, parameter = name.rpartition(".")
        argument = f"masks[{name!r}]"
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            raise ArgumentError(expected(argument, "the name of a weight of the model", self._hint(name))) from None
        if parameter != "weight" and isinstance(getattr(module, parameter, None), Tensor):
            got = (
                "a bias, which is never pruned" if parameter == "bias" else f"a tensor that has no sparse form: {name}"
            )
            raise ArgumentError(expected(argument, "the weight of a Linear, Conv1d or Conv2d", got))
        if not isinstance(module, SparseModule) and not isinstance(getattr(module, parameter, None), Tensor):
            raise ArgumentError(expected(argument, "the name of a weight of the model", self._hint(name)))
        return module

    def sharing(self, module: nn.Module, argument: str) -> list[nn.Module]:
        """All modules that use this module's weight, itself first; an error when they cannot share a sparse one."""
        weight = weight_of(module)
        assert weight is not None
        found = [module]
        for holder, name in self.holders[id(weight)]:
            if holder is module and name == "weight":
                continue
            reason = f"{name} is no weight" if name != "weight" else refusal_of(holder)
            if reason is None and not _same_mask(current_mask(module), current_mask(holder)):
                reason = "the mask is another one"
            if reason:
                self._refuse(argument, f"it is tied to {qualified(self.names[id(holder)], name)}, and there {reason}")
            found.append(holder)
        self._refuse_overlap(weight, argument)
        return found

    def _refuse_overlap(self, weight: Parameter, argument: str) -> None:
        """A parameter over the same memory, such as ``Parameter(other.weight.t())``, would be cut loose in silence."""
        begin, end = extent(weight)
        for key, other in self.parameters.items():
            if other is weight or other.device != weight.device or torch.nn.parameter.is_lazy(other):
                continue
            low, high = extent(other)
            if low < end and begin < high:
                holder, name = self.holders[key][0]
                self._refuse(argument, f"{qualified(self.names[id(holder)], name)} is a view of the same memory")

    def _refuse(self, argument: str, reason: str) -> None:
        raise ArgumentError(f"{argument}: expected a weight that can become sparse, but {reason}; untie it first")

    def _hint(self, name: str) -> str:
        names = [qualified(self.names[id(m)], "weight") for m in self.modules if weight_of(m) is not None]
        close = difflib.get_close_matches(name, names, 1)
        return f"{name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def _same_mask(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def extent(tensor: Tensor) -> tuple[int, int]:
    """First byte and one past the last byte of the memory that the tensor spans; an empty range without memory."""
    if tensor.numel() == 0 or tensor.layout != torch.strided:
        return 0, 0
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    begin = tensor.data_ptr()
    return (begin, begin + span * tensor.element_size()) if begin else (0, 0)
