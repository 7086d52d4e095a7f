"""Sections about a ticket: complete for a search over two seeds, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine import Level, TicketResult
from lth_sparse.engine.analyses import Barrier, count_cost, linear_barrier
from lth_sparse.report import Training, analysis_plots, judge, summarise
from lth_sparse.report.analyses import analysis_sections
from lth_sparse.report.html import Report, render_html, render_json

TITLES = [
    "Learning curves",
    "Where the survivors are",
    "Initial weights of the survivors",
    "Movement of the weights",
    "Overlap between seeds",
    "Cost",
]


def find(seed: int, record: bool = True) -> TicketResult:
    torch.manual_seed(seed)
    x = torch.randn(32, 8)
    y = (x[:, 0] > 0).long()

    def train(model: nn.Module, level: Level) -> dict[str, float]:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
        for step in range(1, 5):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            level.step()
            if record:
                level.record(step=step, val_loss=loss.item(), test_acc=0.5 + step / 10)
        return {"test_acc": 0.9}

    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    return ls.find_ticket(net, train, levels=2, rate=0.3, controls=["reinit"], seed=seed)


def test_every_section_of_two_seeds() -> None:
    results = {seed: find(seed) for seed in range(2)}
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    cost = count_cost(net, results[0].tickets[2].masks, torch.randn(1, 8))
    sections = analysis_sections(results, 2, cost)
    assert [section.title for section in sections] == TITLES
    ids = [found for section in sections for svg, _ in section.figures for found in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    cells = {section.title: section.grids[0].rows for section in sections if section.grids}
    assert [row[0] for row in cells["Where the survivors are"]] == ["0.weight", "2.weight"]
    assert cells["Where the survivors are"][0][1] == "50.00%"  # 24 of 48; 48 x .7 x .7 is 23.52
    assert cells["Cost"][-1][:2] == ("all", "60")
    assert len(cells["Movement of the weights"]) == 4


def test_every_analysis_has_a_function_a_plot_and_a_section() -> None:
    """All but the early stop and the accuracies, whose plots and tables are the page's own, see test_html.py."""
    results = {seed: find(seed) for seed in range(2)}
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    cost = count_cost(net, results[0].tickets[2].masks, torch.randn(1, 8))
    barrier = Barrier((0.0, 1.0), (0.1, 0.1))
    sections = {one.title: one for one in analysis_sections(results, 2, cost, {"dense": [barrier]})}
    assert set(sections) == {*TITLES, "Linear mode connectivity"}
    figures = [svg for section in sections.values() for svg, _ in section.figures]
    drawn = [
        name for name in analysis_plots.__all__ if any(f'id="{name.removesuffix("_plot")}' in svg for svg in figures)
    ]
    assert drawn == analysis_plots.__all__
    for section in sections.values():
        assert section.text
        assert section.grids or section.title == "Learning curves"


def test_sections_come_in_the_page_and_in_its_facts(search: Callable[..., list[Training]]) -> None:
    results = {0: find(0)}
    summary = summarise(search([0.9, 0.9], {"reinit": 0.8}))
    values: dict[str, Any] = {field.name: {} for field in dataclasses.fields(Report)}
    values |= {"name": "n", "data": "d", "command": "c", "summary": summary, "verdict": judge(summary)}
    values |= {"versions": {"lth_sparse": "0"}, "tickets": (), "crowded": None, "created": "now"}
    report = Report(**values | {"analyses": analysis_sections(results, 2)})
    page, facts = render_html(report), render_json(report)
    assert "Overlap between seeds" not in page  # there is one seed
    for title in TITLES[:4]:
        assert f"<h2>{title}</h2>" in page
        assert title in facts


def test_a_search_without_curves_has_the_other_sections() -> None:
    titles = [section.title for section in analysis_sections({0: find(0, record=False)}, 1)]
    assert titles == TITLES[1:4]


def test_the_dense_level_and_unfinished_ones_have_nothing_to_show() -> None:
    result = find(0)
    assert analysis_sections({0: result}, 0) == ()
    assert analysis_sections({0: result}, 3) == ()
    assert analysis_sections({}, 1) == ()


def test_barriers_are_a_section_of_their_own() -> None:
    flat, hill = Barrier((0.0, 0.5, 1.0), (0.1, 0.1, 0.1)), Barrier((0.0, 0.5, 1.0), (0.1, 0.4, 0.2))
    result = find(0)
    (section,) = (
        one
        for one in analysis_sections({0: result, 1: find(1)}, 2, None, {"dense": [flat, hill], "ticket": []})
        if one.title == "Linear mode connectivity"
    )
    assert section.grids[0].rows == (("dense", "12.50%", "25.00%", "12.50 [0.00, 25.00]", "1 of 2"),)
    assert "dense" in section.figures[0][0]
    result.stability[16] = hill  # as rewind="auto" leaves it
    titles = {one.title: one for one in analysis_sections({0: result}, 1)}
    cells = titles["Linear mode connectivity"].grids[0].rows
    assert cells == (("dense, from step 16", "15.00%", "40.00%", "25.00 [25.00, 25.00]", "0 of 1"),)


def test_a_barrier_is_drawn() -> None:
    net = nn.Linear(1, 1)
    state = net.state_dict()
    barrier = linear_barrier(net, state, state, lambda model: 0.25, points=3)
    assert barrier == Barrier((0.0, 0.5, 1.0), (0.25, 0.25, 0.25))
    svg = analysis_plots.barrier_plot({"step 0": barrier})
    assert svg.startswith("<svg role=")
    assert "step 0" in svg


def test_layers_of_equal_density_are_drawn_although_their_mean_is_rounded() -> None:
    density = next(d for d in (n / 1000 for n in range(1, 999)) if sum([100.0 * d] * 3) / 3 < 100.0 * d)
    layer = SimpleNamespace(name="fc1.weight", density=density)
    assert "<svg" in analysis_plots.density_plot([[layer]] * 3)  # type: ignore[list-item]
