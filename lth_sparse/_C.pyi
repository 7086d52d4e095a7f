"""CPU kernels for CSR and BSR weights, compiled from ``csrc/``.

Tensors come as addresses (``Tensor.data_ptr()``, 0 for "none"), sizes and strides as element counts. Nothing here looks
at memory before it is used: ``lth_sparse.ops`` checks shapes, dtypes, devices and index ranges once, then calls. Import
torch first, so that both use one OpenMP run-time. Every function releases the GIL, may be called from several Python
threads at once, writes every element of its outputs whatever they held before, and computes the same result, bit for
bit, in every run with the same arguments, number of threads and instruction set.

Common arguments:

* ``values`` ``[nnz]``, in CSR order; ``bias`` ``[rows]`` or 0; both of the value type.
* ``crow`` ``[rows + 1]``, ``ccol`` ``[cols + 1]``, ``perm`` ``[nnz]``: int32. ``perm[k]``: CSR position of the k-th
  non-zero in column order. ``col``, ``row`` ``[nnz]``: uint16 or int32, ascending within a row (a column).
* BSR: ``values`` ``[nblocks, block_rows, block_cols]`` in block-row-major order; ``crow``, ``col``, ``ccol``, ``row``
  and ``perm`` as above over blocks, all int32. ``mask`` is uint8 shaped like ``values``, or 0 when every entry is live:
  entries where it is 0 count as zero whatever is stored there, and their gradient is 0. It is so beyond the edge of
  the weight, over which the last blocks may reach.
* ``index_bits``: 16 when ``col`` and ``row`` are uint16, 32 when they are int32.
* ``dtype``: 0 for float32, 1 for float64; 2 for bfloat16, which has forward passes only: sums are float32, rounded
  once to the nearest, ties to even.
* ``threads``: at least 1; fewer are used where the work is too small to share.

Raises ``ValueError`` for impossible sizes, codes and missing pointers, naming the argument; ``RuntimeError`` when the
environment variable ``LTH_SPARSE_ISA`` names an instruction set that is unknown or that this processor lacks;
``MemoryError``.
"""

from __future__ import annotations

def csr_linear_forward(
    x: int,
    values: int,
    bias: int,
    y: int,
    crow: int,
    col: int,
    batch: int,
    rows: int,
    cols: int,
    x_batch_stride: int,
    x_feature_stride: int,
    y_batch_stride: int,
    y_feature_stride: int,
    relu: bool,
    index_bits: int,
    dtype: int,
    threads: int,
) -> None:
    """y[n, r] = bias[r] + sum over k in [crow[r], crow[r + 1]) of values[k] * x[n, col[k]].

    ``x`` ``[batch, cols]`` and ``y`` ``[batch, rows]`` have any strides; feature-major (batch stride 1) is the fastest.
    With ``relu``, max(y, 0); NaN stays NaN.
    """

def csr_linear_backward(
    grad: int,
    activated: int,
    x: int,
    values: int,
    dx: int,
    dvalues: int,
    dbias: int,
    crow: int,
    col: int,
    ccol: int,
    row: int,
    perm: int,
    batch: int,
    rows: int,
    cols: int,
    grad_batch_stride: int,
    grad_feature_stride: int,
    activated_batch_stride: int,
    activated_feature_stride: int,
    x_batch_stride: int,
    x_feature_stride: int,
    dx_batch_stride: int,
    dx_feature_stride: int,
    index_bits: int,
    dtype: int,
    threads: int,
) -> None:
    """Gradients of csr_linear_forward, given ``grad`` ``[batch, rows]``, that of y.

    dx[n, c] = sum over r of W[r, c] grad[n, r];  dvalues[k] = sum over n of grad[n, row of k] x[n, column of k];
    dbias[r] = sum over n of grad[n, r]. Each output may be 0, and is then not computed; ``x`` is read for ``dvalues``
    only, ``values`` for ``dx`` only; small batches need ``crow`` and ``col``, others ``ccol``, ``row`` and ``perm``.
    Where ``activated``, the result of a call with ``relu``, is given, ``grad`` counts as 0 where that is <= 0, and as
    it is where that is NaN.
    """

def bsr_linear_forward(
    x: int,
    values: int,
    mask: int,
    bias: int,
    y: int,
    crow: int,
    col: int,
    batch: int,
    rows: int,
    cols: int,
    block_rows: int,
    block_cols: int,
    x_batch_stride: int,
    x_feature_stride: int,
    y_batch_stride: int,
    y_feature_stride: int,
    relu: bool,
    dtype: int,
    threads: int,
) -> None:
    """y[n, o] = bias[o] + sum over i of W[o, i] x[n, i], strides as in csr_linear_forward.

    A NaN or infinity in ``x[n, i]`` reaches ``y[n, o]`` for all rows o of the blocks that hold column i, also where the
    entry itself is not live.
    """

def bsr_linear_backward(
    grad: int,
    activated: int,
    x: int,
    values: int,
    mask: int,
    dx: int,
    dvalues: int,
    dbias: int,
    ccol: int,
    row: int,
    perm: int,
    batch: int,
    rows: int,
    cols: int,
    block_rows: int,
    block_cols: int,
    grad_batch_stride: int,
    grad_feature_stride: int,
    activated_batch_stride: int,
    activated_feature_stride: int,
    x_batch_stride: int,
    x_feature_stride: int,
    dx_batch_stride: int,
    dx_feature_stride: int,
    dtype: int,
    threads: int,
) -> None:
    """Gradients of bsr_linear_forward, given ``grad`` ``[batch, rows]``, that of y.

    dx[n, i] = sum over o of W[o, i] grad[n, o];  dvalues = sum over n of grad[n, o] x[n, i] at the live entries;
    dbias[o] = sum over n of grad[n, o]. Each output may be 0, and is then not computed; ``x`` is read for ``dvalues``
    only, ``values`` for ``dx`` only.
    """

def csr_conv2d_forward(
    x: int,
    values: int,
    bias: int,
    y: int,
    crow: int,
    col: int,
    n: int,
    channels: int,
    height: int,
    width: int,
    out_channels: int,
    groups: int,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    out_h: int,
    out_w: int,
    feature_major: int,
    relu: int,
    index_bits: int,
    dtype: int,
    threads: int,
) -> None:
    """y = conv2d(x, W) + bias for ``x`` ``[n, channels, height, width]`` and ``y`` ``[n, out_channels, out_h, out_w]``.

    Both contiguous, or with ``feature_major`` 1 both of memory ``[channels, height, width, n]``, n at least 2. W is CSR
    with one row for each output channel; column (ci * kernel_h + ky) * kernel_w + kx is tap (ky, kx) of channel ci of
    the row's group. Padding is zeros, the same on opposite sides. With ``relu``, max(y, 0); NaN stays NaN.
    """

def bsr_conv2d_forward(
    x: int,
    values: int,
    mask: int,
    bias: int,
    y: int,
    crow: int,
    col: int,
    n: int,
    channels: int,
    height: int,
    width: int,
    out_channels: int,
    groups: int,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    out_h: int,
    out_w: int,
    feature_major: int,
    relu: int,
    block_rows: int,
    block_cols: int,
    dtype: int,
    threads: int,
) -> None:
    """y = conv2d(x, W) + bias, ``x``, ``y``, ``relu`` and the columns of W as in csr_conv2d_forward.

    W is BSR: blocks are cut from its matrix ``[out_channels, channels / groups * kernel_h * kernel_w]`` and may reach
    over its edges. A NaN or infinity in ``x`` reaches all output channels of the blocks that hold the column which
    reads it, also where the entry itself is not live.
    """

def bsr_conv2d_backward(
    grad: int,
    activated: int,
    x: int,
    values: int,
    mask: int,
    dx: int,
    dvalues: int,
    dbias: int,
    ccol: int,
    row: int,
    perm: int,
    n: int,
    channels: int,
    height: int,
    width: int,
    out_channels: int,
    groups: int,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    out_h: int,
    out_w: int,
    grad_feature_major: int,
    x_feature_major: int,
    block_rows: int,
    block_cols: int,
    dtype: int,
    threads: int,
) -> None:
    """Gradients of bsr_conv2d_forward, given ``grad``, that of y; formats and NaN as in csr_conv2d_backward.

    Entries that ``mask`` names 0, and those over the edges of W, count as zero and their gradient is 0. A NaN or
    infinity in a channel of ``grad`` may reach ``dx`` through each group of four output channels of a block, whichever
    are live.
    """

def csr_conv2d_backward(
    grad: int,
    activated: int,
    x: int,
    values: int,
    dx: int,
    dvalues: int,
    dbias: int,
    ccol: int,
    row: int,
    perm: int,
    n: int,
    channels: int,
    height: int,
    width: int,
    out_channels: int,
    groups: int,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    out_h: int,
    out_w: int,
    grad_feature_major: int,
    x_feature_major: int,
    index_bits: int,
    dtype: int,
    threads: int,
) -> None:
    """Gradients of csr_conv2d_forward, given ``grad``, that of y; shapes as there.

    ``grad`` and ``x`` are each contiguous or feature-major, memory ``[C, H, W, N]`` with N >= 2; ``dx`` is like ``x``.
    Where ``activated``, in the format of ``grad``, is not 0, ``grad`` counts as 0 where that is <= 0, and as it is
    where that is NaN. Each of ``dx``, ``dvalues`` and ``dbias`` may be 0, and is then not computed. A NaN or infinity
    in a channel of ``x`` or ``grad`` may reach ``dvalues`` of all taps on that channel: those, too, for which what
    would have met it lies beyond the border.
    """

def expand(values: int, bits: int, rank: int, dense: int, nnz: int, numel: int, width: int, threads: int) -> None:
    """The next value where bit i is set, zero elsewhere: ``numel`` elements of ``width`` 2, 4 or 8 bytes.

    ``bits`` is uint8, bit ``i % 8`` of byte ``i // 8`` for weight i, zero past the end; ``rank`` int32, the set bits
    before every 4096th weight and, last, all of them.
    """

def compress(dense: int, bits: int, rank: int, values: int, nnz: int, numel: int, width: int, threads: int) -> None:
    """The elements of ``dense`` whose bit is set, in order: the reverse of :func:`expand`."""

def csr_rebuild(
    crow: int,
    col: int,
    keep: int,
    grown: int,
    new_crow: int,
    new_col: int,
    new_ccol: int,
    new_row: int,
    new_perm: int,
    source: int,
    rows: int,
    cols: int,
    nnz: int,
    kept: int,
    grown_count: int,
    index_bits: int,
) -> None:
    """The CSR index and its transpose after a change of the mask, in O(nnz + rows + cols).

    ``keep`` ``[nnz]``, uint8: 0 where an entry goes; ``kept`` of them stay. ``grown`` ``[grown_count]``, int64: the
    ascending positions ``r * cols + c`` of entries that come, none of which is kept. ``new_*`` are ``crow``, ``col``,
    ``ccol``, ``row`` and ``perm`` of the ``kept + grown_count`` entries afterwards, ``source`` int32 the entry that
    each was, -1 for one that has come. These arrays, unlike others, are looked at: ValueError names a wrong one.
    """

def reorder_cluster(
    members: list[tuple[int, int, int, int, int, int, float]], size: int, neighbours: int, order: int, near: int
) -> None:
    """Put like items side by side: ``order`` ``[size]`` int64, and in ``near`` ``[size, neighbours]`` int32 those most
    like each item, -1 where there are fewer.

    Each of ``members`` is (features, offsets, feature, amount, extent, width, weight): the items of one tensor by
    features, compressed (``offsets`` int64 ``[size + 1]``, ``feature`` and ``amount`` int32 ``[nnz]``, features
    ascending within an item, amounts from 1 to ``width``), and the blocks of ``extent`` items. See csrc/reorder.h.
    """

def reorder_refine(
    members: list[tuple[int, int, int, int, int, int, float]],
    size: int,
    neighbours: int,
    near: int,
    sweeps: int,
    seed: int,
    order: int,
) -> int:
    """Exchange items in ``order``, in place, while blocks get fewer or fuller; returns how many exchanges it took.

    ``members``, ``order`` and ``near`` as in :func:`reorder_cluster`. At most ``sweeps`` rounds over all items.
    """

def permute(
    x: int, y: int, order: int, outer: int, features: int, inner: int, element_bytes: int, threads: int
) -> None:
    """``y[o, i, :] = x[o, order[i], :]`` of contiguous ``[outer, features, inner]`` elements of 2, 4 or 8 bytes;
    ``order`` int32 ``[features]``, a permutation. ValueError for another size of element."""

def isa() -> str:
    """The instruction set in use: ``avx512``, ``avx2``, ``neon`` or ``scalar``. RuntimeError as above."""

def isas() -> list[str]:
    """Those that this build has and this processor runs, slowest first. The last is the default."""

def set_isa(name: str) -> None:
    """Use another of ``isas()`` from the next call on, in the whole process. ValueError for any other name."""

def microkernels() -> list[str]:
    """Names of all microkernels in this build, runnable here or not.

    ``f32_csr_spmm_8x16_u16__avx512``: value type, operation, registers by lanes of a strip, index type, instruction
    set; ``csr_few_1x4``: a strip of four samples. ``f32_bsr_spmm_4x6x16_u16__avx512``: before these, the rows of the
    weight that share their columns.
    """

def build_info() -> dict[str, str | bool]:
    """``compiler``, ``version`` (strings) and ``openmp`` (bool) of this build; without OpenMP, threads of its own."""

def trim() -> int:
    """Free the scratch memory kept between calls and not in use now; returns how many bytes that was."""

def set_thread_grain(multiply_adds: int) -> int:
    """Multiply-adds of work that are worth waking a thread for; returns the number before. Tests set it to 1."""

def fma_peak(seconds: float, threads: int) -> float:
    """Multiply-adds on registers alone, in float32 with the instruction set in use: FLOP/s, two for each multiply-add.

    Runs for about ``seconds``; per thread the best window of about a millisecond counts, and threads are added up, so
    that more of them than processors give a number too large.
    """
