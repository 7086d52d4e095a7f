"""lth_sparse: sparse winning tickets that train and infer faster.

Pruned weights are never multiplied, never stored and never optimised; and finding the ticket (iterative magnitude
pruning with rewinding, Frankle & Carbin 2018), converting it and showing that it is faster are one library.
"""

from __future__ import annotations

import importlib

try:
    # torch before the extension: both then share one OpenMP runtime, torch's.
    for _name in ("torch", "lth_sparse._C"):
        importlib.import_module(_name)
except ImportError as error:
    raise ImportError(
        f"lth_sparse is not installed in this Python: {error}. In the checkout, run 'make test' or 'make ticket' "
        "(either sets up .venv) and use .venv/bin/python, or run 'pip install .' with a C++ compiler at hand."
    ) from error

from lth_sparse import nn
from lth_sparse._version import __version__
from lth_sparse.engine import (
    SET,
    EarlyBird,
    GradualPruning,
    RigL,
    Ticket,
    analyses,
    convert,
    find_ticket,
    initialise_,
    levels,
)
from lth_sparse.formats import Mask
from lth_sparse.nn import dense_state_dict, densify_, plan, shrink_, sparsify_, tune
from lth_sparse.ops import functional
from lth_sparse.ops.memory import keep_memory

__all__ = [
    "SET",
    "EarlyBird",
    "GradualPruning",
    "Mask",
    "RigL",
    "Ticket",
    "__version__",
    "analyses",
    "convert",
    "dense_state_dict",
    "densify_",
    "find_ticket",
    "functional",
    "initialise_",
    "keep_memory",
    "levels",
    "nn",
    "plan",
    "shrink_",
    "sparsify_",
    "tune",
]

del importlib, _name
