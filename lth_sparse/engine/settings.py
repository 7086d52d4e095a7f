"""Every hyperparameter of a search, checked once; what of it a run directory and a ticket remember."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lth_sparse.engine.controls import CONTROLS
from lth_sparse.engine.criteria import Criterion, criterion_name, find_criterion
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.rewinding import Rewind
from lth_sparse.engine.scope import SCOPES
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import LAYOUTS
from lth_sparse.nn.convert import check_break_even

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The keywords of :func:`lth_sparse.find_ticket`, where they are described; invalid ones raise at construction.

    Raises:
        ArgumentError, ArgumentTypeError: naming the keyword.
    """

    levels: int | None = None
    rate: float = 0.2
    output_rate: float | None = None
    rates: Mapping[str, float] | None = None
    criterion: str | Criterion = "magnitude"
    scope: str = "layer"
    granularity: str = "weight"
    rewind: str = "init"
    one_shot: bool = False
    min_kept: int = 1
    prune: str | Iterable[str] | None = None
    freeze: str | Iterable[str] = ()
    controls: str | Iterable[str] = ()
    control_levels: Iterable[int] | None = None
    layout: str = "auto"
    seed: int = 0
    reset_parameters: Callable[[nn.Module], Any] | None = None
    break_even: Mapping[str, float] | None = None
    feature_major: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.one_shot, bool):
            raise ArgumentTypeError(expected("one_shot", "True or False", self.one_shot))
        if self.levels is None:
            self._set("levels", 1 if self.one_shot else 15)
        self._int("levels", 0)
        if self.one_shot and self.levels != 1:
            raise ArgumentError(expected("levels", "1 with one_shot=True, where rate is the final rate", self.levels))
        self._int("min_kept", 1)
        self._int("seed", 0)
        self._set("rate", _rate("rate", self.rate))
        if self.output_rate is not None:
            self._set("output_rate", _rate("output_rate", self.output_rate))
        if not isinstance(self.rates, (Mapping, type(None))):
            raise ArgumentTypeError(expected("rates", "a dict {name or glob: rate}", self.rates))
        self._set("rates", {key: _rate(f"rates[{key!r}]", value) for key, value in (self.rates or {}).items()})
        find_criterion(self.criterion)
        Granularity.parse(self.granularity)
        Rewind.parse(self.rewind)
        _one_of("scope", self.scope, SCOPES)
        _one_of("layout", self.layout, ("auto", *LAYOUTS))
        if self.layout == "bsr" and self.block is None:
            what = "'auto', 'csr' or 'dense', or granularity='block:RxC' with 'bsr'"
            raise ArgumentError(expected("layout", what, f"'bsr' with granularity={self.granularity!r}"))
        if self.break_even is not None:
            self._set("break_even", check_break_even(self.break_even))
        if not isinstance(self.feature_major, bool):
            raise ArgumentTypeError(expected("feature_major", "True or False", self.feature_major))
        self._set("prune", None if self.prune is None else _strings("prune", self.prune))
        self._set("freeze", _strings("freeze", self.freeze))
        self._check_controls()

    @property
    def block(self) -> tuple[int, int] | None:
        """The block in which sparse layers may be stored: that of the granularity."""
        return Granularity.parse(self.granularity).block if self.layout in ("auto", "bsr") else None

    @property
    def channels_last(self) -> bool:
        """Whether those blocks are of channels_last weights."""
        return self.block is not None and Granularity.parse(self.granularity).channels_last

    @property
    def depth(self) -> int:
        """Number of prunings."""
        assert self.levels is not None  # __post_init__ has filled it in
        return self.levels

    def hyperparameters(self) -> dict[str, Any]:
        """What decides the tickets, as JSON values. Controls do not: they may be added to a finished run."""
        # Left out where they have no say, so that a directory of before they existed is still the same search's.
        later: dict[str, Any] = {"break_even": self.break_even} if self.break_even is not None else {}
        later |= {"feature_major": True} if self.feature_major else {}
        return {
            **later,
            "levels": self.levels,
            "rate": self.rate,
            "output_rate": self.output_rate,
            "rates": self.rates,
            "criterion": criterion_name(self.criterion),
            "scope": self.scope,
            "granularity": self.granularity,
            "rewind": self.rewind,
            "one_shot": self.one_shot,
            "min_kept": self.min_kept,
            "prune": self.prune,
            "freeze": self.freeze,
            "layout": self.layout,
            "seed": self.seed,
        }

    def control_runs(self) -> list[tuple[int, str]]:
        """(level, kind) of every control, in the order in which they are trained."""
        assert isinstance(self.controls, list)
        assert isinstance(self.control_levels, list)
        return [(level, kind) for level in self.control_levels for kind in self.controls]

    def _check_controls(self) -> None:
        controls = _strings("controls", self.controls)
        for kind in controls:
            _one_of("controls", kind, tuple(CONTROLS))
        self._set("controls", list(dict.fromkeys(controls)))
        chosen = self.control_levels
        if chosen is not None and (isinstance(chosen, (str, int)) or not isinstance(chosen, Iterable)):
            raise ArgumentTypeError(expected("control_levels", "a list of levels", chosen))
        levels = [self.depth] if chosen is None else list(chosen)
        for level in levels:
            if isinstance(level, bool) or not isinstance(level, int):
                raise ArgumentTypeError(expected("control_levels", "levels as int", level))
            if controls and not 1 <= level <= self.depth:
                raise ArgumentError(expected("control_levels", f"levels from 1 to {self.depth}", level))
        self._set("control_levels", sorted(set(levels)))
        if self.reset_parameters is not None and not callable(self.reset_parameters):
            raise ArgumentTypeError(expected("reset_parameters", "a callable (model) -> None", self.reset_parameters))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _int(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(expected(name, f"an int of at least {least}", value))
        if value < least:
            raise ArgumentError(expected(name, f"an int of at least {least}", value))


def _rate(name: str, value: object) -> float:
    what = "a share of the survivors in [0, 1), such as 0.2"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(expected(name, what, value))
    if not 0.0 <= value < 1.0:
        raise ArgumentError(expected(name, what, value))
    return float(value)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise ArgumentTypeError(expected(name, f"one of {', '.join(map(repr, known))}", value))
    if value not in known:
        raise ArgumentError(expected(name, f"one of {', '.join(map(repr, known))}", repr(value)))


def _strings(name: str, value: object) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Iterable):
        raise ArgumentTypeError(expected(name, "strings", value))
    result = list(listed)
    for item in result:
        if not isinstance(item, str):
            raise ArgumentTypeError(expected(name, "strings", item))
    return result
