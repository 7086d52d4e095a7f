"""The C++ sources without Python (``tests/native``): compiled here, or for another architecture and run by an emulator.

Compiled without optimization, which takes a fraction of the time; ``make native-test`` and ``make arm-test`` run the
same program as it is shipped. Objects stay in ``build/native``, so that only the first run compiles everything.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lth_sparse import _C

FOLDER = Path(__file__).resolve().parent.parent / "native"
PARTS = (
    "microkernels",
    "linear",
    "bsr_linear",
    "conv",
    "bsr_conv",
    "bf16",
    "moves",
    "permute",
    "rebuild",
    "concurrency",
)


def made(*target: str) -> str:
    """Output of ``make *target`` in ``tests/native``, which compiles the program, runs it, and must succeed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "LTH_"))}
    result = subprocess.run(
        ["make", "-j", str(os.cpu_count() or 1), *target],
        cwd=FOLDER,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def skip_without(*programs: str) -> None:
    for program in ("make", *programs):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")


def assert_passed(output: str, parts: tuple[str, ...]) -> None:
    lines = output.splitlines()
    for part in parts:
        (line,) = (line for line in lines if line.startswith(f"{part} "))
        assert line.endswith(" 0 failed checks")
        assert " 0 cases" not in line


def test_every_microkernel_and_driver_agrees_with_plain_loops_on_every_set_of_this_machine() -> None:
    skip_without(shlex.split(os.environ.get("CXX", "g++"))[0])
    output = made("quick")
    assert_passed(output, PARTS)
    assert f"instruction sets: {' '.join(_C.isas())}; threads: std\n" in output


def test_every_microkernel_agrees_with_plain_loops_on_aarch64_in_an_emulator() -> None:
    skip_without("aarch64-linux-gnu-g++", "qemu-aarch64")
    output = made("quick-arm", "PARTS=microkernels")
    assert_passed(output, ("microkernels",))
    assert "instruction sets: scalar neon; threads: std\n" in output
