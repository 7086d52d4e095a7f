"""Every exception the library raises on purpose, and the one way their messages are worded.

An error names the argument, says what was expected and what came. Each class also derives from the
built-in exception that a user of torch would catch for the same mistake.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "DataError",
    "InvariantError",
    "LTHSparseError",
    "RunError",
    "TicketError",
    "expected",
]


class LTHSparseError(Exception):
    """Base of all errors raised by lth_sparse."""


class ArgumentError(LTHSparseError, ValueError):
    """An argument has a value, shape, dtype or device that the function cannot take."""


class ArgumentTypeError(LTHSparseError, TypeError):
    """An argument is of the wrong Python type."""


class TicketError(LTHSparseError, ValueError):
    """A ticket file is damaged, truncated, or was not written by lth_sparse."""


class RunError(LTHSparseError, RuntimeError):
    """A run directory cannot be used: other hyperparameters, locked, not writable, disk full."""


class InvariantError(RunError):
    """With strict=True: something that must hold in every search did not; the message names layer, index and step."""


class DataError(LTHSparseError, ValueError):
    """A data directory lacks files or holds damaged ones."""


class BackendError(LTHSparseError, RuntimeError):
    """A kernel backend is missing, unknown, or cannot run on this machine."""


def expected(argument: str, what: str, got: object) -> str:
    """Word an error message: ``"rate: expected a number in (0, 1), got 1.5"``.

    Strings that describe what came (shapes, dtypes) are best passed as such; any other object is shown by ``repr``.
    """
    return f"{argument}: expected {what}, got {got if isinstance(got, str) else repr(got)}"
