"""A run in miniature: what is compared with what, the rows of the CSV, the tables, the plots, the mistakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lth_sparse.benchmarks.cases import Case, select
from lth_sparse.benchmarks.machine import Rates
from lth_sparse.benchmarks.measure import COLUMNS, Measurement, Run, Settings, read_csv, write_csv
from lth_sparse.benchmarks.options import floats, integers, words
from lth_sparse.benchmarks.plots import draw
from lth_sparse.benchmarks.providers import LAYOUTS, PROVIDERS
from lth_sparse.benchmarks.tables import layer_grid, network_grid, peer_grid, rates_line
from lth_sparse.errors import ArgumentError

TINY = (
    Case("tiny", "linear", (32, 48), 4, count=3),
    Case("tiny-conv", "conv2d", (8, 4, 3, 3), 2, (6, 6)),
)


@pytest.fixture(scope="module")
def run() -> Run:
    """Everything of two tiny cases at two densities."""
    work = Run(Settings(TINY, (0.5, 0.1), (1,), ("forward", "forward+dx", "step"), seconds=0.001))
    work.rates[1] = Rates(1e11, 2e10)
    assert all(work.measure())
    return work


def test_what_multiplies_all_weights_is_measured_once_and_the_rest_at_each_density(run: Run) -> None:
    keys = [(one.provider.name, one.density) for one in run.measurements if (one.case, one.mode) == (TINY[0], "step")]
    assert keys == [
        *(("dense", 1.0), ("masked dense", 1.0), ("torch CSR", 0.5), ("torch CSR", 0.1)),
        *((f"lth_sparse {layout}", density) for layout in LAYOUTS for density in (0.5, 0.1)),
    ]


def test_a_comparison_names_its_candidates_before_it_builds_them(run: Run) -> None:
    for comparison in run.settings.comparisons():
        found = [
            (one.provider.name, one.density)
            for one in run.measurements
            if (one.case, one.mode) == (comparison.case, comparison.mode)
        ]
        assert comparison.candidates() == found


def test_ratios_are_to_the_better_dense_layer_of_the_same_round(run: Run) -> None:
    group = [one for one in run.measurements if (one.case, one.mode) == (TINY[1], "step")]
    dense = min((one for one in group if one.provider.name.startswith("dense")), key=lambda one: one.seconds())
    for one in group:
        assert one.ratio_to == dense.provider.name
        assert one.ratios == [a / b for a, b in zip(dense.samples, one.samples, strict=True)]


def test_live_rates_count_live_weights_alone(run: Run) -> None:
    for one in run.measurements:
        assert one.live_flops == one.case.flops(one.nnz, one.mode) / one.seconds()
        if one.provider.layout == "csr":
            assert one.nnz == round(one.density * one.case.numel)


def test_rows_have_the_columns_of_the_csv_and_say_where_they_come_from(run: Run) -> None:
    for row in run.rows():
        assert tuple(row) == COLUMNS
        assert all(row[name] for name in COLUMNS if name not in ("image",))
    row = run.rows()[0]
    assert (row["case"], row["weight"], row["count"], row["torch"]) == ("tiny", "32x48", "3", torch.__version__)
    assert (row["fma_peak_gflops"], row["read_gbytes"]) == ("100.0", "20.0")


def test_csv_is_appended_to_under_one_header(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    for _ in range(2):
        write_csv(path, run.rows()[:3], COLUMNS)
    assert len(read_csv(path)) == 6
    assert path.read_text().count("fma_peak_gflops") == 1


def test_csv_of_other_columns_is_left_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text("case,time\n")
    with pytest.raises(ArgumentError, match=r"csv: expected a new file, .*old\.csv"):
        write_csv(path, run.rows(), COLUMNS)
    assert path.read_text() == "case,time\n"


def test_masks_and_weights_are_the_same_in_every_run_and_the_random_state_is_left_alone() -> None:
    settings = Settings(TINY[:1], (0.5,), peers=(), seconds=0.001)
    state = torch.get_rng_state()
    (comparison,) = settings.comparisons()[:1]
    comparison.measure()
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_are_set_for_each_comparison_and_come_back() -> None:
    before = torch.get_num_threads()
    seen = []
    work = Run(
        Settings(TINY[:1], (0.5,), (1, 2), ("forward",), ("csr",), (), 0.001), rates={1: Rates(1, 1), 2: Rates(1, 1)}
    )
    for done in work.measure():
        seen.append(done[0].threads)
    assert seen == [1, 2]
    assert torch.get_num_threads() == before


def test_a_skipped_layout_is_said_so() -> None:
    from lth_sparse.ops import use_backend

    settings = Settings(TINY[:1], (0.5,), layouts=("csr",), peers=())
    with use_backend("reference"):
        assert settings.skipped() == [
            "lth_sparse csr skipped for tiny: no CPU kernel for layout csr and linear: the reference would run"
        ]
        assert [key for comparison in settings.comparisons() for key in comparison.candidates()] == [("dense", 1.0)] * 2


def test_tables_have_a_line_for_each_layout_and_density(run: Run) -> None:
    grid = layer_grid(run)
    assert [row[:4] for row in grid.rows] == [
        (case, layout, "1", density)
        for case in ("tiny", "tiny-conv")
        for layout in LAYOUTS
        for density in ("0.5", "0.1")
    ]
    peers = peer_grid(run)
    assert peers is not None
    assert "torch CSR" in peers.headers
    assert rates_line(run) == "1 thread: 100 GFLOP/s multiply-add on registers, 20 GB/s read"


def test_without_a_forward_pass_the_table_has_gaps() -> None:
    work = Run(Settings(TINY[:1], (0.5,), modes=("step",), peers=(), seconds=0.001), rates={1: Rates(1e11, 1e10)})
    assert all(work.measure())
    assert layer_grid(work).rows[0][4:7] == ("-", "-", "-")
    assert peer_grid(work) is None


def test_layers_of_a_network_are_added_up_as_often_as_they_come() -> None:
    cases = select("bert")
    work = Run(Settings(cases, (0.5,), modes=("forward",)), rates={1: Rates(1e11, 1e10)})
    names = {"dense": 1.0, "lth_sparse csr": 0.5}
    for case in cases:
        for name, density in names.items():
            seconds = 3.0 if name == "dense" else 2.0
            work.add([Measurement(case, 1, "forward", PROVIDERS[name], density, 1, [seconds], [1.0], "dense")])
    grid = network_grid(work)
    assert grid is not None
    # 48 + 12 + 12 layers
    assert grid.rows == (("bert", "csr", "forward", "1", "0.5", "216000.00", "144000.00", "1.50"),)


def test_a_network_of_which_layers_are_missing_is_not_added_up(run: Run) -> None:
    assert network_grid(run) is None


def test_plots_are_drawn_and_the_same_rows_give_the_same_files(run: Run, tmp_path: Path) -> None:
    paths = draw(run.rows(), tmp_path / "a")
    assert [path.name for path in paths] == ["speedup.svg", "roofline.svg"]
    assert "1 / density" in paths[0].read_text()
    assert "100 GFLOP/s" in paths[1].read_text()
    again = draw(run.rows(), tmp_path / "b")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_without_a_sparse_candidate_there_is_nothing_to_draw(run: Run, tmp_path: Path) -> None:
    assert draw([row for row in run.rows() if row["candidate"] == "dense"], tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"densities": ()}, "densities: expected numbers above 0"),
        ({"densities": (0.0,)}, "densities: expected numbers above 0"),
        ({"densities": (float("nan"),)}, "densities: expected numbers above 0"),
        ({"threads": (0,)}, "threads: expected numbers from 1"),
        ({"modes": ("backward",)}, "modes: expected some of forward, .* got backward"),
        ({"layouts": ("csc",)}, "layouts: expected some of csr"),
        ({"peers": ("mkl",)}, "peers: expected some of"),
        ({"seconds": 0.0}, "seconds: expected a positive number"),
        ({"state": "hot"}, "state: expected steady or cold, got hot"),
    ],
)
def test_settings_refuse_what_cannot_be_measured(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(Settings(select("lenet-fc2")), **changed)


def test_lists_are_read_with_commas() -> None:
    assert words("a, b") == ("a", "b")
    assert words("none") == ()
    assert floats("densities", "0.5,.1") == (0.5, 0.1)
    assert integers("threads", "1,2") == (1, 2)
    with pytest.raises(ArgumentError, match="threads: expected whole numbers with commas in between"):
        integers("threads", "1.5")


def test_rates_are_measured_for_a_number_of_threads() -> None:
    before = torch.get_num_threads()
    rates = Rates.measure(1, seconds=0.01)
    assert rates.flops > 0
    assert rates.read_bytes > 0
    assert torch.get_num_threads() == before
