"""The cases of cases_stack.py: interpreted everywhere, and on the device where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernel_cases import run_cases

CASES = Path(__file__).with_name("cases_stack.py")


def test_interpreted() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_on_the_device() -> None:
    run_cases(CASES, interpreted=False)
