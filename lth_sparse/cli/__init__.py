"""The command `lth-sparse`: find a ticket, convert one, plan a network, check the installation.

`commands` has their options; `find`, `convert`, `plan` and `doctor` do the work. Exit code 0 means success,
1 a user's mistake or a broken installation with one line on stderr, 130 an interrupt.
"""

from __future__ import annotations

from lth_sparse.cli.commands import app, main

__all__ = ["app", "main"]
