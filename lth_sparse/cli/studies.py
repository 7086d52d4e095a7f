"""Which searches the claims about a network need, and with what of its presets each is made.

Everything is known before anything is trained: the levels follow from the rates. Of a study, the preset says how its
networks are trained and pruned; two studies of one seed start from the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lth_sparse.paper import DataSet, Preset, build_model
from lth_sparse.paper.ladder import densities_of
from lth_sparse.report.claims import level_at_least, nearest_level
from lth_sparse.report.paper_claims.conv import DROPOUT
from lth_sparse.report.paper_claims.deep import HIGH, LAYER_WISE, LOW, SMALLEST, TYPICAL
from lth_sparse.report.paper_claims.lenet import COMPARED, FASTER_PRUNING

__all__ = ["NETWORKS", "Study", "main_preset", "studies_of"]

#: Network -> name of the preset of its study "iterative", which finds tickets.
NETWORKS = {
    **{"lenet": "lenet", "conv2": "conv2", "conv4": "conv4", "conv6": "conv6"},
    **{"resnet": "resnet-warmup", "vgg": "vgg-warmup"},
}
#: Of the deeper networks.
FIGURES = {"resnet": (8,), "vgg": (7,)}
#: Prunings after which a study that prunes faster must have passed the main one's last density.
ENOUGH = 100

#: Name of a preset -> the preset, with the budget and the data of the command.
Presets = Callable[[str], Preset]


@dataclass(frozen=True)
class Study:
    """One search per seed.

    Attributes:
        name: as the claims call it; its directory too.
        preset: rates, scope and levels among it.
        figures: of the paper, whose claims need it, besides those of its text alone.
        controls, control_levels: kinds, and the levels at which they are trained.
        rewind, one_shot: as for `find_ticket`.
    """

    name: str
    preset: Preset
    figures: tuple[int, ...] = ()
    controls: tuple[str, ...] = ()
    control_levels: tuple[int, ...] = ()
    rewind: str = "init"
    one_shot: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """For `find_ticket`."""
        preset = self.preset
        found: dict[str, Any] = {"rates": preset.rates, "scope": preset.scope, "rewind": self.rewind}
        found |= {"one_shot": True} if self.one_shot else {"levels": preset.levels}
        if self.controls:
            found |= {"controls": self.controls, "control_levels": self.control_levels}
        return found

    def densities(self, data: DataSet) -> list[float]:
        """Of its levels."""
        return _densities(self.preset, data)


def main_preset(network: str, presets: Presets) -> Preset:
    """That of the study "iterative"."""
    return presets(NETWORKS[network])


def studies_of(network: str, presets: Presets, data: DataSet) -> list[Study]:
    """The studies of a network in the order in which they are run; "iterative" comes first."""
    if network == "lenet":
        return _lenet(main_preset(network, presets), data)
    if network.startswith("conv"):
        return _conv(main_preset(network, presets), presets(f"{network}-dropout"))
    return _deep(network, presets, data)


def _lenet(preset: Preset, data: DataSet) -> list[Study]:
    densities, last = _densities(preset, data), preset.levels
    compared = sorted({nearest_level(densities, share) for share in COMPARED})
    one_shots = [
        Study(
            f"one-shot {k}",
            dataclasses.replace(
                preset, rates={pattern: 1.0 - (1.0 - rate) ** k for pattern, rate in preset.rates.items()}, levels=1
            ),
            figures=(4,),
            one_shot=True,
        )
        for k in compared
    ]
    faster = dataclasses.replace(preset, rates={pattern: 2 * rate for pattern, rate in preset.rates.items()})
    smallest = densities[nearest_level(densities, min(COMPARED))]
    levels = level_at_least(_densities(dataclasses.replace(faster, levels=ENOUGH), data), smallest)
    return [
        Study("iterative", preset, (4, 9), ("reinit", "random"), tuple(sorted({*compared, last}))),
        *one_shots,
        Study("continue", preset, (9,), rewind="continue"),
        Study(FASTER_PRUNING, dataclasses.replace(faster, levels=levels)),
    ]


def _conv(preset: Preset, dropout: Preset) -> list[Study]:
    return [Study("iterative", preset, (5, 6), ("reinit",), (preset.levels,)), Study(DROPOUT, dropout, (6,))]


def _deep(network: str, presets: Presets, data: DataSet) -> list[Study]:
    main, figures = main_preset(network, presets), FIGURES[network]
    densities = _densities(main, data)
    typical, smallest = (nearest_level(densities, shares[network]) for shares in (TYPICAL, SMALLEST))
    studies = [
        Study("iterative", main, figures, ("reinit",), (smallest,)),
        Study(HIGH, presets(network), figures, ("reinit",), (typical,)),
        Study(LOW, presets(f"{network}-low"), figures, ("reinit",), (typical,)),
    ]
    return [*studies, Study(LAYER_WISE, presets(f"{network}-layerwise"))] if network == "vgg" else studies


def _densities(preset: Preset, data: DataSet) -> list[float]:
    return densities_of(preset, build_model(preset.model, data, 0, dropout=preset.dropout))
