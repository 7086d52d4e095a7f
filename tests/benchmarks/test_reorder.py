"""Hidden blocks are found again; the benchmark's own counts are right, and its command runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lth_sparse.benchmarks import reorder as benchmark
from lth_sparse.benchmarks.reorder import CASES, HiddenBlocks, recover
from lth_sparse.formats.reorder import live_blocks


def test_there_are_fifty_masks_of_all_sizes_and_kinds_of_noise() -> None:
    assert len(CASES) == len(set(CASES)) == 50
    assert {case.rows for case in CASES} == {256, 512, 1024, 2048, 4096}
    assert {(case.missing, case.stray) for case in CASES} == set(benchmark.NOISE)


def test_a_hidden_mask_has_the_noise_that_it_is_asked_for() -> None:
    case = HiddenBlocks(64, 48, (8, 4), 0.25, 0.1, 0.2, seed=0)
    mask, hidden = case.draw()
    assert hidden.shape == (8, 12)
    assert int((hidden > 0).sum()) == 24
    assert int(mask.sum()) == int(hidden.sum()) + round(0.2 * int(hidden.sum()))
    assert 0.8 < float(hidden.sum()) / (24 * 32) < 0.97


def test_the_order_before_the_shuffle_counts_as_all_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    case = HiddenBlocks(64, 64, (8, 8), 0.2, 0.0, 0.1, seed=1)
    mask, _ = case.draw()
    generator = torch.Generator().manual_seed(case.seed)  # as draw() does, to know the shuffle
    torch.randperm(64, generator=generator)
    torch.rand(64, 64, generator=generator)
    outside = 64 * 64 - 13 * 64
    torch.randperm(outside, generator=generator)
    rows, cols = torch.randperm(64, generator=generator), torch.randperm(64, generator=generator)
    back = benchmark.Reordering(rows.argsort(), cols.argsort(), case.block, 0, 0)
    monkeypatch.setattr(benchmark, "reorder", lambda *_, **__: back)
    found = recover(case)
    assert (found.hidden, found.needed, found.fill) == (13, 13, 1.0)
    nothing = benchmark.Reordering(torch.arange(64), torch.arange(64), case.block, 0, 0)
    monkeypatch.setattr(benchmark, "reorder", lambda *_, **__: nothing)
    assert recover(case).recovered < 0.5
    assert int(live_blocks(mask, case.block).sum()) == int(mask.sum())


@pytest.mark.parametrize("case", [case for case in CASES if case.rows <= 512], ids=lambda case: case.name)
def test_ninety_percent_of_the_hidden_density_comes_back(case: HiddenBlocks) -> None:
    assert recover(case).recovered >= 0.9


def test_the_command_prints_a_table_and_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hidden.csv"
    assert benchmark.main(["--largest", "256", "--csv", str(path)]) == 0
    assert "greedy: 10 of 10 recovered to 90%" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 1 + 2 * 10


def test_a_ticket_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--ticket", "nowhere.safetensors"]) == 1
    assert "lth_sparse: " in capsys.readouterr().err
