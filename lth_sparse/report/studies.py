"""Several searches of one network side by side, as the paper's figures 6 to 8 have them: a curve and a table."""

from __future__ import annotations

from collections.abc import Mapping

from lth_sparse.engine import TicketResult
from lth_sparse.report.analyses import Section
from lth_sparse.report.plots import studies_plot
from lth_sparse.report.summary import LevelSummary, Summary, summarise, trainings_of
from lth_sparse.report.tables import Grid, percent_spread

__all__ = ["studies_section"]

TEXT = (
    "Test accuracy of every search after its last iteration against the weights left, mean over the seeds with minimum "
    "and maximum. Controls stand under the search whose masks they have."
)
HEADERS = ("search", "level", "weights left", "test acc. at early stop", "test acc. at end")


def studies_section(studies: Mapping[str, Mapping[int, TicketResult]]) -> Section:
    """Section of a page about all searches.

    Args:
        studies: name -> seed -> result, each with at least one seed.
    """
    summaries = {name: _summary(results) for name, results in studies.items()}
    rows = tuple(_row(name, level) for name, summary in summaries.items() for level in _levels(summary))
    caption = "Test accuracy after the last iteration, a line for each search; controls are in the table."
    figures = ((studies_plot(summaries), caption),)
    return Section("All searches", TEXT, figures, (Grid("", HEADERS, rows, left=2),))


def _summary(results: Mapping[int, TicketResult]) -> Summary:
    return summarise(t for seed, r in results.items() for t in trainings_of(seed, r.levels, r.controls))


def _levels(summary: Summary) -> list[LevelSummary]:
    return [one for level in summary.levels for one in (level, *summary.controls_at(level.level))]


def _row(name: str, level: LevelSummary) -> tuple[str, ...]:
    kind = "" if level.label == "ticket" else f" {level.label}"
    accuracies = (percent_spread(level.early_accuracy), percent_spread(level.accuracy))
    return (name, f"{level.level}{kind}", f"{level.percent:.1f}%", *accuracies)
