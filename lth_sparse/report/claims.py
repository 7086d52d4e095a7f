"""Claims of the paper as tests on figures of several seeds: each holds, is contradicted, or the runs cannot show it.

A claim is a comparison of two networks' figures in pairs, seed by seed, for a seed's networks share their start. With n
differences of mean m and standard error s, and t the 95% quantile of Student's distribution with n - 1 degrees of
freedom:

    greater      holds if m - t s > 0; contradicted if m + t s < 0
    not worse    holds if m - t s > -margin; contradicted if m + t s < -margin
    equal        holds if every difference is within the margin; contradicted otherwise

and everything in between is "not shown": too few seeds, too easy data, too short training. The margin of an accuracy is
one standard error of a share of the test images, below which a difference means nothing. No claim is tuned: what is
compared and how is fixed here, before anything runs. (Frankle & Carbin 2018, sections 1 to 3, figures as numbered
there.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lth_sparse.engine import LevelRecord, TicketResult
from lth_sparse.report.tables import Grid

__all__ = ["Claim", "Finding", "Studies", "claims_grid", "claims_of", "examine", "nearest_level"]

#: Study name -> seed -> result: "iterative", "continue", and "one-shot k" for each level k that it is compared at.
Studies = Mapping[str, Mapping[int, TicketResult]]

CONFIDENCE = 0.95
HOLDS, CONTRADICTED, NOT_SHOWN = "holds", "contradicted", "not shown"

#: The percentages left that the paper prints, by level (its ladder).
LADDERS = {
    "lenet": {3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6, 18: 1.9, 20: 1.2},
    "conv2": {11: 8.8, 14: 4.6},
    "conv4": {11: 11.1, 12: 9.2, 15: 5.4},
    "conv6": {},
}


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        text: what the paper says, as a sentence; ``figure``: its number there, 0 for the text alone.
        kind: "greater", "not worse" or "equal".
        differences: the figures to judge, by seed; None where a study lacks what it needs.
        unit: of the differences: "pp" (shares, shown in percentage points), "%" (relative), "".
        margin: see the head of this file.
    """

    text: str
    figure: int
    kind: str
    differences: Callable[[Studies], list[float] | None]
    unit: str
    margin: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim.

    Attributes:
        outcome: "holds", "contradicted" or "not shown".
        mean, minimum, maximum: of the differences; NaN without any.
        bound: the t s of the head of this file; 0 for a single seed, which shows nothing that is not exact.
        seeds: number of differences.
    """

    claim: Claim
    outcome: str
    mean: float
    minimum: float
    maximum: float
    bound: float
    seeds: int


def examine(claim: Claim, studies: Studies) -> Finding:
    """Judge one claim."""
    found = claim.differences(studies)
    if not found:
        return Finding(claim, NOT_SHOWN, math.nan, math.nan, math.nan, 0.0, 0)
    mean, bound = statistics.fmean(found), _bound(found)
    return Finding(claim, _outcome(claim, found, mean, bound), mean, min(found), max(found), bound, len(found))


def _outcome(claim: Claim, found: Sequence[float], mean: float, bound: float) -> str:
    if claim.kind == "equal":
        return HOLDS if all(abs(value) <= claim.margin for value in found) else CONTRADICTED
    if len(found) < 2:
        return NOT_SHOWN
    limit = 0.0 if claim.kind == "greater" else -claim.margin
    if mean - bound > limit:
        return HOLDS
    return CONTRADICTED if mean + bound < limit else NOT_SHOWN


def _bound(found: Sequence[float]) -> float:
    """t s: half the width of the one-sided confidence interval of the mean."""
    if len(found) < 2:
        return 0.0
    from scipy.stats import t

    return float(t.ppf(CONFIDENCE, len(found) - 1)) * statistics.stdev(found) / math.sqrt(len(found))


def claims_of(network: str, levels: int, densities: Sequence[float], images: int, accuracy: float) -> list[Claim]:
    """The claims about a network, at the levels that a run of ``levels`` prunings reaches.

    Args:
        network: "lenet", "conv2", "conv4" or "conv6".
        densities: of levels 0, 1, ... as they are.
        images: number of test images; accuracy: of the dense network, for the margin.
    """
    margin = math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / images)
    ladder = {k: percent for k, percent in LADDERS[network].items() if k <= levels}
    claims = [_ladder(ladder)] if ladder else []
    if network == "lenet":
        return claims + _lenet(levels, densities, margin)
    return claims + _conv(network, levels, densities, margin)


def nearest_level(densities: Sequence[float], density: float) -> int:
    """The pruned level whose density is nearest on a logarithmic scale."""
    return min(range(1, len(densities)), key=lambda k: abs(math.log(densities[k] / density)))


def _lenet(levels: int, densities: Sequence[float], margin: float) -> list[Claim]:
    k21, k13, last = (nearest_level(densities, share) for share in (0.211, 0.135, 0.036))

    def at(k: int) -> str:
        return f"{100 * densities[k]:.1f}%"

    return [
        Claim(f"The ticket at {at(k21)} learns faster than the dense network", 4, "greater", _sooner(k21), "%"),
        Claim(f"The ticket at {at(k21)} is not worse than dense", 4, "not worse", _over_dense(k21), "pp", margin),
        Claim(f"The ticket at {at(k13)} is more accurate than dense", 4, "greater", _over_dense(k13), "pp"),
        Claim(f"The ticket at {at(last)} is as accurate as dense", 4, "not worse", _over_dense(last), "pp", margin),
        Claim(f"At {at(k21)} the ticket is more accurate than a random reinitialisation", 4, "greater",
              _over_control(k21, "reinit"), "pp"),
        Claim(f"At {at(k21)} the ticket learns faster than a random reinitialisation", 4, "greater",
              _sooner(k21, "reinit"), "%"),
        Claim(f"At {at(last)} the ticket is more accurate than a random reinitialisation", 4, "greater",
              _over_control(last, "reinit"), "pp"),
        Claim(f"At {at(last)} iterative pruning is more accurate than one-shot pruning", 4, "greater",
              _over_study(last, f"one-shot {last}", 1), "pp"),
        Claim(f"At {at(k21)} a one-shot ticket is as accurate as dense", 4, "not worse",
              _study_over_dense(f"one-shot {k21}", 1), "pp", margin),
        Claim(f"At {at(last)} resetting the weights is not worse than training on", 9, "not worse",
              _over_study(last, "continue", last), "pp", margin),
        Claim(f"At {at(last)} a random reinitialisation beats a random mask with random weights", 0, "greater",
              _control_over_control(last, "reinit", "random"), "pp"),
    ]  # fmt: skip


#: Convolutional networks: density of the earliest early stop and of the best accuracy, as printed.
CONV = {"conv2": (0.088, 0.046), "conv4": (0.092, 0.111), "conv6": (0.151, 0.264)}


def _conv(network: str, levels: int, densities: Sequence[float], margin: float) -> list[Claim]:
    quick, best = (nearest_level(densities, share) for share in CONV[network])
    fast, good = (f"{100 * densities[k]:.1f}%" for k in (quick, best))
    last, left = levels, f"{100 * densities[levels]:.1f}%"
    return [
        Claim(f"The ticket at {fast} learns faster than the dense network", 5, "greater", _sooner(quick), "%"),
        Claim(f"The ticket at {good} is more accurate than dense", 5, "greater", _over_dense(best), "pp"),
        Claim(f"The ticket at {left} is not worse than dense", 5, "not worse", _over_dense(last), "pp", margin),
        Claim(f"At {left} the ticket is more accurate than a random reinitialisation", 5, "greater",
              _over_control(last, "reinit"), "pp"),
    ]  # fmt: skip


def _ladder(printed: Mapping[int, float]) -> Claim:
    levels = ", ".join(f"{percent:g}% at level {k}" for k, percent in printed.items())

    def differences(studies: Studies) -> list[float] | None:
        found = []
        for result in studies.get("iterative", {}).values():
            found += [100 * result.levels[k].density - percent for k, percent in printed.items()]
        return found

    return Claim(f"The weights left are {levels}", 0, "equal", differences, "", margin=0.1)


def _paired(
    study: str, first: Callable[[TicketResult], float | None], second: Callable[[int, Studies], float | None]
) -> Callable[[Studies], list[float] | None]:
    """first(result of a seed) - second(seed, studies), for the seeds of ``study`` that have both."""

    def differences(studies: Studies) -> list[float] | None:
        found = []
        for seed, result in studies.get(study, {}).items():
            one, other = first(result), second(seed, studies)
            if one is not None and other is not None:
                found.append(one - other)
        return found

    return differences


def _accuracy(record: LevelRecord | None) -> float | None:
    return None if record is None else record.accuracy()


def _level(result: TicketResult | None, k: int) -> LevelRecord | None:
    return result.levels[k] if result is not None and k < len(result.levels) else None


def _over_dense(k: int) -> Callable[[Studies], list[float] | None]:
    return _study_over_dense("iterative", k)


def _study_over_dense(study: str, k: int) -> Callable[[Studies], list[float] | None]:
    return _paired(
        study,
        lambda result: _accuracy(_level(result, k)),
        lambda seed, studies: _accuracy(_level(studies[study].get(seed), 0)),
    )


def _over_control(k: int, kind: str) -> Callable[[Studies], list[float] | None]:
    return _paired(
        "iterative",
        lambda result: _accuracy(_level(result, k)),
        lambda seed, studies: _accuracy(studies["iterative"][seed].controls.get((k, kind))),
    )


def _control_over_control(k: int, better: str, worse: str) -> Callable[[Studies], list[float] | None]:
    return _paired(
        "iterative",
        lambda result: _accuracy(result.controls.get((k, better))),
        lambda seed, studies: _accuracy(studies["iterative"][seed].controls.get((k, worse))),
    )


def _over_study(k: int, study: str, its_level: int) -> Callable[[Studies], list[float] | None]:
    return _paired(
        "iterative",
        lambda result: _accuracy(_level(result, k)),
        lambda seed, studies: _accuracy(_level(studies.get(study, {}).get(seed), its_level)),
    )


def _sooner(k: int, control: str | None = None) -> Callable[[Studies], list[float] | None]:
    """How much earlier the ticket's early stop comes, as a share of the other's iteration."""

    def differences(studies: Studies) -> list[float] | None:
        found = []
        for result in studies.get("iterative", {}).values():
            ticket = _level(result, k)
            other = result.controls.get((k, control)) if control else _level(result, 0)
            if ticket is None or other is None or ticket.early_stop is None or other.early_stop is None:
                continue
            if other.early_stop.step:
                found.append(1.0 - ticket.early_stop.step / other.early_stop.step)
        return found

    return differences


def claims_grid(findings: Iterable[Finding], title: str = "Claims") -> Grid:
    """One row for each claim: outcome, difference with minimum and maximum, and what it was held against."""
    rows = []
    for finding in findings:
        claim = finding.claim
        factor = 1.0 if claim.unit == "" else 100.0

        def show(value: float, factor: float = factor) -> str:
            return f"{factor * value:+.2f}"

        measured = "-"
        if finding.seeds:
            measured = f"{show(finding.mean)} [{show(finding.minimum)}, {show(finding.maximum)}] {claim.unit}".rstrip()
        interval = f"+-{factor * finding.bound:.2f}" if finding.seeds > 1 and claim.kind != "equal" else "-"
        figure = str(claim.figure) if claim.figure else "-"
        rows.append((claim.text, finding.outcome, measured, interval, figure))
    return Grid(title, ("claim", "outcome", "difference [min, max]", "95%", "figure"), tuple(rows), left=2)
