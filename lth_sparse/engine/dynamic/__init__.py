"""Dynamic sparse training: masks that change while a network trains, which stays compact all the while.

``SET`` and ``RigL`` drop weights and grow others, at a density that stays; ``GradualPruning`` only drops. All are
called once after each optimiser step; their ``state_dict`` goes into a checkpoint beside the model's and the
optimiser's.
"""

from __future__ import annotations

from lth_sparse.engine.dynamic.gradual import GradualPruning
from lth_sparse.engine.dynamic.method import DynamicMethod
from lth_sparse.engine.dynamic.regrowth import SET, RigL

__all__ = ["SET", "DynamicMethod", "GradualPruning", "RigL"]
