"""What _C says about itself: instruction sets and how they are chosen, names of microkernels, build, scratch memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lth_sparse import _C


@pytest.fixture
def chosen() -> Iterator[None]:
    """Restores the instruction set in use."""
    before = _C.isa()
    yield
    _C.set_isa(before)


def run(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with LTH_SPARSE_ISA set; the extension is loaded by path, without torch, which takes long."""
    load = (
        "import importlib.util as u; spec = u.spec_from_file_location('lth_sparse._C', "
        f"{_C.__file__!r}); _C = u.module_from_spec(spec); spec.loader.exec_module(_C); "
    )
    environment = {**os.environ, "LTH_SPARSE_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", load + code], env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_last_of_the_runnable_sets_is_the_default() -> None:
    assert run("print(_C.isa() == _C.isas()[-1])", "").stdout == "True\n"


def test_scalar_runs_everywhere() -> None:
    assert _C.isas()[0] == "scalar"


@pytest.mark.parametrize("name", _C.isas())
def test_the_environment_chooses_the_instruction_set(name: str) -> None:
    assert run("print(_C.isa())", name).stdout == f"{name}\n"


def test_an_unknown_set_in_the_environment_is_reported_at_the_first_use_not_at_import() -> None:
    code = """
import sys
try:
    _C.csr_linear_forward(0, 0, 0, 16, 16, 0, 1, 1, 0, 1, 1, 1, 1, False, 16, 0, 1)
except RuntimeError as error:
    print(error)
_C.set_isa("scalar")
print(_C.isa())
"""
    result = run("exec(" + repr(code) + ")", "sse9")
    assert re.fullmatch(r"LTH_SPARSE_ISA: expected one of scalar.*, got 'sse9'\nscalar\n", result.stdout), result


@pytest.mark.parametrize("name", _C.isas())
def test_set_isa_takes_effect(chosen: None, name: str) -> None:
    _C.set_isa(name)
    assert _C.isa() == name


def test_set_isa_refuses_an_unknown_name_and_changes_nothing(chosen: None) -> None:
    before = _C.isa()
    with pytest.raises(ValueError, match=r"isa: expected one of scalar.*, got 'mmx'"):
        _C.set_isa("mmx")
    assert _C.isa() == before


OPERATIONS = {
    "csr": ("spmm", "backward", "sddmm", "scatter", "few", "fewgrad"),
    "bsr": ("spmm", "backward", "sddmm"),
}
MICROKERNELS = [
    *(f"{dtype}_{layout}_{op}" for dtype in ("f32", "f64") for layout, ops in OPERATIONS.items() for op in ops),
    "bf16_csr_few",
]


def test_names_of_microkernels_say_type_operation_tile_index_and_set() -> None:
    names = _C.microkernels()
    assert len(set(names)) == len(names)
    shape = (
        r"(csr_(spmm|backward|sddmm|scatter|few|fewgrad|dot)_|bsr_(spmm|backward|sddmm)_[1248]x)[1-8]x(1|2|4|8|16|32)"
    )
    pattern = rf"(f32|f64|bf16)_{shape}_(u16|i32)__(scalar|avx2|avx512|neon)"
    assert all(re.fullmatch(pattern, name) for name in names)


@pytest.mark.parametrize("name", _C.isas())
def test_every_set_has_every_operation_and_both_index_widths(name: str) -> None:
    have = {re.sub(r"_[\dx]+_", "_", n) for n in _C.microkernels() if n.endswith(f"__{name}")}
    have -= {f"bf16_csr_dot_{index}__avx512" for index in ("u16", "i32")}  # where the processor has AVX512_BF16
    assert have == {f"{kernel}_{index}__{name}" for kernel in MICROKERNELS for index in ("u16", "i32")}


def test_build_info_names_the_compiler_and_says_whether_there_is_openmp() -> None:
    info = _C.build_info()
    assert set(info) == {"compiler", "openmp", "version"}
    assert info["compiler"]
    assert isinstance(info["openmp"], bool)


def test_scratch_memory_is_kept_between_calls_and_given_back_by_trim(linear: Any) -> None:
    layer = linear(torch.ones(10, 10, dtype=torch.bool), 16)
    _C.trim()
    layer.forward(torch.ones(20, 10), torch.ones(100), None, 1)
    assert _C.trim() > 0
    assert _C.trim() == 0


def test_scratch_memory_of_one_large_call_is_not_kept_for_ever(linear: Any) -> None:
    large = linear(torch.zeros(3, 2000, dtype=torch.bool), 16)
    small = linear(torch.ones(3, 3, dtype=torch.bool), 16)
    _C.trim()
    large.forward(torch.ones(500, 2000), torch.ones(0), None, 1)
    for _ in range(100):
        small.forward(torch.ones(5, 3), torch.ones(9), None, 1)
    assert _C.trim() < 2_000_000


def test_set_thread_grain_returns_the_one_before() -> None:
    before = _C.set_thread_grain(12345)
    assert _C.set_thread_grain(before) == 12345


def test_a_thread_grain_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="multiply_adds: expected at least 1, got 0"):
        _C.set_thread_grain(0)
