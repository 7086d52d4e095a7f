"""What the ahead-of-time gate compiles of the convolutions: kernels, signatures and constants of an ordinary layer."""

from __future__ import annotations

from typing import Any

from lth_sparse.kernels import bsr_conv, bsr_conv_backward, bsr_conv_nhwc
from lth_sparse.kernels.conv_tiles import Conv
from lth_sparse.kernels.launch import NHWC_PRODUCTS, Problem, Tile, padded

#: Strides of 1 by how images lie in memory, and what is no multiple of 16 there in an ordinary layer.
UNIT_STRIDES = {
    "contiguous": ("x_w", "g_w", "t_w", "y_w"),
    "channels_last": ("x_c", "g_o", "t_c", "y_o"),
    "feature_major": ("x_n", "g_n", "t_n", "y_n"),
}
SIZES = ("height", "width", "out_h", "out_w", "grid_h", "grid_w", "groups")
RAGGED = {
    "contiguous": (*SIZES, "batch", "x_h", "g_h", "t_h", "y_h"),
    "channels_last": (*SIZES, "batch"),
    "feature_major": SIZES,
}
#: Channels of the layer, in and out.
CHANNELS = 256


def conv_arguments(
    problem: Problem, tile: Tile, memory: str, element: str, conv: Conv | None = None
) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """The kernel of a product, its signature and its constants, as a launch gives them.

    By default of a padded 3x3 convolution. Where the weight's columns go by channel and ``memory`` is channels_last, of
    a 1x1, for columns are contiguous only then.
    """
    (r, c), nhwc = problem.block, problem.product in NHWC_PRODUCTS
    one_tap = memory == "channels_last" and not nhwc
    conv = conv or (Conv((1, 1)) if one_tap else Conv((3, 3), padding=(1, 1)))
    constants: dict[str, Any] = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    constants |= {"PRECISION": tile.precision, "WIDE": False, "R": r, "C": c, "BATCH_INNER": memory == "feature_major"}
    constants |= dict.fromkeys(("X_INNER", "Y_INNER", "G_INNER", "T_INNER"), memory == "contiguous")
    constants |= {"GROUPED": conv.groups > 1, "EVEN": True, "PIECES": 1, "SEARCH": 256, "value_mask": None}
    constants |= {"PER_TAP": CHANNELS // c if nhwc else 0, "BLOCK_ROWS": CHANNELS // r, "ACTIVATION": "relu"}
    constants |= dict.fromkeys(UNIT_STRIDES[memory], 1) | conv.constants()
    pointers = dict.fromkeys(("x", "grad", "values", "bias", "y", "dx"), element) | {"target": "fp32"}
    pointers |= dict.fromkeys(("offsets", "indices", "perm"), "i32")
    if problem.product.endswith("input_gradient"):
        kernel = bsr_conv_nhwc.input_kernel if nhwc else bsr_conv_backward.columns_kernel
        constants |= {"R_P": padded(r, 1), "C_P": padded(c)}
    else:
        forward = problem.product.endswith("forward")
        kernel = bsr_conv.forward_kernel if forward else bsr_conv_backward.weight_kernel
        constants |= {"R_P": padded(r), "C_P": padded(c, 1)}
        if not forward:
            pointers["bias"] = "fp32"
            if not nhwc:
                constants["bias"] = None
            if memory == "channels_last":
                constants["X_INNER"] = True  # there, too, Triton sees the runs
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in constants else f"*{pointers[name]}" if name in pointers else "i32"
        for name in kernel.arg_names
    }
    return kernel, signature, constants
