"""The one place where operators are registered with torch, so that a change in torch's custom-operator API is a
change here.

Operators are opaque (torch never looks inside), private (called by ``ops/autograd.py`` alone) and non-differentiable:
the gradient is one ``torch.autograd.Function`` outside, half as expensive a call as a registered autograd formula.

A call through torch's dispatcher converts every argument of a Python implementation to C++ and back, some ten
microseconds with an index of five tensors. :func:`define` therefore returns an :class:`Operator`, which calls a CPU
implementation as the plain function it is whenever nobody watches the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["NAMESPACE", "REFERENCES", "Operator", "autocasts", "define", "implement", "is_plain"]

NAMESPACE = "lth_sparse"

#: Kept for the life of the process: torch unregisters the operators of a Library that is collected.
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

#: Plain-torch implementation of every operator by name, for kernels that do not have the dtype at hand.
REFERENCES: dict[str, Callable[..., Any]] = {}


#: Every operator by name.
_OPERATORS: dict[str, Operator] = {}

_PLAIN_TYPES = (Tensor, Parameter)

# Asked at every call, where finding them by three names costs as much as the answers.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms_active = torch._C._are_functorch_transforms_active
_is_dead_wrapper = torch._C._functorch.is_dead_tensor_wrapper  # type: ignore[attr-defined]
_jit_traces = torch._C._get_tracing_state
_profiler_enabled = torch.autograd._profiler_enabled


def is_plain(tensor: Tensor) -> bool:
    """True when ``tensor`` is an ordinary CPU tensor and nothing traces, transforms or profiles operators.

    Then, and only then, an implementation may be called without the dispatcher: compilers, ``torch.export``,
    ``torch.func``, dispatch modes, ``torch.jit.trace`` and the profiler must see the operator.
    """
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in _PLAIN_TYPES
        and tensor.is_cpu
        and not _dispatch_modes()
        and not _transforms_active()
        and not _is_dead_wrapper(tensor)
        and not _jit_traces()
        and not _profiler_enabled()
    )


def autocasts(device: str) -> bool:
    """Whether autocast is on for tensors of this device type; for the meta device it cannot be."""
    return device != "meta" and torch.is_autocast_enabled(device)


class Operator:
    """One operator: a callable for ``ops/autograd.py``.

    Attributes:
        overload: torch's own callable, for ``torch.library.opcheck`` and graphs.
        cpu: the CPU implementation, None where there is none.
    """

    __slots__ = ("cpu", "overload")

    def __init__(self, overload: Any) -> None:
        self.overload = overload
        self.cpu: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Call through the dispatcher."""
        return self.overload(*args)

    def direct(self, *args: Any) -> Any:
        """Call for a first argument that :func:`is_plain`: the same result, without the dispatcher."""
        return self.overload(*args) if self.cpu is None else self.cpu(*args)


def define(schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]) -> Operator:
    """Define an operator and return it.

    Args:
        schema: ``"name(Tensor x, ...) -> Tensor"`` in torch's schema language.
        reference: plain-torch implementation for every device that registers none of its own.
        fake: states the preconditions and returns empty tensors of the right shape, for tracing.
    """
    name = schema.split("(", 1)[0]
    REFERENCES[name] = reference
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    _OPERATORS[name] = Operator(getattr(getattr(torch.ops, NAMESPACE), name).default)
    return _OPERATORS[name]


def implement(name: str, key: str, function: Callable[..., Any]) -> None:
    """Register ``function`` as the operator's implementation for one dispatch key, ``"CPU"`` or ``"CUDA"``."""
    _LIBRARY.impl(name, function, key)
    if key == "CPU":
        _OPERATORS[name].cpu = function
