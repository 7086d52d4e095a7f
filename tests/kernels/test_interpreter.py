"""The interpreter as the cases use it: what they change in it, checked by cases_interpreter.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernel_cases import run_cases

CASES = Path(__file__).with_name("cases_interpreter.py")


def test_every_case_interpreted() -> None:
    run_cases(CASES, interpreted=True)
