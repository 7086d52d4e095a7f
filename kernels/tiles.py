"""The launch configurations themselves: one dataclass for each family of kernels, and which one a product has.

``launch`` and ``launch_csr`` choose among them. This module needs no Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

from lth_sparse.kernels.tables import power_of_two

__all__ = ["CSR_PRODUCTS", "LEAST_SIDE", "AnyTile", "Bitmap", "Gather", "Scatter", "Tile", "kind_of",
           "unstructured_fault"]  # fmt: skip

#: The products of an unstructured weight, in the order of ``launch.PRODUCTS``.
CSR_PRODUCTS = ("csr_forward", "csr_input_gradient", "csr_weight_gradient")
#: ``tl.dot`` takes no side below 16.
LEAST_SIDE = 16


@dataclass(frozen=True)
class Tile:
    """Configuration of the block-sparse kernels.

    Attributes:
        block_m: rows of the accumulator: tokens, or positions of a block row for the weight gradient.
        block_n: its columns; divides the padded block side.
        block_k: elements summed in one step: positions, or tokens for the weight gradient.
        precision: ``tl.dot``'s ``input_precision``, of meaning for float32 alone.
        tma: operands are loaded through descriptors; only for a problem that allows it.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"
    tma: bool = False


@dataclass(frozen=True)
class Gather:
    """Configuration of ``csr_linear.forward`` and ``input_gradient``.

    Attributes:
        rows: rows of the sparse matrix in one program.
        lanes: entries of each row that advance side by side.
        unroll: steps of ``lanes`` entries whose loads are under way at once.
        block_m: tokens of one program.
    """

    rows: int
    lanes: int
    unroll: int
    block_m: int
    num_warps: int


@dataclass(frozen=True)
class Scatter:
    """Configuration of ``csr_linear.weight_gradient``.

    Attributes:
        entries: live weights of one row that share what is loaded of ``dy``.
        pieces: programs among which the entries of a row are dealt out.
        splits: parts into which the tokens are cut.
        block_m: tokens of one step.
    """

    entries: int
    pieces: int
    splits: int
    block_m: int
    num_warps: int


@dataclass(frozen=True)
class Bitmap:
    """Configuration of ``bitmap_linear.forward``.

    Attributes:
        block_n: rows of W in one program.
        unroll: words of each row that are expanded at once.
        splits: parts into which every row is cut.
        block_m: tokens of one program; 1 multiplies on CUDA cores, 16 by ``tl.dot``.
    """

    block_n: int
    unroll: int
    splits: int
    block_m: int
    num_warps: int


#: What a table may hold.
AnyTile = Tile | Gather | Scatter


def kind_of(product: str) -> type[Tile] | type[Gather] | type[Scatter]:
    """The class of configurations of a product; flags behind a "+" do not matter."""
    name = product.split("+")[0]
    if name not in CSR_PRODUCTS:
        return Tile
    return Scatter if name == CSR_PRODUCTS[2] else Gather


def unstructured_fault(tile: AnyTile) -> str | None:
    """Why ``csr_linear`` cannot take a configuration; None when it can."""
    for name, size in vars(tile).items():
        if name not in ("pieces", "splits") and size != power_of_two(size):
            return f"{name}: expected a power of two, got {size}"
        if size < 1:
            return f"{name}: expected a positive int, got {size}"
    return None
