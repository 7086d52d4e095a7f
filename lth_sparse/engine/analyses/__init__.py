"""What a ticket looks like, and where it came from: functions over masks, tickets and records, each with its source.

    masks.py    counts per layer and unit, incoming and outgoing connections, overlap of two tickets
    weights.py  the initial weights of the survivors, and how far weights move in training
    curves.py   learning curves and early stops over seeds
    cost.py     multiply-adds and bytes
    barrier.py  the error barrier on the line between two networks

Nothing here trains. ``lth_sparse.report`` makes plots and sections of the results.
"""

from __future__ import annotations

from lth_sparse.engine.analyses.barrier import Barrier, linear_barrier, order_barrier
from lth_sparse.engine.analyses.cost import Cost, LayerCost, count_cost
from lth_sparse.engine.analyses.curves import Curve, early_stops, learning_curve
from lth_sparse.engine.analyses.masks import Degrees, LayerStatistics, Overlap, connectivity, layer_statistics, overlap
from lth_sparse.engine.analyses.weights import InitialWeights, Movement, initial_weights, movement

__all__ = [
    "Barrier",
    "Cost",
    "Curve",
    "Degrees",
    "InitialWeights",
    "LayerCost",
    "LayerStatistics",
    "Movement",
    "Overlap",
    "connectivity",
    "count_cost",
    "early_stops",
    "initial_weights",
    "layer_statistics",
    "learning_curve",
    "linear_barrier",
    "movement",
    "order_barrier",
    "overlap",
]
