"""The kernels of the linear layer as the ahead-of-time gate (kernel_gate.py) compiles them."""

from __future__ import annotations

from typing import Any

import torch

from lth_sparse.kernels import bsr_linear, bsr_linear_backward
from lth_sparse.kernels.launch import Problem, Tile, padded

SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
#: What a launch can add to a product: a plain layer with an even mask, or all that the kernels can do beside it. That
#: is divided rows, bias and the longest activation; the ReLU in front of a gradient; the gradient of the bias.
EXTENTS = ("plain", "full")


def arguments(
    problem: Problem, tile: Tile, memory: str = "contiguous", extent: str = "plain"
) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """The kernel of a product, its signature and its constants, as a launch gives them.

    Args:
        memory: of the activations, "contiguous", "feature_major", or "ragged": contiguous, of an odd width.
        extent: one of ``EXTENTS``.
    """
    full, element = extent == "full", SHORT[problem.dtype]
    r, c = problem.block
    constants: dict[str, Any] = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    constants |= {"PRECISION": tile.precision, "WIDE": False}
    if problem.tokens == 1:  # Triton makes a constant of it
        constants["m_size"] = 1
    pointers = dict.fromkeys(("work", "offsets", "indices", "perm"), "*i32") | {"parts": "*fp32", "target": "*fp32"}
    pointers |= dict.fromkeys(("x", "grad", "activated", "values", "bias", "y", "bias_target"), f"*{element}")
    pointers["value_mask"] = "*u8"
    if problem.product == "weight_gradient":
        kernel = bsr_linear_backward.scatter_kernel
        constants |= {"R": r, "R_P": padded(r), "C": c, "C_P": padded(c, 1), "SEARCH": 256}
        absent = () if full else ("activated", "value_mask", "bias_target")
        units = ("grad_n", "a_n", "x_k") if memory != "feature_major" else ("grad_m", "a_m", "x_m")
    else:
        kernel = bsr_linear.gather_kernel
        transposed = problem.product == "input_gradient"
        out, red = (c, r) if transposed else (r, c)
        constants |= {"OUT": out, "OUT_P": padded(out), "RED": red, "RED_P": padded(red, 1), "EVEN_RED": True}
        constants |= {"VALUE_OUT": 1 if transposed else c, "VALUE_RED": c if transposed else 1}
        constants |= {"ACTIVATION": "gelu" if full and not transposed else "none", "TMA": tile.tma}
        absent = ("bias",) if transposed else ("perm", "activated")
        absent += () if full else ("parts", "activated")
        units = ("x_red", "a_red", "y_out") if memory != "feature_major" else ("x_m", "a_m", "y_m")
        if tile.tma:
            rows = f"tensordesc<{element}[{tile.block_m}, {tile.block_k}]>"
            sides = (tile.block_k, tile.block_n) if transposed else (tile.block_n, tile.block_k)
            weight = f"tensordesc<{element}[{sides[0]}, {sides[1]}]>"
            pointers |= {"x": rows, "activated": rows, "values": weight}
    constants |= dict.fromkeys(absent) | dict.fromkeys(units, 1)
    if "activated" in absent:
        constants = {name: value for name, value in constants.items() if not name.startswith("a_")}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    return kernel, signature, constants


def takes_tma(problem: Problem) -> bool:
    """Whether the layer chooses tiles by descriptor for aligned activations."""
    r, c = problem.block
    x = torch.empty(1, 16, dtype=getattr(torch, problem.dtype))
    return bsr_linear.prefers_tma(x, (r, c), 1)


def combining(dtype: str, memory: str = "contiguous") -> tuple[Any, dict[str, str], dict[str, Any]]:
    """:func:`arguments` of the kernel that finishes divided rows, with the longest activation."""
    element, side = SHORT[dtype], 128
    constants: dict[str, Any] = {"OUT": side, "OUT_P": side, "ACTIVATION": "gelu", "BLOCK_N": side}
    constants |= {"BLOCK_M": bsr_linear.COMBINE_BLOCK // side, "y_out" if memory == "contiguous" else "y_m": 1}
    pointers = {"parts": "*fp32", "bias": f"*{element}", "y": f"*{element}", "splits": "*i32"}
    constants |= {"m_size": 1, "rows": 1} if dtype == "float16" else {}  # as Triton makes of one token, and of one row
    kernel = bsr_linear.combine_kernel
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    return kernel, signature, constants


def reducing(dtype: str) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """:func:`arguments` of the kernel that adds the parts of a weight's gradient."""
    kernel = bsr_linear_backward.reduce_kernel
    signature = {"parts": "*fp32", "total": f"*{SHORT[dtype]}", "size": "i32", "splits": "i32", "BLOCK": "constexpr"}
    return kernel, signature, {"BLOCK": bsr_linear.REDUCE_BLOCK}
