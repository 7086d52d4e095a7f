"""Reports of a ticket search: pure summaries over seeds, tables for a terminal, SVG plots and one HTML page.

`summary` turns the engine's records into plain numbers and `verdict` judges them; `tables`, `plots` and `html` only
show what those two say. Everything here is importable without rich, matplotlib or jinja2 until it is called.
"""

from __future__ import annotations

from lth_sparse.report.summary import LevelSummary, Statistic, Summary, Training, summarise, trainings_of
from lth_sparse.report.verdict import Verdict, judge

__all__ = ["LevelSummary", "Statistic", "Summary", "Training", "Verdict", "judge", "summarise", "trainings_of"]
