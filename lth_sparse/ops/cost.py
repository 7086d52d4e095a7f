"""A cost model: the time of a layer in a layout, predicted from its sizes, calibrated on this machine in seconds.

    t = c0 + c1 stored P + c2 stored + c3 inputs + c4 outputs + c5 numel + c6 [stored > 4 MiB] + c7 [stored > 32 MiB]

with P the output positions (batch, for a convolution times the pixels), stored the values that are multiplied (all of
them in dense torch and the dense layout), inputs and outputs the elements of both activations, numel those of the
dense weight. The terms are the call, the arithmetic, reading the weight, packing, unpacking, rows and columns, weights
that no near cache holds, and fresh pages for allocations that the C library returns to the system each time; a bracket
stands for ``stored``, or zero below that size. One set of non-negative coefficients for each kind, pass and family of
operators, by least squares over the relative errors of a few shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lth_sparse.formats import Layout
from lth_sparse.formats.layout import from_tap_matrix
from lth_sparse.ops import functional
from lth_sparse.ops.measure import PASSES, TORCH, Timing, measure
from lth_sparse.ops.schemas import conv_output_size

__all__ = [
    "CALIBRATION",
    "Sizes",
    "calibrate",
    "coefficients_from",
    "family",
    "fit",
    "predict",
    "random_mask",
    "sizes_of",
]

#: What one kind costs: pass -> coefficients.
Coefficients = dict[str, tuple[float, ...]]

#: Bytes of weights that a core's own caches no longer hold, and of an allocation that the C library gives back to the
#: system, so that each call pays for fresh pages.
FAR, FRESH_PAGES = 1 << 22, 1 << 25

#: Shapes of the calibration by family: (weight, batch, image side, stride). They span what layers look like, not more.
CALIBRATION: dict[str, tuple[tuple[tuple[int, ...], int, int, int], ...]] = {
    "linear": (
        ((32, 64), 16, 0, 1),
        ((64, 256), 64, 0, 1),
        ((320, 640), 64, 0, 1),
        ((768, 1024), 256, 0, 1),
        ((1536, 768), 32, 0, 1),
        ((256, 2048), 128, 0, 1),
        ((1024, 2048), 1, 0, 1),
        ((2112, 4096), 8, 0, 1),
    ),
    "conv": (
        ((16, 8, 3, 3), 4, 10, 1),
        ((64, 64, 3, 3), 8, 16, 1),
        ((128, 128, 3, 3), 12, 8, 1),
        ((256, 256, 3, 3), 12, 4, 1),
        ((192, 192, 1, 1), 8, 14, 1),
        ((64, 16, 5, 5), 8, 14, 1),
    ),
    "strided conv": (
        ((16, 8, 3, 3), 4, 12, 2),
        ((64, 64, 3, 3), 8, 16, 2),
        ((192, 96, 3, 3), 12, 8, 2),
        ((128, 128, 1, 1), 12, 14, 2),
    ),
}
DENSITIES = (0.1, 0.35, 0.8)
#: The same for a weight of 32 MiB and more: so high that the stored values are as large.
HEAVY_DENSITY = 0.98
#: A calibration spends so many seconds on each pass of a candidate, and so many rounds at least.
BUDGET, ROUNDS = 0.006, 3


@dataclass(frozen=True)
class Sizes:
    """What the cost of a layer depends on, apart from its layout.

    Attributes:
        positions: outputs per output channel: batch times output pixels.
        inputs, outputs: elements of the activations.
        numel: elements of the dense weight. itemsize: bytes of an element.
    """

    positions: int
    inputs: int
    outputs: int
    numel: int
    itemsize: int

    def terms(self, stored: float) -> tuple[float, ...]:
        """The factors of the coefficients for a layout with ``stored`` values, in millions where they count things."""
        far, fresh = (stored if stored * self.itemsize >= size else 0.0 for size in (FAR, FRESH_PAGES))
        counts = (stored * self.positions, stored, self.inputs, self.outputs, self.numel, far, fresh)
        return (1.0, *(count * 1e-6 for count in counts))


def family(dims: int, conv: Mapping[str, Any] | None) -> str:
    """Which calibration speaks for an operator: ``"linear"``, ``"conv"`` or ``"strided conv"``."""
    if dims == 2:
        return "linear"
    strides = functional.sizes("stride", (conv or {}).get("stride", 1), dims - 2, 1)
    return "conv" if all(step == 1 for step in strides) else "strided conv"


def sizes_of(
    shape: Sequence[int], input_shape: Sequence[int], itemsize: int, conv: Mapping[str, Any] | None = None
) -> Sizes:
    """Sizes of a layer with a weight of ``shape`` on inputs of ``input_shape``, with or without a batch dimension."""
    numel, inputs = math.prod(shape), math.prod(input_shape)
    if len(shape) == 2:
        positions = inputs // max(shape[1], 1)
    else:
        options, spatial = dict(conv or {}), len(shape) - 2
        kernel, images = shape[2:], math.prod(input_shape[: len(input_shape) - spatial - 1])
        strides = functional.sizes("stride", options.get("stride", 1), spatial, 1)
        dilations = functional.sizes("dilation", options.get("dilation", 1), spatial, 1)
        sides = functional.padding_sides(options.get("padding", 0), kernel, dilations)
        pixels = [
            conv_output_size(size + sum(around), k, step, 0, reach)
            for size, around, k, step, reach in zip(
                input_shape[-spatial:], sides, kernel, strides, dilations, strict=True
            )
        ]
        positions = images * math.prod(pixels)
    return Sizes(positions, inputs, positions * shape[0], numel, itemsize)


def fit(rows: Sequence[tuple[Sequence[float], float]]) -> tuple[float, ...]:
    """Non-negative coefficients that minimise the sum of squared relative errors over ``(terms, seconds)``."""
    matrix = torch.tensor([[term / seconds for term in terms] for terms, seconds in rows], dtype=torch.float64)
    scale = matrix.norm(dim=0).clamp_min(1e-30)
    matrix = matrix / scale
    gram, target = (matrix.T @ matrix).tolist(), matrix.sum(0).tolist()
    count = len(target)
    found = [0.0] * count
    for _ in range(3000):  # coordinate descent: convex, and of the size of a handkerchief
        moved = 0.0
        for i in range(count):
            rest = sum(gram[i][j] * found[j] for j in range(count) if j != i)
            value = max(0.0, (target[i] - rest) / gram[i][i]) if gram[i][i] > 1e-12 else 0.0
            moved, found[i] = max(moved, abs(value - found[i])), value
        if moved < 1e-9:
            break
    return tuple(value / float(size) for value, size in zip(found, scale.tolist(), strict=True))


def predict(coefficients: Coefficients, sizes: Sizes, stored: float, input_gradient: bool = True) -> Timing:
    """Seconds of every pass of a layer that stores so many values; without one for the input where it needs none."""
    terms = sizes.terms(stored)
    seconds = {
        which: max(sum(c * term for c, term in zip(weights, terms, strict=True)), 1e-9)
        for which, weights in coefficients.items()
    }
    if input_gradient:
        return Timing(**seconds)
    forward, weight = seconds["forward"], seconds["backward_weight"]
    return Timing(forward, min(forward + weight, seconds["training"]), None, weight)


def coefficients_from(value: Any) -> Coefficients:
    """Coefficients as JSON gives them back.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(value, dict) or set(value) != set(PASSES):
        raise ValueError("not a calibration")
    count = len(Sizes(1, 1, 1, 1, 4).terms(1.0))
    for weights in value.values():
        if not isinstance(weights, list) or len(weights) != count:
            raise ValueError("not a calibration of this version")
        if not all(isinstance(c, (int, float)) and not isinstance(c, bool) and 0.0 <= c < 1e9 for c in weights):
            raise ValueError("a coefficient is no number")
    return {which: tuple(map(float, weights)) for which, weights in value.items()}


def calibrate(
    family_name: str,
    kinds: Sequence[str],
    make: Callable[[str, Tensor], Layout],
    dtype: torch.dtype,
    device: torch.device,
    block: tuple[int, int] | None = None,
    channels_last: bool = False,
) -> dict[str, Coefficients]:
    """Measure the family's shapes in this process; coefficients of dense torch (``"torch"``) and each kind. Seconds.

    Args:
        kinds: layouts to calibrate. make: layout of a kind for a mask.
        block: with it masks consist of such blocks, as a kind with blocks wants them.
        channels_last: they are blocks of channels_last weights, and so are the images channels_last.
    """
    rows: dict[tuple[str, str], list[tuple[Sequence[float], float]]] = {}
    generator = torch.Generator().manual_seed(0)
    for shape, batch, side, stride in CALIBRATION[family_name]:
        conv = None if len(shape) == 2 else {"stride": stride, "padding": shape[-1] // 2}
        input_shape = (batch, shape[1]) if conv is None else (batch, shape[1], side, side)
        weight = torch.randn(shape, generator=generator).to(device, dtype)
        x = torch.randn(input_shape, generator=generator).to(device, dtype)
        if channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        bias = torch.zeros(shape[0], device=device, dtype=dtype)
        sizes = sizes_of(shape, input_shape, weight.element_size(), conv)
        heavy = sizes.numel * sizes.itemsize >= FRESH_PAGES
        layouts: dict[str, Layout] = {}
        for density in (HEAVY_DENSITY,) if heavy else DENSITIES:
            mask = random_mask(shape, density, block, generator, channels_last).to(device)
            for kind in kinds:
                if kind != "dense" or density in (HEAVY_DENSITY, DENSITIES[1]):  # about the same at any density
                    layouts[f"{kind} {density}"] = make(kind, mask)
        timings = measure(
            weight, layouts, x, bias, conv, passes=PASSES, budget=BUDGET, rounds=2 if heavy else ROUNDS, patience=1
        )
        for name, timing in timings.items():
            layout = layouts.get(name)
            stored = sizes.numel if layout is None or layout.kind == "dense" else math.prod(layout.values_shape)
            for which in PASSES:
                seconds = timing.of(which)
                assert seconds is not None  # all passes were asked for
                rows.setdefault((name.split()[0], which), []).append((sizes.terms(stored), seconds))
    return {name: {which: fit(rows[name, which]) for which in PASSES} for name in (TORCH, *kinds)}


def random_mask(
    shape: Sequence[int],
    density: float,
    block: tuple[int, int] | None,
    generator: torch.Generator,
    channels_last: bool = False,
) -> Tensor:
    """Bool mask with exactly round(density x n) kept, uniformly at random: of weights, or of blocks of the matrix; with
    ``channels_last``, of the matrix of the channels_last weight."""
    rows, cols = shape[0], math.prod(shape[1:])
    height, width = block or (1, 1)
    by_tap = channels_last and block is not None and len(shape) > 2
    if by_tap:
        cols = math.prod(shape[2:]) * -(-shape[1] // width) * width
    grid = (-(-rows // height), -(-cols // width))
    kept = torch.zeros(grid[0] * grid[1], dtype=torch.bool, device=generator.device)
    order = torch.randperm(kept.numel(), generator=generator, device=generator.device)  # which may be a GPU
    kept[order[: round(density * kept.numel())]] = True
    if block is None:
        return kept.view(*shape)
    full = kept.view(grid).repeat_interleave(height, 0).repeat_interleave(width, 1)
    if by_tap:
        return from_tap_matrix(full[:rows], tuple(shape), width)
    return full[:rows, :cols].reshape(*shape).contiguous()
