"""Which layout a layer should have, so that no layer gets slower by being sparse.

With a sample of the layer's input the candidates and dense torch run interleaved in this process, on the layer's own
shapes and mask, and medians decide; what was measured is remembered on disk (``ops.plan_cache``). With the shape of
the input alone, a cost model decides that was calibrated on this machine (``ops.cost``; it describes CPUs, for which
alone it is asked). With neither, the density below which the kernels won on the shapes of ``benchmarks/`` decides:
nothing is measured then and no cache is looked at, so the same mask gets the same layout in every run. That is what the
search for a ticket uses, which has to resume bit for bit. Only measured choices carry speed-ups.

On a GPU no such density was measured yet. Without a sample a layer stays dense there, unless its blocks are so few that
the limits derived from the hardware's rates (``GPU_BLOCK_BREAK_EVEN``) leave no doubt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import BLOCKED, BSR, LAYOUTS, Layout, Reordered, Reordering, make_layout
from lth_sparse.ops import cost
from lth_sparse.ops.backend import backend_of, is_pointwise
from lth_sparse.ops.candidates import block_candidates
from lth_sparse.ops.gpu_limits import gpu_break_even
from lth_sparse.ops.measure import MASKED, TORCH, Timing, measure
from lth_sparse.ops.plan_cache import PlanCache
from lth_sparse.ops.plan_keys import order_of, pattern, signature, stored_values

__all__ = [
    "Choice",
    "Timing",
    "choose_layout",
    "fast_kinds",
    "layout_of",
    "measure",
    "order_of",
    "predict",
    "remembered",
    "signature",
]

#: Density up to which a sparse layout is taken without a measurement, by the number of dimensions of the weight: the
#: break-even points with the dense layout that ``benchmarks/`` found (forward plus all gradients), a little below them.
BREAK_EVEN = {2: 0.6, 3: 0.6, 4: 0.6}

#: The same for linear layers of at most so many weights: there the calls cost more than the arithmetic, and the dense
#: layout needs more of them.
SMALL_BREAK_EVEN = {1 << 12: 1.0, 1 << 15: 0.95, 1 << 18: 0.7}

#: Without a measurement BSR is preferred to CSR for blocks of at least so many rows (it is rows that share what the
#: kernels load), if it stores at most so many values for each of CSR's.
LEAST_ROWS, MOST_PADDING = 4, 1.25

#: A sparse layout must be faster than the dense one by this share of its time: a tie goes to the dense layout, which
#: has no worst case. Measured, and predicted, where the error of the model is added.
TIE, MODEL_TIE = 0.02, 0.2

#: Slower than masked dense by more than this, the choice says so.
TOLERANCE = 0.03


@dataclass(frozen=True)
class Choice:
    """The layout chosen for a layer and why.

    Attributes:
        kind: ``"csr"``, ``"bsr"``, ``"reordered"`` or ``"dense"``; ``"2:4"`` only where it was asked for.
        block: of a layout in blocks, else None.
        speedup_forward: dense torch's forward time over ours; None when not measured.
        speedup_backward: the same for all gradients together.
        note: one short reason.
        over_masked: our training step's time over that of dense torch with ``weight * mask`` in each call; None when
            not measured.
        order: of rows and columns, for ``"reordered"``.
        searched: the blocks are ones that ``search`` found, with pruned weights kept as padding.
    """

    kind: str
    block: tuple[int, int] | None
    speedup_forward: float | None
    speedup_backward: float | None
    note: str
    over_masked: float | None = None
    order: Reordering | None = None
    searched: bool = False


def choose_layout(
    weight: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    sample: Tensor | None = None,
    input_shape: Sequence[int] | None = None,
    input_gradient: bool = True,
    conv: Mapping[str, Any] | None = None,
    block: tuple[int, int] | None = None,
    kinds: tuple[str, ...] = ("csr", "dense"),
    break_even: float | None = None,
    channels_last: bool = False,
    search: bool = False,
) -> Choice:
    """Choose the layout for one layer.

    Without ``sample`` and ``input_shape`` the choice follows from the arguments alone: nothing is measured or read.

    Args:
        weight: dense weight, ``(out, in)`` or ``(out, in / groups, *kernel)``.
        mask: bool, shaped like ``weight``.
        bias: ``[out]`` or None.
        sample: an input of the layer; with it the choice is measured on the training step.
        input_shape: shape of an input, where there is no sample: with it the cost model decides.
        input_gradient: False when the layer's input needs no gradient in training.
        conv: keyword arguments of ``functional.conv1d`` / ``conv2d`` (stride, padding, dilation, groups, padding_mode).
        block: with ``"bsr"`` among ``kinds``, its block.
        kinds: layouts to choose from.
        break_even: density up to which a sparse layout is taken where neither sample nor shape is given.
        channels_last: the blocks are those of a channels_last weight.
        search: with ``sample``, time other blocks as well where the mask may have full ones: column vectors, and
            blocks after reordering (:mod:`lth_sparse.ops.candidates`).
    """
    for kind in kinds:
        if kind not in LAYOUTS:
            raise ArgumentError(expected("kinds", f"some of {', '.join(map(repr, LAYOUTS))}", repr(kind)))
    density = float(mask.sum()) / max(mask.numel(), 1)
    if density == 1:
        return Choice("dense", None, None, None, "nothing pruned")
    groups = (conv or {}).get("groups", 1)
    channels_last = channels_last and weight.dim() > 2
    fast = fast_kinds(kinds, weight, groups=groups, channels_last=channels_last)
    if not fast:
        return Choice("dense", None, None, None, f"no kernel for {weight.dtype} on {weight.device.type}")
    if sample is None and input_shape is None and not fast_kinds(fast, weight, True, groups, channels_last):
        note = f"not measured, and no kernel for the gradients in {weight.dtype} on {weight.device.type}"
        return Choice("dense", None, None, None, note)
    layouts = {kind: layout_of(kind, mask, block, channels_last) for kind in (*fast, "dense") if kind in kinds}
    if sample is not None:
        extra = block_candidates(mask, groups) if search and _backend("bsr", weight, False) != "reference" else {}
        layouts |= {name: layout for name, layout in extra.items() if not _alike(layout, layouts.get("bsr"))}
        return _by_sample(weight, mask, layouts, bias, sample, input_gradient, conv, block)
    if weight.device.type == "cuda":
        return _by_limits(weight, layouts, block, break_even)
    if input_shape is not None:
        return _by_model(weight, layouts, input_shape, input_gradient, conv, block)
    return _by_density(weight, layouts, block, break_even)


def fast_kinds(
    kinds: Iterable[str], weight: Tensor, gradients: bool = False, groups: int = 1, channels_last: bool = False
) -> list[str]:
    """Those of the sparse ``kinds`` whose forward pass, or whose gradients, a kernel runs for this weight."""
    about = (weight, channels_last, gradients, groups)
    return [kind for kind in kinds if kind != "dense" and _backend(kind, *about) != "reference"]


def layout_of(kind: str, mask: Tensor, block: tuple[int, int] | None, channels_last: bool = False) -> Layout:
    """The layout as a layer would store it."""
    if kind in BLOCKED:
        return make_layout(kind, mask, block=block, cover="zeros", channels_last=channels_last)
    layout = make_layout(kind, mask)
    return layout.narrow() if kind == "csr" and mask.device.type == "cpu" else layout  # type: ignore[attr-defined]


def _break_even(kind: str, weight: Tensor) -> float:
    """Density up to which a layout of this kind is taken without a measurement."""
    small = [even for most, even in SMALL_BREAK_EVEN.items() if weight.dim() == 2 and weight.numel() <= most]
    return [*small, BREAK_EVEN[weight.dim()]][0]


def _by_density(
    weight: Tensor, layouts: Mapping[str, Layout], block: tuple[int, int] | None, break_even: float | None
) -> Choice:
    sparse = []
    for kind in layouts:
        most = (_break_even(kind, weight) if break_even is None else break_even) * weight.numel()
        if kind != "dense" and stored_values(layouts[kind]) <= most:
            sparse.append(kind)
    if "bsr" in sparse and "csr" in sparse and block is not None:
        padded = stored_values(layouts["bsr"]) > MOST_PADDING * stored_values(layouts["csr"])
        sparse.remove("bsr" if padded or block[0] < LEAST_ROWS else "csr")
    kind = sparse[0] if sparse else "dense"
    how = "by density, not measured" if break_even is None else f"by density, break-even at {break_even:.0%}"
    return Choice(kind, block if kind == "bsr" else None, None, None, how)


def _by_limits(
    weight: Tensor, layouts: Mapping[str, Layout], block: tuple[int, int] | None, break_even: float | None
) -> Choice:
    """On a GPU, unmeasured: what the user measured for CSR, blocks where derived limits leave no doubt, else dense."""
    if break_even is not None and "csr" in layouts:
        return _by_density(weight, layouts, block, break_even)
    if "dense" not in layouts:
        kind = next(iter(layouts))
        return Choice(kind, block if kind == "bsr" else None, None, None, "not measured on this GPU")
    if "bsr" in layouts and block is not None:
        even = gpu_break_even(weight, block)
        if stored_values(layouts["bsr"]) < even * weight.numel():
            return Choice("bsr", block, None, None, f"by limits derived for GPUs (density {even:g}), not measured")
    return Choice(
        "dense", None, None, None, "not measured on this GPU, and no derived limit clearly allows a sparse one"
    )


def _by_sample(
    weight: Tensor,
    mask: Tensor,
    layouts: Mapping[str, Layout],
    bias: Tensor | None,
    sample: Tensor,
    input_gradient: bool,
    conv: Mapping[str, Any] | None,
    block: tuple[int, int] | None,
) -> Choice:
    key = signature(weight, sample.shape, conv, block, bias is not None, input_gradient, sample)
    key += " " + "+".join(
        f"{name}:{_backend(layout.kind, weight, layout.channels_last)}" for name, layout in layouts.items()
    )
    key += pattern(mask, layouts) + order_of("bsr" in layouts and layouts["bsr"].channels_last)

    def run() -> dict[str, Timing]:
        return measure(weight, layouts, sample, bias, conv, mask=mask, input_gradient=input_gradient)

    timings = remembered(PlanCache.of(weight.device), key, (TORCH, MASKED, *layouts), run)
    best = _fastest(timings, [name for name in layouts if name in LAYOUTS], TIE)
    note = "measured" if best != "dense" or len(layouts) == 1 else "measured: no kernel beats dense here"
    if searched := [name for name in layouts if name not in LAYOUTS]:
        other = min(searched, key=lambda name: timings[name].training)
        gain = timings[best].training / timings[other].training
        if 1.0 - 1.0 / gain > max(TIE, _doubt(timings[other], timings[best])):
            note, best = f"measured, {gain:.2f}x {best}", other
    dense, masked, chosen = timings[TORCH], timings[MASKED], timings[best]
    over = chosen.training / masked.training
    if over > 1.0 + TOLERANCE:
        note += f", {100 * (over - 1):.0f}% over masked dense"
    ratios = (dense.forward / chosen.forward, dense.backward / chosen.backward if chosen.backward else None)
    layout = layouts[best]
    order = layout.order if isinstance(layout, Reordered) else None
    return Choice(
        layout.kind, layout.block if isinstance(layout, BSR) else None, *ratios, note, over, order, best not in LAYOUTS
    )


def _alike(layout: Layout, other: Layout | None) -> bool:
    """Whether both are BSR in the same blocks."""
    return (
        isinstance(other, BSR) and isinstance(layout, BSR) and (layout.kind, layout.block) == (other.kind, other.block)
    )


def _by_model(
    weight: Tensor,
    layouts: Mapping[str, Layout],
    input_shape: Sequence[int],
    input_gradient: bool,
    conv: Mapping[str, Any] | None,
    block: tuple[int, int] | None,
) -> Choice:
    stored = {kind: stored_values(layout) for kind, layout in layouts.items()}
    order = "bsr" in layouts and layouts["bsr"].channels_last
    timings = predict(weight, stored, input_shape, conv, block, input_gradient, order)
    best = _fastest(timings, layouts, MODEL_TIE)
    return Choice(best, block if best == "bsr" else None, None, None, "by the cost model, not measured")


def _fastest(timings: Mapping[str, Timing], kinds: Iterable[str], tie: float) -> str:
    """The kind with the shortest training step; ``"dense"``, where it is a candidate, unless clearly beaten."""
    best = min(kinds, key=lambda kind: timings[kind].training)
    if "dense" not in kinds or best == "dense":
        return best
    doubt = _doubt(timings[best], timings["dense"])
    gain = 1.0 - timings[best].training / timings["dense"].training
    return best if gain > max(tie, doubt) else "dense"


def _doubt(one: Timing, other: Timing) -> float:
    """By what share of their time two steps may seem to differ by chance."""
    return 2.0 * math.hypot(one.noise, other.noise)


def _backend(kind: str, weight: Tensor, channels_last: bool, gradients: bool = False, groups: int = 1) -> str:
    """What runs a layer of this weight."""
    shape, order = tuple(weight.shape), channels_last and kind == "bsr"
    more: dict[str, Any] = {"shape": shape, "pointwise": is_pointwise(shape, groups), "channels_last": order}
    return backend_of(kind, weight.device, weight.dtype, weight.dim(), gradients, **more)


def remembered(
    cache: PlanCache, key: str, names: Sequence[str], run: Callable[[], dict[str, Timing]]
) -> dict[str, Timing]:
    """The timings under ``key`` if the cache holds all ``names``; else those of ``run``, which are put there."""

    def read(value: Any) -> dict[str, Timing]:
        if not isinstance(value, dict) or set(value) != set(names):
            raise ValueError("not the timings asked for")
        return {name: Timing.from_dict(value[name]) for name in names}

    found = cache.get(key, read)
    if found is None:
        found = run()
        cache.put({key: {name: timing.to_dict() for name, timing in found.items()}})
    return found


#: Calibrations of this process, so that one is enough while the cache is off.
_CALIBRATED: dict[tuple[str, str], cost.Coefficients] = {}


def predict(
    weight: Tensor,
    stored: Mapping[str, float],
    input_shape: Sequence[int],
    conv: Mapping[str, Any] | None = None,
    block: tuple[int, int] | None = None,
    input_gradient: bool = True,
    channels_last: bool = False,
) -> dict[str, Timing]:
    """Times by the cost model: of dense torch (``"torch"``) and of each kind that stores so many values.

    The first call for a family of operators on a machine measures for some seconds. Without ``input_gradient`` the
    training step is the sum of its passes.

    Raises:
        ArgumentError: a weight on a GPU, which the model does not describe.
    """
    if weight.device.type != "cpu":
        raise ArgumentError(expected("weight", "a tensor on the CPU for the cost model", f"one on {weight.device}"))
    family = cost.family(weight.dim(), conv)
    sizes = cost.sizes_of(weight.shape, input_shape, weight.element_size(), conv)
    cache = PlanCache.of(weight.device)

    def key_of(kind: str) -> str:
        blocks = f" block={block[0]}x{block[1]}{order_of(channels_last)}" if kind == "bsr" and block else ""
        backend = "" if kind == TORCH else f" {_backend(kind, weight, channels_last and kind == 'bsr')}"
        return f"model {family} {kind}{backend} {str(weight.dtype).removeprefix('torch.')}{blocks}"

    def known(kind: str) -> cost.Coefficients | None:
        place = (str(cache.path), key_of(kind))
        if place not in _CALIBRATED:
            found = cache.get(place[1], cost.coefficients_from)
            if found is None:
                return None
            _CALIBRATED[place] = found
        return _CALIBRATED[place]

    kinds = [TORCH, *stored]
    missing = [kind for kind in kinds if known(kind) is None]
    if missing:
        layouts = [kind for kind in missing if kind != TORCH]
        blocks = block if "bsr" in layouts else None
        made = cost.calibrate(
            family,
            layouts,
            lambda kind, mask: layout_of(kind, mask, block, channels_last),
            weight.dtype,
            weight.device,
            blocks,
            channels_last,
        )
        cache.put({key_of(kind): made[kind] for kind in missing})
        _CALIBRATED.update({(str(cache.path), key_of(kind)): made[kind] for kind in missing})
    timings: dict[str, Timing] = {}
    for kind in kinds:
        coefficients = known(kind)
        assert coefficients is not None  # calibrated above
        timings[kind] = cost.predict(
            coefficients, sizes, sizes.numel if kind == TORCH else stored[kind], input_gradient
        )
    return timings
