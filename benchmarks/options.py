"""Lists as they are typed on a command line: with commas in between, "none" for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lth_sparse.errors import ArgumentError, expected

T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b"); "none" -> ()."""
    return () if text.strip() == "none" else tuple(word.strip() for word in text.split(","))


def floats(argument: str, text: str) -> tuple[float, ...]:
    """ "0.1,0.05" -> (0.1, 0.05); ArgumentError for what is no number."""
    return _numbers(argument, text, float, "numbers")


def integers(argument: str, text: str) -> tuple[int, ...]:
    """ "1,2" -> (1, 2); ArgumentError for what is no whole number."""
    return _numbers(argument, text, int, "whole numbers")


def _numbers(argument: str, text: str, kind: Callable[[str], T], what: str) -> tuple[T, ...]:
    try:
        return tuple(kind(word) for word in words(text))
    except ValueError:
        raise ArgumentError(expected(argument, f"{what} with commas in between", text)) from None
