"""The page and its JSON: complete, self-contained, escaped, and in agreement with the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lth_sparse.errors import RunError
from lth_sparse.report import Training, judge, summarise
from lth_sparse.report.html import Report, render_html, render_json, write_report

MakeSearch = Callable[..., list[Training]]
VOID = {"meta", "link", "br", "hr", "img", "input"}
FETCHING = {"src", "href", "xlink:href", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Collects text, ids and whatever a browser would fetch; notes tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.fetched += [value for name, value in attrs if name in FETCHING and value and not value.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def report(search: MakeSearch) -> Report:
    summary = summarise(search([0.90, 0.91, 0.925], {"reinit": 0.8, "shuffled": 0.7}))
    return Report(
        name="LeNet-300-100 on digits",
        data="digits: 997 / 300 / 500 images",
        command="lth-sparse find lenet --quick --output runs/lenet",
        summary=summary,
        verdict=judge(summary),
        hyperparameters={"lr": 0.0012, "rates": "fc* 0.2"},
        versions={"lth_sparse": "1.2.3", "torch": "9.9"},
        machine={"processor": "Imagined <CPU>"},
        tickets=("runs/lenet/seed_0/level_02.safetensors",),
        created="2026-01-01 00:00 UTC",
    )


def test_page_loads_nothing(report: Report) -> None:
    text = render_html(report)
    page = Page(text)
    assert page.fetched == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in text
    assert "url(http" not in text


def test_page_is_well_nested_with_unique_ids(report: Report) -> None:
    page = Page(render_html(report))
    assert (page.misnested, page.open) == ([], [])
    assert len(page.ids) == len(set(page.ids))


def test_page_shows_the_mean_and_range_of_each_level(report: Report) -> None:
    words = Page(render_html(report)).words
    for level in (*report.summary.levels, *report.summary.controls):
        statistic = level.early_accuracy
        assert statistic is not None
        low, mean, high = (f"{100 * x:.2f}" for x in (statistic.minimum, statistic.mean, statistic.maximum))
        assert f"{mean}% [{low}, {high}]" in words


def test_page_shows_every_training(report: Report) -> None:
    words = Page(render_html(report)).words
    for training in report.summary.trainings:
        assert training.accuracy is not None
        assert f"{100 * training.accuracy:.2f}%" in words


@pytest.mark.parametrize("fact", ["verdict.title", "verdict.text", "command", "data", "created"])
def test_page_tells_verdict_and_how_to_repeat_it(report: Report, fact: str) -> None:
    value = report
    for name in fact.split("."):
        value = getattr(value, name)
    assert str(value) in Page(render_html(report)).words


@pytest.mark.parametrize("words", ["0.0012", "fc* 0.2", "1.2.3", "9.9", "seed_0/level_02.safetensors"])
def test_page_lists_hyperparameters_versions_and_tickets(report: Report, words: str) -> None:
    assert words in Page(render_html(report)).words


def test_values_are_escaped(report: Report) -> None:
    text = render_html(report)
    assert "Imagined &lt;CPU&gt;" in text
    assert "<CPU>" not in text


def test_json_holds_the_figures_of_the_records(report: Report) -> None:
    facts = json.loads(render_json(report))
    assert facts["verdict"]["kind"] == report.verdict.kind == "winning"
    for shown, training in zip(facts["trainings"], report.summary.trainings, strict=True):
        assert shown["accuracy"] == training.accuracy
        assert shown["early_stop"] == training.early_stop
        assert shown["seconds"] == training.seconds
    assert facts["levels"][2]["early_accuracy"]["mean"] == pytest.approx(0.925)


def test_json_has_no_nan(report: Report) -> None:
    figures = {"loss": float("nan"), "deep": [float("inf")]}
    strange = Report(**{**report.__dict__, "hyperparameters": figures})
    assert json.loads(render_json(strange))["hyperparameters"] == {"loss": None, "deep": [None]}


def test_a_disturbed_measurement_is_said_on_the_page(report: Report) -> None:
    disturbed = Report(**{**report.__dict__, "crowded": "others were busy"})
    assert "Careful: others were busy." in Page(render_html(disturbed)).words


def test_both_files_are_written(report: Report, tmp_path: Path) -> None:
    page, facts = write_report(tmp_path, report)
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads(facts.read_text(encoding="utf-8"))["name"] == report.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_an_unwritable_directory_is_one_clear_error(report: Report, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*report\.json"):
        write_report(tmp_path / "missing", report)
