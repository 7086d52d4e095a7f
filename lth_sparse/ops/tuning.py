"""The tuner: times launch configurations of Triton kernels on the layers at hand, and keeps the fastest that is right.

Opt-in, since every configuration must be compiled: a second or two each, some twenty for each product of a layer. What
is tuned is a *call* of an operator, as a model makes it (:func:`record`). Its launches are asked for by the operator
itself, under a trial (``kernels.trials``), so the tuner knows no kernel, and a new one is tuned like the others. A
configuration is timed only when its result is the heuristic's, up to rounding; the fastest few are timed once more, in
turns, and replace the heuristic's where they beat it clearly.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lth_sparse.errors import ArgumentError, BackendError, expected
from lth_sparse.formats import BSR, CSR
from lth_sparse.kernels import launch
from lth_sparse.kernels.candidates import LIMIT, candidates
from lth_sparse.kernels.launch import Device, Problem
from lth_sparse.kernels.tiles import CSR_PRODUCTS, AnyTile
from lth_sparse.kernels.trials import trial
from lth_sparse.ops.backend import HAS_TRITON
from lth_sparse.ops.cost import random_mask
from lth_sparse.ops.library import NAMESPACE
from lth_sparse.ops.tune_cache import TuneCache

__all__ = ["Call", "Clock", "TuneReport", "Tuned", "calls_of_problem", "gpu", "record", "tune_calls"]

#: The fastest so many are timed again, so often; one that is not faster than the heuristic's by this much is noise.
FINALISTS, REPEATS, CLEARLY = 3, 3, 0.02
#: Largest deviation between two right results, over the largest entry: sums in another order, rounded once.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-4}

Result = Tensor | Sequence[Tensor]
#: Called with the share of the work that is done, and what is next.
Progress = Callable[[float, str], None]


class Clock(Protocol):
    """Seconds of several runs of a call, each with a cold L2 cache. On a GPU :class:`ops.gpu_clock.GraphClock`."""

    def __call__(self, call: Callable[[], object]) -> Sequence[float]: ...


@dataclass(frozen=True)
class Call:
    """One call of an operator: its name, and what makes it and returns its result."""

    name: str
    run: Callable[[], Result]


@dataclass(frozen=True)
class Tuned:
    """Outcome for one problem.

    Attributes:
        tile, seconds: the winner and its time; the heuristic's tile where none is clearly faster.
        heuristic, heuristic_seconds: what it is compared with, timed beside it.
        timed: configurations that ran and were right, the heuristic's included.
        skipped: those that could not run, and why: too large for the device, or no such kernel.
        wrong: those with another result, and by how many times what rounding explains.
    """

    device: Device
    problem: Problem
    tile: AnyTile
    seconds: float
    heuristic: AnyTile
    heuristic_seconds: float
    timed: int
    skipped: tuple[tuple[AnyTile, str], ...] = ()
    wrong: tuple[tuple[AnyTile, float], ...] = ()

    @property
    def speedup(self) -> float:
        """The heuristic's time over the winner's."""
        return self.heuristic_seconds / self.seconds

    def __str__(self) -> str:
        fields, before = vars(self.tile), vars(self.heuristic)
        changed = [f"{name} {before[name]} -> {value}" for name, value in fields.items() if value != before[name]]
        lost = [f"{len(group)} {word}" for group, word in ((self.skipped, "skipped"), (self.wrong, "WRONG")) if group]
        tried = ", ".join([f"{self.timed} timed", *lost])
        times = f"{1e6 * self.heuristic_seconds:.1f} us -> {1e6 * self.seconds:.1f} us, {self.speedup:.2f}x"
        return f"{self.problem.key}: {times} ({', '.join(changed) or 'heuristic kept'}; {tried})"


@dataclass(frozen=True)
class TuneReport:
    """What a tuner did.

    Attributes:
        tuned: an entry for each launch that was tuned.
        stored: number of launches left alone since they had been tuned before.
        path: where the winners are kept; None where the cache is off, and they serve this process alone.
    """

    tuned: tuple[Tuned, ...]
    stored: int
    path: Path | None

    def __str__(self) -> str:
        lines = [str(one) for one in self.tuned]
        for one in self.tuned:
            lines += [f"{one.problem.key}: skipped {_fields(tile)}: {reason}" for tile, reason in one.skipped]
            lines += [
                f"{one.problem.key}: WRONG {_fields(tile)}: {excess:.3g} times what rounding explains; please report it"
                for tile, excess in one.wrong
            ]
        if self.stored:
            lines.append(f"{self.stored} launches had been tuned before")
        kept = (
            f"kept in {self.path}" if self.path else "for this process alone: LTH_SPARSE_CACHE switches the cache off"
        )
        return "\n".join([*lines, kept])


def _fields(tile: AnyTile) -> str:
    return " ".join(f"{name}={value}" for name, value in vars(tile).items())


def gpu() -> Device:
    """The current CUDA device.

    Raises:
        BackendError: there is none, or no Triton to run on it.
    """
    if not torch.cuda.is_available():
        raise BackendError("tune: expected a CUDA device to time kernels on, but torch finds none")
    if not HAS_TRITON:
        raise BackendError("tune: expected Triton, whose kernels are what is tuned; pip install triton")
    from lth_sparse.ops.cuda import _device  # only where Triton is

    return _device(torch.cuda.current_device())


def tune_calls(
    calls: Iterable[Call],
    clock: Clock,
    *,
    again: bool = False,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> TuneReport:
    """Tune every launch that the calls make; store the winners, and let launches of this process take them.

    Args:
        calls: what to tune; of calls in the same bucket the first stands for all.
        again: tune what is stored already once more.
        limit: configurations tried for a launch, at least 2.
        progress: called before each configuration.

    Raises:
        ArgumentError: no call launches a kernel whose configuration is chosen, or one has no finite result.
        BackendError: the heuristic's own configuration does not run.
    """
    if type(limit) is not int or limit < 2:
        raise ArgumentError(expected("limit", "an int of at least 2", repr(limit)))
    launches = _launches(calls)
    if not launches:
        what = "layers that run by Triton kernels (block-sparse or CSR, on a CUDA device, float32, float16 or bfloat16)"
        raise ArgumentError(expected("calls", what, "none"))
    caches = {device: TuneCache.of(device) for _, device, _ in launches}
    stored = {device: cache.tiles() for device, cache in caches.items()}
    work = [one for one in launches if again or one[2].bucket not in stored[one[1]]]
    found = []
    for index, (call, device, problem) in enumerate(work):

        def inside(share: float, index: int = index, name: str = f"{call.name}, {problem.key}") -> None:
            if progress is not None:
                progress((index + share) / len(work), name)

        inside(0.0)
        one = _tune(call, device, problem, candidates(device, problem, limit), clock, inside)
        # At once: who stops a long run keeps what it has found.
        caches[device].store(problem.bucket, one.tile, one.seconds, one.heuristic_seconds)
        launch.install(device.name, {**launch.installed(device.name), problem.bucket: one.tile})
        found.append(one)
    if progress is not None:
        progress(1.0, "done")
    cache = next(iter(caches.values()))
    return TuneReport(tuple(found), len(launches) - len(work), cache.path if cache.enabled else None)


def _launches(calls: Iterable[Call]) -> list[tuple[Call, Device, Problem]]:
    """Every launch with the call that makes it, one of each bucket and device."""
    found: dict[Any, tuple[Call, Device, Problem]] = {}
    for call in calls:
        with trial() as seen:
            call.run()
        for problem, device in seen.seen.items():
            found.setdefault((device, problem.bucket), (call, device, problem))
    return list(found.values())


def _tune(
    call: Call,
    device: Device,
    problem: Problem,
    tiles: Sequence[AnyTile],
    clock: Clock,
    inside: Callable[[float], None],
) -> Tuned:
    def run(tile: AnyTile) -> Result:
        with trial({problem: tile}):
            return call.run()

    def seconds(tile: AnyTile) -> float:
        return statistics.median(clock(lambda: run(tile)))

    first = tiles[0]
    try:
        truth = _tensors(run(first))
    except Exception as error:
        if not is_unfit(error):
            raise
        raise BackendError(f"{problem.key}: the heuristic's {first} does not run: {_line(error)}") from error
    if not all(bool(tensor.isfinite().all()) for tensor in truth):
        raise ArgumentError(expected(call.name, "a call with finite results", "infinities or NaN"))
    times, skipped, wrong = {first: seconds(first)}, [], []
    for number, tile in enumerate(tiles[1:], 1):
        inside(number / len(tiles))
        # Freed memory is used again: what a wrong kernel leaves out must not show the result of a right one.
        for tensor in truth:
            torch.full_like(tensor, float("nan"))
        try:
            found = _tensors(run(tile))
            if (excess := deviation(found, truth)) > 1.0:
                wrong.append((tile, excess))
            else:
                times[tile] = seconds(tile)
        except Exception as error:
            if not is_unfit(error):
                raise
            skipped.append((tile, _line(error)))
    finalists = dict.fromkeys([first, *sorted(times, key=times.__getitem__)[:FINALISTS]])
    turns = [{tile: seconds(tile) for tile in finalists} for _ in range(REPEATS)]
    final = {tile: statistics.median(turn[tile] for turn in turns) for tile in finalists}
    best = min(final, key=final.__getitem__)
    if final[best] > (1.0 - CLEARLY) * final[first]:
        best = first
    return Tuned(
        device, problem, best, final[best], first, final[first], len(times), tuple(skipped), tuple(wrong)
    )  # fmt: skip


def deviation(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Largest difference over what rounding may make of it: right up to 1. Infinite where shapes differ, or for NaN."""
    worst = 0.0
    if [(one.shape, one.dtype) for one in found] != [(one.shape, one.dtype) for one in truth]:
        return float("inf")
    for ours, right in zip(found, truth, strict=True):
        if right.numel():
            scale = max(float(right.abs().max()), torch.finfo(right.dtype).tiny)
            error = float((ours.double() - right.double()).abs().max()) / scale / TOLERANCE.get(right.dtype, 2e-4)
            worst = max(worst, error if error == error else float("inf"))
    return worst


def _tensors(result: Result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def is_unfit(error: Exception) -> bool:
    """Whether a launch raised because the device or the kernel cannot take a configuration; all else is an error."""
    if isinstance(error, (ValueError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, RuntimeError):  # what Triton raises when a pass of its compiler gives up
        return "PassManager::run failed" in str(error)
    try:
        from triton.errors import TritonError  # out of shared memory or registers, what does not compile
    except ImportError:
        return False
    return isinstance(error, TritonError)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class _Recorder(TorchDispatchMode):
    """Notes calls of this library's operators that have a backward, and lets everything happen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if func.namespace == NAMESPACE and hasattr(getattr(torch.ops, NAMESPACE), f"{name}_backward"):
            self.calls.append((name, args))
        return func(*args, **(kwargs or {}))


def record(run: Callable[[], object], *, gradients: bool = True) -> Iterator[Call]:
    """The calls of sparse operators that ``run`` makes, and of their gradients, to be repeated one by one.

    Tensors are kept as they are, so what is repeated has the sizes, strides and values of the real one. The gradient
    of an input that needs none is left out, as autograd does.

    Args:
        run: anything; once is enough. Whether an input needs a gradient is seen only where gradients are enabled.
        gradients: False leaves all gradients out.

    Returns:
        An iterator; random gradients to propagate are made as it goes, so a call that is dropped frees its own.
    """
    recorder = _Recorder()
    with recorder:
        run()
    return (call for name, args in recorder.calls for call in _calls(name, args, gradients))


def _calls(name: str, args: tuple[Any, ...], gradients: bool) -> Iterator[Call]:
    """The forward call and the two products of its backward."""
    operators = getattr(torch.ops, NAMESPACE)
    forward, backward = getattr(operators, name).default, getattr(operators, f"{name}_backward").default
    by_input = args[0].requires_grad
    args = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
    yield Call(name, functools.partial(forward, *args))
    if not gradients:
        return
    given = {argument.name: arg for argument, arg in zip(forward._schema.arguments, args, strict=False)}
    given["grad"] = torch.randn_like(forward(*args))
    for which, wanted in (("input", [True, False, False]), ("weight", [False, True, False])):
        if which == "weight" or by_input:
            # What only the backward knows and has a default for says how the forward ended, in an activation or not:
            # the products do not depend on it.
            known = {**given, "wanted": wanted}
            arguments = [known.get(argument.name, argument.default_value) for argument in backward._schema.arguments]
            yield Call(f"{name}, gradient of {which}", functools.partial(backward, *arguments))


def calls_of_problem(problem: Problem, device: torch.device | str) -> list[Call]:
    """The call of one product of a linear layer of the sizes and density of ``problem``: with random blocks, or with
    random single weights for a product of CSR layers, whose block is ``(1, 1)``.

    Raises:
        ArgumentError: a product that is none of a linear layer, another block for CSR, a dtype without kernels, sizes
            or a density that are not known or not positive.
    """
    csr = problem.product in CSR_PRODUCTS
    if not csr and problem.product not in launch.PRODUCTS:
        what = f"one of {', '.join(launch.PRODUCTS + CSR_PRODUCTS)}; give convolutions as a model"
        raise ArgumentError(expected("problem.product", what, problem.product))
    if csr and problem.block != (1, 1):
        raise ArgumentError(expected("problem.block", f"(1, 1) for {problem.product}", repr(problem.block)))
    if problem.dtype not in launch.DTYPES:
        raise ArgumentError(expected("problem.dtype", f"one of {', '.join(launch.DTYPES)}", problem.dtype))
    rows, cols, density = problem.rows, problem.cols, problem.density
    if not rows or not cols or density is None or not 0.0 < density <= 1.0 or problem.tokens < 1:
        raise ArgumentError(
            expected("problem", "positive rows, cols and tokens and a density in (0, 1]", repr(problem))
        )
    dtype, generator = getattr(torch, problem.dtype), torch.Generator().manual_seed(0)
    mask = random_mask((rows, cols), density, None if csr else problem.block, generator)
    layout = (CSR.from_mask(mask) if csr else BSR.from_mask(mask, problem.block)).to(device)
    values = torch.randn(layout.values_shape, generator=generator).to(dtype) / (density * cols) ** 0.5
    if isinstance(layout, BSR) and layout.value_mask.numel():
        values *= layout.value_mask.cpu()
    x = torch.randn(problem.tokens, cols, generator=generator).to(device, dtype).requires_grad_()
    args = (x, values.to(device), None, list(layout.index), list(layout.shape))
    forward = problem.product in (launch.PRODUCTS[0], CSR_PRODUCTS[0])
    found = list(_calls(f"linear_{layout.kind}", args, not forward))
    return [found[(CSR_PRODUCTS if csr else launch.PRODUCTS).index(problem.product)]]
