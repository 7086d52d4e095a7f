"""Claims are judged by the rule that is written down, whatever the figures; and the figures are those of the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lth_sparse.engine import LevelRecord, TicketResult
from lth_sparse.report.claims import Claim, Finding, claims_grid, claims_of, examine, nearest_level

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


LADDER = [1.0] + [sum(numel * (1 - rate) ** k for numel, rate in ((265200, 0.2), (1000, 0.1))) / 266200
                  for k in range(1, 16)]  # fmt: skip


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
        for k in (7, 15):
            found.setdefault(f"one-shot {k}", {})[seed] = result([dense, level(1, 0.9 - better / 2)], {})
    return found


def test_every_claim_holds_where_tickets_are_what_the_paper_says(record: MakeRecord) -> None:
    claims = claims_of("lenet", 15, LADDER, 500, 0.9)
    outcomes = {claim.text: examine(claim, studies(record)).outcome for claim in claims}
    assert len(outcomes) == 12
    assert set(outcomes.values()) == {"holds"}, outcomes


def test_claims_are_contradicted_where_tickets_are_worse(record: MakeRecord) -> None:
    claims = claims_of("lenet", 15, LADDER, 500_000, 0.9)
    outcomes = [examine(claim, studies(record, better=-0.02)).outcome for claim in claims]
    assert outcomes.count("contradicted") >= 6
    assert outcomes[0] == "holds"  # the ladder has nothing to do with accuracy


def test_a_wrong_ladder_is_contradicted(record: MakeRecord) -> None:
    made = studies(record, seeds=1)
    object.__setattr__(made["iterative"][0].levels[7], "density", 0.25)
    assert examine(claims_of("lenet", 15, LADDER, 500, 0.9)[0], made).outcome == "contradicted"


def test_claims_about_levels_that_were_not_reached_are_left_out() -> None:
    assert claims_of("conv6", 5, LADDER[:6], 500, 0.9)[0].figure == 5
    assert [claim.figure for claim in claims_of("conv2", 5, LADDER[:6], 500, 0.9)] == [5, 5, 5, 5]
    assert "51.3% at level 3" in claims_of("lenet", 5, LADDER[:6], 500, 0.9)[0].text


def test_missing_studies_and_curves_show_nothing(record: MakeRecord) -> None:
    made = studies(record)
    del made["continue"]
    for result in made["iterative"].values():
        for level in result.levels:
            object.__setattr__(level, "early_stop", None)
    findings = {claim.text: examine(claim, made) for claim in claims_of("lenet", 15, LADDER, 500, 0.9)}
    silent = [text for text, finding in findings.items() if not finding.seeds]
    assert len(silent) == 3  # two about speed, one about training on


def test_the_table_has_percentage_points(record: MakeRecord) -> None:
    grid = claims_grid([judged("greater", [0.02, 0.03]), judged("greater", None), judged("equal", [0.1], 0.2)])
    assert grid.rows[0][1:3] == ("not shown", "+2.50 [+2.00, +3.00] pp")  # two seeds leave a wide interval
    assert grid.rows[1][1:4] == ("not shown", "-", "-")
    assert grid.rows[2][3] == "-"
