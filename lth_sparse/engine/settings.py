"""Every hyperparameter of a search, checked once; what of it a run directory and a ticket remember."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lth_sparse.engine.controls import CONTROLS, REORDERED
from lth_sparse.engine.criteria import Criterion, NamedCriterion, ScoreData, criterion_name, find_criterion
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.rewinding import Rewind
from lth_sparse.engine.scope import SCOPES
from lth_sparse.engine.stability import CANDIDATES
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import BLOCKED, LAYOUTS
from lth_sparse.nn.convert import check_break_even

__all__ = ["Settings"]


#: Levels of a search that ends at a target density, which comes long before.
ENDLESS = 1000


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
    scope: str | None = None
    granularity: str = "weight"
    rewind: str = "init"
    one_shot: bool | None = None
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
    rewind_error: Callable[[nn.Module], float] | None = None
    rewind_steps: Iterable[int] = CANDIDATES
    strict: bool = False
    target_density: float | None = None
    stop_below: float | None = None
    stop_metric: str = "test_acc"
    score_batches: Iterable[Any] | Callable[[], Iterable[Any]] | None = None
    score_loss: Callable[[Any, Any], Tensor] | None = None
    score_shape: tuple[int, ...] | None = None
    score_rounds: int | None = None
    dense_baseline: bool = True

    def __post_init__(self) -> None:
        self._fill_in(find_criterion(self.criterion))
        if not isinstance(self.one_shot, bool):
            raise ArgumentTypeError(expected("one_shot", "True or False", self.one_shot))
        if self.levels is None:
            endless = self.target_density is not None and not self.one_shot
            self._set("levels", 1 if self.one_shot else ENDLESS if endless else 15)
        self._check_stops()
        self._int("levels", 0)
        if self.one_shot and self.levels != 1:
            raise ArgumentError(expected("levels", "1 with one_shot=True, where rate is the final rate", self.levels))
        self._int("min_kept", 1)
        self._int("seed", 0)
        self._set("rate", _rate("rate", self.rate))
        if self.output_rate is not None:
            self._set("output_rate", _rate("output_rate", self.output_rate))
        if not isinstance(self.rates, (Mapping, type(None))):
            raise ArgumentTypeError(expected("rates", "a dict {name, glob or type: rate}", self.rates))
        self._set("rates", {key: _rate(f"rates[{key!r}]", value) for key, value in (self.rates or {}).items()})
        Granularity.parse(self.granularity)
        self._check_rewind()
        _one_of("scope", self.scope, SCOPES)
        _one_of("layout", self.layout, ("auto", *LAYOUTS))
        if self.layout in BLOCKED and self.block is None:
            what = f"'auto', 'csr' or 'dense', or granularity='block:RxC' with {self.layout!r}"
            raise ArgumentError(expected("layout", what, f"{self.layout!r} with granularity={self.granularity!r}"))
        if self.layout == "2:4" and self.granularity != "2:4":
            what = "'auto', 'csr' or 'dense', or granularity='2:4' with '2:4'"
            raise ArgumentError(expected("layout", what, f"'2:4' with granularity={self.granularity!r}"))
        if self.break_even is not None:
            self._set("break_even", check_break_even(self.break_even))
        for name in ("feature_major", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentTypeError(expected(name, "True or False", getattr(self, name)))
        self._set("prune", None if self.prune is None else _strings("prune", self.prune))
        self._set("freeze", _strings("freeze", self.freeze))
        self._check_controls()
        self._check_scoring(find_criterion(self.criterion))

    @property
    def shared(self) -> str:
        """The scope, "layer", "global" or "erk"."""
        assert self.scope is not None  # __post_init__ has filled it in
        return self.scope

    @property
    def rounds(self) -> int:
        """Rounds of scoring in each level: those of the criterion are divided over the levels."""
        if self.score_rounds is not None:
            return self.score_rounds
        return -(-find_criterion(self.criterion).rounds // max(1, self.depth))

    @property
    def score_data(self) -> ScoreData:
        """What criteria with a need for data are given."""
        loss = {} if self.score_loss is None else {"loss": self.score_loss}
        return ScoreData(self.score_batches, shape=self.score_shape, **loss)

    @property
    def block(self) -> tuple[int, int] | None:
        """The block in which sparse layers may be stored: that of the granularity."""
        return Granularity.parse(self.granularity).block if self.layout in ("auto", *BLOCKED) else None

    def layout_for(self, masks: Mapping[str, Tensor]) -> str:
        """The layout of a level: that asked for, but dense where single weights on the way to 2:4 are not there yet."""
        if self.layout != "2:4":
            return self.layout
        most = [int(mask.reshape(-1, 4).sum(1).max()) for mask in masks.values() if mask.numel()]
        return "2:4" if max(most, default=0) <= 2 else "dense"

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
        later |= {"rewind_steps": self.candidates} if self.rewind == "auto" else {}
        later |= {"target_density": self.target_density} if self.target_density is not None else {}
        if self.stop_below is not None:
            later |= {"stop_below": self.stop_below, "stop_metric": self.stop_metric}
        later |= {} if self.dense_baseline else {"dense_baseline": False}
        later |= {"score_rounds": self.rounds} if self.rounds > 1 else {}
        for name in ("score_batches", "score_loss"):
            value = getattr(self, name)
            later |= {} if value is None else {name: criterion_name(value)}
        later |= {"score_shape": list(self.score_shape)} if self.score_shape is not None else {}
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

    def control_runs(self, last: int) -> list[tuple[int, str]]:
        """(level, kind) of every control, in the order in which they are trained; ``last`` is the last level."""
        assert isinstance(self.controls, list)
        levels = [last] if self.control_levels is None else [level for level in self.control_levels if level <= last]
        return [(level, kind) for level in levels for kind in self.controls if level or kind == REORDERED]

    @property
    def candidates(self) -> list[int]:
        """Steps of level 0 that rewind="auto" chooses from, ascending."""
        return sorted(set(self.rewind_steps))

    def _check_stops(self) -> None:
        target = self.target_density
        if target is not None:
            if isinstance(target, bool) or not isinstance(target, (int, float)):
                raise ArgumentTypeError(expected("target_density", "a share of the weights in (0, 1)", target))
            if not 0.0 < target < 1.0:
                raise ArgumentError(expected("target_density", "a share of the weights in (0, 1)", target))
        if self.stop_below is not None and (
            isinstance(self.stop_below, bool) or not isinstance(self.stop_below, (int, float))
        ):
            raise ArgumentTypeError(expected("stop_below", "a number, the least accuracy", self.stop_below))
        if not isinstance(self.stop_metric, str):
            raise ArgumentTypeError(
                expected("stop_metric", "the name of a metric that train records", self.stop_metric)
            )

    def _check_rewind(self) -> None:
        if Rewind.parse(self.rewind).moment is not None:
            return
        if not callable(self.rewind_error):
            what = "a callable (model) -> share of wrong answers, with rewind='auto'"
            raise ArgumentTypeError(expected("rewind_error", what, self.rewind_error))
        if isinstance(self.rewind_steps, (str, int)) or not isinstance(self.rewind_steps, Iterable):
            raise ArgumentTypeError(expected("rewind_steps", "steps as int", self.rewind_steps))
        steps = list(self.rewind_steps)
        self._set("rewind_steps", steps)
        for step in steps:
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ArgumentError(expected("rewind_steps", "steps as int, none below 0", step))

    def _fill_in(self, criterion: NamedCriterion) -> None:
        """What was not given: as Frankle & Carbin have it, or as the papers of the criteria at initialisation do."""
        if self.scope is None:
            self._set("scope", "global" if criterion.at_init else "layer")
        if self.one_shot is None:
            endless = self.levels is None and self.target_density is not None
            self._set("one_shot", criterion.at_init and self.levels in (None, 1) and not endless)
        if self.output_rate is None and criterion.at_init and not self.rates:
            self._set("output_rate", self.rate)

    def _check_scoring(self, criterion: NamedCriterion) -> None:
        data = self.score_data  # checks all three
        given = f"with criterion={criterion.name!r}"
        if criterion.needs == "batches" and data.batches is None:
            what = f"an iterable of (inputs, targets), or a callable that returns one, {given}"
            raise ArgumentError(expected("score_batches", what, "None"))
        if criterion.needs == "shape" and data.batches is None and data.shape is None:
            what = f"the shape of one input, such as (1, 28, 28), or score_batches to take it from, {given}"
            raise ArgumentError(expected("score_shape", what, "None"))
        self._set("score_shape", data.shape)
        if self.score_rounds is not None:
            self._int("score_rounds", 1)
        if not isinstance(self.dense_baseline, bool):
            raise ArgumentTypeError(expected("dense_baseline", "True or False", self.dense_baseline))
        if criterion.at_init and self.rewind != "init":
            what = f"'init' {given}, which prunes before any training"
            raise ArgumentError(expected("rewind", what, repr(self.rewind)))
        if not (self.dense_baseline or criterion.at_init):
            what = f"True {given}, which prunes the trained dense network"
            raise ArgumentError(expected("dense_baseline", what, "False"))

    def _check_controls(self) -> None:
        controls = _strings("controls", self.controls)
        for kind in controls:
            _one_of("controls", kind, tuple(CONTROLS))
        self._set("controls", list(dict.fromkeys(controls)))
        chosen = self.control_levels
        if chosen is not None and (isinstance(chosen, (str, int)) or not isinstance(chosen, Iterable)):
            raise ArgumentTypeError(expected("control_levels", "a list of levels", chosen))
        levels = [] if chosen is None else list(chosen)
        for level in levels:
            if isinstance(level, bool) or not isinstance(level, int):
                raise ArgumentTypeError(expected("control_levels", "levels as int", level))
            least = 0 if REORDERED in controls else 1
            if controls and not least <= level <= self.depth:
                raise ArgumentError(expected("control_levels", f"levels from {least} to {self.depth}", level))
        self._set("control_levels", None if chosen is None else sorted(set(levels)))
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
