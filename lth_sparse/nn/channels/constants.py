"""What is known of channels whose weights are pruned: constants, carried through layers and activations.

In a record ``value`` is the constant in eval mode, ``train`` the one in training mode (nan where it is none), and
``frozen`` says that no gradient moves it while both are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lth_sparse.nn.channels.labels import records

__all__ = ["added", "applied", "dropped", "kept_if_zero", "mixed", "multiplied", "normalised"]


def mixed(
    elements: np.ndarray, inputs: np.ndarray, weight: np.ndarray, live: np.ndarray, bias: Tensor | None, padded: bool
) -> np.ndarray:
    """Outputs ``[out]`` of a layer that mixes channels.

    Args:
        inputs: records ``[in]``.
        weight: float64 [out, in], pruned weights 0, summed over the kernel.
        live: bool [out, in], whether a weight there is not pruned.
        padded: zeros surround the input.
    """
    made = records(elements)
    zero = inputs["known"] & (inputs["value"] == 0)
    known = zero if padded else inputs["known"]
    made["known"] = ~(live & ~known[None, :]).any(axis=1)
    value = np.where(known, inputs["value"], 0.0)
    made["value"] = weight @ value
    zero_in_training = known & (inputs["train"] == 0)
    made["train"] = np.where((live & ~zero_in_training[None, :]).any(axis=1), np.nan, 0.0)
    made["frozen"] = ~(live & ~(zero_in_training & inputs["frozen"])[None, :]).any(axis=1)
    if bias is not None:
        shift = bias.detach().to("cpu", torch.float64).numpy()
        made["value"] += shift
        made["train"] += shift
        made["frozen"] &= not bias.requires_grad
    return made


def applied(row: np.ndarray, function: Any, stops_gradient: bool) -> np.ndarray:
    """Behind an elementwise function; ``stops_gradient``: it has no gradient at or below 0 (ReLU)."""
    made = row.copy()
    if not row["known"].any():
        return made
    for name in ("value", "train"):
        result = function(torch.from_numpy(np.ascontiguousarray(row[name])))
        made[name] = result.numpy()
    if stops_gradient:
        made["frozen"] |= row["known"] & (row["value"] <= 0) & (row["train"] <= 0)
    return made


def normalised(row: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: Any, deviation: Any, learns: bool) -> Any:
    """Behind a batch norm with running statistics ``mean`` and ``deviation`` (None: those of the batch)."""
    made = row.copy()
    batch = np.where(row["train"] == 0, shift, np.nan)  # a constant other than 0 leaves rounding, which is scaled up
    made["train"] = batch
    if mean is None:
        made["known"] = row["known"] & (row["value"] == 0)
        made["value"] = shift
    else:
        made["value"] = (row["value"] - mean) / deviation * scale + shift
    made["frozen"] &= not learns
    return made


def added(one: np.ndarray, other: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """Sum of two; nothing is known where either is unknown."""
    made = one.copy()
    made["known"] = one["known"] & other["known"]
    for name in ("value", "train"):
        made[name] = one[name] + sign * other[name]
    made["frozen"] &= other["frozen"]
    return made


def multiplied(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Product of two; known where both are, or where one is 0.

    A factor that is 0 and frozen keeps the product so: the other one gets no gradient, whatever it is.
    """
    made = one.copy()
    zeros = [(item["known"] & (item["value"] == 0)) for item in (one, other)]
    made["known"] = (one["known"] & other["known"]) | zeros[0] | zeros[1]
    made["value"] = np.where(zeros[0] | zeros[1], 0.0, one["value"] * other["value"])
    still = [(item["known"] & item["frozen"] & (item["train"] == 0)) for item in (one, other)]
    made["train"] = np.where(still[0] | still[1], 0.0, np.nan)
    made["frozen"] = still[0] | still[1]
    return made


def dropped(row: np.ndarray, always: bool) -> np.ndarray:
    """Behind a dropout: random in training, and in eval mode too if ``always``; 0 stays 0."""
    made = row.copy()
    made["train"] = np.where(row["train"] == 0, 0.0, np.nan)
    return kept_if_zero(made) if always else made


def kept_if_zero(row: np.ndarray) -> np.ndarray:
    """Behind something that keeps only the constant 0: a mean over zero padding, a sum."""
    made = row.copy()
    made["known"] = row["known"] & (row["value"] == 0)
    made["train"] = np.where(row["train"] == 0, 0.0, np.nan)
    return made
