"""How long a layer takes in each layout, pass by pass, against dense torch in the same process.

The candidates take turns in rounds, so that whatever slows the machine for a while slows all of them; medians are
kept, with what they are uncertain by. Rounds go on while two candidates are closer than that. ``ops.timers`` has the
clocks: processors' for the CPU, events on the device for a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.formats import Layout
from lth_sparse.ops import functional
from lth_sparse.ops.timers import timer_for, turns

__all__ = ["BUDGET", "MASKED", "PASSES", "TORCH", "Timing", "dense_call", "interleave", "measure"]

#: Names of the yardsticks among the candidates: dense torch before pruning, and with its weight masked in each call.
TORCH, MASKED = "torch", "masked"

#: forward: without gradients. backward_input, backward_weight: that gradient alone (the bias goes with the weight).
#: training: forward and all gradients, which kernels may compute together for less than the sum.
PASSES = ("forward", "backward_input", "backward_weight", "training")

#: A candidate is run for about so many seconds, at least so often, and up to so many times that budget while undecided.
BUDGET, ROUNDS, PATIENCE = 0.04, 5, 4


@dataclass(frozen=True)
class Timing:
    """Median seconds of one call of a layer.

    Attributes:
        forward: forward pass without gradients.
        training: forward pass plus gradients of input (where it needs one), weight and bias.
        backward_input, backward_weight: one gradient alone; None when not measured, or not needed.
        noise: standard error of ``training`` over itself.
    """

    forward: float
    training: float
    backward_input: float | None = None
    backward_weight: float | None = None
    noise: float = 0.0

    @property
    def backward(self) -> float:
        """Seconds of all gradients together, by difference."""
        return max(self.training - self.forward, 0.0)

    def of(self, which: str) -> float | None:
        """Seconds of one of ``PASSES``."""
        seconds: float | None = getattr(self, which)
        return seconds

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timing:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: anything but positive seconds, whatever a file may hold.
        """
        fields = ("forward", "training", "backward_input", "backward_weight", "noise")
        if not isinstance(values, Mapping) or set(values) != set(fields):
            raise ValueError("not a timing")
        for name in fields:
            value, least = values[name], 0.0 if name == "noise" else 1e-12
            if value is None and name.startswith("backward"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < 1e9:
                raise ValueError(f"{name} is no time")
        return cls(**{name: values[name] for name in fields})


def measure(
    weight: Tensor,
    layouts: Mapping[str, Layout],
    sample: Tensor,
    bias: Tensor | None = None,
    conv: Mapping[str, Any] | None = None,
    *,
    mask: Tensor | None = None,
    passes: Sequence[str] = ("forward", "training"),
    input_gradient: bool = True,
    budget: float = BUDGET,
    rounds: int = ROUNDS,
    patience: int = PATIENCE,
) -> dict[str, Timing]:
    """Times of each layout and of dense torch (key ``"torch"``), taking turns in one process.

    Neither gradients nor the random state of the caller are touched.

    Args:
        weight, sample, bias, conv: as in :func:`lth_sparse.ops.plan.choose_layout`.
        layouts: any names; what a layout is decides how it runs.
        mask: when given, dense torch with ``weight * mask`` in each call is timed too (key ``"masked"``).
        passes: some of ``PASSES``; ``"forward"`` and ``"training"`` always.
        input_gradient: False for a layer whose input needs no gradient, such as a network's first.
        budget, rounds: seconds for each pass of a candidate, and least number of rounds.
        patience: how many times the budget may be spent on the training step while the fastest layout is not known.
    """
    conv = dict(conv or {})
    x, dense = sample.detach(), weight.detach()
    leaves: dict[str, Tensor] = {TORCH: dense}
    calls: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {TORCH: dense_call(conv)}
    if mask is not None:
        keep, plain = mask.to(weight.dtype), calls[TORCH]
        leaves[MASKED] = dense
        calls[MASKED] = lambda x, w, b: plain(x, w * keep, b)
    for name, layout in layouts.items():
        leaves[name] = layout.gather(dense)
        calls[name] = _sparse_call(layout, conv)
    wanted = [which for which in PASSES if which in passes or which in ("forward", "training")]
    if not input_gradient:
        wanted = [which for which in wanted if which != "backward_input"]
    medians: dict[str, dict[str, float]] = {name: {} for name in calls}
    for which in wanted:
        with torch.enable_grad():
            runs = {name: _run_of(which, calls[name], x, leaves[name], bias, input_gradient) for name in calls}
            # What is decided by the outcome is worth repeating: the training step of ours.
            rivals = list(layouts) if which == "training" else []
            samples = interleave(runs, x.device, rivals, budget, rounds, patience)
        for name, seconds in samples.items():
            medians[name][which] = statistics.median(seconds)
            if which == "training":
                medians[name]["noise"] = _standard_error(seconds) / medians[name][which]
    return {name: Timing(**found) for name, found in medians.items()}


def _run_of(
    which: str,
    call: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_gradient: bool,
) -> Callable[[], object]:
    """The function to time for one pass. Leaves are made for each: what needs no gradient must not ask for one."""

    def leaf(tensor: Tensor, needed: bool) -> Tensor:
        return tensor.detach().clone().requires_grad_(needed)

    if which == "forward":

        def infer() -> Tensor:
            with torch.no_grad():
                return call(x, weight, bias)

        return infer
    by_input, by_weight = which != "backward_weight" and input_gradient, which != "backward_input"
    x, weight = leaf(x, by_input), leaf(weight, by_weight)
    bias = None if bias is None else leaf(bias, by_weight)
    wanted = [tensor for tensor in (x, weight, bias) if tensor is not None and tensor.requires_grad]
    y = call(x, weight, bias)
    # Not ones: a GPU multiplies those with less power, and so faster, than what a network sends back.
    grad = torch.empty_like(y.detach()).normal_(generator=torch.Generator(x.device).manual_seed(0))
    if which == "training":
        return lambda: torch.autograd.grad(call(x, weight, bias), wanted, grad)
    return lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)


def interleave(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    rivals: Sequence[str] = (),
    budget: float = BUDGET,
    least: int = ROUNDS,
    patience: int = PATIENCE,
    spaced: bool = True,
    untimed: int = 0,
) -> dict[str, list[float]]:
    """Seconds of one call, per candidate as many as there were rounds; sample i of all is from round i.

    Runs until each had ``budget`` seconds and ``least`` rounds, and on, up to ``patience`` times that, while two of
    the ``rivals`` cannot be told apart. Every round has an order of its own, see :func:`lth_sparse.ops.timers.turns`.
    ``spaced``: disturb the caches before short calls. ``untimed``: calls before each that is timed.
    """
    timer = timer_for(device, spaced)
    for name, run in runs.items():
        timer.warm(name, run)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    with closing(turns(runs)) as rounds:
        for done, order in enumerate(rounds, 1):
            for name in order:
                for _ in range(untimed):
                    runs[name]()
                seconds[name].append(timer.sample(name, runs[name]))
            spent = (time.perf_counter() - begin) / len(runs)
            if done < least or spent < budget:
                continue
            if spent >= patience * budget or _told_apart([seconds[name] for name in rivals]):
                break
    return seconds


def _standard_error(values: Sequence[float]) -> float:
    """Of the median, from the median absolute deviation: outliers are the machine's business."""
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return 1.2533 * 1.4826 * deviation / len(values) ** 0.5


def _told_apart(candidates: Sequence[Sequence[float]], closest: float = 0.003) -> bool:
    """Whether the fastest candidate is known: by pairs within a round, to three standard errors or to 0.3%."""
    if len(candidates) < 2:
        return True
    fastest = min(candidates, key=statistics.median)
    for other in candidates:
        if other is fastest:
            continue
        ratios = [theirs / ours for theirs, ours in zip(other, fastest, strict=True)]
        error = _standard_error(ratios)
        if error > closest and abs(statistics.median(ratios) - 1.0) < 3.0 * error:
            return False
    return True


def dense_call(conv: Mapping[str, Any]) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Dense torch as a function of x, weight and bias: what the layer costs before it is pruned."""

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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

    return call


def _sparse_call(layout: Layout, conv: Mapping[str, Any]) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    if len(layout.shape) == 2:
        return lambda x, values, bias: functional.linear(x, values, layout, bias)
    operator = functional.conv1d if len(layout.shape) == 3 else functional.conv2d
    return lambda x, values, bias: operator(x, values, layout, bias, **conv)
