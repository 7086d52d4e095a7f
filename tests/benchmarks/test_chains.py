"""Chains of layers in miniature: what is compared computes the same, and is measured, written and printed."""

from __future__ import annotations

import pytest
import torch

from lth_sparse.benchmarks import chains, end_to_end
from lth_sparse.benchmarks.cases import Case
from lth_sparse.benchmarks.chains import DENSE, FEATURE_MAJOR, OURS
from lth_sparse.benchmarks.end_to_end import COLUMNS, Run, Settings
from lth_sparse.benchmarks.machine import Rates
from lth_sparse.nn import SparseModule

TINY = {
    "conv": Case("conv", "conv2d", (6, 6, 3, 3), 3, (5, 5)),
    "linear": Case("linear", "linear", (20, 20), 5),
}


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_all_candidates_of_a_density_compute_the_same(case: Case) -> None:
    models = chains.candidates(case, (0.3, 1.0), layers=3)
    with torch.inference_mode():
        found = {key: model(x) for key, (model, x) in models.items()}
    for (name, dtype, density), y in found.items():
        assert y.dtype == chains.DTYPES[dtype]
        right = found["dense" if density == 1 else OURS, "float32", density]
        atol = 1e-5 if dtype == "float32" else 2e-2 * float(right.abs().max())
        torch.testing.assert_close(y.float(), right, rtol=1e-4, atol=atol, msg=f"{name} {dtype} {density}")


def test_ours_are_sparse_in_every_layer_and_compute_their_relu() -> None:
    models = chains.candidates(TINY["conv"], (0.3,))
    for (name, dtype, density), (model, _) in models.items():
        layers = [module for module in model.modules() if isinstance(module, SparseModule)]
        assert len(layers) == (0 if name in DENSE else chains.LAYERS)
        for layer in layers:
            assert (layer.layout.kind, layer.activation) == ("csr", "relu")
            assert (layer.values.dtype, layer.nnz) == (chains.DTYPES[dtype], round(density * 324))


def test_a_chain_is_measured_written_and_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "CHAINS", TINY)
    settings = Settings(("lenet",), (0.2, 0.1), parts=("chain",), seconds=0.001, rounds=2)
    work = Run(settings, rates={1: Rates(1e11, 1e10)})
    assert len(list(work.measure())) == len(work.costs()) == 2
    rows = work.rows()
    assert all(tuple(row) == COLUMNS and row["part"] == "chain" for row in rows)
    linear = [(row["candidate"], row["density"], row["weights_kept"]) for row in rows if row["network"] == "linear"]
    assert linear == [
        (name + dtype, density, str(4 * kept))
        for dtype in ("", " bfloat16")
        for name, density, kept in (
            ("dense", "1", 400),
            (OURS, "0.2", 80),
            (FEATURE_MAJOR, "0.2", 80),
            (OURS, "0.1", 40),
            (FEATURE_MAJOR, "0.1", 40),
        )
    ]
    assert {row["ratio_to"] for row in rows if row["network"] == "linear"} == {"dense", "dense bfloat16"}
    (grid,) = work.grids()
    assert len(grid.rows) == len(rows)


def test_a_row_is_of_one_layer() -> None:
    times = chains.time_chain(TINY["linear"], (0.5,), 1, 0.001, 3, layers=2)
    dense = times[0]
    assert (dense.candidate, dense.dtype, dense.ratio_to) == ("dense", "float32", "dense")
    assert dense.ratios == dense.to_single == [1.0] * len(dense.samples)
    single = next(one for one in times if one.name == f"{OURS} bfloat16")
    expected = [a / b for a, b in zip(dense.samples, single.samples, strict=True)]
    assert single.to_single == pytest.approx(expected)
