"""The kernels by the oldest Triton that is supported: the same cases interpreted, the same part of the gate compiled.

`make test` installs it into a folder of its own, which comes first for these processes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kernel_cases import OLDEST, run_cases

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not OLDEST.is_dir(), reason="make test installs the oldest Triton, pip does not")


def test_it_is_the_oldest() -> None:
    program = "import triton; print(triton.__version__)"
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(OLDEST)}, capture_output=True, text=True
    )
    oldest = (HERE.parents[1] / "requirements-oldest.txt").read_text().split("==")[1].split(";")[0]
    assert run.stdout.strip() == oldest, run.stderr


@pytest.mark.parametrize("cases", sorted(HERE.glob("cases_*.py")), ids=lambda path: path.stem)
def test_every_case_interpreted(cases: Path) -> None:
    run_cases(cases, interpreted=True, packages=OLDEST)


def test_shipped_configurations_compile_as_intended() -> None:
    reasons = ("cannot compile for gfx942", "makes poor kernels of them")
    run_cases(HERE / "test_compile.py", interpreted=False, packages=OLDEST, skips=reasons)
