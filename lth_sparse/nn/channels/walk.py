"""The walk over a trace: each node's rule turns the labels of its arguments into the label of its result.

Rules are in tables by kind of operation: :mod:`.layers` for modules, :mod:`.functions` for everything else. What has no
rule fixes all channels that reach it, so what is not understood is never permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod

from lth_sparse.nn.base import SparseModule
from lth_sparse.nn.channels.coupling import Coupling
from lth_sparse.nn.channels.labels import Label, carried, fix_all, forgotten, records
from lth_sparse.nn.channels.trace import SampleSize, Trace
from lth_sparse.nn.reparam import dense_type, parametrizations, weight_mask

__all__ = ["Call", "Reader", "Rule", "Rules", "Walk", "as_double", "is_nothing", "plain"]

AxisKey = tuple[str, int, tuple[int, int] | None]


@dataclass
class Reader:
    """A layer that mixes channels: where constants end, and where pruned columns make a channel unread.

    Attributes:
        name: the module's name.
        weight: name of its weight; axis 1 reads.
        inputs: records along that axis.
        padded: zeros are put around its input, so that a constant other than 0 is none at the border.
        training: it was met in the trace of training mode.
    """

    name: str
    weight: str
    inputs: np.ndarray
    padded: bool
    training: bool


@dataclass
class Walk:
    """State of one analysis, which may walk over several traces of one model.

    Attributes:
        model: the model.
        names: id of a parameter or buffer -> all its names.
        masks: weights' names -> bool tensor, True where live; None when nothing is asked about constants.
        coupling: the statements about channels.
        axes: (name, axis, range of rows) -> int64 elements along that axis of a parameter or buffer.
        readers: the layers met that mix channels.
        sized: (module's name, attribute, elements): attributes that count channels and are no shape of a weight.
        work: (weight's name, places at which it is applied) for each layer met in eval mode.
        trouble: names of parameters that cannot be tracked, and why.
    """

    model: nn.Module
    names: dict[int, list[str]]
    masks: Mapping[str, Tensor] | None = None
    coupling: Coupling = field(default_factory=Coupling)
    axes: dict[AxisKey, np.ndarray] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    sized: list[tuple[str, str, np.ndarray]] = field(default_factory=list)
    work: list[tuple[str, int]] = field(default_factory=list)
    trouble: dict[str, str] = field(default_factory=dict)

    def over(self, trace: Trace, rules: Rules, training: bool) -> None:
        """Walk over one trace."""
        labels: dict[fx.Node, Any] = {}
        for node in trace.graph.nodes:
            if node.op == "output":
                call = Call(self, node, trace, labels, training)
                call.fix_inputs("it is an output of the model")
                continue
            labels[node] = rules(self, node, trace, labels, training)
            for earlier in trace.written.get(node, ()):  # the same channels, but other values
                label = labels[earlier]
                if node.args and earlier is node.args[0] and isinstance(labels[node], Label):
                    labels[earlier] = labels[node]
                elif isinstance(label, Label):
                    labels[earlier] = replace(label, parts=forgotten(label.parts))

    def axis(self, name: str, axis: int, elements: np.ndarray | None = None, span: Any = None) -> np.ndarray:
        """The elements along an axis of a parameter or buffer; ``elements`` says which they are, if they are given.

        The first to say so decides, whoever comes later is linked with it.
        """
        key = (name, axis, span)
        if elements is not None:
            self.coupling.mention(elements)
        if key not in self.axes:
            if elements is None:
                size = self.tensor(name).shape[axis]
                elements = self.coupling.fresh(size)
            self.axes[key] = elements
            if name in self.trouble:
                self.coupling.fix(elements, self.trouble[name])
        elif elements is not None:
            reason = f"{name} is used where its channels cannot be followed, too"
            self.coupling.link(self.axes[key], elements, reason)
        return self.axes[key]

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of a name."""
        path, _, last = name.rpartition(".")
        module = self.model.get_submodule(path)
        found: Tensor | None = module._parameters.get(last)
        found = module._buffers.get(last) if found is None else found
        assert found is not None
        return found

    def name_of(self, tensor: Tensor) -> str:
        """First name of a parameter or buffer."""
        return self.names[id(tensor)][0]

    def behind(self, module: nn.Module, attribute: str) -> list[str]:
        """Names of the tensors that a module's parameter is made of: itself, or what torch's pruning tools keep."""
        if chain := parametrizations(module).get(attribute):
            return [self.name_of(chain.original), self.name_of(chain[0].mask)]
        if f"{attribute}_orig" in module._parameters:
            parts = module._parameters[f"{attribute}_orig"], module._buffers[f"{attribute}_mask"]
            return [self.name_of(part) for part in parts if part is not None]
        tensor: Tensor | None = module._parameters.get(attribute)
        tensor = module._buffers.get(attribute) if tensor is None else tensor
        return [] if tensor is None else [self.name_of(tensor)]

    def weight_name(self, module: nn.Module) -> str:
        """Name of a layer's dense trainable weight."""
        return self.behind(module, "weight")[0]

    def along(self, module: nn.Module, attribute: str, axis: int, elements: np.ndarray | None = None) -> np.ndarray:
        """:meth:`axis` for all tensors behind a module's parameter, of which there is at least one."""
        first, *others = self.behind(module, attribute)
        found = self.axis(first, axis, elements)
        for name in others:
            self.axis(name, axis, found)
        return found


class Call:
    """One node with the values and the labels of its arguments."""

    def __init__(self, walk: Walk, node: fx.Node, trace: Trace, labels: dict[fx.Node, Any], training: bool) -> None:
        self.walk, self.node, self.training = walk, node, training
        self._labels = labels
        self.coupling = walk.coupling
        self.args: Any = fx.node.map_arg(node.args, lambda used: trace.values[used])
        self.kwargs: Any = fx.node.map_arg(node.kwargs, lambda used: trace.values[used])
        self.label_args: Any = fx.node.map_arg(node.args, lambda used: labels[used])
        self.label_kwargs: Any = fx.node.map_arg(node.kwargs, lambda used: labels[used])
        self.value: Any = trace.values.get(node)

    def arg(self, place: int, name: str, default: Any = None) -> Any:
        """The value of an argument, given by place or by name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def label(self, place: int, name: str = "input") -> Label:
        """The label of a tensor argument; a plain one for anything else."""
        found = self.label_args[place] if place < len(self.label_args) else self.label_kwargs.get(name)
        if not isinstance(found, Label):
            value = self.arg(place, name)
            return Label(value.shape if isinstance(value, Tensor) else ())
        return self.resolved(found)

    def resolved(self, label: Label) -> Label:
        """The label with elements along the axes of the parameter that it is."""
        if label.source is None or label.parts:
            return label
        parts = []
        for dim, size in enumerate(label.shape):
            if size > 1:
                elements = self.walk.axis(label.source, dim)
                self.coupling.rigid(elements, f"{label.source} is used by the model's own code")
                parts.append(carried(records(elements), dim, label.ndim))
        return Label(label.shape, parts)

    def inputs(self) -> list[Label]:
        """All labels among the arguments, in their order, whatever they are nested in."""
        found: list[Label] = []
        _gather((self.label_args, self.label_kwargs), found)
        return [self.resolved(label) for label in found]

    def fix_inputs(self, reason: str) -> None:
        """Fix all channels that reach this node."""
        for label in self.inputs():
            fix_all(self.coupling, label.parts, reason)

    def varies(self, size: Any) -> bool:
        """Whether a number was made from sizes that another sample may change: those of axes without channels."""
        if isinstance(size, slice):
            return self.varies(size.start) or self.varies(size.stop)
        if not isinstance(size, SampleSize):
            return False
        found = ((self._labels.get(node), dim) for node, dim in size.origins)
        return any(not isinstance(label, Label) or not label.touching([dim]) for label, dim in found)

    @property
    def what(self) -> str:
        """The operation in words, for a reason."""
        target = self.node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if self.node.op == "call_module":
            return f"{type(self.walk.model.get_submodule(str(target))).__name__} {target!r}"
        stack = list((self.node.meta.get("nn_module_stack") or {}).values())
        inside = next((path for path, _ in reversed(stack) if path), "") if stack else ""
        return f"{name} in {inside!r}" if inside else f"{name} in the model's forward"


Rule = Callable[[Call], Any]


@dataclass(frozen=True)
class Rules:
    """The tables: class of a module, function or name of a method -> rule."""

    modules: Mapping[type[nn.Module], Callable[[Call, Any], Any]]
    functions: Mapping[Any, Rule]

    def knows(self, module: nn.Module) -> bool:
        """Whether a module is followed as a whole."""
        return dense_type(module) in self.modules

    def __call__(self, walk: Walk, node: fx.Node, trace: Trace, labels: dict[fx.Node, Any], training: bool) -> Any:
        """The label of a node: a Label, a tuple of them, or None for what is no tensor."""
        if node.op in ("placeholder", "get_attr"):
            value, name = trace.values[node], str(node.target)
            if not isinstance(value, Tensor):
                return None
            first = next((names[0] for names in walk.names.values() if name in names), None)
            return Label(value.shape, source=first if node.op == "get_attr" else None)
        call = Call(walk, node, trace, labels, training)
        if node.op == "call_module":
            module = walk.model.get_submodule(str(node.target))
            rule: Rule | None = None
            if reason := _unfollowed(module):
                call.fix_inputs(f"{call.what} {reason}")
                return plain(call.value)
            if self.knows(module):
                by_class = self.modules[dense_type(module)]
                return _followed(call, lambda call: by_class(call, module))
        else:
            rule = self.functions.get(node.target)
            if node.kwargs.get("out") is None and rule is not None:
                return _followed(call, rule)
        call.fix_inputs(f"{call.what} is not one of the operations whose channels are followed")
        return plain(call.value)


def _followed(call: Call, rule: Rule) -> Any:
    """The result of a rule; channels that neither come out nor were spoken of must not move."""
    before: list[Label] = []
    _gather((call.label_args, call.label_kwargs), before)
    call.coupling.forget_mentions()
    result = rule(call)
    after: list[Label] = []
    _gather(result, after)
    lost = np.setdiff1d(_elements(call.walk, before), _elements(call.walk, after))
    call.coupling.fix(call.coupling.unmentioned(lost), f"{call.what} leads nowhere that could be followed")
    return result


def _elements(walk: Walk, labels: list[Label]) -> np.ndarray:
    """All elements of labels; of a parameter's those that something has asked for."""
    found = [part["id"].ravel() for label in labels for part in label.parts]
    sources = {label.source for label in labels}
    found += [elements for (name, _, _), elements in walk.axes.items() if name in sources]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


def plain(value: Any) -> Any:
    """Labels without channels for a value."""
    if isinstance(value, Tensor):
        return Label(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(plain(item) for item in value)
    return None


def _gather(item: Any, found: list[Label]) -> None:
    if isinstance(item, Label):
        found.append(item)
    elif isinstance(item, (tuple, list)):
        for part in item:
            _gather(part, found)
    elif isinstance(item, Mapping):
        for part in item.values():
            _gather(part, found)


def _unfollowed(module: nn.Module) -> str | None:
    """Why a leaf module cannot be followed; None when it can."""
    if isinstance(module, SparseModule):
        return "is sparse already: densify_ the model first"
    for part in module.modules():
        hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        if any(not isinstance(hook, BasePruningMethod) for hook in hooks):
            return "has forward hooks"
        if "forward" in vars(part):
            return "has a forward that was replaced on the instance"
        for name in parametrizations(part):
            if weight_mask(part, name) is None:
                return f"has a parametrization on {name} that is more than a mask"
    return None


def is_nothing(value: Any) -> bool:
    """Whether a padding or the like is nothing at all."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return all(item == 0 for item in values)


def as_double(tensor: Tensor) -> np.ndarray:
    """Data as float64."""
    found: np.ndarray = tensor.detach().to("cpu", torch.float64).numpy()
    return found
