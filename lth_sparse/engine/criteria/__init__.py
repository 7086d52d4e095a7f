"""What a weight is worth: a score per weight, the smallest scores are pruned first.

    weights.py     from w_f and theta_0 alone: magnitude and all of Zhou et al. 2019
    gradients.py   from the gradient g over batches: gradient, taylor, snip, grasp
    synflow.py     from the network alone, without data
    context.py     what a criterion may ask for: :class:`ScoringContext`
    protocol.py    how a criterion, the library's or a user's, is called and checked
    registry.py    ``CRITERIA``: name -> criterion

A criterion is one of these names or a callable: ``criterion(context) -> scores`` (one required argument, which is a
:class:`ScoringContext`) or ``criterion(name, weight) -> scores`` (two), for example
``lambda name, weight: weight.abs() / weight.std()`` or ``lambda c: (c.weight * c.gradient).abs()``.
"""

from __future__ import annotations

from lth_sparse.engine.criteria.context import ScoreData, Scoring, ScoringContext
from lth_sparse.engine.criteria.protocol import Criterion, NamedCriterion, criterion_name, score
from lth_sparse.engine.criteria.registry import CRITERIA, find_criterion

__all__ = [
    "CRITERIA",
    "Criterion",
    "NamedCriterion",
    "ScoreData",
    "Scoring",
    "ScoringContext",
    "criterion_name",
    "find_criterion",
    "score",
]
