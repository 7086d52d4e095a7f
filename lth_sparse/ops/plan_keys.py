"""What the time of a layer depends on, as one line: the keys under which timings are remembered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lth_sparse.formats import Layout
from lth_sparse.formats.layout import matrix_view

__all__ = ["order_of", "pattern", "signature", "stored_values"]

#: Measurements of densities within this share of each other count as one.
BUCKET = 0.02


def stored_values(layout: Layout) -> int:
    """Values that are multiplied: padding counts, and the dense layout multiplies all."""
    return layout.numel if layout.kind == "dense" else math.prod(layout.values_shape)


def signature(
    weight: Tensor,
    input_shape: Sequence[int],
    conv: Mapping[str, Any] | None,
    block: tuple[int, int] | None,
    bias: bool,
    input_gradient: bool,
    sample: Tensor | None = None,
) -> str:
    """One line that says all that the time of a layer depends on but its mask, layout and environment."""
    words = ["linear" if weight.dim() == 2 else f"conv{weight.dim() - 2}d", "x".join(map(str, weight.shape))]
    words += ["on", "x".join(map(str, input_shape)), str(weight.dtype).removeprefix("torch.")]
    if conv is not None:
        words += [f"{name}={conv[name]}".replace(" ", "") for name in sorted(conv)]
    if sample is not None and not sample.is_contiguous():
        words.append(f"strides={'x'.join(map(str, sample.stride()))}")
    words += ["bias"] * bias + ["no-input-gradient"] * (not input_gradient)
    return " ".join(words + ([f"block={block[0]}x{block[1]}"] if block else []))


def pattern(mask: Tensor, layouts: Mapping[str, Layout]) -> str:
    """What of a mask the time depends on, coarsely: how much is stored, and in how many of its rows and columns."""
    matrix = matrix_view(mask)
    used = [float(matrix.any(axis).float().mean()) if matrix.numel() else 0.0 for axis in (1, 0)]
    shares = [stored_values(layout) / max(layout.numel, 1) for layout in layouts.values() if layout.kind != "dense"]
    shares += [float(mask.sum()) / max(mask.numel(), 1)]
    buckets = [round(math.log(share) / BUCKET) if share > 0 else None for share in shares]
    densities = "/".join("0" if bucket is None else f"{math.exp(bucket * BUCKET):.4f}" for bucket in buckets)
    return f" density={densities} rows={used[0]:.1f} columns={used[1]:.1f}"


def order_of(channels_last: bool) -> str:
    """Of blocks, in a key of the cache; nothing for the order of a contiguous weight."""
    return " channels_last" if channels_last else ""
