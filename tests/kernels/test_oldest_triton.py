"""The kernels by the oldest Triton that is supported: the same cases interpreted, the same part of the gate compiled.

`make test` installs it into a folder of its own, which comes first for these processes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_cases import OLDEST, pinned, run_cases, version_in

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not OLDEST.is_dir(), reason="make test installs the oldest Triton, pip does not")


def test_it_is_the_oldest() -> None:
    assert version_in(OLDEST) == pinned("oldest")


@pytest.mark.parametrize("cases", sorted(HERE.glob("cases_*.py")), ids=lambda path: path.stem)
def test_every_case_interpreted(cases: Path) -> None:
    run_cases(cases, interpreted=True, packages=OLDEST)


def test_shipped_configurations_compile_as_intended() -> None:
    reasons = ("cannot compile for gfx942", "makes poor kernels of them")
    run_cases(HERE / "test_compile.py", interpreted=False, packages=OLDEST, skips=reasons)
