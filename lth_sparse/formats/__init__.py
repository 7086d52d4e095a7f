"""Layouts: where the live weights are. Knows nothing of kernels, operators or modules.

To add a layout, write ``formats/<name>.py`` with a :class:`Layout` and name it in ``LAYOUTS``; through its ``gather``
and ``scatter`` it then works in every operator and module, slowly, until kernels follow.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats.bsr import BSR
from lth_sparse.formats.csr import CSR
from lth_sparse.formats.dense import Dense
from lth_sparse.formats.layout import Layout
from lth_sparse.formats.mask import Mask, MaskStats
from lth_sparse.formats.reorder import Reordering, reorder, reorder_axis
from lth_sparse.formats.reordered import Reordered
from lth_sparse.formats.semi_structured import SemiStructured

__all__ = [
    "BSR",
    "CSR",
    "LAYOUTS",
    "Dense",
    "Layout",
    "Mask",
    "MaskStats",
    "Reordered",
    "Reordering",
    "SemiStructured",
    "make_layout",
    "reorder",
    "reorder_axis",
]

LAYOUTS: dict[str, type[Layout]] = {layout.kind: layout for layout in (CSR, BSR, Dense, SemiStructured, Reordered)}

#: Layouts that store blocks, and so have a block, a cover and an order of columns.
BLOCKED = tuple(kind for kind, layout in LAYOUTS.items() if issubclass(layout, BSR))


def make_layout(
    kind: str,
    mask: Tensor,
    *,
    block: tuple[int, int] | None = None,
    cover: str | None = None,
    channels_last: bool = False,
    order: Reordering | None = None,
) -> Layout:
    """Layout of the named kind for ``mask``.

    Args:
        kind: ``"csr"``, ``"bsr"``, ``"dense"``, ``"2:4"`` or ``"reordered"``.
        mask: bool tensor shaped like the dense weight.
        block: ``(rows, cols)`` of a block; required for ``"bsr"`` and ``"reordered"``, refused for the others.
        cover, channels_last: see :meth:`BSR.from_mask`; only for those two.
        order: of rows and columns, only for ``"reordered"``, which searches for one by default.
    """
    if kind not in LAYOUTS:
        raise ArgumentError(expected("layout", f"one of {', '.join(map(repr, LAYOUTS))}", repr(kind)))
    if order is not None and kind != "reordered":
        raise ArgumentError(expected("order", f"None with layout={kind!r} (it is for layout='reordered')", "an order"))
    if kind in BLOCKED:
        if block is None:
            raise ArgumentError(expected("block", f"(rows, cols) with layout={kind!r}", block))
        if kind == "reordered":
            return Reordered.from_mask(mask, block, cover, channels_last, order)  # type: ignore[arg-type]
        return BSR.from_mask(mask, block, cover, channels_last)  # type: ignore[arg-type]  # checked inside
    theirs = "it is for layout='bsr' and 'reordered'"
    for name, value in (("block", block), ("cover", cover)):
        if value is not None:
            raise ArgumentError(expected(name, f"None with layout={kind!r} ({theirs})", repr(value)))
    if channels_last is not False:
        raise ArgumentError(expected("channels_last", f"False with layout={kind!r} ({theirs})", channels_last))
    others: dict[str, Callable[[Tensor], Layout]] = {
        "csr": CSR.from_mask,
        "dense": Dense.from_mask,
        "2:4": SemiStructured.from_mask,
    }
    return others[kind](mask)
