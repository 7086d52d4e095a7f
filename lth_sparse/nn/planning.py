"""``plan``: before anything is pruned, how much each layer of a network would gain at which density.

Every layer is timed on the input that it receives, with random masks, beside dense torch; the densities are the ones
asked for and those that close in on the break-even point. The rest of the network is what its whole dense step takes
longer than its layers do. What was timed is remembered on disk, so the next call is instant.
"""

from __future__ import annotations

import copy
import hashlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.bsr import check_block
from lth_sparse.nn.base import SparseModule
from lth_sparse.nn.layers import DENSE_CLASSES
from lth_sparse.nn.masks import check_model
from lth_sparse.nn.plan_table import BOTTOM, TOP, LayerPlan, PlanTable, crossing, rising
from lth_sparse.nn.reparam import dense_type, dense_weight, refusal
from lth_sparse.nn.sample import call_model, conv_options, layer_inputs
from lth_sparse.ops import cost
from lth_sparse.ops import plan as choices
from lth_sparse.ops.measure import PASSES, TORCH, Timing, interleave, measure
from lth_sparse.ops.plan_cache import PlanCache, environment

__all__ = ["plan"]

DENSITIES = (0.5, 0.2, 0.1, 0.05)
#: Times are taken at up to so many further densities to find where a layer breaks even, until it is known to so much.
MOST_PROBES, CLOSE = 4, 0.05
#: Seconds for each pass of a candidate, and least rounds: the medians of ``ops.measure``, but there are many of them.
BUDGET, ROUNDS = 0.02, 3
#: The dense layout costs about the same at any density; it is timed at this one.
DENSE_AT = 0.5

#: Called with the share of the work that is done and what is being timed.
Progress = Callable[[float, str], None]


def plan(
    model: nn.Module,
    sample_input: Any,
    *,
    densities: Sequence[float] = DENSITIES,
    block: tuple[int, int] | None = None,
    measure: bool = True,
    progress: Progress | None = None,
    channels_last: bool = False,
) -> PlanTable:
    """Predict what pruning would gain: where each layer and pass breaks even with dense torch, and the speed-ups.

    The model is left as it is: gradients, statistics and random state are not touched. Threads are torch's.

    Args:
        model: dense, with Linear, Conv1d or Conv2d layers.
        sample_input: what to call it with (a tensor, a tuple of arguments, a mapping of keyword arguments).
        densities: shares of the weights kept, each in (0, 1).
        block: ``(rows, cols)``: plan for BSR too, with masks of such blocks.
        measure: False times no layer but asks the cost model, which is calibrated once on a machine, in seconds. It
            describes CPUs: a model on a GPU is always measured.
        progress: called now and then with the share of the work done, and words.
        channels_last: with ``block``, blocks of convolutions are those of a channels_last weight, see
            :class:`lth_sparse.formats.BSR`; give model and sample in that memory format, too. On a GPU only.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument; a model without layers that can become sparse, or one
            that does not take the sample or cannot be copied; ``channels_last`` without ``block``, or on a CPU.
    """
    check_model(model)
    wanted = _checked_densities(densities)
    if block is not None:
        check_block(block)
    elif channels_last:
        raise ArgumentError(expected("channels_last", "False without block", channels_last))
    modules = {name or type(module).__name__: module for name, module in model.named_modules() if _plannable(module)}
    if not modules:
        raise ArgumentError(expected("model", "Linear, Conv1d or Conv2d layers", "none that can become sparse"))
    report = progress or (lambda done, words: None)
    report(0.0, "network")
    inputs = layer_inputs(model, modules.values(), sample_input)
    reached = {name: module for name, module in modules.items() if id(module) in inputs}
    if not reached:
        raise ArgumentError(expected("sample_input", "an input that reaches the model's layers", "one that does not"))
    first = next(iter(reached.values()))
    device = dense_weight(first).device
    if device.type != "cpu" and not measure:
        raise ArgumentError(expected("measure", f"True for a model on {device}: the cost model is for CPUs", measure))
    if device.type == "cpu" and channels_last:
        what = "False for a model on a CPU, which has no kernels for blocks of channels_last weights"
        raise ArgumentError(expected("channels_last", what, channels_last))
    (step, overhead), calls = _network(model, sample_input, reached, PlanCache.of(device))
    work = {name: _work(module, inputs[id(module)]) for name, module in reached.items()}
    done, total = 0.0, sum(work.values())
    layers = []
    for name, module in modules.items():
        if name not in reached:
            layers.append(_row(name, module, 0, None, note="not reached by the sample"))
            continue

        def inside(share: float, name: str = name, before: float = done) -> None:
            report((before + share * work[name]) / total, name)

        inside(0.0)
        timer = _Layer(module, inputs[id(module)], block, measure, channels_last)
        layers.append(replace(timer.plan(name, calls[name], wanted, inside), overhead=overhead))
        done += work[name]
    report(1.0, "done")
    layouts = tuple(kind for kind in ("csr", "bsr") if any(kind in layer.sparse for layer in layers))
    return PlanTable(layers, wanted, layouts or ("csr",), block, step, measure, environment(device), channels_last)


class _Layer:
    """Times of one layer, from the cache, by measurement, or by the cost model."""

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        block: tuple[int, int] | None,
        measured: bool,
        channels_last: bool = False,
    ) -> None:
        self.module, self.block, self.measured = module, block, measured
        self.weight = dense_weight(module)
        self.channels_last = channels_last and self.weight.dim() > 2
        self.x, self.input_gradient = x.detach().to(self.weight.dtype), x.requires_grad
        bias = module._parameters["bias"]
        self.bias = None if bias is None else bias.detach()
        self.conv = conv_options(module)
        groups = (self.conv or {}).get("groups", 1)
        kinds = ("csr", *(["bsr"] if block else []))
        self.kinds = choices.fast_kinds(kinds, self.weight, False, groups, self.channels_last)
        self.cache = PlanCache.of(self.weight.device)
        #: (kind, density) -> (times, dense torch's beside them)
        self.found: dict[tuple[str, float], tuple[Timing, Timing]] = {}

    def plan(self, name: str, calls: int, densities: Sequence[float], inside: Callable[[float], None]) -> LayerPlan:
        """Time it at the densities, then close in on the break-even points."""
        if not self.kinds:
            note = f"no kernel for {self.weight.dtype} on {self.weight.device.type}"
            if self.block is None and choices.fast_kinds(("bsr",), self.weight):
                note += " but for blocks, which block=(rows, cols) plans for"
            self._time([("dense", DENSE_AT)])
            return _row(name, self.module, calls, self.found["dense", DENSE_AT][1], note=note)
        grid = densities if self.measured else sorted({*densities, *(i / 100 for i in range(1, 96))})
        self._time([("dense", DENSE_AT), *((kind, density) for kind in self.kinds for density in grid)])
        for number in range(MOST_PROBES if self.measured else 0):
            inside(0.6 + 0.4 * number / MOST_PROBES)
            probes = [(kind, density) for kind in self.kinds if (density := self._probe(kind)) is not None]
            if not probes:
                break
            self._time(probes)
        dense, base = self.found["dense", DENSE_AT]
        sparse: dict[str, dict[float, Timing]] = {kind: {} for kind in self.kinds}
        rivals: dict[str, dict[float, Timing]] = {kind: {} for kind in self.kinds}
        for (kind, density), (ours, theirs) in self.found.items():
            if kind != "dense":
                sparse[kind][density], rivals[kind][density] = ours, theirs
        return _row(name, self.module, calls, base, dense=dense, sparse=sparse, rivals=rivals)

    def _ratios(self, kind: str, which: str) -> dict[float, float]:
        return {
            density: ours / theirs
            for (found, density), timings in self.found.items()
            if found == kind and (ours := timings[0].of(which)) is not None and (theirs := timings[1].of(which))
        }

    def _probe(self, kind: str) -> float | None:
        """The density to time next, for the step first, against dense torch and against the dense layout, and then for
        each pass; None when all are known well enough."""
        steps = self._ratios(kind, "training")
        dense, base = self.found["dense", DENSE_AT]
        masked = {density: found * base.training / dense.training for density, found in steps.items()}
        passes = [(self._ratios(kind, which), 4 * CLOSE) for which in PASSES if which != "training"]
        for ratios, close in ((steps, CLOSE), (masked, CLOSE), *passes):
            if (density := next_density(ratios, close)) is not None:
                return density
        return None

    def _time(self, pairs: Sequence[tuple[str, float]]) -> None:
        """Fill ``found``; what is in no cache is measured together, dense torch once beside all."""
        if not self.measured:
            self._predict(pairs)
            return
        keys = {pair: self._key(*pair) for pair in pairs}
        missing: list[tuple[str, float]] = []
        for pair, key in keys.items():
            found = self.cache.get(key, _read_pair)
            if found is None:
                missing.append(pair)
            else:
                self.found[pair] = found
        if not missing:
            return
        layouts = {f"{kind} {density}": self._layout(kind, density) for kind, density in missing}
        timings = measure(
            self.weight, layouts, self.x, self.bias, self.conv, passes=PASSES, input_gradient=self.input_gradient,
            budget=BUDGET, rounds=ROUNDS, patience=1,
        )  # fmt: skip
        for kind, density in missing:
            self.found[kind, density] = timings[f"{kind} {density}"], timings[TORCH]
        self.cache.put({keys[pair]: [timing.to_dict() for timing in self.found[pair]] for pair in missing})

    def _predict(self, pairs: Sequence[tuple[str, float]]) -> None:
        options = (self.x.shape, self.conv, self.block, self.input_gradient)
        for kind, density in pairs:
            stored = self.weight.numel() * (1.0 if kind == "dense" else density)
            timings = choices.predict(self.weight, {kind: stored}, *options)
            self.found[kind, density] = timings[kind], timings[TORCH]

    def _layout(self, kind: str, density: float) -> Any:
        generator = torch.Generator().manual_seed(0)
        block = self.block if kind == "bsr" else None
        mask = cost.random_mask(self.weight.shape, density, block, generator, self.channels_last)
        return choices.layout_of(kind, mask.to(self.weight.device), self.block, self.channels_last)

    def _key(self, kind: str, density: float) -> str:
        block = self.block if kind == "bsr" else None
        about = (self.conv, block, self.bias is not None, self.input_gradient, self.x)
        order = kind == "bsr" and self.channels_last
        backend = choices.backend_of(
            kind, self.weight.device, self.weight.dtype, self.weight.dim(), channels_last=order
        )
        words = choices.signature(self.weight, self.x.shape, *about)
        return f"{words} {kind}:{backend} random density={density:.4f}{choices.order_of(order)}"


def next_density(ratios: Mapping[float, float], close: float) -> float | None:
    """Where to measure next to learn where ``{density: sparse time / dense time}`` crosses 1; None when that is known.

    Regula falsi, kept away from what is known already: a secant alone creeps towards a noisy point.
    """
    ratios = rising(ratios)
    densities = list(ratios)
    if not densities:
        return None
    low, high = densities[0], densities[-1]
    if ratios[high] <= 1.0:
        if high >= TOP:
            return None
        slope = (ratios[high] - ratios[low]) / (high - low) if high > low else 0.0
        guess = high + (1.0 - ratios[high]) / slope if slope > 0.0 else TOP
        return _rounded(min(max(guess, high + 0.05), TOP))
    if ratios[low] > 1.0:
        return None if low <= BOTTOM else _rounded(max(low / 3.0, BOTTOM))
    even = crossing(ratios)
    assert even is not None  # the lowest density wins
    low = max(density for density in densities if density <= even)
    high = min(density for density in densities if density > even)
    if high - low <= close or high <= low * (1.0 + close):
        return None
    return _rounded(min(max(even, low + 0.2 * (high - low)), high - 0.2 * (high - low)))


def _rounded(density: float) -> float:
    """Two digits, so that the next call asks the cache for the same densities although its clock differs."""
    return float(f"{density:.2g}")


def _read_pair(value: Any) -> tuple[Timing, Timing]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("not two timings")
    return Timing.from_dict(value[0]), Timing.from_dict(value[1])


def _plannable(module: nn.Module) -> bool:
    return not isinstance(module, SparseModule) and refusal(module, tuple(DENSE_CLASSES)) is None


def _row(name: str, module: nn.Module, calls: int, timing: Timing | None, **rest: Any) -> LayerPlan:
    weight = dense_weight(module)
    kind = dense_type(module).__name__
    return LayerPlan(name, kind, tuple(weight.shape), weight.numel(), calls, timing, **rest)


def _work(module: nn.Module, x: Tensor) -> float:
    """Multiplications, and a little for the calls themselves: what the time of measuring is about proportional to."""
    weight = dense_weight(module)
    sizes = cost.sizes_of(weight.shape, x.shape, weight.element_size(), conv_options(module))
    return float(sizes.numel * sizes.positions) + 1e8


def _network(
    model: nn.Module, sample_input: Any, modules: Mapping[str, nn.Module], cache: PlanCache
) -> tuple[tuple[float, float], dict[str, int]]:
    """Seconds of the dense network's training step and of autograd differentiating nothing; calls of each layer."""
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise ArgumentError(f"model: expected one that can be copied, but that raised: {error}") from error
    names = {id(module): name for name, module in model.named_modules()}
    calls = dict.fromkeys(modules, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [
        copied.get_submodule(names[id(module)]).register_forward_pre_hook(count(name))
        for name, module in modules.items()
    ]
    parameters = [parameter for parameter in copied.parameters() if parameter.requires_grad]
    place = dense_weight(next(iter(modules.values()))).device
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), torch.enable_grad():

        def step() -> None:
            outputs = [tensor for tensor in _tensors(call_model(copied, sample_input)) if tensor.requires_grad]
            if outputs and parameters:
                ones = [torch.ones_like(tensor) for tensor in outputs]
                torch.autograd.grad(outputs, parameters, ones, allow_unused=True)

        try:
            step()
        except Exception as error:
            what = "sample_input: expected an input that the model takes and differentiates, but it raised:"
            raise ArgumentError(f"{what} {error}") from error
        for handle in handles:
            handle.remove()
        key = f"network {_digest(copied, sample_input)}"
        found = cache.get(key, _read_seconds)
        if found is None:
            leaf, one = torch.zeros(1, device=place, requires_grad=True), torch.ones(1, device=place)
            # One after the other: a large network would disturb the caches more than the layers are when timed.
            nothing = {"nothing": lambda: torch.autograd.grad(leaf.view(1), leaf, one)}
            times = interleave({"step": step}, place, budget=5 * BUDGET, least=5, spaced=False)
            times |= interleave(nothing, place)
            found = statistics.median(times["step"]), statistics.median(times["nothing"])
            cache.put({key: list(found)})
    return found, calls


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a model returned."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def _digest(model: nn.Module, sample_input: Any) -> str:
    """Tells networks apart: modules with their options as they print, parameters, and the shapes of the sample."""
    # Strides where they say more than the shape, which also keeps what was timed before they were looked at.
    strides = [() if tensor.is_contiguous() else tensor.stride() for tensor in _tensors(sample_input)]
    samples = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in _tensors(sample_input)]
    samples += [str(steps) for steps in strides if steps]
    parameters = [f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in model.named_parameters()]
    text = "\n".join([type(model).__module__, repr(model), *samples, *parameters])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read_seconds(value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("not two times")
    for seconds in value:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0.0 < seconds < 1e9:
            raise ValueError("not a time")
    return float(value[0]), float(value[1])


def _checked_densities(densities: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(densities, (tuple, list)) or not densities:
        raise ArgumentTypeError(expected("densities", "a sequence of numbers", densities))
    for density in densities:
        if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0.0 < density < 1.0:
            raise ArgumentError(expected("densities", "numbers in (0, 1)", density))
    return tuple(sorted({float(density) for density in densities}, reverse=True))
