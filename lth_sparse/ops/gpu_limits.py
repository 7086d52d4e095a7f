"""Where block-sparse products should win on GPUs: limits derived from the hardware, until measurements replace them.

The planner takes a layer's blocks unmeasured only where these limits leave no doubt.
"""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["GPU_BLOCK_BREAK_EVEN", "gpu_break_even"]

#: The side of a square block -> density below which 16-bit block products should win. Derived, not
#: measured: blocks break even with cuBLAS on a Hopper GPU at .10, .18, .30 and .45 if L2 delivers 5.5 TB/s, the lowest
#: that is thought possible, and a kernel that reaches 60% of its ceiling at 0.6 times that.
GPU_BLOCK_BREAK_EVEN = {16: 0.06, 32: 0.108, 64: 0.18, 128: 0.27}

#: Reading inputs and writing outputs bounds the speed-up of a layer on a GPU at its weights over its inputs and outputs
#: together, over this (derived: 790 TFLOP/s of 16-bit products over 4.3 TB/s); blocks need a bound of so much.
GPU_OUTPUT_BOUND, GPU_LEAST_BOUND = 184.0, 2.0

#: Channels that a convolution must have for blocks to be taken on a GPU unmeasured.
GPU_LEAST_CHANNELS = 128


def gpu_break_even(weight: Tensor, block: tuple[int, int]) -> float:
    """Density below which blocks are taken on a GPU unmeasured: that of the block's smaller side in
    ``GPU_BLOCK_BREAK_EVEN`` (of the side below it), or 0 for a layer that is small, narrow or a 1x1 convolution."""
    rows, inputs = weight.shape[:2]  # what an output position writes and reads
    if weight.dim() > 2 and (weight.shape[1] < GPU_LEAST_CHANNELS or math.prod(weight.shape[2:]) == 1):
        return 0.0  # 1x1 convolutions move activations more than they multiply
    if weight.numel() <= GPU_LEAST_BOUND * GPU_OUTPUT_BOUND * (rows + inputs):
        return 0.0
    return max((even for side, even in GPU_BLOCK_BREAK_EVEN.items() if side <= min(block)), default=0.0)
