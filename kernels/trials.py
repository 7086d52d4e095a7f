"""Trials: launches that take the configuration they are told to, and say what they are. What a tuner needs.

A context variable, so that other threads launch as ever. This module needs no Triton.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Trial", "current", "trial"]


@dataclass
class Trial:
    """What is asked of :func:`lth_sparse.kernels.launch.select` within :func:`trial`, and what it answers.

    Attributes:
        tiles: answers by problem; others are as ever.
        seen: problems that were asked for, in order, with their device.
    """

    tiles: Mapping[Hashable, Any]
    seen: dict[Any, Any] = field(default_factory=dict)


_TRIAL: ContextVar[Trial | None] = ContextVar("lth_sparse_trial", default=None)

#: The trial that the caller is in, or None.
current = _TRIAL.get


@contextlib.contextmanager
def trial(tiles: Mapping[Any, Any] | None = None) -> Iterator[Trial]:
    """Within the block, and on this thread alone, launches take these tiles; and which launches there are is noted."""
    made = Trial(tiles or {})
    token = _TRIAL.set(made)
    try:
        yield made
    finally:
        _TRIAL.reset(token)
