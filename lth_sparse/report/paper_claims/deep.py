"""Claims about the deeper networks, the paper's "Resnet-18" (a ResNet-20) and VGG-19 (section 4, figures 7 and 8).

The paper compares these after the last iteration, and so do we. A level is "the ticket" whether it is one or not: that
is what the claims are about. Studies, all pruned alike:

    iterative     with the warm-up that the paper needs to find tickets; control "reinit" at the smallest density
    lr 0.1        without warm-up; control "reinit" at the larger density
    lr 0.01       the same at a tenth of the learning rate
    layer-wise    as iterative, but every layer pruned by itself; VGG-19 alone

Where the paper says that no ticket was found, the claim is that a random reinitialisation does as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lth_sparse.report.paper_claims.figures import Differences, Trained, accuracy, nearest_level
from lth_sparse.report.paper_claims.judging import Claim
from lth_sparse.report.verdict import percent

__all__ = ["HIGH", "LAYER_WISE", "LOW", "SMALLEST", "TYPICAL", "resnet", "vgg"]

HIGH, LOW, LAYER_WISE = "lr 0.1", "lr 0.01", "layer-wise"
#: Densities at which the paper still finds tickets with warm-up, and global pruning.
SMALLEST = {"resnet": 0.118, "vgg": 0.015}
#: ResNet: the best ticket with warm-up, amid the best at lr 0.01 (41.7 to 21.9%). VGG-19: the smallest layer-wise one.
TYPICAL = {"resnet": 0.271, "vgg": 0.069}


def resnet(densities: Mapping[str, Sequence[float]], margin: float) -> list[Claim]:
    """Claims of figure 8, at the levels nearest to the paper's densities."""
    main = densities["iterative"]
    k, smallest = (nearest_level(main, shares["resnet"]) for shares in (TYPICAL, SMALLEST))
    left, warm, low = percent(main[k]), Trained("iterative", k), Trained(LOW, k)
    return [
        *_without_warmup(8, k, left, margin),
        Claim(f"At lr 0.01 the ticket at {left} is as accurate as the dense network of that lr", 8, "not worse",
              _ends(low, Trained(LOW, 0)), "pp", margin),
        Claim(f"The dense network of lr 0.1 is more accurate than the ticket of lr 0.01 at {left}", 8, "greater",
              _ends(Trained(HIGH, 0), low), "pp"),
        Claim(f"With warm-up the ticket at {left} is as accurate as the dense network of lr 0.1", 8, "not worse",
              _ends(warm, Trained(HIGH, 0)), "pp", margin),
        Claim(f"With warm-up the ticket at {left} is more accurate than that of lr 0.01", 8, "greater",
              _ends(warm, low), "pp"),
        *_with_warmup(8, smallest, percent(main[smallest]), margin),
    ]  # fmt: skip


def vgg(densities: Mapping[str, Sequence[float]], margin: float) -> list[Claim]:
    """Claims of figure 7 and of the text on global pruning, at the levels nearest to the paper's densities."""
    main = densities["iterative"]
    k, smallest = (nearest_level(main, shares["vgg"]) for shares in (TYPICAL, SMALLEST))
    left, least = percent(main[k]), percent(main[smallest])
    return [
        *_without_warmup(7, k, left, margin),
        *_with_warmup(7, smallest, least, margin),
        Claim(f"Pruned layer by layer, the ticket at {left} is as accurate as the dense network", 0, "not worse",
              _ends(Trained(LAYER_WISE, k), Trained(LAYER_WISE, 0)), "pp", margin),
        Claim(f"At {least} the ticket pruned globally is more accurate than that pruned layer by layer", 0, "greater",
              _ends(Trained("iterative", smallest), Trained(LAYER_WISE, smallest)), "pp"),
    ]  # fmt: skip


def _without_warmup(figure: int, k: int, left: str, margin: float) -> list[Claim]:
    return [
        Claim(f"At lr 0.1 a random reinitialisation is as accurate as the ticket at {left}", figure, "not worse",
              _ends(Trained(HIGH, k, "reinit"), Trained(HIGH, k)), "pp", margin),
        Claim(f"At lr 0.01 the ticket at {left} is more accurate than a random reinitialisation", figure, "greater",
              _ends(Trained(LOW, k), Trained(LOW, k, "reinit")), "pp"),
    ]  # fmt: skip


def _with_warmup(figure: int, k: int, left: str, margin: float) -> list[Claim]:
    ticket = Trained("iterative", k)
    return [
        Claim(f"With warm-up the ticket at {left} is as accurate as the dense network with warm-up", figure,
              "not worse", _ends(ticket, Trained("iterative", 0)), "pp", margin),
        Claim(f"With warm-up the ticket at {left} is more accurate than a random reinitialisation", figure, "greater",
              _ends(ticket, Trained("iterative", k, "reinit")), "pp"),
    ]  # fmt: skip


def _ends(first: Trained, second: Trained) -> Differences:
    return accuracy(first, second, at_end=True)
