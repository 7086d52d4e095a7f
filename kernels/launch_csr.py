"""Launch configurations of the unstructured kernels, ``csr_linear`` and ``bitmap_linear``.

``launch`` has the devices and the reasons why nothing is autotuned. Those of CSR may be measured (``ls.tune``); all
others are chosen by reasoning alone, and no configuration here was measured on a device;
``make gpu-compile`` shows that they compile without spills and which loads they use. This module needs no Triton.
"""

from __future__ import annotations

from lth_sparse.kernels.launch import DTYPES, Device, Problem, asked, cdiv, measured, padded, splits_for
from lth_sparse.kernels.tiles import CSR_PRODUCTS, Bitmap, Gather, Scatter

__all__ = ["FEW_TOKENS", "VECTOR", "Bitmap", "Gather", "Scatter", "bitmap", "gather", "heuristic", "scatter",
           "select"]  # fmt: skip

#: Up to so many tokens the traffic of the weights decides, not that of the activations.
FEW_TOKENS = 16
#: Bytes of a line of the first cache, and of one load of one thread.
LINE, VECTOR = 128, 16
#: Warps for each multiprocessor that hide the latency of memory.
WARPS_PER_PROCESSOR = 16
#: Loads of one kind that a thread has under way.
UNROLL = 4
#: Bits of a word.
WORD = 32
#: Steps of a loop for which a row, or a part of one, must have entries to be worth a program of its own: the last step
#: is half empty on average.
LEAST_STEPS = 4


def select(device: Device, problem: Problem) -> Gather | Scatter:
    """The configuration for a product of ``CSR_PRODUCTS``: a measured one as ``launch.select`` finds it, or, where none
    is near, the heuristic's."""
    tile: Gather | Scatter | None = asked(device, problem) or measured(device, problem.bucket)
    return heuristic(device, problem) if tile is None else tile


def heuristic(device: Device, problem: Problem) -> Gather | Scatter:
    """:func:`gather` or :func:`scatter` for a problem whose sizes and density are known."""
    rows, cols = problem.rows or 0, problem.cols or 0
    nnz = round((problem.density or 0.0) * rows * cols)
    forward, by_input, _ = CSR_PRODUCTS
    if problem.product in (forward, by_input):
        return gather(device, problem.dtype, problem.tokens, rows if problem.product == forward else cols, nnz)
    return scatter(device, problem.dtype, problem.tokens, rows, nnz)


def gather(device: Device, dtype: str, tokens: int, rows: int, nnz: int) -> Gather:
    """The tile for ``tokens`` rows of activations and a sparse matrix of ``rows`` rows.

    Many tokens: one line of the cache for each entry, so that all programs under way touch few columns of x at a time
    and find them in the first cache; a thread has one vector of it, and the rest of a warp other entries. A program has
    four warps: two rows of some lanes each, or one where a row has entries enough.

    Few tokens: a warp takes entries of one row, so that index and values arrive in whole lines; four rows in a program,
    or, where there are too few rows to fill the device, one row for all its warps.
    """
    size, mean, warp = DTYPES[dtype], cdiv(nnz, max(rows, 1)), 64 if device.hip else 32
    if tokens > FEW_TOKENS:
        block_m = min(padded(tokens), LINE // size)
        places = 4 * warp * VECTOR // (block_m * size)  # of four warps with a vector a thread
        alone = mean >= LEAST_STEPS * UNROLL * places
        return Gather(1 if alone else 4, places if alone else places // 4, UNROLL, block_m, 4)
    block_m = padded(tokens, 1)
    per_thread = min(block_m, VECTOR // size)
    lanes = warp * per_thread // block_m  # of one warp
    if rows < WARPS_PER_PROCESSOR * device.processors and mean >= 4 * lanes:
        return Gather(1, 4 * lanes, UNROLL, block_m, 4)
    return Gather(4, lanes, UNROLL, block_m, 4)


def scatter(device: Device, dtype: str, tokens: int, rows: int, nnz: int) -> Scatter:
    """The tile for ``nnz`` live weights in ``rows`` rows.

    A step reads one line of each of 32 rows of x, two vectors for every thread of four warps, and one line of dy. Rows
    are dealt out to several programs where they are long, which evens out unequal ones.
    """
    size, mean = DTYPES[dtype], cdiv(nnz, max(rows, 1))
    block_m = max(min(padded(tokens), LINE // size), 16)
    entries = 32
    pieces = max(1, min(cdiv(mean, 2 * entries), 8))
    splits = splits_for(device, rows * pieces, tokens)
    return Scatter(entries, pieces, splits, block_m, 4)


def bitmap(device: Device, dtype: str, tokens: int, rows: int, cols: int) -> Bitmap:
    """The tile for ``tokens`` rows of activations, at best at most 16, and a bitmap of ``rows`` x ``cols`` weights.

    A warp expands a word of one row at a time, and its threads read the values of neighbouring weights. Rows are cut
    until the device has warps enough, but not so far that finding the first value of a part costs more than the part.
    """
    block_m = 1 if tokens <= 1 else 16
    # Of the loads under way only those of live weights bring anything, hence many. Three TF32 products, though, keep
    # their operands in registers.
    unroll = UNROLL // 2 if block_m > 1 and dtype == "float32" else 2 * UNROLL
    block_n, warps = 16, 4
    wanted = cdiv(2 * WARPS_PER_PROCESSOR * device.processors, max(warps * cdiv(rows, block_n), 1))
    splits = max(1, min(wanted, cols // (2 * unroll * WORD)))
    return Bitmap(block_n, unroll, splits, block_m, warps)
