"""The gate's part of every run, by the newest Triton that is supported. It interprets the cases of all other files too.

`make test` installs it into a folder of its own, which comes first for these processes: the Triton beside the pinned
torch is the one that its CUDA build asks for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernel_cases import NEWEST, pinned, run_cases, version_in

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not NEWEST.is_dir(), reason="make test installs the newest Triton, pip does not")


def test_it_is_the_newest() -> None:
    assert version_in(NEWEST) == pinned("newest")


def test_shipped_configurations_compile_as_intended() -> None:
    run_cases(HERE / "test_compile.py", interpreted=False, packages=NEWEST)
