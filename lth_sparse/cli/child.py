"""`python -m lth_sparse.cli.child ...` is `lth-sparse ...` for as long as whoever started it lives.

Standard input is a pipe that nothing is written into. When its other end is closed, by the parent or by the parent's
death, however that came, the process ends at once; every file is written completely or not at all, so it may.
"""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["main"]

INTERRUPTED = 130


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(INTERRUPTED)


def main() -> int:
    """Run the command line; its exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from lth_sparse.cli.commands import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
