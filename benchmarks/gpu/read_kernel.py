"""The probe of L2 in Triton: every program reads the same small tensor around and around. Needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["read"]


@triton.jit
def read_kernel(source, sums, size, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each program reads ``ROUNDS`` blocks of ``source``, all programs together in order, wrapping around."""
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    i = tl.arange(0, BLOCK)
    for done in range(0, ROUNDS):
        first = ((done * tl.num_programs(0) + tl.program_id(0)) * BLOCK) % size
        # The remainder hides it from the compiler, which would read 4 bytes a thread.
        acc += tl.load(source + tl.multiple_of(first, BLOCK) + i, cache_modifier=".cg")
    tl.store(sums + tl.program_id(0), tl.sum(acc, axis=0))


def read(source: Tensor, sums: Tensor, rounds: int, block: int) -> Tensor:
    """``sums[p]`` = what program p read, added up; ``source.numel()`` must be a multiple of ``block``."""
    read_kernel[(sums.numel(),)](source, sums, source.numel(), ROUNDS=rounds, BLOCK=block)
    return sums
