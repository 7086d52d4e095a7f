"""Which goals the rows meet. A goal is met by all of its figures, and open while one of them is missing."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .cases import GOALS
from .table import OURS

__all__ = ["break_even", "verdict"]

Row = Mapping[str, Any]

#: (goal, mode, words that the case contains in order, with * between, least ratio of dense torch's time to ours).
RATIOS: tuple[tuple[str, str, str, float], ...] = (
    ("G3", "step", "vit-l-fc1-bsr64x64", 2.0),
    ("G3", "step", "vit-l-fc2-bsr64x64", 2.0),
    ("G3", "step", "vit-l-fc1-bsr32x32", 1.4),
    ("G3", "step", "vit-l-fc2-bsr32x32", 1.4),
    ("G3", "step", "vit-l-fc1-bsr128x128", 2.8),
    ("G3", "step", "vit-l-fc2-bsr128x128", 2.8),
    ("G4", "step", "vit-l-mlp", 1.25),
    ("G5", "forward", "vit-h-mlp", 1.6),
    ("G5", "forward", "vit-b-mlp", 1.45),
    ("G6", "forward", "llama-8b", 2.2),
    ("G7", "step", "square-bsr64x64", 5.0),
    ("G8", "forward", "conv3x3-256@28", 1.5),
    ("G8", "step", "conv3x3-256@28", 1.5),
    ("G8", "forward", "conv3x3-512@14", 1.5),
    ("G8", "step", "conv3x3-512@14", 1.5),
    *(("G9", "forward", f"llama-up-m{m}-*-d0.5-float16", 1.2) for m in (1, 4, 8)),
    *(("G9", "forward", f"llama-up-m{m}-*-d0.1-float16", 3.0) for m in (1, 4, 8)),
)
#: Block side -> density at which 4096^2 has to break even at least.
BREAK_EVEN = {64: 0.4, 32: 0.2, 16: 0.1}
PER_LIVE, WORST_ERROR, OVER_MASKED, MEMORY = 0.85, 2.0, 1.03, 1.1


def verdict(rows: Sequence[Row]) -> list[str]:
    """One line for each goal that was measured: met, missed or open, its words, and the figures."""
    good = [row for row in rows if row["status"] == "ok"]
    found: list[str] = []
    for goal, words in GOALS.items():
        mine = [row for row in good if row["goal"] == goal]
        figures = list(_figures(goal, mine))
        if not any(row["goal"] == goal for row in rows):
            continue
        met = [reached for _, reached in figures]
        if wrong := [row for row in rows if row["goal"] == goal and str(row["status"]).startswith("wrong")]:
            figures.append((f"{len(wrong)} rows are wrong", False))
            met.append(False)
        state = "missed" if False in met else "open" if None in met or not met else "met"
        found.append(f"{goal} {state}: {words}. " + "; ".join(text for text, _ in figures))
    return found


def _figures(goal: str, rows: Sequence[Row]) -> Iterator[tuple[str, bool | None]]:
    """(text, whether it is reached; None when it was not measured) of all figures of a goal."""
    if goal == "G1":
        for side, least in BREAK_EVEN.items():
            even = break_even([row for row in rows if row["block"] == f"{side}x{side}"], "forward")
            text = "not measured" if even is None else f"density {even:.2f}"
            yield f"blocks of {side} break even at {text}", None if even is None else even >= least
    elif goal == "G2":
        for case in dict.fromkeys(row["case"] for row in rows):
            value = _best(rows, case, "forward", "per_live")
            yield f"{case} {_shown(value)}", None if value is None else value >= PER_LIVE
    elif goal == "G10":
        for case in dict.fromkeys(row["case"] for row in rows):
            times = {row["provider"]: float(row["median_us"]) for row in rows if row["case"] == case}
            both = "planner" in times and "masked dense" in times
            over = times["planner"] / times["masked dense"] if both else None
            yield f"{case} {_shown(over)}", None if over is None else over <= OVER_MASKED
    elif goal == "G11":
        for row in (row for row in rows if row["provider"] == "ours"):
            share = 1 / float(row["ratio"]) / float(row["density"])
            yield f"{row['case']} {share:.2f} d", share <= MEMORY
    else:
        for _, mode, words, least in (entry for entry in RATIOS if entry[0] == goal):
            cases = [row["case"] for row in rows if fits(words, row["case"]) and float(row["density"]) in (0.1, 0.5)]
            values = [_best(rows, case, mode, "ratio") for case in dict.fromkeys(cases)]
            known = [value for value in values if value is not None]
            value = max(known, default=None)
            yield f"{words} {mode} {_shown(value)} of {least:g}", None if value is None else value >= least
        if goal == "G7":
            errors = [float(row["error_ratio"]) for row in rows if _ours(row) and row["error_ratio"] not in ("", None)]
            yield f"error {_shown(max(errors, default=None))}", max(errors) <= WORST_ERROR if errors else None


def break_even(rows: Sequence[Row], mode: str) -> float | None:
    """The density up to which ours is as fast as dense torch in a mode, linear between the measured ones.

    The highest density measured where ours still wins there; 0 where it wins nowhere; None without rows.
    """
    ratios: dict[float, float] = {}
    for row in rows:
        if _ours(row) and row["mode"] == mode and row["ratio"] not in ("", None):
            density = float(row["density"])
            ratios[density] = max(ratios.get(density, 0.0), float(row["ratio"]))
    last: tuple[float, float] | None = None
    for density, ratio in sorted(ratios.items()):
        slow = 1 / ratio  # ours over dense: nearly linear in the density
        if slow > 1:
            if last is None:
                return 0.0
            return last[0] + (density - last[0]) * (1 - last[1]) / (slow - last[1])
        last = density, slow
    return None if last is None else last[0]


def fits(words: str, case: str) -> bool:
    """Whether a case contains the words."""
    return fnmatch.fnmatchcase(case, f"*{words}*")


def _ours(row: Row) -> bool:
    return str(row["provider"]).startswith(OURS)


def _best(rows: Sequence[Row], case: str, mode: str, column: str) -> float | None:
    """The largest figure of this library's rows of a case in a mode."""
    mine = [row for row in rows if row["case"] == case and row["mode"] == mode and _ours(row)]
    return max((float(row[column]) for row in mine if row[column] not in ("", None)), default=None)


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
