"""The few checks of arguments that data, models and presets share; each message names the argument."""

from __future__ import annotations

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected


def known(name: str, value: object, names: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in names:
        raise ArgumentError(expected(name, f"one of {', '.join(names)}", repr(value)))


def integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(expected(name, "an int", repr(value)))
    if value < least:
        raise ArgumentError(expected(name, f"at least {least}", value))
    return value


def number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(expected(name, "a number", repr(value)))
    return float(value)


def rate(name: str, value: object) -> float:
    """A number in [0, 1); NaN is none."""
    checked = number(name, value)
    if not 0.0 <= checked < 1.0:
        raise ArgumentError(expected(name, "a rate in [0, 1)", value))
    return checked


def generator_seed(value: object) -> int:
    """What torch.Generator.manual_seed takes, less the negative numbers that it maps to others."""
    checked = integer("seed", value, 0)
    if checked >= 2**63:
        raise ArgumentError(expected("seed", "less than 2**63", value))
    return checked
