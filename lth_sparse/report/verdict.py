"""Is it a winning ticket? The judgement over all seeds, in one word, one paragraph and the rows behind it.

Frankle & Carbin 2018, section 1: a winning ticket reaches at least the dense network's test accuracy (a' >= a) in at
most as many iterations (j' <= j) with far fewer weights, and does so because of its initial weights, which controls
show. All are means over the seeds, and accuracies that differ by no more than a margin count as equal. The margin is
the largest of a given tolerance, how far the worst dense seed falls below the dense mean, and one standard error of
that mean, sqrt(a (1 - a) / (images seeds)): a difference of one test image proves nothing.

    accurate     a' >= a - margin
    quick        j' <= j
    a control does as well when its accuracy is within `margin` of the ticket's or above it

"winning": accurate, quick, the required controls trained, and none of those that judge does as well
(`engine.controls`). "matching": accurate, but slower, without a required control, or one that judges does as well.
"not": less accurate than dense (`engine.result.ticket_kind`). The smallest winning level is named, else the smallest
matching one, else the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lth_sparse.engine.controls import JUDGES, REORDERED, REQUIRED
from lth_sparse.engine.result import ticket_kind
from lth_sparse.report.summary import LevelSummary, Statistic, Summary, control_name

__all__ = ["Comparison", "Verdict", "accuracy_of", "candidate", "compare", "judge", "percent"]

#: What a control that does as well leaves unproved; without an entry, the initialisation.
UNPROVED = {
    "shuffled": "which weights of a layer are kept, beyond how many,",
    "random": "anything but the number of weights in each layer",
    "global_shuffled": "where the weights are, beyond how many,",
    "prune_at_0": "training before pruning",
}

RANK = {"winning": 2, "matching": 1, "not": 0}


@dataclass(frozen=True)
class Comparison:
    """One pruned level against dense and against its controls; None where nothing was measured."""

    ticket: LevelSummary
    accurate: bool
    quick: bool | None
    controls: tuple[LevelSummary, ...]
    as_good: tuple[str, ...]

    @property
    def kind(self) -> str:
        """ "winning", "matching" or "not", by the rules at the top of this file."""
        return ticket_kind(self.accurate, self.quick, self.compared, self.as_good)

    @property
    def compared(self) -> list[str]:
        """Kinds of the controls that were trained at this level."""
        return [control.control for control in self.controls if control.control is not None]


@dataclass(frozen=True)
class Verdict:
    """What the run showed.

    Attributes:
        kind: "winning", "matching", "not", or "none" when there is nothing to compare.
        level, density: the level judged.
        title: one line; text: the paragraph for a person, with all caveats.
        margin: how much less accuracy still counted as the same, as a share of the test images.
        rows: dense, the ticket and its controls at that level, and the last level with its own, for a table.
    """

    kind: str
    level: int | None
    density: float | None
    title: str
    text: str
    margin: float
    rows: tuple[LevelSummary, ...]


def judge(summary: Summary, tolerance: float = 0.0, images: int | None = None) -> Verdict:
    """The verdict over all seeds; `images` is the number of test images, None leaves their sampling error out."""
    dense, pruned = summary.dense, [level for level in summary.levels if level.level > 0]
    reference = None if dense is None else accuracy_of(dense)
    if dense is None or reference is None or not pruned:
        text = "There is no verdict: it needs the dense level, a pruned one, and the test accuracy of both."
        return Verdict("none", None, None, "No verdict", text, tolerance, ())
    margin = _margin(reference, tolerance, images)
    comparisons = [compare(level, dense, summary.controls_at(level.level), margin) for level in pruned]
    best = max(comparisons, key=lambda c: (RANK[c.kind], -c.ticket.density if RANK[c.kind] else c.ticket.level))
    text = " ".join(_sentences(best, dense, comparisons, margin, len(summary.seeds)))
    rows = (dense, best.ticket, *best.controls)
    if (last := comparisons[-1]) is not best:
        rows += (last.ticket, *last.controls)
    return Verdict(best.kind, best.ticket.level, best.ticket.density, _title(best), text, margin, rows)


def candidate(summary: Summary, tolerance: float = 0.0, images: int | None = None) -> int | None:
    """The smallest level that is as accurate and as quick as dense: a winning ticket if its controls do worse.

    None when there is no such level.
    """
    reference = None if summary.dense is None else accuracy_of(summary.dense)
    if summary.dense is None or reference is None:
        return None
    margin = _margin(reference, tolerance, images)
    comparisons = [compare(level, summary.dense, (), margin) for level in summary.levels if level.level > 0]
    return next((c.ticket.level for c in reversed(comparisons) if c.accurate and c.quick), None)


def compare(ticket: LevelSummary, dense: LevelSummary, controls: tuple[LevelSummary, ...], margin: float) -> Comparison:
    """One level by the rules at the top of this file."""
    ours, theirs = accuracy_of(ticket), accuracy_of(dense)
    accurate = ours is not None and theirs is not None and ours.mean >= theirs.mean - margin
    quick = None
    if ticket.early_stop is not None and dense.early_stop is not None:
        quick = ticket.early_stop.mean <= dense.early_stop.mean
    measured = tuple(control for control in controls if accuracy_of(control) is not None)
    return Comparison(ticket, accurate, quick, measured, tuple(_as_good(ours, measured, margin)))


def accuracy_of(level: LevelSummary) -> Statistic | None:
    """Test accuracy at early stop, or at the end where no validation loss was recorded."""
    return level.early_accuracy if level.early_accuracy is not None else level.accuracy


def percent(share: float, digits: int = 1) -> str:
    """0.0363 -> "3.6%"."""
    return f"{100.0 * share:.{digits}f}%"


def _margin(reference: Statistic, tolerance: float, images: int | None) -> float:
    return max(tolerance, reference.mean - reference.minimum, _standard_error(reference, images))


def _standard_error(accuracy: Statistic, images: int | None) -> float:
    """Of a share measured on `images` test images, averaged over the seeds."""
    if not images:
        return 0.0
    return math.sqrt(max(accuracy.mean * (1.0 - accuracy.mean), 0.0) / (images * accuracy.count))


def _as_good(ours: Statistic | None, controls: tuple[LevelSummary, ...], margin: float) -> Iterable[str]:
    for control in controls:
        theirs = accuracy_of(control)
        if ours is None or theirs is None or control.control not in JUDGES:
            continue
        if theirs.mean >= ours.mean - margin:
            yield control.control


def _title(best: Comparison) -> str:
    left = percent(best.ticket.density)
    if best.kind == "winning":
        return f"A winning ticket with {left} of the weights"
    if best.kind == "matching":
        return f"A matching network with {left} of the weights, not shown to be a winning ticket"
    return "No ticket: every pruned network is less accurate than the dense one"


def _sentences(
    best: Comparison, dense: LevelSummary, comparisons: list[Comparison], margin: float, seeds: int
) -> Iterable[str]:
    ticket = best.ticket
    yield f"At level {ticket.level}, with {percent(ticket.density)} of the weights left, test accuracy is"
    yield f"{_range(ticket)} against {_range(dense)} for the dense network"
    yield f"({seeds} seed{'s' if seeds > 1 else ''}; differences up to {percent(margin, 2)} count as none)."
    if ticket.early_stop is not None and dense.early_stop is not None:
        order = "no later than" if best.quick else "later than"
        yield f"Its validation loss is lowest at iteration {_mean(ticket.early_stop)}, {order} the dense network's"
        yield f"{_mean(dense.early_stop)}."
    yield from _about_controls(best)
    if comparisons[-1] is not best:
        yield from _about_last(comparisons[-1])
    if seeds == 1:
        yield "One seed says nothing about chance; use --seeds 3 or more before relying on this."


def _about_controls(best: Comparison) -> Iterable[str]:
    if not best.controls:
        yield "No control was trained at this level, so nothing shows that the initial weights matter."
        return
    for control in best.controls:
        name, stop = control_name(control.control or ""), control.early_stop
        when = f", lowest validation loss at iteration {_mean(stop)}" if stop is not None else ""
        size = "" if control.control == REORDERED else " of the same size"
        yield f"The {name}{size} reaches {_range(control)}{when}."
    if best.kind == "not":
        return
    missing = [control_name(kind) for kind in REQUIRED if kind not in best.compared]
    if missing:
        yield f"The {' and the '.join(missing)} was not trained at this level, so this is not the whole comparison."
    if best.as_good:
        for kind in best.as_good:
            yield f"The {control_name(kind)} does as well as the ticket: this run is no evidence that {_matters(kind)}"
            yield "matters."
        yield "Prune further, or take a harder data set, to tell them apart."
    elif best.quick is False:
        yield "Every control is less accurate, but the ticket learns more slowly than the dense network."
    elif not missing:
        yield "Every control is less accurate: the ticket's own initial weights, where they are, make the difference."


def _about_last(last: Comparison) -> Iterable[str]:
    yield f"At the last level, with {percent(last.ticket.density)} left,"
    if not last.accurate:
        yield f"accuracy is lower than dense: {_range(last.ticket)}."
        return
    yield f"accuracy is still no lower, {_range(last.ticket)},"
    if last.as_good:
        yield f"but the {' and the '.join(control_name(kind) for kind in last.as_good)} of that size reach it too."
    elif last.ticket.early_stop is not None and last.quick is False:
        beaten = "above every control of that size, " if last.controls else ""
        yield f"{beaten}though only at iteration {_mean(last.ticket.early_stop)}."
    else:
        yield "but no control was trained there."


def _matters(kind: str) -> str:
    """What a control that does as well leaves unproved."""
    return UNPROVED.get(kind, "the ticket's own initialisation")


def _range(level: LevelSummary) -> str:
    accuracy = accuracy_of(level)
    if accuracy is None:
        return "unknown"
    if accuracy.count == 1:
        return percent(accuracy.mean, 2)
    return f"{percent(accuracy.mean, 2)} ({percent(accuracy.minimum, 2)} to {percent(accuracy.maximum, 2)})"


def _mean(statistic: Statistic) -> str:
    return f"{statistic.mean:,.0f}"
