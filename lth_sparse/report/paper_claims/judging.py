"""The rule by which a claim holds, is contradicted, or is not shown.

A claim is a comparison of two networks' figures in pairs, seed by seed, for a seed's networks share their start. With n
differences of mean m and standard error s, and t the 95% quantile of Student's distribution with n - 1 degrees of
freedom:

    greater      holds if m - t s > 0; contradicted if m + t s < 0
    not worse    holds if m - t s > -margin; contradicted if m + t s < -margin
    equal        holds if every difference is within the margin; contradicted otherwise

and everything in between is "not shown": too few seeds, too easy data, too short training. Of fewer than three seeds
the spread is not known, and accuracies are whole test images: two differences are often equal by chance, which would
leave no doubt at all. They show nothing but what is "equal". The margin of an accuracy is one standard error of a share
of the test images, below which a difference means nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lth_sparse.report.paper_claims.figures import Differences, Studies
from lth_sparse.report.tables import Grid

__all__ = ["Claim", "Finding", "claims_grid", "examine"]

CONFIDENCE = 0.95
LEAST_SEEDS = 3
HOLDS, CONTRADICTED, NOT_SHOWN = "holds", "contradicted", "not shown"


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
    differences: Differences
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
    if len(found) < LEAST_SEEDS:
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
