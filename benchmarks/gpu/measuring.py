"""Measuring one case: every provider in every mode, whatever one of them does.

Rows are dicts of the columns of the CSV. What cannot run is a row too, with a ``status``: ``ok``; ``skipped: why``,
which is no failure; ``failed: why``; ``wrong: why`` for ours further from float64 than twice dense torch's own error.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Protocol

import torch

from ..timing import quantile
from .cases import Case
from .clock import CaptureError, Clock, first_line
from .layers import Layer, Skip
from .pieces import Block, Planned, Stack, memory_bytes
from .rates import Rates, ceiling

__all__ = ["COLUMNS", "FACTS", "DeadDeviceError", "case_columns", "failure", "measure_case", "warm_case"]

FACTS = (
    *("date", "device", "capability", "driver", "cuda", "torch", "triton", "lth_sparse", "python"),
    *("sm_mhz", "memory_mhz", "power_w", "temperature_c"),
)
COLUMNS = (
    *("goal", "case", "op", "layout", "block", "density", "dtype", "m", "n", "k", "mode", "provider", "backend"),
    *("how", "median_us", "p20_us", "p80_us", "rounds", "ratio", "per_live", "ceiling_us", "share"),
    *("error", "dense_error", "error_ratio", "bytes", "status", "note"),
    *FACTS,
)
#: Ours may be so many times as far from float64 as dense torch, and by so much besides.
WORSE, EXTRA = 2.0, 1e-6

Row = dict[str, Any]
#: Called with a provider and a mode before either is touched, so that whoever watches knows who was last.
At = Callable[[str, str], None]


class DeadDeviceError(RuntimeError):
    """The device, or this process's part of it, is beyond use: the process must be replaced."""


class Problem(Protocol):
    """What ``layers`` and ``pieces`` have in common."""

    def providers(self, mode: str) -> tuple[str, ...]: ...

    def backend(self, provider: str, mode: str) -> str: ...

    def note(self, provider: str) -> str: ...

    def call(self, provider: str, mode: str) -> Callable[[], object]: ...

    def errors(self, providers: tuple[str, ...]) -> dict[str, float]: ...


PROBLEMS: Mapping[str, Callable[[Case, str], Problem]] = {
    "linear": Layer,
    "conv": Layer,
    "mlp": Block,
    "decode": Stack,
    "planner": Planned,
}


def case_columns(case: Case) -> Row:
    """The columns that a case knows of itself."""
    m, n, k = case.products
    block = f"{case.block[0]}x{case.block[1]}" if case.block else ""
    return {
        "goal": case.goal, "case": case.name, "op": case.op, "layout": case.layout, "block": block,
        "density": case.density, "dtype": case.dtype, "m": m, "n": n, "k": k,
    }  # fmt: skip


def failure(case: Case, mode: str, provider: str, status: str) -> Row:
    """The row of what has no time."""
    return {**case_columns(case), "mode": mode, "provider": provider, "status": status}


def measure_case(
    case: Case,
    device: str,
    clock: Clock,
    rates: Rates,
    at: At,
    known: Mapping[str, str] | None = None,
    seconds: float = 0.25,
) -> Iterator[Row]:
    """The rows of a case, mode by mode.

    Args:
        at: told what comes next.
        known: provider -> ``"eager"`` where capturing it broke a process before, or the status to give it unmeasured.

    Raises:
        DeadDeviceError, CaptureError: the process must be replaced; ``at`` was told who was last.
    """
    known = known or {}
    if case.op == "memory":
        at("ours", "memory")
        yield from _memory(case, device, clock)
        return
    at("inputs", "all")
    torch.manual_seed(0)
    try:
        problem = PROBLEMS[case.op](case, device)
        clock.finish()
    except Exception as error:  # whatever it is, other cases must not pay for it
        yield failure(case, "all", "inputs", _status(error, clock))
        return
    errors = yield from _errors(case, problem, clock, at, known)
    for mode in case.modes:
        rows: dict[str, Row] = {}
        runs: dict[str, Callable[[], object]] = {}
        for provider in problem.providers(mode):
            rows[provider] = row = {**case_columns(case), "mode": mode, "provider": provider, "how": clock.how}
            if known.get(provider, "eager") != "eager":
                row["status"] = known[provider]
                continue
            at(provider, mode)
            try:
                with clock.place():
                    call = problem.call(provider, mode)
                run = clock.ready(call, captured=provider not in known)
                row["backend"], row["note"] = problem.backend(provider, mode), problem.note(provider)
                row["how"] = "eager" if run is call and clock.how == "graph" else clock.how
                runs[provider] = run
            except CaptureError:
                raise
            except Exception as error:
                row["status"] = _status(error, clock)
        at("all", mode)
        samples = clock.rounds(runs, seconds) if runs else {}
        yield from _filled(case, rows, samples, errors, rates, mode)
        runs.clear()
    del problem
    _tidy(device)


def _filled(
    case: Case,
    rows: dict[str, Row],
    samples: Mapping[str, list[float]],
    errors: Mapping[str, float],
    rates: Rates,
    mode: str,
) -> Iterator[Row]:
    """Times, ratios and errors into the rows of one mode."""
    medians = {provider: quantile(times, 0.5) for provider, times in samples.items()}
    dense, dense_error = medians.get("dense"), errors.get("dense")
    for provider, row in rows.items():
        if provider in medians:
            median = medians[provider]
            row.update(
                median_us=1e6 * median,
                p20_us=1e6 * quantile(samples[provider], 0.2),
                p80_us=1e6 * quantile(samples[provider], 0.8),
                rounds=len(samples[provider]),
            )
            row.setdefault("status", "ok")
            if dense is not None:
                row["ratio"] = dense / median
                row["per_live"] = dense / median * case.density
            if provider.startswith("ours") and (least := ceiling(case, rates, mode)) is not None:
                row["ceiling_us"], row["share"] = 1e6 * least, least / median
        error = errors.get(provider)
        if error is not None:
            row["error"] = error
            if dense_error is not None:
                row["dense_error"] = dense_error
                row["error_ratio"] = error / dense_error if dense_error else ""
                if provider.startswith(("ours", "planner")) and not error <= WORSE * dense_error + EXTRA:
                    row["status"] = f"wrong: error {error:.2e}, dense torch {dense_error:.2e}"
        yield row


def _errors(
    case: Case, problem: Problem, clock: Clock, at: At, known: Mapping[str, str]
) -> Generator[Row, None, dict[str, float]]:
    """Errors against float64, one provider at a time: the failure of one says nothing of another.

    Yields the rows of failures; returns provider -> error.
    """
    found: dict[str, float] = {}
    checked = [name for name in problem.providers(case.modes[-1]) if not name.startswith("torch ")]
    for provider in checked:
        if known.get(provider, "eager") != "eager":
            continue
        at(provider, "check")
        try:
            problem.backend(provider, "forward")
            found.update(problem.errors((provider,)))
            clock.finish()
        except Skip:
            continue  # every mode says so
        except Exception as error:
            yield failure(case, "check", provider, _status(error, clock))
        _tidy(None)
    return found


def _memory(case: Case, device: str, clock: Clock) -> Iterator[Row]:
    try:
        found = memory_bytes(case, device)
    except Exception as error:
        yield failure(case, "memory", "ours", _status(error, clock))
        return
    for provider, count in found.items():
        row = {**case_columns(case), "mode": "memory", "provider": provider, "bytes": count, "status": "ok"}
        yield {
            **row,
            "ratio": found["dense"] / max(count, 1),
            "per_live": found["dense"] / max(count, 1) * case.density,
        }


def _status(error: Exception, clock: Clock) -> str:
    """The status of a failed attempt.

    Raises:
        DeadDeviceError: the device does not answer any more: a fault stays with the process.
    """
    if isinstance(error, Skip):
        return f"skipped: {error}"
    traceback.clear_frames(error.__traceback__)  # tensors of the frames
    try:
        clock.finish()
    except RuntimeError as dead:
        raise DeadDeviceError(first_line(error)) from dead
    return f"failed: {first_line(error)}"


def warm_case(case: Case, device: str, clock: Clock) -> None:
    """Run all that a case will run, once: kernels are then compiled, on disk for the process that measures.

    What raises here raises there again, where it becomes a row.

    Raises:
        DeadDeviceError: the process must be replaced.
    """
    if case.op == "memory":
        return
    try:
        problem = PROBLEMS[case.op](case, device)
        steps = [(provider, mode) for mode in case.modes for provider in problem.providers(mode)]
    except Exception as error:
        _status(error, clock)
        return
    for provider, mode in steps:
        try:
            problem.call(provider, mode)()
            clock.finish()
        except Exception as error:
            _status(error, clock)
    del problem
    _tidy(device)


def _tidy(device: str | None) -> None:
    """Give memory back: the next case is as large."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
