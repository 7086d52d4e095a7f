"""The cases of cases_training.py: whole training steps, interpreted everywhere and compiled where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernel_cases import run_cases

CASES = Path(__file__).with_name("cases_training.py")


def test_every_case_interpreted() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_every_case_on_the_device() -> None:
    run_cases(CASES, interpreted=False)
