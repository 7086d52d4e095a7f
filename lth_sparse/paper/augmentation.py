"""Augmented training images: mirrored left to right, and shifted by padding and cutting (He et al. 2016, section 4.2).

Draws from torch's global generator, so that a training that starts from the same random state sees the same images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["augmented", "cut"]


def augmented(x: Tensor, *, flip: bool, crop: int) -> Tensor:
    """Images [n, channels, height, width] as they are, or each with a shift and a mirroring of its own.

    Args:
        x: standardised images. What comes in at an edge is 0, the mean colour.
        flip: mirror each image left to right with probability 1/2.
        crop: shift each image by -crop to crop pixels in both directions, all equally likely.
    """
    if not flip and not crop:
        return x
    n = x.shape[0]
    # Drawn on the CPU whatever the device of x: the generator whose state the engine keeps, and the same draws on both.
    corners = torch.randint(2 * crop + 1, (2, n)) if crop else torch.zeros(2, n, dtype=torch.int64)
    mirrored = torch.rand(n) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    return cut(x, crop, corners, mirrored)


def cut(x: Tensor, pad: int, corners: Tensor, mirrored: Tensor) -> Tensor:
    """Images of the size of x, cut from x with `pad` zeros on all sides, and some of them mirrored left to right.

    Args:
        x: [n, channels, height, width].
        corners: int64 [2, n], row and column at which each image begins in the padded one, from 0 to 2 pad.
        mirrored: bool [n].
    """
    n, channels, height, width = x.shape
    columns = torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + corners[1][:, None]
    rows = torch.arange(height) + corners[0][:, None]
    image, plane = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    places = [image, plane, rows[:, None, :, None], columns[:, None, None, :]]
    return F.pad(x, (pad,) * 4)[tuple(place.to(x.device) for place in places)]
