"""The SVG: well formed, labelled, and safe to put beside others on one page."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from lth_sparse.report import Summary, Training, summarise
from lth_sparse.report.plots import accuracy_plot, early_stop_plot, seconds_plot, studies_plot

MakeSearch = Callable[..., list[Training]]
PLOTS = {"accuracy": accuracy_plot, "early_stop": early_stop_plot, "seconds": seconds_plot}


@pytest.fixture
def summary(search: MakeSearch) -> Summary:
    return summarise(search([0.9, 0.91, 0.92, 0.91, 0.9], {"reinit": 0.8, "shuffled": 0.7}))


@pytest.fixture(params=sorted(PLOTS))
def plot(request: pytest.FixtureRequest) -> Callable[[Summary], str]:
    return PLOTS[request.param]


def text_of(svg: str) -> str:
    return " ".join(part.strip() for part in ElementTree.fromstring(svg).itertext() if part.strip())


def test_is_well_formed_with_axes_and_legend_in_words(plot: Callable[[Summary], str], summary: Summary) -> None:
    words = text_of(plot(summary))
    for expected in ("Weights left (%)", "dense network", "ticket", "random reinitialisation", "shuffled mask"):
        assert expected in words


@pytest.mark.parametrize(
    ("name", "label"),
    [("accuracy", "Test accuracy at early stop (%)"), ("early_stop", "Early-stop iteration"), ("seconds", "(s)")],
)
def test_vertical_axis_names_quantity_and_unit(name: str, label: str, summary: Summary) -> None:
    assert label in text_of(PLOTS[name](summary))


def test_floor_is_drawn_where_it_is_known(search: MakeSearch) -> None:
    seconds = [9.0, *(0.5 + 2.0 * 0.8**index for index in range(1, 6))]
    assert "floor" in text_of(seconds_plot(summarise(search([0.9] * 6, seconds=seconds))))


def test_ids_of_different_plots_differ(summary: Summary) -> None:
    ids = [name for plot in PLOTS.values() for name in re.findall(r'\bid="([^"]+)"', plot(summary))]
    assert len(ids) == len(set(ids))


def test_every_reference_finds_its_target(plot: Callable[[Summary], str], summary: Summary) -> None:
    svg = plot(summary)
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    assert references
    assert {first or second for first, second in references} <= ids


def test_same_summary_gives_the_same_svg(plot: Callable[[Summary], str], summary: Summary) -> None:
    assert plot(summary) == plot(summary)


@pytest.mark.parametrize("accuracies", [[], [0.9], [0.9, 0.9]])
def test_few_levels_are_no_error(plot: Callable[[Summary], str], search: MakeSearch, accuracies: list[float]) -> None:
    ElementTree.fromstring(plot(summarise(search(accuracies))))


def test_searches_are_lines_with_their_names(search: MakeSearch) -> None:
    summaries = {f"lr {lr}": summarise(search([0.9, 0.91, 0.92 - lr])) for lr in (0.1, 0.01)}
    svg = studies_plot(summaries)
    words = text_of(svg)
    for expected in ("lr 0.1", "lr 0.01", "Weights left (%)", "Test accuracy at the end (%)"):
        assert expected in words
    assert studies_plot(summaries) == svg
