"""The random states of a level: torch (CPU and CUDA), numpy and Python, seeded, captured and restored together."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["capture_rng", "derived_seed", "for_every_device", "preserved_rng", "restore_rng", "seed_all"]


def seed_all(seed: int) -> None:
    """Seed torch, numpy and Python's random with ``seed`` (numpy takes its lowest 32 bits)."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def capture_rng() -> dict[str, Any]:
    """The three states, and CUDA's where CUDA is in use; independent of later draws."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state().clone(),
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [one.clone() for one in torch.cuda.get_rng_state_all()]
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Bring back what :func:`capture_rng` returned."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return
    if len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    else:  # CUDA was not in use when the state was taken: it began, as now, from torch's seed
        torch.cuda.manual_seed_all(torch.initial_seed())


def for_every_device(state: dict[str, Any]) -> dict[str, Any]:
    """The captured state with that of the current CUDA device for all of them: other ranks run on other devices."""
    if "cuda" not in state:
        return state
    own = state["cuda"][torch.cuda.current_device()]
    return {**state, "cuda": [own.clone() for _ in state["cuda"]]}


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Whatever the block draws or seeds, the caller's random states are afterwards what they were."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


def derived_seed(seed: int, level: int, purpose: str) -> int:
    """A seed for one control at one level, unrelated to ``seed`` and to the others; 32 bits, the same everywhere."""
    digest = hashlib.sha256(f"{seed}/{level}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
