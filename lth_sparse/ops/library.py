"""The one place where operators are registered with torch, so that a change in torch's custom-operator API is a
change here.

Operators are opaque (torch never looks inside), private (called by ``ops/autograd.py`` alone) and non-differentiable:
the gradient is one ``torch.autograd.Function`` outside, half as expensive a call as a registered autograd formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["NAMESPACE", "REFERENCES", "define", "implement"]

NAMESPACE = "lth_sparse"

#: Kept for the life of the process: torch unregisters the operators of a Library that is collected.
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

#: Plain-torch implementation of every operator by name, for kernels that do not have the dtype at hand.
REFERENCES: dict[str, Callable[..., Any]] = {}


def define(schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define an operator and return its callable.

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
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def implement(name: str, key: str, function: Callable[..., Any]) -> None:
    """Register ``function`` as the operator's implementation for one dispatch key, ``"CPU"`` or ``"CUDA"``."""
    _LIBRARY.impl(name, function, key)
