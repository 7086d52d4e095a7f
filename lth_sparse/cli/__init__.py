"""The command `lth-sparse`: find a ticket, convert one, plan a network, measure, check the installation.

`commands` has their options; the module of its name does the work of each. Exit code 0 means success,
1 a user's mistake or a broken installation with one line on stderr, 130 an interrupt.
"""

from __future__ import annotations

from lth_sparse.cli.commands import app, main

__all__ = ["app", "main"]
