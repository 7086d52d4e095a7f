"""Which layout a layer should have, so that no layer gets slower by being sparse.

Measured when a sample of the layer's input is given: the candidates and dense torch run interleaved in this process,
on the layer's own shapes and mask, and medians decide. Without a sample the density below which the kernels won on
the shapes of ``benchmarks/`` decides, and the choice carries no speed-up, since none was measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import LAYOUTS, Layout, make_layout
from lth_sparse.ops import functional
from lth_sparse.ops.backend import backend_of

__all__ = ["Choice", "Timing", "choose_layout", "measure"]

#: Density up to which CSR is taken without a measurement, by the number of dimensions of the weight: the break-even
#: points with the dense layout that ``benchmarks/`` found (forward plus all gradients), a little below them for safety.
BREAK_EVEN = {2: 0.7, 3: 0.5, 4: 0.5}

#: The same for linear layers of at most so many weights: there the calls cost more than the arithmetic, and the dense
#: layout needs more of them.
SMALL, SMALL_BREAK_EVEN = 1 << 15, 0.9

#: A candidate is run for about this long, seconds, and at least this often.
BUDGET, ROUNDS = 0.04, 5


@dataclass(frozen=True)
class Timing:
    """Median seconds of one call.

    Attributes:
        forward: forward pass without gradients.
        training: forward pass plus gradients of input, weight and bias.
    """

    forward: float
    training: float

    @property
    def backward(self) -> float:
        """Seconds of the gradients alone, by difference."""
        return max(self.training - self.forward, 0.0)


@dataclass(frozen=True)
class Choice:
    """The layout chosen for a layer and why.

    Attributes:
        kind: ``"csr"``, ``"bsr"`` or ``"dense"``.
        block: block of a BSR layout, else None.
        speedup_forward: dense torch's forward time over ours; None when not measured.
        speedup_backward: the same for all gradients together.
        note: one short reason.
    """

    kind: str
    block: tuple[int, int] | None
    speedup_forward: float | None
    speedup_backward: float | None
    note: str


def choose_layout(
    weight: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    sample: Tensor | None = None,
    conv: Mapping[str, Any] | None = None,
    block: tuple[int, int] | None = None,
    kinds: tuple[str, ...] = ("csr", "dense"),
) -> Choice:
    """Choose the layout for one layer.

    Args:
        weight: dense weight, ``(out, in)`` or ``(out, in / groups, *kernel)``.
        mask: bool, shaped like ``weight``.
        bias: ``[out]`` or None.
        sample: an input of the layer; with it the choice is measured on the training step.
        conv: keyword arguments of ``functional.conv1d`` / ``conv2d`` (stride, padding, dilation, groups, padding_mode).
        block: with ``"bsr"`` among ``kinds``, its block.
        kinds: layouts to choose from.
    """
    for kind in kinds:
        if kind not in LAYOUTS:
            raise ArgumentError(expected("kinds", f"some of {', '.join(map(repr, LAYOUTS))}", repr(kind)))
    density = float(mask.sum()) / max(mask.numel(), 1)
    if density == 1:
        return Choice("dense", None, None, None, "nothing pruned")
    layouts = {kind: _layout(kind, mask, block) for kind in kinds}
    about = (weight.device, weight.dtype, weight.dim())
    fast = [kind for kind in kinds if kind != "dense" and backend_of(kind, *about) != "reference"]
    if not fast:
        return Choice("dense", None, None, None, f"no kernel for {weight.dtype} on {weight.device.type}")
    if sample is None:
        small = weight.dim() == 2 and weight.numel() <= SMALL
        kind = fast[0] if density <= (SMALL_BREAK_EVEN if small else BREAK_EVEN[weight.dim()]) else "dense"
        return Choice(kind, block if kind == "bsr" else None, None, None, "by density, not measured")
    timings = measure(weight, {kind: layouts[kind] for kind in (*fast, "dense") if kind in layouts}, sample, bias, conv)
    best = min((kind for kind in timings if kind != "torch"), key=lambda kind: timings[kind].training)
    dense, chosen = timings["torch"], timings[best]
    note = "measured" if best != "dense" else "measured: no kernel beats dense here"
    ratios = (dense.forward / chosen.forward, dense.backward / chosen.backward if chosen.backward else None)
    return Choice(best, block if best == "bsr" else None, *ratios, note)


def measure(
    weight: Tensor,
    layouts: Mapping[str, Layout],
    sample: Tensor,
    bias: Tensor | None = None,
    conv: Mapping[str, Any] | None = None,
) -> dict[str, Timing]:
    """Median times of each layout and of dense torch (key ``"torch"``), interleaved in one process.

    Args as in :func:`choose_layout`; neither gradients nor the random state of the caller are touched.
    """
    conv = dict(conv or {})
    x = sample.detach().clone().requires_grad_()
    dense = weight.detach().clone().requires_grad_()
    b = None if bias is None else bias.detach().clone().requires_grad_()
    calls: dict[str, Callable[[], Tensor]] = {"torch": lambda: _dense(x, dense, b, conv)}
    leaves: dict[str, list[Tensor]] = {"torch": [dense]}
    for kind, layout in layouts.items():
        values = layout.gather(weight.detach()).clone().requires_grad_()
        calls[kind] = _sparse_call(x, values, layout, b, conv)
        leaves[kind] = [values]
    grad = torch.ones_like(calls["torch"]().detach())

    def train(kind: str) -> None:
        inputs = [x, *leaves[kind], *([] if b is None else [b])]
        torch.autograd.grad(calls[kind](), inputs, grad)

    def infer(kind: str) -> None:
        with torch.no_grad():
            calls[kind]()

    with torch.enable_grad():
        kinds = list(calls)
        forward, training = _interleaved(infer, kinds, x.device), _interleaved(train, kinds, x.device)
    return {kind: Timing(forward[kind], training[kind]) for kind in calls}


def _interleaved(run: Callable[[str], None], kinds: list[str], device: torch.device) -> dict[str, float]:
    """Median seconds of ``run(kind)``; the kinds take turns, so that drift of the machine's speed hits all alike."""

    def finish() -> None:
        if device.type == "cuda":  # a call returns before the device is done
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:  # warm up: page faults, code caches, thread pools, compilation
        run(kind)
    finish()
    started = time.perf_counter()
    while len(seconds[kinds[-1]]) < ROUNDS or time.perf_counter() - started < BUDGET * len(kinds):
        for kind in kinds:
            begin = time.perf_counter()
            run(kind)
            finish()
            seconds[kind].append(time.perf_counter() - begin)
    return {kind: statistics.median(times) for kind, times in seconds.items()}


def _layout(kind: str, mask: Tensor, block: tuple[int, int] | None) -> Layout:
    if kind == "bsr":
        return make_layout(kind, mask, block=block, cover="zeros")
    layout = make_layout(kind, mask)
    return layout.narrow() if kind == "csr" and mask.device.type == "cpu" else layout  # type: ignore[attr-defined]


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, conv: dict[str, Any]) -> Tensor:
    """Dense torch over the unmasked weight: what the layer cost before it was pruned."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    spatial = weight.dim() - 2
    shared = {key: value for key, value in conv.items() if key != "padding_mode"}
    if conv.get("padding_mode", "zeros") != "zeros":
        sides = functional.padding_sides(
            shared.pop("padding", 0),
            weight.shape[2:],
            functional.sizes("dilation", conv.get("dilation", 1), spatial, 1),
        )
        x = F.pad(x, [size for pair in reversed(sides) for size in pair], mode=conv["padding_mode"])
    return (F.conv1d if spatial == 1 else F.conv2d)(x, weight, bias, **shared)


def _sparse_call(
    x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None, conv: dict[str, Any]
) -> Callable[[], Tensor]:
    if len(layout.shape) == 2:
        return lambda: functional.linear(x, values, layout, bias)
    operator = functional.conv1d if len(layout.shape) == 3 else functional.conv2d
    return lambda: operator(x, values, layout, bias, **conv)
