"""Claims about dropout, ResNet-20 and VGG-19: they hold on figures as the paper's, and are contradicted otherwise.

The figures are the paper's own as far as it prints them, with a little noise from seed to seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from lth_sparse.engine import LevelRecord, TicketResult
from lth_sparse.report.claims import Finding, Studies, claims_of, examine

MakeRecord = Callable[..., LevelRecord]

RESNET = [0.8**k * 267_696 / 270_896 + 3_200 / 270_896 for k in range(11)]
VGG = [0.8**k for k in range(20)]
SEEDS = range(4)


def result(
    record: MakeRecord, seed: int, accuracies: Mapping[int, float], controls: Mapping[int, float], last: int
) -> TicketResult:
    """Levels up to `last`: those that `accuracies` does not name have that of the named one before."""

    def trained(k: int, accuracy: float, control: str | None = None) -> LevelRecord:
        return record(k, accuracy + 0.0004 * (seed - 1.5) * (1 + k % 3), control=control)

    named = [max(at for at in accuracies if at <= k) for k in range(last + 1)]
    levels = [trained(k, accuracies[at]) for k, at in enumerate(named)]
    return TicketResult(
        [], levels, {(k, "reinit"): trained(k, accuracy, "reinit") for k, accuracy in controls.items()}, {}
    )


def made(
    record: MakeRecord, figures: Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]], last: int
) -> Studies:
    return {
        name: {seed: result(record, seed, accuracies, controls, last) for seed in SEEDS}
        for name, (accuracies, controls) in figures.items()
    }


def judged(network: str, densities: Sequence[float], studies: Studies, images: int = 10_000) -> list[Finding]:
    return [examine(claim, studies) for claim in claims_of(network, dict.fromkeys(studies, densities), images, 0.9)]


RESNET_AS_PRINTED: dict[str, tuple[dict[int, float], dict[int, float]]] = {
    "iterative": ({0: 0.895, 6: 0.905, 10: 0.897}, {10: 0.875}),
    "lr 0.1": ({0: 0.905, 1: 0.89}, {6: 0.892}),
    "lr 0.01": ({0: 0.887, 1: 0.895}, {6: 0.87}),
}
VGG_AS_PRINTED: dict[str, tuple[dict[int, float], dict[int, float]]] = {
    "iterative": ({0: 0.925, 1: 0.93}, {19: 0.9}),
    "lr 0.1": ({0: 0.92, 1: 0.91}, {12: 0.912}),
    "lr 0.01": ({0: 0.91, 1: 0.915}, {12: 0.9}),
    "layer-wise": ({0: 0.925, 1: 0.93, 13: 0.9}, {}),
}


def test_every_claim_about_resnet_holds_on_the_papers_figures(record: MakeRecord) -> None:
    found = judged("resnet", RESNET, made(record, RESNET_AS_PRINTED, 10))
    assert [(finding.outcome, finding.claim.figure) for finding in found] == [("holds", 8)] * 8
    assert [finding.seeds for finding in found] == [4] * 8
    assert "27.1%" in found[0].claim.text
    assert "11.8%" in found[-1].claim.text


def test_every_claim_about_vgg_holds_on_the_papers_figures(record: MakeRecord) -> None:
    found = judged("vgg", VGG, made(record, VGG_AS_PRINTED, 19))
    assert [(f.outcome, f.claim.figure) for f in found] == [("holds", 7)] * 4 + [("holds", 0)] * 2
    assert "6.9%" in found[0].claim.text
    assert "1.4%" in found[-1].claim.text


def test_tickets_at_the_high_learning_rate_contradict_that_there_are_none(record: MakeRecord) -> None:
    figures = {**RESNET_AS_PRINTED, "lr 0.1": ({0: 0.905, 1: 0.91}, {6: 0.85})}
    assert judged("resnet", RESNET, made(record, figures, 10))[0].outcome == "contradicted"


def test_tickets_worse_than_what_they_are_held_against_contradict_all_the_rest(record: MakeRecord) -> None:
    figures = {
        "iterative": ({0: 0.905, 1: 0.8}, {10: 0.87}),
        "lr 0.1": ({0: 0.85, 1: 0.91}, {6: 0.85}),
        "lr 0.01": ({0: 0.91, 1: 0.87}, {6: 0.9}),
    }
    found = judged("resnet", RESNET, made(record, figures, 10), images=1_000_000)
    assert {finding.outcome for finding in found} == {"contradicted"}


def test_layer_wise_pruning_that_does_as_well_contradicts_global_pruning(record: MakeRecord) -> None:
    figures = {**VGG_AS_PRINTED, "layer-wise": ({0: 0.925, 1: 0.94}, {})}
    assert judged("vgg", VGG, made(record, figures, 19))[-1].outcome == "contradicted"


def test_the_accuracy_is_that_of_the_last_iteration(record: MakeRecord) -> None:
    studies = made(record, RESNET_AS_PRINTED, 10)
    for seeds in studies.values():
        for level in (level for found in seeds.values() for level in found.levels):
            assert level.early_stop is not None
            level.early_stop.metrics["test_acc"] = 0.0
    assert {finding.outcome for finding in judged("resnet", RESNET, studies)} == {"holds"}


@pytest.mark.parametrize("missing", ["lr 0.1", "lr 0.01"])
def test_a_study_that_is_missing_shows_nothing(record: MakeRecord, missing: str) -> None:
    studies = made(record, {name: value for name, value in RESNET_AS_PRINTED.items() if name != missing}, 10)
    silent = [finding for finding in judged("resnet", RESNET, studies) if not finding.seeds]
    assert {finding.outcome for finding in silent} == {"not shown"}
    assert len(silent) == {"lr 0.1": 3, "lr 0.01": 4}[missing]


@pytest.mark.parametrize(("gain", "outcome"), [(0.02, "holds"), (-0.02, "contradicted")])
def test_dropout_is_judged_against_the_dense_networks(record: MakeRecord, gain: float, outcome: str) -> None:
    figures = {
        "iterative": ({0: 0.9}, {}),
        "dropout": ({0: 0.9 + gain, 1: 0.9 + 2 * gain}, {}),
    }
    found = judged("conv2", VGG[:15], made(record, figures, 14))
    assert [finding.outcome for finding in found if finding.claim.figure == 6] == [outcome] * 2
