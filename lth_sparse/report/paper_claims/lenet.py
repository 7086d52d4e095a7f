"""Claims about LeNet-300-100 (sections 1 and 2, appendices B and G).

Studies: "iterative" with the controls "reinit" and "random", "continue", "one-shot k" for each level k that it is
compared at, and "rate 0.4", which prunes twice as much a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lth_sparse.report.paper_claims.figures import Trained, accuracy, level_at_least, nearest_level, sooner
from lth_sparse.report.paper_claims.judging import Claim
from lth_sparse.report.verdict import percent

__all__ = ["COMPARED", "FASTER_PRUNING", "lenet"]

#: Densities at which one-shot pruning is compared, and at which controls are trained.
COMPARED = (0.211, 0.036)
FASTER_PRUNING = "rate 0.4"


def lenet(densities: Mapping[str, Sequence[float]], margin: float) -> list[Claim]:
    """The claims, at the levels nearest to the paper's densities."""
    main = densities["iterative"]
    k21, k13, last = (nearest_level(main, share) for share in (0.211, 0.135, 0.036))
    dense, at21, at13, at_last = (Trained("iterative", k) for k in (0, k21, k13, last))
    reinit21, reinit, random = (
        Trained("iterative", k, kind) for k, kind in ((k21, "reinit"), (last, "reinit"), (last, "random"))
    )
    one_shot21, one_shot = (Trained(f"one-shot {k}", 1) for k in (k21, last))
    dense21, left21, left = Trained(f"one-shot {k21}", 0), percent(main[k21]), percent(main[last])
    faster = level_at_least(densities[FASTER_PRUNING], main[last])
    left_faster = percent(densities[FASTER_PRUNING][faster])
    return [
        Claim(f"The ticket at {left21} learns faster than the dense network", 4, "greater", sooner(at21, dense), "%"),
        Claim(f"The ticket at {left21} is not worse than dense", 4, "not worse", accuracy(at21, dense), "pp", margin),
        Claim(f"The ticket at {percent(main[k13])} is more accurate than dense", 4, "greater",
              accuracy(at13, dense), "pp"),
        Claim(f"The ticket at {left} is as accurate as dense", 4, "not worse", accuracy(at_last, dense), "pp", margin),
        Claim(f"At {left21} the ticket is more accurate than a random reinitialisation", 4, "greater",
              accuracy(at21, reinit21), "pp"),
        Claim(f"At {left21} the ticket learns faster than a random reinitialisation", 4, "greater",
              sooner(at21, reinit21), "%"),
        Claim(f"At {left} the ticket is more accurate than a random reinitialisation", 4, "greater",
              accuracy(at_last, reinit), "pp"),
        Claim(f"At {left} iterative pruning is more accurate than one-shot pruning", 4, "greater",
              accuracy(at_last, one_shot), "pp"),
        Claim(f"At {left21} a one-shot ticket is as accurate as dense", 4, "not worse",
              accuracy(one_shot21, dense21), "pp", margin),
        Claim(f"At {left} resetting the weights is not worse than training on", 9, "not worse",
              accuracy(at_last, Trained("continue", last)), "pp", margin),
        Claim(f"At {left} a random reinitialisation beats a random mask with random weights", 0, "greater",
              accuracy(reinit, random), "pp"),
        Claim(f"At {left}, pruned at 20% a level, the ticket is more accurate than at {left_faster}, pruned at 40%", 0,
              "greater", accuracy(at_last, Trained(FASTER_PRUNING, faster)), "pp"),
    ]  # fmt: skip
