"""A torch.fx trace that runs a sample alongside: every node of the graph comes with the value it had.

Sizes are therefore plain numbers while the model is traced, so code that reads them (``B, T, C = x.shape``) is
followed, and each such number remembers which axis it came from. What depends on the data itself is not: branches on
values are refused with the line that took them.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.nn.base import SparseModule

__all__ = ["Backup", "SampleSize", "Trace", "trace"]

#: What can be asked of a tensor without looking at its data.
_FACTS = {
    *("ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_nested", "is_sparse", "is_quantized"),
    *("is_mps", "is_cpu", "is_meta", "is_leaf", "itemsize", "nbytes", "names"),
}
_ASKED = {"dim", "numel", "nelement", "ndimension", "is_floating_point", "is_complex", "get_device", "stride"}


class Backup:
    """What the modules of a model hold, to be put back; tensors are not copied."""

    def __init__(self, model: nn.Module) -> None:
        self._states = [
            (module, type(module), {key: _copied(value) for key, value in vars(module).items()})
            for module in model.modules()
        ]

    def restore(self) -> None:
        """Put everything back: classes, attributes, parameters, buffers, submodules, hooks."""
        for module, kind, state in self._states:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update({key: _copied(value) for key, value in state.items()})


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, dict) else value


class SampleSize(int):
    """A size that code read off a tensor while it was traced, or what it computed from such sizes.

    Attributes:
        origins: (node, axis) of the tensors that it was read off.
    """

    origins: frozenset[tuple[fx.Node, int]]

    def __new__(cls, value: int, origins: Iterable[tuple[fx.Node, int]]) -> SampleSize:
        made = super().__new__(cls, value)
        made.origins = frozenset(origins)
        return made

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _arithmetic(name: str) -> Callable[..., Any]:
    """An operator of int whose result remembers where its operands come from."""
    operation = getattr(int, name)

    def method(self: SampleSize, *others: Any) -> Any:
        result = operation(self, *others)
        if type(result) is not int:
            return result  # NotImplemented, floats
        found = [other.origins for other in (self, *others) if isinstance(other, SampleSize)]
        return SampleSize(result, frozenset().union(*found))

    return method


for _operator in ("add", "sub", "mul", "floordiv", "mod", "radd", "rsub", "rmul", "rfloordiv", "rmod", "neg", "pow"):
    setattr(SampleSize, f"__{_operator}__", _arithmetic(f"__{_operator}__"))


class Trace:
    """A graph and what its nodes computed for the sample.

    Attributes:
        graph: nodes in the order of execution.
        values: node -> its value (tensors detached).
        written: node -> the earlier nodes whose memory it wrote to, in place.
    """

    def __init__(
        self, graph: fx.Graph, values: dict[fx.Node, Any], written: dict[fx.Node, list[fx.Node]] | None = None
    ) -> None:
        self.graph = graph
        self.values = values
        self.written = written or {}

    def code(self) -> list[tuple[str, str, str]]:
        """What the graph does, comparable between traces."""
        return [(node.op, str(node.target), f"{node.args} {node.kwargs}") for node in self.graph.nodes]


class _Proxy(fx.Proxy):
    """A proxy that knows the sample's value: it answers what does not depend on data with plain numbers."""

    def _value(self) -> Any:
        return self.tracer.values[self.node]  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        value = self._value()
        if isinstance(value, Tensor):
            if name == "shape":
                return self._sizes()
            if name == "size":
                return lambda dim=None: self._sizes() if dim is None else self._sizes()[dim]
            if name in _FACTS or name in _ASKED:
                return getattr(value, name)
            if isinstance(getattr(type(value), name, None), property) or not callable(getattr(value, name, None)):
                return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def _sizes(self) -> torch.Size:
        shape = self._value().shape
        return torch.Size([SampleSize(size, [(self.node, dim)]) for dim, size in enumerate(shape)])

    def __iter__(self) -> Iterator[Any]:
        return iter([self[index] for index in range(len(self))])  # type: ignore[index]

    def __len__(self) -> int:
        return len(self._value())


class _Tracer(fx.Tracer):
    """Runs each node as it is recorded, in eval mode and on copies of parameters and buffers."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: Callable[[nn.Module], bool], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.values: dict[fx.Node, Any] = {}
        self._leaves, self._args, self._kwargs = leaves, args, kwargs
        self.written: dict[fx.Node, list[fx.Node]] = {}
        self._samples: dict[str, Any] = {}
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        composite = next(m.children(), None) is not None
        own = not composite and super().is_leaf_module(m, module_qualified_name)
        return self._leaves(m) or isinstance(m, SparseModule) or own

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        def placeholder(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            name = f"input{len(self._samples)}"
            self._samples[name] = value
            return self.create_proxy("placeholder", name, (), {})

        args = [placeholder(value) for value in self._args]
        kwargs = {name: placeholder(value) for name, value in self._kwargs.items()}
        return functools.partial(root_fn, **kwargs) if kwargs else root_fn, [self.root, *args]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        if kind == "output":
            return node
        used = [item for item in map(self.values.get, node.all_input_nodes) if isinstance(item, Tensor)]
        versions = [tensor._version for tensor in used]
        earlier = list(self.values.items())
        self.values[node] = self._run(node)
        memory = {_memory(t) for t, version in zip(used, versions, strict=True) if t._version != version}
        if memory:
            self.written[node] = [one for one, item in earlier if isinstance(item, Tensor) and _memory(item) in memory]
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def _run(self, node: fx.Node) -> Any:
        def fetch(item: Any) -> Any:
            return fx.node.map_arg(item, lambda used: self.values[used])

        args, kwargs = fetch(node.args), fetch(node.kwargs)
        before, self._running = self._running, True
        try:
            if node.op == "placeholder":
                return self._samples[str(node.target)].detach().clone()
            if node.op == "get_attr":
                value: Any = functools.reduce(getattr, str(node.target).split("."), self.root)
                return value.detach().clone() if isinstance(value, Tensor) else value
            if node.op == "call_module":
                return _call_in_eval(self.root.get_submodule(str(node.target)), args, kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)
        finally:
            self._running = before


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _call_in_eval(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flags = [(part, part.training) for part in module.modules()]
    module.train(False)
    try:
        return module(*args, **kwargs)
    finally:
        for part, training in flags:
            part.training = training


def trace(model: nn.Module, sample_input: Any, leaves: Callable[[nn.Module], bool], training: bool) -> Trace:
    """Trace ``model`` on ``sample_input`` as it would run in training or eval mode. The model is left as it was.

    Args:
        sample_input: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        leaves: which modules are nodes of their own; others without children in torch.nn are as well.

    Raises:
        ArgumentTypeError: ``sample_input`` is none of these.
        ArgumentError: the model does not take it, or cannot be followed; with module and line.
    """
    if not isinstance(sample_input, (Tensor, tuple, Mapping)):
        what = "a tensor, a tuple of arguments or a mapping of keyword arguments"
        raise ArgumentTypeError(expected("sample_input", what, type(sample_input).__name__))
    if "forward" in vars(model):
        raise ArgumentError("model: expected one that can be traced, but its forward was replaced on the instance")
    kwargs = dict(sample_input) if isinstance(sample_input, Mapping) else {}
    args: tuple[Any, ...] = sample_input if isinstance(sample_input, tuple) else (sample_input,)
    args = () if isinstance(sample_input, Mapping) else args
    tracer = _Tracer(leaves, args, kwargs)
    backup = Backup(model)
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            model.train(training)
            graph = tracer.trace(model)
    except Exception as error:
        raise ArgumentError(_explain(tracer, error)) from error
    finally:
        backup.restore()  # flags, constants that fx keeps on the model, what a forward stored on its module
    return Trace(graph, tracer.values, tracer.written)


def _explain(tracer: _Tracer, error: Exception) -> str:
    """Which module and line the trace failed at, and what to do."""
    where = (
        next((name for name, _ in reversed(tracer.module_stack.values()) if name), "") if tracer.module_stack else ""
    )
    library = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(library)]
    line = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
    inside = f"in module {where!r}" if where else "in the model's own forward"
    advice = (
        "the channels of a model are followed through a torch.fx trace, so its forward must take the sample and must "
        "not branch on values or turn them into Python numbers; put such code behind the part that is to be followed"
    )
    return f"model: expected one that can be traced on sample_input, but {inside}{line} it raised: {error} ({advice})"
