"""Claims of the paper as tests on figures of several seeds: each holds, is contradicted, or the runs cannot show it.

In `paper_claims`, `judging.py` says by which rule; `lenet.py`, `conv.py` and `deep.py` (ResNet and VGG-19) say what of
the paper is claimed about which networks. No claim is tuned: what is compared and how is fixed there, before anything
runs. (Frankle & Carbin 2018, figures as numbered there.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from lth_sparse.report.paper_claims.conv import conv
from lth_sparse.report.paper_claims.deep import resnet, vgg
from lth_sparse.report.paper_claims.figures import Studies, level_at_least, nearest_level
from lth_sparse.report.paper_claims.judging import Claim, Finding, claims_grid, examine
from lth_sparse.report.paper_claims.lenet import lenet

__all__ = [
    "Claim",
    "Finding",
    "Studies",
    "claims_grid",
    "claims_of",
    "examine",
    "ladder_claim",
    "level_at_least",
    "nearest_level",
]

Densities = Mapping[str, Sequence[float]]

NETWORKS: dict[str, Callable[[Densities, float], list[Claim]]] = {
    "lenet": lenet,
    "conv2": lambda densities, margin: conv("conv2", densities, margin),
    "conv4": lambda densities, margin: conv("conv4", densities, margin),
    "conv6": lambda densities, margin: conv("conv6", densities, margin),
    "resnet": resnet,
    "vgg": vgg,
}


def claims_of(network: str, densities: Densities, images: int, accuracy: float) -> list[Claim]:
    """The claims about a network, at the levels that its runs reach.

    Args:
        network: "lenet", "conv2", "conv4", "conv6", "resnet" or "vgg".
        densities: study -> those of its levels 0, 1, ...; "iterative" among them.
        images: number of test images; accuracy: of the dense network, for the margin.
    """
    return NETWORKS[network](densities, math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / images))


def ladder_claim(printed: Mapping[int, float], margin: float) -> Claim:
    """That the levels of ``printed`` leave these percentages of the weights, each to within ``margin``."""
    levels = ", ".join(f"{percent:g}% at level {k}" for k, percent in printed.items())

    def differences(studies: Studies) -> list[float] | None:
        found = []
        for result in studies.get("iterative", {}).values():
            found += [100 * result.levels[k].density - percent for k, percent in printed.items()]
        return found

    return Claim(f"The weights left are {levels}", 0, "equal", differences, "", margin)
