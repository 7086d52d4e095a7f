"""Claims about Conv-2, Conv-4 and Conv-6 (section 3).

Studies: "iterative" with the control "reinit", and "dropout", the same with dropout and the learning rate and
iterations that the paper gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lth_sparse.report.paper_claims.figures import Trained, accuracy, nearest_level, sooner
from lth_sparse.report.paper_claims.judging import Claim
from lth_sparse.report.verdict import percent

__all__ = ["DROPOUT", "conv"]

DROPOUT = "dropout"
#: Densities of the earliest early stop and of the best accuracy, as printed.
PRINTED = {"conv2": (0.088, 0.046), "conv4": (0.092, 0.111), "conv6": (0.151, 0.264)}


def conv(network: str, densities: Mapping[str, Sequence[float]], margin: float) -> list[Claim]:
    """The claims, at the levels nearest to the paper's densities."""
    main = densities["iterative"]
    fast, good = (nearest_level(main, share) for share in PRINTED[network])
    last = len(main) - 1
    dense, left, best = Trained("iterative", 0), percent(main[last]), percent(main[good])
    return [
        Claim(f"The ticket at {percent(main[fast])} learns faster than the dense network", 5, "greater",
              sooner(Trained("iterative", fast), dense), "%"),
        Claim(f"The ticket at {best} is more accurate than dense", 5, "greater",
              accuracy(Trained("iterative", good), dense), "pp"),
        Claim(f"The ticket at {left} is not worse than dense", 5, "not worse",
              accuracy(Trained("iterative", last), dense), "pp", margin),
        Claim(f"At {left} the ticket is more accurate than a random reinitialisation", 5, "greater",
              accuracy(Trained("iterative", last), Trained("iterative", last, "reinit")), "pp"),
        Claim("Dropout makes the dense network more accurate", 6, "greater",
              accuracy(Trained(DROPOUT, 0), dense), "pp"),
        Claim(f"With dropout, the ticket at {best} is more accurate than the dense network with dropout", 6, "greater",
              accuracy(Trained(DROPOUT, good), Trained(DROPOUT, 0)), "pp"),
    ]  # fmt: skip
