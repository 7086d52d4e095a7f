"""The ledger as tables, plot and page."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conversion_cases import imagined_entry, imagined_ledger

from lth_sparse.engine.conversion import Ledger
from lth_sparse.errors import RunError
from lth_sparse.report.conversion import (
    ConversionReport,
    conversion_section,
    ledger_grid,
    notes_of,
    pareto_plot,
    write_conversion,
)


def report(ledger: Ledger) -> ConversionReport:
    return ConversionReport(
        name="lenet <quick>",
        command="lth-sparse convert ticket.safetensors --target cpu",
        ledger=ledger,
        best=ledger.best(0.5),
        facts={"budget": "0.5 points"},
        versions={"lth_sparse": "0.1"},
        machine={"processor": "some"},
        created="2026-01-31 12:00 UTC",
    )


def cells(ledger: Ledger, name: str) -> dict[str, str]:
    grid = ledger_grid(ledger)
    row = next(row for row in grid.rows if row[0] == name)
    return dict(zip(grid.headers, row, strict=True))


def test_a_row_shows_counts_speeds_and_losses() -> None:
    row = cells(imagined_ledger(), "vectors:4x1")
    assert row["weights left"] == "10.00%"
    assert (row["kept"], row["added"], row["dropped"]) == ("90", "10", "20")
    assert row["step"] == "2.00 ms"
    assert row["vs csr"] == "2.00x [2.00, 2.00]"
    assert row["vs dense"] == "5.00x [5.00, 5.00]"
    assert row["converted"] == "50.0%"
    assert row["retrained"] == "97.10% [96.50, 97.70]"
    assert row["points lost"] == "+0.40"


def test_what_was_not_measured_is_a_dash_and_said() -> None:
    ledger = imagined_ledger(timed=False, judged=False)
    row = cells(ledger, "vectors:4x1")
    assert {row[name] for name in ("forward", "step", "vs csr", "converted", "retrained", "points lost")} == {"-"}
    assert any("not measured" in note for note in notes_of(ledger))
    assert pareto_plot(ledger) is None


def test_notes_name_their_entry() -> None:
    entries = (*imagined_ledger().entries, imagined_entry("2:4", 8.0, notes=("no layer gets faster",)))
    assert notes_of(Ledger("ab", "cpu", entries)) == ["2:4: no layer gets faster."]


def test_the_plot_is_one_svg_with_every_choice() -> None:
    svg = pareto_plot(imagined_ledger())
    assert svg is not None
    ElementTree.fromstring(svg)
    for name in ("csr", "auto", "vectors:4x1", "refill"):
        assert name in svg


def test_the_section_can_stand_in_any_report() -> None:
    section = conversion_section(imagined_ledger())
    assert "500 steps" in section.text
    assert len(section.figures) == 1
    assert section.grids[0].headers[0] == "method"


def test_page_and_json_are_written_and_agree(tmp_path: Path) -> None:
    page, facts = write_conversion(tmp_path, report(imagined_ledger()))
    text, content = page.read_text(), json.loads(facts.read_text())
    assert "lenet &lt;quick&gt;" in text
    assert "vectors:4x1" in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert content["best"]["name"] == "vectors:4x1"
    assert content["pareto"] == ["refill", "vectors:4x1", "auto", "cover:4x1"]
    assert [entry["name"] for entry in content["entries"]][:3] == ["dense", "csr", "auto"]
    assert content["entries"][3]["points_lost"] == pytest.approx(0.4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.json", "report.html"]


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_conversion(tmp_path, report(imagined_ledger()))
    before = (tmp_path / "ledger.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(RunError, match="ledger"):
        write_conversion(tmp_path, report(imagined_ledger(judged=False)))
    assert (tmp_path / "ledger.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.json", "report.html"]
