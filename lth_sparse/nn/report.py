"""What ``sparsify_`` did to each layer, as data and as a table."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

__all__ = ["LayerReport", "SparsifyReport"]

HEADER = (
    "layer",
    "type",
    "shape",
    "kept",
    "density",
    "layout",
    "backend",
    "dense bytes",
    "now",
    "forward",
    "backward",
    "note",
)
#: Columns of numbers, which are set flush right.
NUMBERS = {"kept", "density", "dense bytes", "now", "forward", "backward"}


@dataclass(frozen=True)
class LayerReport:
    """One weight of the model.

    Attributes:
        name: module name in the model, such as ``"fc1"``.
        kind: dense class that it replaces: ``"Linear"``, ``"Conv1d"``, ``"Conv2d"``.
        shape: shape of the dense weight.
        density: share of the weights that are kept.
        nnz: number of weights that are kept.
        layout: ``"csr"``, ``"bsr"``, ``"dense"``, ``"2:4"``, ``"reordered"``; ``"unchanged"`` for a layer that was left
            as it is.
        block: ``(rows, cols)`` of a block, for BSR and reordered BSR.
        backend: what runs it, see :func:`lth_sparse.ops.backend_of`.
        bytes_dense: bytes of the dense weight.
        bytes_sparse: bytes of the compact values and of all index tensors.
        speedup_forward, speedup_backward: time of dense torch over the layer's own, measured on ``sample_input``; None
            when not measured.
        note: why this layout, or why the layer was left alone.
        channels_last: the blocks are those of a channels_last weight.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    nnz: int
    layout: str
    block: tuple[int, int] | None
    backend: str
    bytes_dense: int
    bytes_sparse: int
    speedup_forward: float | None
    speedup_backward: float | None
    note: str
    channels_last: bool = False

    @property
    def numel(self) -> int:
        """Number of weights of the dense layer."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def cells(self) -> tuple[str, ...]:
        """The row of the table, in the order of ``HEADER``."""
        block = f" {self.block[0]}x{self.block[1]}" if self.block else ""
        block += " channels_last" * self.channels_last
        return (
            self.name,
            self.kind,
            "x".join(map(str, self.shape)),
            f"{self.nnz:,} / {self.numel:,}",
            f"{self.density:.1%}",
            self.layout + block,
            self.backend,
            size(self.bytes_dense),
            size(self.bytes_sparse),
            ratio(self.speedup_forward),
            ratio(self.speedup_backward),
            self.note,
        )


@dataclass(frozen=True)
class SparsifyReport:
    """All layers that ``sparsify_`` looked at; ``print`` it for the table.

    Attributes:
        layers: one row for each weight.
    """

    layers: list[LayerReport] = field(default_factory=list)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def density(self) -> float:
        """Share of the weights that are kept, over all rows."""
        numel = sum(row.numel for row in self.layers)
        return sum(row.nnz for row in self.layers) / numel if numel else 0.0

    @property
    def bytes_dense(self) -> int:
        """Bytes of all weights before."""
        return sum(row.bytes_dense for row in self.layers)

    @property
    def bytes_sparse(self) -> int:
        """Bytes of all weights and index tensors now."""
        return sum(row.bytes_sparse for row in self.layers)

    def __str__(self) -> str:
        nnz, numel = sum(row.nnz for row in self.layers), sum(row.numel for row in self.layers)
        total = {
            "layer": "all",
            "kept": f"{nnz:,} / {numel:,}",
            "density": f"{self.density:.1%}",
            "dense bytes": size(self.bytes_dense),
            "now": size(self.bytes_sparse),
        }
        rows = [row.cells() for row in self.layers]
        return table(HEADER, [*rows, tuple(total.get(name, "") for name in HEADER)])


def table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], numbers: Container[str] = NUMBERS, totals: int = 1
) -> str:
    """Columns aligned under their header, ``numbers`` flush right, rules under the header and above the totals."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("-" * width for width in widths)

    def line(cells: tuple[str, ...]) -> str:
        padded = [
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, cells, widths, strict=True)
        ]
        return "  ".join(padded).rstrip()

    body = [line(cells) for cells in rows]
    return "\n".join([line(header), rule, *body[:-totals], rule, *body[-totals:]])


def size(count: int) -> str:
    """``count`` bytes in the largest unit of which there is at least one."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def ratio(speedup: float | None) -> str:
    """A speed-up as the table shows it."""
    return "-" if speedup is None else f"{speedup:.2f}x"
