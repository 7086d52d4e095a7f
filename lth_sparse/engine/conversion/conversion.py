"""``convert``: one ticket, one method, one target; the converted ticket and what became of each layer.

Where the caller gives the network and an input, each layer is timed on the target in its own shapes, and one that does
not get faster keeps its mask and its layout. A layer that a method does not suit (no multiple of four columns for 2:4)
keeps them as well. Both are said in the layer's row: nothing is converted, or left alone, silently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.conversion.layer import CONVERTED, Clock, LayerConversion, remake_layer, stays
from lth_sparse.engine.conversion.methods import BLOCKED, TARGETS, Method
from lth_sparse.engine.conversion.order import Ordered, fold_order
from lth_sparse.engine.conversion.shrinking import shapes_before, shrink_ticket, shrunk_row
from lth_sparse.engine.conversion.values import dense_theta, remade_ticket
from lth_sparse.engine.selection import matching
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, ArgumentTypeError, InvariantError, expected
from lth_sparse.ops.measure import BUDGET

__all__ = ["Conversion", "convert", "device_of"]


@dataclass(frozen=True)
class Conversion:
    """The outcome of :func:`convert`.

    Attributes:
        ticket: the converted one; its ``parent`` is the original's hash, its ``conversion`` says how it was made.
        method: with the target's block. target: ``"cpu"`` or ``"cuda"``.
        layers: one row for each pruned weight. notes: what concerns the network as a whole.
    """

    ticket: Ticket
    method: Method
    target: str
    layers: tuple[LayerConversion, ...]
    notes: tuple[str, ...] = ()

    def apply(self, model: nn.Module, weights: str = "initial", **options: Any) -> nn.Module:
        """The converted ticket as a sparse model, see :meth:`lth_sparse.Ticket.apply`."""
        return self.ticket.apply(model, weights, **options)


def convert(
    ticket: Ticket,
    target: str = "cpu",
    *,
    method: str | Method = "vectors",
    dense: Ticket | Mapping[str, Tensor] | None = None,
    model: nn.Module | None = None,
    sample_input: Any = None,
    layers: str | Iterable[str] | None = None,
    seed: int = 0,
    only_gains: bool = True,
    budget: float = BUDGET,
    **options: Any,
) -> Conversion:
    """Turn an unstructured ticket into one that kernels for ``target`` like.

        ls.convert(ticket, "cpu", method="drop:16x16", dense=level_0, model=model, sample_input=x)

    Args:
        ticket: any; it is not changed.
        target: ``"cpu"`` or ``"cuda"``: the default block, the order of convolutions' blocks (channels_last on CUDA),
            and where layers are timed. Without such a device nothing is timed.
        method: a name, a spelling such as ``"drop:16x16:zeros"``, or a :class:`Method`; what they do is at the head of
            :mod:`lth_sparse.engine.conversion.methods`.
        dense: theta_k of all weights, for methods that add some: the ticket of level 0, or a state dict.
        model, sample_input: the plain architecture and an input of it. With them channels are reordered through the
            layers before blocks are made, and layers are timed: those without a gain stay as they are. A network that
            torch.fx cannot trace is neither reordered nor shrunk, and ``notes`` say so.
        layers: names or globs of the only layers to convert; all pruned ones by default.
        only_gains: False converts layers whatever that gains, and times none.
        seed: of the reordering.
        budget: seconds for which each candidate of a layer is timed, pass by pass; up to four times that while the
            outcome is open.
        options: fields of :class:`Method` that override it, such as ``density=0.1``.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument.
    """
    _check(ticket, target, model, sample_input)
    asked = _method(method, options).for_target(target)
    if (asked.shrink or asked.name == "shrink") and (model is None or sample_input is None):
        raise ArgumentError(expected("model", f"the architecture, and sample_input, with {asked.text!r}", None))
    reasons = _reasons(ticket, asked, layers)
    theta = dense_theta(ticket, dense, f"{asked.name!r} adds weights") if asked.adds else None
    channels_last = target == "cuda" and asked.name in ("cover", "drop")
    notes: list[str] = []
    ordered = Ordered(ticket, theta, (), {})
    if asked.name in BLOCKED and asked.reorder == "fold":
        if model is None or sample_input is None:
            notes.append("channels stay in their order, as model and sample_input were not given")
        else:
            wanted = {name for name, reason in reasons.items() if not reason}
            try:
                ordered = fold_order(
                    ticket, theta, asked, wanted, model, sample_input, channels_last=channels_last, seed=seed
                )
            except ArgumentError as error:  # a network that cannot be traced; its layers' edges are left
                notes.append(f"channels are not reordered through the layers: {error}")
                ordered = dataclasses.replace(
                    ordered, notes=dict.fromkeys(wanted, "rows and columns in their own order")
                )
    device, clock = device_of(target), None
    if only_gains and model is not None and sample_input is not None and device is not None:
        clock = Clock(model, sample_input, device, budget)
    masks, rows = _remade(ticket, ordered, asked, reasons, channels_last, clock, seed)
    made: dict[str, Any] = {
        "method": asked.text,
        "target": target,
        "seed": seed,
        "layouts": {row.name: row.storage for row in rows if row.converted and row.layout != "csr"},
        "permuted": list(ordered.permuted),
    }
    converted = remade_ticket(ordered.ticket, masks, ordered.theta, made, ticket.hash)
    if asked.shrink or asked.name == "shrink":
        assert model is not None  # checked above
        converted, rows = _shrunk(converted, ticket, rows, model, sample_input, notes)
    return Conversion(converted, asked, target, tuple(rows), tuple(notes))


def _remade(
    ticket: Ticket,
    ordered: Ordered,
    method: Method,
    reasons: Mapping[str, str],
    channels_last: bool,
    clock: Clock | None,
    seed: int,
) -> tuple[dict[str, Tensor], list[LayerConversion]]:
    """Masks of all layers in their new order, and the rows of the pruned ones."""
    trained = ordered.ticket.state_dict("trained")
    masks, rows = dict(ordered.ticket.masks), []
    for name, reason in reasons.items():
        mask, magnitude = masks[name], trained[name].abs()
        if reason:
            row, masks[name] = stays(name, mask, magnitude, reason)
            rows.append(row)
            continue
        theta = None if ordered.theta is None else ordered.theta[name]
        given = (name, ticket.masks[name], mask, magnitude, theta, method)
        more: dict[str, Any] = {"channels_last": channels_last and mask.dim() > 2, "clock": clock, "seed": seed}
        row, masks[name] = remake_layer(*given, **more, edge=method.name in BLOCKED and method.reorder == "edge")
        if clock is not None and name in ordered.notes:
            # Where the graph does not let the layer's channels move, an index at its edges may still pay.
            other, its_mask = remake_layer(*given, **more, edge=True)
            row, masks[name] = min(((row, masks[name]), (other, its_mask)), key=lambda pair: _step(pair[0]))
        if row.converted and row.layout == "bsr" and name in ordered.notes:
            row = dataclasses.replace(row, note=ordered.notes[name])
        rows.append(row)
    return masks, rows


def _shrunk(
    made: Ticket, ticket: Ticket, rows: list[LayerConversion], model: nn.Module, sample_input: Any, notes: list[str]
) -> tuple[Ticket, list[LayerConversion]]:
    """Without dead channels; what is to be said of that is added to ``notes``."""
    try:
        shrunk = shrink_ticket(made, model, sample_input)
    except (ArgumentError, InvariantError) as error:
        notes.append(f"nothing was removed: {error}")
        return made, rows
    notes.extend(shrunk.notes)
    small = shrunk.ticket
    shapes = shapes_before(made, small)
    if not shapes:
        return made, rows
    trained = ticket.state_dict("trained")
    rows = [
        shrunk_row(row, ticket.masks[row.name], shrunk.masks[row.name], small.masks[row.name], trained[row.name].abs())
        for row in rows
    ]
    return dataclasses.replace(small, conversion={**made.conversion, "shapes": shapes}), rows


def _step(row: LayerConversion) -> float:
    """Seconds of a layer's training step as it was converted; no bound for one that stays as it is."""
    return row.timings[CONVERTED].training if row.converted and row.timings is not None else math.inf


def device_of(target: str) -> torch.device | None:
    """The device of a target; None where there is none."""
    if target == "cuda" and not torch.cuda.is_available():
        return None
    return torch.device(target)


def _check(ticket: object, target: object, model: object, sample_input: Any) -> None:
    if not isinstance(ticket, Ticket):
        raise ArgumentTypeError(expected("ticket", "a Ticket", type(ticket).__name__))
    if target not in TARGETS:
        raise ArgumentError(expected("target", " or ".join(map(repr, TARGETS)), repr(target)))
    if model is not None and not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if model is None and sample_input is not None:
        raise ArgumentError(expected("model", "the plain architecture, with sample_input", None))
    if all(bool(mask.all()) for mask in ticket.masks.values()):
        raise ArgumentError(expected("ticket", "a pruned one", f"{ticket!r}"))


def _method(method: str | Method, options: Mapping[str, Any]) -> Method:
    found = method if isinstance(method, Method) else Method.parse(method)
    known = [field.name for field in dataclasses.fields(Method)[1:]]
    for name in options:
        if name not in known:
            raise ArgumentTypeError(expected("convert", f"options among {', '.join(known)}", repr(name)))
    return dataclasses.replace(found, **options)


def _reasons(ticket: Ticket, method: Method, layers: str | Iterable[str] | None) -> dict[str, str]:
    """Pruned layer -> why it is not converted, or "" for one that is."""
    names = list(ticket.masks)
    wanted = set(names) if layers is None else matching(layers, names, "layers")
    reasons = {name: "" for name, mask in ticket.masks.items() if not bool(mask.all())}
    for name in reasons:
        if name not in wanted:
            reasons[name] = "not among the layers to convert"
        elif method.name in ("refill", "refill+") and name == names[-1]:
            reasons[name] = "the rows of the output layer are what the network answers"
    return reasons
