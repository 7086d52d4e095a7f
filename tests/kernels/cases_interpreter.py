"""What `kernel_cases.py` changes in the interpreter still does what it should; run by test_interpreter.py."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture
from triton.runtime.errors import InterpreterError


@triton.jit
def twice(x):  # type: ignore[no-untyped-def]
    return x + x


@triton.jit
def kernel(x, n, OPERATION: tl.constexpr):  # type: ignore[no-untyped-def]
    at = x + tl.arange(0, 4)
    value = tl.load(at)
    if OPERATION == "add":
        value = value + n
    elif OPERATION == "sub":
        value = value - n
    elif OPERATION == "mul":
        value = value * n
    else:
        value = twice(value)
    tl.store(at, value)


MOST = 2**31 - 1


@pytest.mark.parametrize(
    ("operation", "edge", "n", "right", "beyond"),
    [
        ("add", MOST - 7, 7, MOST, MOST - 6),
        ("sub", 7 - MOST - 1, 7, -MOST - 1, 6 - MOST - 1),
        ("mul", 2**15 - 1, 2**16, 2**31 - 2**16, 2**15),
        ("twice", 2**30 - 1, 0, MOST - 1, 2**30),
    ],
)
def test_integers_that_overflow_are_an_error(operation: str, edge: int, n: int, right: int, beyond: int) -> None:
    x = torch.full((4,), edge, dtype=torch.int32)
    kernel[(1,)](x, n, operation)
    assert x.tolist() == [right] * 4
    x = torch.tensor([0, beyond, 0, 0], dtype=torch.int32)
    with pytest.raises(InterpreterError, match="int32 overflow in "):
        kernel[(1,)](x, n, operation)
