"""Freed memory stays with the process: what makes the activations of one training step cheap for the next.

The C library of Linux (glibc) gives large blocks back to the system as soon as they are freed. The next step asks for
them again, and the system hands out pages that it first has to fill with zeros: one fault for every 4 KiB of every
activation and gradient, in every step. Dense training hides that behind its arithmetic. A sparse one does not: at 2.5%
density a fifth of Conv-6's step went there with one thread, and up to half of it with two.
"""

from __future__ import annotations

import ctypes

from lth_sparse.errors import ArgumentTypeError, expected

__all__ = ["keep_memory"]

# Parameters of mallopt(3), and glibc's own values for them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 << 10, 65536
_NEVER = -1


def keep_memory(enabled: bool = True) -> bool:
    """Let the C library keep the memory that this process frees, for its next allocation.

    It speaks for the whole process, dense layers and other libraries included. The process then never shrinks: it
    occupies what it needed at its peak until it ends. Every training loop gains, sparse ones by the larger share. Call
    it once, before training; the command line does so for its own commands that train.

    Args:
        enabled: False gives back what is free now and returns to the C library's own thresholds.

    Returns:
        True when the C library took it; False where it has no such switch (macOS, musl), where nothing changes.

    Raises:
        ArgumentTypeError: ``enabled`` is no bool.
    """
    if not isinstance(enabled, bool):
        raise ArgumentTypeError(expected("enabled", "True or False", enabled))
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    trim, maps = (_NEVER, 0) if enabled else (_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX)
    taken = bool(library.mallopt(_TRIM_THRESHOLD, trim)) and bool(library.mallopt(_MMAP_MAX, maps))
    if not enabled and hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))
    return taken
