"""Work lists: a compressed matrix cut into pieces that GPU programs can share evenly.

Masks pruned by one global threshold are skewed: some rows hold many times the mean, and a program that owned such a row
would run long after all others. Rows over twice the mean are therefore cut into equal parts, and the pieces come
longest first, so that the short ones fill the gaps. Built once with the mask: a launch takes its size from the shapes
of these tensors and asks the device nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["work_lists"]

#: A part has at least as many positions (entries times their extent) as make up for writing and adding its sums.
LEAST_POSITIONS = 512


def work_lists(offsets: Tensor, extent: int) -> tuple[Tensor, Tensor]:
    """``(items, splits)`` of the rows of a compressed matrix.

    Args:
        offsets: int32 ``[rows + 1]``, a layout's ``crow_indices`` or ``ccol_indices``.
        extent: positions of an entry along the summed axis: the side of a block.

    Returns:
        ``items``: int32 ``[pieces, 4]``, each (row, first entry, end entry, slot), longest first and otherwise in the
        order of the entries. Every row has one, also without entries; the slot of an undivided row is -1, those of
        parts count up in the order of the entries. ``splits``: int32 ``[divided rows, 3]``, each (row, first slot, end
        slot). There are ``pieces - rows + divided rows`` slots.
    """
    device = offsets.device
    start = offsets[:-1].to(torch.int64)
    counts = offsets.diff().to(torch.int64)
    rows = counts.numel()
    twice_mean = counts.sum() * 2 // max(rows, 1)
    limit = twice_mean.clamp(min=max(-(-LEAST_POSITIONS // extent), 1))
    parts = ((counts + limit - 1) // limit).clamp(min=1)
    before = parts.cumsum(0) - parts
    row = torch.repeat_interleave(torch.arange(rows, device=device), parts)
    part = torch.arange(row.numel(), device=device) - before[row]
    first = start[row] + counts[row] * part // parts[row]
    end = start[row] + counts[row] * (part + 1) // parts[row]
    divided = parts > 1
    of_divided = divided[row]
    slot = torch.where(of_divided, of_divided.cumsum(0) - 1, -1)
    order = torch.sort(end - first, stable=True, descending=True).indices
    items = torch.stack((row, first, end, slot), 1)[order].to(torch.int32)
    slots = parts * divided
    last = slots.cumsum(0)
    splits = torch.stack((torch.arange(rows, device=device), last - slots, last), 1)[divided].to(torch.int32)
    return items, splits
