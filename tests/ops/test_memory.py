"""keep_memory: freed blocks are handed out again without new pages."""

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
import resource, sys, torch, lth_sparse as ls

def faults(megabytes):
    for _ in range(3):
        torch.zeros(megabytes << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert ls.keep_memory() is True
print(faults(24), faults(80))
assert ls.keep_memory(False) is True
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_faults():
    counts = {}
    for mode in ("keep", "plain"):
        command = [sys.executable, "-c", SCRIPT, mode]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        counts[mode] = [int(word) for word in result.stdout.split()]
    pages = 4 * (80 << 20) // 4096
    assert max(counts["keep"]) < pages // 20
    # Huge pages, where the system hands them out by itself, make fewer faults of the same memory.
    assert counts["plain"][1] > 10 * max(counts["keep"][1], 1)


def test_only_a_bool_is_taken():
    with pytest.raises(ArgumentTypeError, match="enabled"):
        ls.keep_memory("yes")  # type: ignore[arg-type]


def test_results_do_not_depend_on_it():
    x = torch.randn(8, 8)
    before = x @ x
    assert isinstance(ls.keep_memory(), bool)
    assert torch.equal(x @ x, before)
    ls.keep_memory(False)
