"""`lth-sparse tune`: what is tuned, printed and exported, and its errors. There is no device, and the tuner is fake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lth_sparse.cli import tune as command
from lth_sparse.kernels import launch
from lth_sparse.kernels.launch import Device, Problem
from lth_sparse.nn import sparse_modules
from lth_sparse.ops.tune_cache import TuneCache

Run = Callable[..., Any]

DEVICE = Device("Some GPU", 90, 232448, 132)
PROBLEM = Problem("forward", "float16", (64, 64), 4096, 1024, 1024, 0.1)


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SimpleNamespace]:
    """What was given to the tuner, which keeps one configuration; models and inputs stay on the CPU."""
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path / "cache"))
    found: list[SimpleNamespace] = []

    def tune(model: Any, x: Any, *, progress: Callable[[float, str], None], **options: Any) -> str:
        progress(0.5, "half")
        found.append(SimpleNamespace(model=model, x=x, **options))
        TuneCache.of(DEVICE).store(PROBLEM.bucket, launch.heuristic(DEVICE, PROBLEM), 1e-5, 2e-5)
        return f"report {len(found)}"

    monkeypatch.setattr(command.sparse_nn, "tune", tune)
    monkeypatch.setattr(command.tuning, "gpu", lambda: DEVICE)
    monkeypatch.setattr(command, "PLACE", "cpu")
    return found


def test_cases_are_tuned_in_every_block_and_density(run: Run, tuned: list[SimpleNamespace]) -> None:
    outcome = run("tune", "--cases", "lenet-fc1,conv-64", "--block", "4x4,16x8", "--density", ".5", "--limit", 5)
    assert (outcome.code, outcome.err) == (0, "")
    assert "[1/4] lenet-fc1, blocks 4x4, density 0.5\nreport 1\n" in outcome.out
    assert "[4/4] conv-64, blocks 16x8, density 0.5\nreport 4\n" in outcome.out
    for one, block in zip(tuned, [(4, 4), (16, 8)] * 2, strict=True):
        ((_, layer),) = sparse_modules(one.model)
        assert (layer.layout.kind, layer.layout.block) == ("bsr", block)
        assert layer.density == pytest.approx(0.5, abs=0.01)
        assert layer.values.dtype == one.x.dtype == torch.bfloat16
        assert one.x.requires_grad
        assert (one.gradients, one.again, one.limit) == (True, False, 5)


def test_a_network_is_tuned(run: Run, tuned: list[SimpleNamespace]) -> None:
    words = ("--input", "7x784", "--block", "4x4", "--density", ".3,.1", "--forward", "--again", "--dtype", "float16")
    assert run("tune", "lenet", *words).code == 0
    assert len(tuned) == 2
    for one, density in zip(tuned, (0.3, 0.1), strict=True):
        layers = [layer for _, layer in sparse_modules(one.model)]
        assert len(layers) == 3
        assert all(abs(layer.density - density) < 0.05 for layer in layers)
        assert (tuple(one.x.shape), one.x.dtype, one.x.requires_grad) == ((7, 784), torch.float16, False)
        assert (one.gradients, one.again) == (False, True)


def test_single_weights_are_tuned_as_csr(run: Run, tuned: list[SimpleNamespace]) -> None:
    outcome = run("tune", "--cases", "lenet-fc1", "--layout", "csr", "--density", ".3")
    assert (outcome.code, outcome.err) == (0, "")
    assert "[1/1] lenet-fc1, CSR, density 0.3\nreport 1\n" in outcome.out
    ((_, layer),) = sparse_modules(tuned[0].model)
    assert layer.layout.kind == "csr"
    assert layer.density == pytest.approx(0.3, abs=0.01)


def test_what_was_tuned_is_exported_as_a_table(run: Run, tuned: list[SimpleNamespace], tmp_path: Path) -> None:
    path = launch.table_path(DEVICE.name, tmp_path)
    outcome = run("tune", "--export", path)
    assert outcome.code == 1
    assert "--export: expected tuned configurations of Some GPU, got none" in outcome.err
    assert run("tune", "--cases", "lenet-fc1", "--block", "4x4", "--export", path).code == 0
    assert launch.read_table(DEVICE.name, tmp_path) == {PROBLEM.bucket: launch.select(DEVICE, PROBLEM)}
    count = len(tuned)
    assert f"Table: {path}" in run("tune", "--export", path).out
    assert len(tuned) == count  # an export alone tunes nothing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "nonsense"], "cases: expected names or globs"),
        (["lenot"], "MODEL: expected one of lenet"),
        (["--input", "2x3"], "MODEL: expected a network that takes --input, got none"),
        (["--block", "4"], "--block: expected rows x columns"),
        (["--layout", "dense"], "--layout: expected one of bsr, csr"),
        (["--layout", "csr", "--block", "4x4"], "--block: expected none beside --layout csr"),
        (["--density", "2"], "--density: expected shares in (0, 1)"),
        (["--dtype", "float64"], "--dtype: expected one of float16, bfloat16, float32"),
        (["--limit", "1"], "--limit"),
        (["--export", "no_such_directory/table.json"], "--export: expected a file in a directory that exists"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(run: Run, tuned: list[SimpleNamespace], words: list[str], said: str) -> None:
    outcome = run("tune", *words)
    assert (outcome.code, outcome.out, tuned) == (1, "", [])
    assert outcome.err.startswith("lth-sparse: error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("words", [[], ["--cases", "lenet-fc1"], ["--export", "table.json"], ["lenet"]])
def test_without_a_gpu_it_says_so(run: Run, words: list[str]) -> None:
    outcome = run("tune", *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == ("lth-sparse: error: tune: expected a CUDA device to time kernels on, but torch finds none\n")


def test_help_names_every_option(run: Run) -> None:
    text = run("tune", "--help").out
    for option in ("input", "cases", "density", "block", "layout", "dtype", "forward", "again", "limit", "export"):
        assert f"--{option}" in text
