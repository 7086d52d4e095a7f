"""What was measured on layers, as a table: one line for each case, number of threads, layout and density."""

from __future__ import annotations

from collections.abc import Sequence

from lth_sparse.report.tables import Grid

from .cases import select
from .measure import Measurement, Run
from .networks import NETWORK_NAMES
from .providers import DENSE

HEADERS = (
    *("case", "layout", "threads", "density", "dense f ms", "ours f ms", "ratio f"),
    *("dense step ms", "ours step ms", "ratio step", "20-80%", "live GFLOP/s", "of peak"),
)
MISSING = "-"


def layer_grid(run: Run) -> Grid:
    """Ours against the better dense layer, "f" for the forward pass; rates are those of the longest mode measured."""
    cells: dict[tuple[str, str, int, float], dict[str, Measurement]] = {}
    dense: dict[tuple[str, int, str], Measurement] = {}
    for one in run.measurements:
        if one.provider.ours:
            layout = one.provider.name.removeprefix("lth_sparse ")
            cells.setdefault((one.case.name, layout, one.threads, one.density), {})[one.mode] = one
        elif one.provider.name in DENSE:
            key = (one.case.name, one.threads, one.mode)
            if key not in dense or one.seconds() < dense[key].seconds():
                dense[key] = one
    rows = []
    for (case, layout, threads, density), modes in cells.items():
        row = [case, layout, str(threads), f"{density:g}"]
        for mode in ("forward", "step"):
            row += _times(modes.get(mode), dense.get((case, threads, mode)))
        last = modes.get("step", next(reversed(modes.values())))
        row += [
            f"{last.ratio(0.2):.2f}-{last.ratio(0.8):.2f}",
            f"{last.live_flops / 1e9:.1f}",
            f"{last.live_flops / run.rates_of(threads).flops:.0%}",
        ]
        rows.append(tuple(row))
    return Grid("", HEADERS, tuple(rows), left=2)


def peer_grid(run: Run) -> Grid | None:
    """Ratios of all sparse candidates to the better dense layer; None when there are no peers among them."""
    names = list(dict.fromkeys(one.provider.name for one in run.measurements if one.provider.sparse))
    if not any(not one.provider.ours for one in run.measurements if one.provider.sparse):
        return None
    found: dict[tuple[str, int, str, float], dict[str, Measurement]] = {}
    for one in run.measurements:
        if one.provider.sparse:
            found.setdefault((one.case.name, one.threads, one.mode, one.density), {})[one.provider.name] = one
    rows = tuple(
        (case, mode, str(threads), f"{density:g}", *(_ratio(group.get(name)) for name in names))
        for (case, threads, mode, density), group in found.items()
    )
    return Grid("Dense time over", ("case", "mode", "threads", "density", *names), rows, left=2)


def network_grid(run: Run) -> Grid | None:
    """All layers of a network together, each as often as it comes; None when no network was measured in full.

    Layers alone: what is between them is in `lth-sparse bench --end-to-end`.
    """
    times: dict[tuple[str, int, str, float], dict[str, float]] = {}
    for one in run.measurements:
        key = (one.provider.name, one.threads, one.mode, one.density)
        times.setdefault(key, {})[one.case.name] = one.seconds()
    rows = []
    for network in NETWORK_NAMES:
        cases = select(network)
        for (name, threads, mode, density), mine in times.items():
            if not name.startswith("lth_sparse ") or not all(case.name in mine for case in cases):
                continue
            ours = sum(case.count * mine[case.name] for case in cases)
            dense = sum(case.count * _best_dense(times, threads, mode, case.name) for case in cases)
            layout = name.removeprefix("lth_sparse ")
            cells = (f"{density:g}", f"{dense * 1e3:.2f}", f"{ours * 1e3:.2f}", f"{dense / ours:.2f}")
            rows.append((network, layout, mode, str(threads), *cells))
    if not rows:
        return None
    headers = ("layers of", "layout", "mode", "threads", "density", "dense ms", "ours ms", "ratio")
    return Grid("Sums over networks", headers, tuple(rows), left=3)


def _best_dense(
    times: dict[tuple[str, int, str, float], dict[str, float]], threads: int, mode: str, case: str
) -> float:
    found = (times.get((name, threads, mode, 1.0), {}).get(case) for name in DENSE)
    return min(seconds for seconds in found if seconds is not None)


def rates_line(run: Run) -> str:
    """The ceilings measured in this run, in words."""
    parts = [
        f"{threads} thread{'s' * (threads > 1)}: {rates.flops / 1e9:.0f} GFLOP/s multiply-add on registers, "
        f"{rates.read_bytes / 1e9:.0f} GB/s read"
        for threads, rates in sorted(run.rates.items())
    ]
    return "; ".join(parts)


def _times(ours: Measurement | None, dense: Measurement | None) -> Sequence[str]:
    if ours is None or dense is None:
        return (MISSING, MISSING, MISSING)
    return (f"{dense.seconds() * 1e3:.3f}", f"{ours.seconds() * 1e3:.3f}", f"{ours.ratio():.2f}")


def _ratio(one: Measurement | None) -> str:
    return MISSING if one is None else f"{one.ratio():.2f}"
