"""Claims are judged by the rule that is written down, whatever the figures; and the figures are those of the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lth_sparse.engine import LevelRecord, TicketResult
from lth_sparse.report.claims import (
    Claim,
    Finding,
    claims_grid,
    claims_of,
    examine,
    ladder_claim,
    level_at_least,
    nearest_level,
)

MakeRecord = Callable[..., LevelRecord]


def judged(kind: str, found: list[float] | None, margin: float = 0.0) -> Finding:
    return examine(Claim("text", 4, kind, lambda studies: found, "pp", margin), {})


@pytest.mark.parametrize(
    ("kind", "found", "outcome"),
    [
        ("greater", [0.02, 0.03, 0.025], "holds"),
        ("greater", [-0.02, -0.03, -0.025], "contradicted"),
        ("greater", [0.05, -0.03, 0.01], "not shown"),
        ("greater", [0.0, 0.0, 0.0], "not shown"),
        ("greater", [0.5], "not shown"),  # one seed shows nothing
        ("greater", [0.5, 0.5], "not shown"),  # and neither do two, which may be equal by chance
        ("greater", [-0.5, -0.5], "not shown"),
        ("not worse", [0.5, 0.5], "not shown"),
        ("greater", [], "not shown"),
        ("greater", None, "not shown"),
        ("not worse", [0.0, 0.001, -0.001], "holds"),
        ("not worse", [-0.02, -0.021, -0.019], "contradicted"),
        ("not worse", [-0.03, 0.03, 0.0], "not shown"),
        ("equal", [0.005, -0.009], "holds"),
        ("equal", [0.005, 0.011], "contradicted"),
    ],
)
def test_outcomes(kind: str, found: list[float] | None, outcome: str) -> None:
    assert judged(kind, found, margin=0.01 if kind != "greater" else 0.0).outcome == outcome


def test_the_bound_is_students() -> None:
    """n = 5, s = sqrt(2.5): 2.132 s / sqrt(5), from any table of the distribution."""
    finding = judged("greater", [1.0, 2.0, 3.0, 4.0, 5.0])
    assert finding.bound == pytest.approx(2.1318 * math.sqrt(2.5) / math.sqrt(5), rel=1e-4)
    assert (finding.mean, finding.minimum, finding.maximum, finding.seeds) == (3.0, 1.0, 5.0, 5)


def test_the_nearest_level_is_so_on_a_logarithmic_scale() -> None:
    assert nearest_level([1.0, 0.8, 0.4, 0.1], 0.25) == 2
    assert nearest_level([1.0, 0.8, 0.4, 0.1], 0.15) == 3
    assert nearest_level([1.0, 0.8], 0.01) == 1


def test_a_level_at_least_as_dense_is_the_last_of_them() -> None:
    assert level_at_least([1.0, 0.8, 0.4, 0.1], 0.3) == 2
    assert level_at_least([1.0, 0.8, 0.4, 0.1], 0.4) == 2
    assert level_at_least([1.0, 0.8], 0.9) == 0


LADDER = [1.0] + [sum(numel * (1 - rate) ** k for numel, rate in ((265200, 0.2), (1000, 0.1))) / 266200
                  for k in range(1, 16)]  # fmt: skip


FASTER = [1.0] + [sum(numel * (1 - rate) ** k for numel, rate in ((265200, 0.4), (1000, 0.2))) / 266200
                  for k in range(1, 8)]  # fmt: skip
DENSITIES = {"iterative": LADDER, "rate 0.4": FASTER}
PRINTED = {3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6}


def studies(record: MakeRecord, better: float = 0.01, seeds: int = 4) -> dict[str, dict[int, TicketResult]]:
    """Tickets ``better`` than dense, random networks as much worse; everything a little noisy from seed to seed."""

    def result(levels: list[LevelRecord], controls: dict[Any, LevelRecord]) -> TicketResult:
        return TicketResult([], levels, controls, {})

    found: dict[str, dict[int, TicketResult]] = {}
    for seed in range(seeds):
        noise = 0.0005 * (seed - 1.5)
        dense = record(0, 0.9 + noise, step=1000 + seed)

        def level(k: int, accuracy: float, step: int = 500, noise: float = noise) -> LevelRecord:
            made = record(k, accuracy + 2 * noise, step=step)
            object.__setattr__(made, "density", LADDER[k])
            return made

        levels = [dense, *(level(k, 0.9 + better) for k in range(1, 16))]
        controls = {}
        for k in (7, 15):
            controls[k, "reinit"] = record(k, 0.9 - better + noise, step=2000, control="reinit")
            controls[k, "random"] = record(k, 0.9 - 2 * better - noise, step=2000, control="random")
        found.setdefault("iterative", {})[seed] = result(levels, controls)
        found.setdefault("continue", {})[seed] = result([dense, *(level(k, 0.9) for k in range(1, 16))], {})
        found.setdefault("rate 0.4", {})[seed] = result([dense, *(level(k, 0.9) for k in range(1, 7))], {})
        for k in (7, 15):
            found.setdefault(f"one-shot {k}", {})[seed] = result([dense, level(1, 0.9 - better / 2)], {})
    return found


def test_every_claim_holds_where_tickets_are_what_the_paper_says(record: MakeRecord) -> None:
    claims = [ladder_claim(PRINTED, 0.1), *claims_of("lenet", DENSITIES, 500, 0.9)]
    outcomes = {claim.text: examine(claim, studies(record)).outcome for claim in claims}
    assert len(outcomes) == 13
    assert set(outcomes.values()) == {"holds"}, outcomes


def test_claims_are_contradicted_where_tickets_are_worse(record: MakeRecord) -> None:
    claims = [ladder_claim(PRINTED, 0.1), *claims_of("lenet", DENSITIES, 500_000, 0.9)]
    outcomes = [examine(claim, studies(record, better=-0.02)).outcome for claim in claims]
    assert outcomes.count("contradicted") >= 6
    assert outcomes[0] == "holds"  # the ladder has nothing to do with accuracy


def test_a_wrong_ladder_is_contradicted(record: MakeRecord) -> None:
    made = studies(record, seeds=1)
    object.__setattr__(made["iterative"][0].levels[7], "density", 0.25)
    assert examine(ladder_claim(PRINTED, 0.1), made).outcome == "contradicted"


def test_a_ladder_says_what_it_is() -> None:
    assert ladder_claim({3: 51.3, 7: 21.1}, 0.1).text == "The weights left are 51.3% at level 3, 21.1% at level 7"


@pytest.mark.parametrize("network", ["conv2", "conv4", "conv6"])
def test_conv_nets_have_claims_without_and_with_dropout(network: str) -> None:
    claims = claims_of(network, {"iterative": LADDER[:6], "dropout": LADDER[:6]}, 500, 0.9)
    assert [claim.figure for claim in claims] == [5, 5, 5, 5, 6, 6]


def test_missing_studies_and_curves_show_nothing(record: MakeRecord) -> None:
    made = studies(record)
    del made["continue"]
    for result in made["iterative"].values():
        for level in result.levels:
            object.__setattr__(level, "early_stop", None)
    findings = {claim.text: examine(claim, made) for claim in claims_of("lenet", DENSITIES, 500, 0.9)}
    silent = [text for text, finding in findings.items() if not finding.seeds]
    assert len(silent) == 3  # two about speed, one about training on


def test_the_table_has_percentage_points(record: MakeRecord) -> None:
    grid = claims_grid([judged("greater", [0.02, 0.03]), judged("greater", None), judged("equal", [0.1], 0.2)])
    assert grid.rows[0][1:3] == ("not shown", "+2.50 [+2.00, +3.00] pp")  # two seeds leave a wide interval
    assert grid.rows[1][1:4] == ("not shown", "-", "-")
    assert grid.rows[2][3] == "-"
