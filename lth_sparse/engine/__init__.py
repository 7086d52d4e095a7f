"""The engine: levels, criteria, granularity, scope, rewinding, controls, and the ticket they end in.

``find_ticket`` (or ``levels``, for scripts that own their loop) repeats prune, rewind, train, record. ``loop.py`` reads
as the paper does, and each of its steps has a file of its own.
"""

from __future__ import annotations

from lth_sparse.engine import analyses, distributed
from lth_sparse.engine.conversion import Conversion, convert
from lth_sparse.engine.criteria import ScoringContext
from lth_sparse.engine.dynamic import SET, GradualPruning, RigL
from lth_sparse.engine.early_bird import EarlyBird
from lth_sparse.engine.inits import initialise_
from lth_sparse.engine.level import EarlyStop, Level
from lth_sparse.engine.loop import Search
from lth_sparse.engine.result import LevelRecord, TicketResult, Verdict
from lth_sparse.engine.search import find_ticket, levels
from lth_sparse.engine.ticket import Ticket

__all__ = [
    "SET",
    "Conversion",
    "EarlyBird",
    "EarlyStop",
    "GradualPruning",
    "Level",
    "LevelRecord",
    "RigL",
    "ScoringContext",
    "Search",
    "Ticket",
    "TicketResult",
    "Verdict",
    "analyses",
    "convert",
    "distributed",
    "find_ticket",
    "initialise_",
    "levels",
]
