"""A mask in few bytes: one bit per weight, or the Rice code of the gaps between live weights, whichever is shorter.

Independent weights of density p cannot be told in fewer than H(p) = -p log2 p - (1 - p) log2 (1 - p) bits each. Of a
live weight the Rice code (Golomb 1966 for lengths that are powers of two) stores how many pruned ones come before it,
g = q 2^k + r: q in unary, r in k bits. With the best k random masks of 2% to 20% take at most 3% more than H. Of a mask
that keeps more than half, it is the pruned weights that are coded.

    byte 0       k, plus 64 where the pruned weights are coded; or 255 for plain bits
    then         plain bits: numpy.packbits of the flattened mask, ceil(numel / 8) bytes
                 Rice code: bits of all q (each q zeros and a one), padded to whole bytes, then k bits of each r, too

Both parts of a Rice code are packed by themselves, so that numpy reads and writes them without a loop.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats.layout import check_mask

__all__ = ["decode_mask", "encode_mask"]

#: First byte of a mask in plain bits, and what is added to k where the pruned weights are coded.
PLAIN, INVERTED = 255, 64

#: k is below this: no tensor has gaps of 2^40.
LONGEST = 40


def encode_mask(mask: Tensor) -> Tensor:
    """``mask`` (bool, any shape, on the CPU) as uint8 ``[bytes]``, in the shorter of both codes.

    Raises:
        ArgumentTypeError, ArgumentError: ``mask`` is no bool tensor.
    """
    flat: NDArray[np.bool_] = check_mask(mask).reshape(-1).numpy()
    inverted = 2 * int(flat.sum()) > flat.size
    gaps = np.diff(np.flatnonzero(~flat if inverted else flat), prepend=-1) - 1
    # Lengths of both parts for every k: whole bytes, as they are stored.
    lengths = [_bytes(len(gaps) + int((gaps >> k).sum())) + _bytes(len(gaps) * k) for k in range(LONGEST)]
    k = int(np.argmin(lengths))
    if _bytes(flat.size) <= lengths[k]:
        return _joined(PLAIN, np.packbits(flat))
    quotients, rest = gaps >> k, gaps & ((1 << k) - 1)
    unary = np.zeros(len(gaps) + int(quotients.sum()), dtype=bool)
    unary[np.cumsum(quotients + 1) - 1] = True
    binary = (rest[:, None] >> np.arange(k)) & 1
    return _joined(k + INVERTED * inverted, np.packbits(unary), np.packbits(binary.astype(bool)))


def decode_mask(code: Tensor, shape: tuple[int, ...], nnz: int) -> Tensor:
    """The mask of ``shape`` with ``nnz`` live weights that :func:`encode_mask` made ``code`` of.

    Raises:
        ArgumentError: ``code`` belongs to no such mask.
    """
    numel = int(np.prod(shape, dtype=np.int64))
    if code.dtype != torch.uint8 or code.dim() != 1 or not code.numel():
        raise ArgumentError(expected("code", "uint8 [bytes], at least one", f"{code.dtype} {list(code.shape)}"))
    data: NDArray[np.uint8] = code.numpy()
    k, body = int(data[0]), data[1:]
    if k == PLAIN:
        if len(body) != _bytes(numel):
            raise ArgumentError(expected("code", f"{_bytes(numel)} bytes for {numel} weights", f"{len(body)}"))
        flat = np.unpackbits(body, count=numel).astype(bool)
    else:
        inverted, k = divmod(k, INVERTED)
        if inverted > 1:
            raise ArgumentError(expected("code", f"a first byte below {2 * INVERTED} or {PLAIN}", f"{int(data[0])}"))
        flat = _decode_gaps(body, k, numel, numel - nnz if inverted else nnz) ^ bool(inverted)
    if int(flat.sum()) != nnz:
        raise ArgumentError(expected("code", f"a mask of {nnz} live weights", f"{int(flat.sum())}"))
    return torch.from_numpy(flat).reshape(shape)


def _decode_gaps(body: NDArray[np.uint8], k: int, numel: int, count: int) -> NDArray[np.bool_]:
    tail = _bytes(count * k)
    if k >= LONGEST or count < 0 or tail > len(body):
        raise ArgumentError(expected("code", f"k below {LONGEST} and its bits of {count} gaps", f"k = {k}"))
    unary = np.unpackbits(body[: len(body) - tail])
    binary = np.unpackbits(body[len(body) - tail :], count=count * k).reshape(count, k).astype(np.int64)
    ends = np.flatnonzero(unary)
    if len(ends) != count:
        raise ArgumentError(expected("code", f"{count} gaps", f"{len(ends)}"))
    gaps = ((np.diff(ends, prepend=-1) - 1) << k) + (binary << np.arange(k)).sum(1)
    places = np.cumsum(gaps + 1) - 1
    if count and (places[-1] >= numel or bool((gaps < 0).any())):
        raise ArgumentError(expected("code", f"places below {numel}", f"{int(places[-1])}"))
    flat = np.zeros(numel, dtype=bool)
    flat[places] = True
    return flat


def _joined(head: int, *parts: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.array([head], dtype=np.uint8), *parts]))


def _bytes(bits: int) -> int:
    return -(-bits // 8)
