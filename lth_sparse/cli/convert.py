"""`lth-sparse convert`: a ticket file becomes weights that any program with safetensors reads.

dense   the state dict of the plain architecture, zeros where pruned; load_state_dict(strict=True) takes it
csr     of every pruned layer values [nnz], crow_indices int32 [rows + 1] and col_indices int32 [nnz], the names that
        lth_sparse.nn's layers have in their own state dict; everything else stays dense. The shapes of the dense
        weights are JSON in the file's metadata, under "shapes".
2:4     likewise values [rows, cols / 2], positions uint8 [rows, ceil(cols / 8)] and value_mask (empty where all is
        live), see lth_sparse.formats.SemiStructured; a ticket whose masks are not 2:4 is refused
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from lth_sparse._files import atomic_write
from lth_sparse._version import __version__
from lth_sparse.engine import Ticket
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import make_layout
from lth_sparse.report.tables import Grid, plain_text

__all__ = ["FORMATS", "csr_tensors", "dense_tensors", "run", "semi_structured_tensors"]

WEIGHTS = ("trained", "initial")


def run(source: Path, target: Path, *, to: str = "dense", weights: str = "trained") -> int:
    """Convert and print the ledger; 0.

    Raises:
        ArgumentError: unknown format or weights, or an output name that is none for the purpose.
        TicketError: the ticket is missing, damaged or foreign. RunError: the output cannot be written.
    """
    if to not in FORMATS:
        raise ArgumentError(expected("--to", f"one of {', '.join(FORMATS)}", to))
    if weights not in WEIGHTS:
        raise ArgumentError(expected("--weights", f"one of {', '.join(WEIGHTS)}", weights))
    if target.suffix != ".safetensors":
        raise ArgumentError(expected("--output", "a file name that ends in .safetensors", str(target)))
    if source.resolve() == target.resolve():
        raise ArgumentError(expected("--output", "another file than the ticket itself", str(target)))
    ticket = Ticket.load(source)
    dense = dense_tensors(ticket, weights)
    tensors = FORMATS[to](ticket, weights)
    atomic_write(target, save(tensors, metadata=_metadata(ticket, to, weights)))
    print(plain_text(_layers(ticket)))
    print()
    before, after = (sum(tensor.nbytes for tensor in group.values()) for group in (dense, tensors))
    print(f"weights kept   {ticket.masks.nnz:,} of {ticket.masks.numel:,} ({100.0 * ticket.density:.2f}%)")
    print(f"bytes, dense   {before:,} of tensors")
    print(f"bytes, {to:<6}  {after:,} of tensors ({100.0 * after / max(before, 1):.1f}%), {_size(target):,} on disk")
    print(f"bytes, ticket  {_size(source):,} on disk")
    print(f"written        {target}: level {ticket.level}, {weights} weights")
    return 0


def dense_tensors(ticket: Ticket, weights: str) -> dict[str, Tensor]:
    """The state dict of the plain architecture; tied weights are stored once per name, as strict loading wants."""
    return {name: tensor.clone().contiguous() for name, tensor in ticket.state_dict(weights).items()}


def csr_tensors(ticket: Ticket, weights: str) -> dict[str, Tensor]:
    """The same with every pruned weight as values, crow_indices and col_indices."""
    return _compact("csr", ticket, weights)


def semi_structured_tensors(ticket: Ticket, weights: str) -> dict[str, Tensor]:
    """The same with every pruned weight as values, positions and value_mask.

    Raises:
        ArgumentError: a mask that keeps more than two of four weights, or of rows that are no multiple of four long.
    """
    return _compact("2:4", ticket, weights)


def _compact(kind: str, ticket: Ticket, weights: str) -> dict[str, Tensor]:
    """Pruned weights as values and the index tensors that identify the mask, all else dense."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in dense_tensors(ticket, weights).items():
        mask = ticket.masks.get(ticket.aliases.get(name, name))
        if mask is None or bool(mask.all()):
            tensors[name] = tensor
            continue
        try:
            layout = make_layout(kind, mask)
        except ArgumentError as error:
            raise ArgumentError(f"{name}: {error}") from error
        prefix = name.removesuffix("weight")
        tensors[f"{prefix}values"] = layout.gather(tensor).contiguous()
        for index_name in layout.KEY_NAMES:
            tensors[f"{prefix}{index_name}"] = getattr(layout, index_name).clone()
    return tensors


FORMATS = {"dense": dense_tensors, "csr": csr_tensors, "2:4": semi_structured_tensors}


def _metadata(ticket: Ticket, to: str, weights: str) -> dict[str, str]:
    """Strings only, as safetensors wants; "format" is what other readers of such files look at."""
    shapes = {name: list(mask.shape) for name, mask in ticket.masks.items()}
    return {
        "format": "pt",
        "lth_sparse": __version__,
        "layout": to,
        "weights": weights,
        "ticket": ticket.hash,
        "shapes": json.dumps(shapes),
    }


def _layers(ticket: Ticket) -> Grid:
    rows = tuple(
        (stat.name, "x".join(map(str, stat.shape)), f"{stat.nnz:,}", f"{stat.numel:,}", f"{100.0 * stat.density:.2f}%")
        for stat in ticket.masks.stats()
    )
    return Grid("", ("layer", "shape", "kept", "of", "density"), rows, left=2)


def _size(path: Path) -> int:
    return path.stat().st_size
