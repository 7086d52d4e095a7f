"""All searches of a network on one page: every level and control of each, in its own row."""

from __future__ import annotations

from collections.abc import Callable

from lth_sparse.engine import LevelRecord, TicketResult
from lth_sparse.report.studies import studies_section

MakeRecord = Callable[..., LevelRecord]


def result(record: MakeRecord, accuracy: float) -> TicketResult:
    control = {(1, "reinit"): record(1, accuracy - 0.2, control="reinit")}
    return TicketResult([], [record(0, accuracy), record(1, accuracy + 0.01)], control, {})


def test_levels_and_controls_of_every_search_are_rows(record: MakeRecord) -> None:
    studies = {"lr 0.1": {0: result(record, 0.8), 1: result(record, 0.9)}, "lr 0.01": {0: result(record, 0.7)}}
    section = studies_section(studies)
    (grid,) = section.grids
    assert grid.rows == (
        ("lr 0.1", "0 dense", "100.0%", "85.00% [80.00, 90.00]", "85.00% [80.00, 90.00]"),
        ("lr 0.1", "1", "80.0%", "86.00% [81.00, 91.00]", "86.00% [81.00, 91.00]"),
        ("lr 0.1", "1 random reinitialisation", "80.0%", "65.00% [60.00, 70.00]", "65.00% [60.00, 70.00]"),
        ("lr 0.01", "0 dense", "100.0%", "70.00%", "70.00%"),
        ("lr 0.01", "1", "80.0%", "71.00%", "71.00%"),
        ("lr 0.01", "1 random reinitialisation", "80.0%", "50.00%", "50.00%"),
    )
    ((svg, _),) = section.figures
    assert svg.startswith("<svg")
