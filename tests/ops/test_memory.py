"""keep_memory: freed blocks are handed out again without new pages, until it is taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import lth_sparse as ls
from lth_sparse.errors import ArgumentTypeError

# In a process of its own: the switch speaks for all of it. 24 MiB lie below glibc's largest dynamic threshold, 80 MiB
# above it.
SCRIPT = """
import resource, torch, lth_sparse as ls

def faults(megabytes):
    for _ in range(3):
        torch.zeros(megabytes << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
assert ls.keep_memory() is True
kept = faults(24), faults(80)
assert ls.keep_memory(False) is True
print(*kept, faults(80))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_faults():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    small, large, given_back = map(int, result.stdout.split())
    pages = 4 * (80 << 20) // 4096
    assert small < pages // 20
    assert large < pages // 20
    # Huge pages, where the system hands them out by itself, make fewer faults of the same memory.
    assert given_back > 10 * max(large, 1)


def test_only_a_bool_is_taken():
    with pytest.raises(ArgumentTypeError, match="enabled"):
        ls.keep_memory("yes")  # type: ignore[arg-type]


def test_results_do_not_depend_on_it():
    x = torch.randn(8, 8)
    before = x @ x
    assert isinstance(ls.keep_memory(), bool)
    assert torch.equal(x @ x, before)
    ls.keep_memory(False)
