"""`python -m lth_sparse.cli` is `lth-sparse`."""

from __future__ import annotations

import sys

from lth_sparse.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
