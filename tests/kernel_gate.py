"""The ahead-of-time gate: compiles the shipped configurations without a GPU and reads what became of them.

Triton brings NVIDIA's assembler and disassembler, so registers, spills, shared memory and instructions are facts that
need no device (``kernel_gate_facts``). Here is what is compiled, and the rules that it keeps; ``kernel_gate_run``
(``make gpu-compile``) compiles all of it, and ``tests/kernels/test_compile.py`` a part in every run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kernel_gate_conv import RAGGED, UNIT_STRIDES, conv_arguments
from kernel_gate_facts import DEVICES, REGISTERS, Facts, facts_of
from kernel_gate_linear import EXTENTS, SHORT, arguments, combining, reducing, takes_tma
from triton.compiler import ASTSource

from lth_sparse.kernels import bsr_conv_backward
from lth_sparse.kernels.conv_tiles import Conv
from lth_sparse.kernels.launch import (
    CONV_PRODUCTS,
    DTYPES,
    NHWC_PRODUCTS,
    PRODUCTS,
    Problem,
    Tile,
    beside_relu,
    heuristic,
    in_precision,
    precision_of,
    without_runs,
)

BLOCKS = ((16, 16), (32, 32), (64, 64), (128, 128), (64, 16), (16, 64))
#: The most registers of a thread of a kernel that multiplies nothing: half of what there are.
SMALL_REGISTERS = 128
#: Of one token: it lies as a contiguous one does.
FEATURE = "feature_major"
LINEAR_MEMORY = ("contiguous", "feature_major")
#: The products over images.
IMAGE_PRODUCTS = CONV_PRODUCTS + NHWC_PRODUCTS


@dataclass(frozen=True)
class Compiled:
    """One configuration, and what it became.

    Attributes:
        memory: how activations lie.
        extent: what a linear product does beside the product.
    """

    device: str
    problem: Problem
    tile: Tile
    memory: str
    extent: str
    facts: Facts


def compile_one(
    name: str,
    problem: Problem,
    tile: Tile | None = None,
    memory: str = "contiguous",
    extent: str = "plain",
    convolution: Conv | None = None,
) -> Compiled:
    """Compile one problem for one device; without a tile, the one that the heuristic takes.

    Args:
        memory: how activations lie; the images of a convolution: a name of ``UNIT_STRIDES``.
        extent: what a linear product does beside the product, one of ``EXTENTS``.
        convolution: another than the usual one.
    """
    problem = replace(problem, scattered=scattered(problem.product, memory))
    tile = tile or heuristic(DEVICES[name][1], problem)
    if extent == "full" and problem.product in PRODUCTS[1:]:
        tile = beside_relu(tile, gathers=problem.product == "input_gradient")
    conv = problem.product in IMAGE_PRODUCTS
    if memory == "ragged" and problem.product == "forward" and DTYPES[problem.dtype] == 2:
        tile = without_runs(tile)
    if conv:
        kernel, signature, constants = conv_arguments(problem, tile, memory, SHORT[problem.dtype], convolution)
    else:
        kernel, signature, constants = arguments(problem, tile, memory, extent)
    # Sizes and strides that 16 divides and pointers that are aligned: what a launch on an ordinary layer specialises.
    # Images are no such sizes, and rows of a contiguous image no such strides.
    ragged = RAGGED[memory] if conv else ("x_m", "red_size") * (memory == "ragged")
    plain = {arg for arg in kernel.arg_names if signature[arg] != "constexpr" and "desc" not in signature[arg]}
    given = [(index,) for index, arg in enumerate(kernel.arg_names) if arg in plain.difference(ragged)]
    whole = {where: [["tt.divisibility", 16]] for where in given}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=whole)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}
    return Compiled(name, problem, tile, memory, extent, facts_of(name, source, options))


@dataclass(frozen=True)
class Small:
    """A kernel that multiplies nothing, and what it became."""

    device: str
    kind: str
    dtype: str
    facts: Facts


def compile_small(name: str, kind: str, dtype: str) -> Small:
    """Compile one of ``SMALL_KERNELS`` for one device."""
    source = ASTSource(*SMALL_KERNELS[kind](dtype))
    return Small(name, kind, dtype, facts_of(name, source, {"num_warps": 4, "enable_fp_fusion": True}))


def folding(dtype: str, memory: str) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """``arguments`` of the kernel that folds the columns of a 3x3 convolution's input gradient."""
    kernel = bsr_conv_backward.fold_kernel
    constants: dict[str, Any] = Conv((3, 3), (2, 2), (1, 1)).constants()
    constants |= {"BATCH_INNER": memory == "feature_major", "WIDE": False}
    constants |= {"BLOCK": bsr_conv_backward.FOLD_BLOCK}
    constants |= {"s_n" if memory == "feature_major" else "s_w": 1, "x_n" if memory == "feature_major" else "x_w": 1}
    pointers = {"source": "*fp32", "dx": f"*{SHORT[dtype]}"}
    signature = {arg: "constexpr" if arg in constants else pointers.get(arg, "i32") for arg in kernel.arg_names}
    return kernel, signature, constants


#: Kernels that add up or rearrange, by name; each with the arguments for a dtype.
SMALL_KERNELS = {
    "fold": partial(folding, memory="contiguous"),
    "fold, batch inner": partial(folding, memory="feature_major"),
    "combine": combining,
    "combine, batch inner": partial(combining, memory="feature_major"),
    "reduce": reducing,
}


def faults(one: Compiled) -> list[str]:
    """The rules that a shipped configuration keeps; empty when it keeps all."""
    (target, device), facts = DEVICES[one.device], one.facts
    found = []
    if facts.spills:
        found.append(f"{facts.spills} bytes of spilled registers")
    if facts.registers > (REGISTERS if not device.hip else 512):
        found.append(f"{facts.registers} registers")
    if facts.shared > device.shared:
        found.append(f"{facts.shared} bytes of shared memory, the device has {device.shared}")
    if not facts.mma:
        found.append("no matrix instructions")
    if device.hip:
        return found
    if target.arch == 90 and one.tile.block_m >= 64 and not all(name.startswith("wgmma") for name in facts.mma):
        found.append(f"{facts.mma} instead of wgmma")
    conv = one.problem.product in IMAGE_PRODUCTS
    if conv and one.memory == "contiguous":  # its pixels are no aligned runs, and are loaded element by element
        return found
    if not facts.copies:
        found.append("no asynchronous copies")
    # One buffer means that a copy and the arithmetic on it never overlap, which no other rule would show.
    step = (one.tile.block_m + one.tile.block_n) * one.tile.block_k * DTYPES[one.problem.dtype]
    if facts.shared < 2 * step:
        found.append(f"{facts.shared} bytes of shared memory hold less than two steps of {step}")
    if one.tile.tma:
        if facts.bulk < 4:
            found.append(f"{facts.bulk} copies by descriptor, two operands in two buffers have 4")
        return found
    # Copies of indices are narrow. A narrow copy of an operand is a lost alignment, and many times slower. The eight
    # warps of a convolution have less than 16 bytes each to copy of a small block.
    held = facts.shared // step
    least = held * (one.tile.block_m * one.tile.block_k * DTYPES[one.problem.dtype] if conv else step)
    if (wide := facts.copies.count(16) * 16 * 32 * one.tile.num_warps) < least:
        found.append(f"copies of 16 bytes move {wide} bytes, {held} steps have {least}")
    return found


def scattered(product: str, memory: str) -> bool:
    """The flag of that name of a problem over images that lie so."""
    return product in NHWC_PRODUCTS and memory != "channels_last"


def configurations() -> Iterator[tuple[str, Problem, Tile, str, str]]:
    """Every configuration that the heuristic ships for the blocks and dtypes it is meant for; the memory it is for, and
    the extent.

    float32 comes in both precisions, three TF32 products and one, where a user may choose; tiles by descriptor where
    the heuristic takes them.
    """
    for name, product, dtype, block in itertools.product(DEVICES, PRODUCTS + IMAGE_PRODUCTS, DTYPES, BLOCKS):
        _, device = DEVICES[name]
        # The tile of a weight gradient does not depend on the tokens.
        for tokens in (4096,) if product.endswith("weight_gradient") else (4096, 64, 1):
            linear = product in PRODUCTS
            memories = [
                memory for memory in (LINEAR_MEMORY if linear else UNIT_STRIDES) if tokens > 1 or memory != FEATURE
            ]
            pairs = [(memory, "plain") for memory in memories]
            for memory, extent in pairs + [("contiguous", "full")] * linear:
                problem = Problem(product, dtype, block, tokens, scattered=scattered(product, memory))
                tile = heuristic(device, problem)
                yield name, problem, tile, memory, extent
                rows = memory != FEATURE
                if (fewer := precision_of(device, problem, tf32=True, rows=rows)) != tile.precision:
                    yield name, problem, in_precision(tile, fewer, rows=rows), memory, extent
            problem = Problem(product, dtype, block, tokens)
            by_descriptor = heuristic(device, replace(problem, tma=linear and takes_tma(problem)))
            if by_descriptor.tma:
                for extent in EXTENTS:
                    yield name, problem, by_descriptor, "contiguous", extent


def row(one: Compiled) -> str:
    """One line of the table."""
    tile, problem, facts = one.tile, one.problem, one.facts
    dtype = "tf32" if tile.precision == "tf32" else problem.dtype
    launch = f"{tile.block_m}x{tile.block_n}x{tile.block_k} w{tile.num_warps} s{tile.num_stages}{' tma' * tile.tma}"
    block = f"{problem.block[0]:>3}x{problem.block[1]:<3}"
    extent = "+" if one.extent == "full" else ""
    name = f"{problem.product + extent:<25} {one.memory:<13} {dtype:<8} {block} {problem.tokens:>4}"
    numbers = f"{facts.registers:>4} {facts.spills:>6} {facts.shared:>7}"
    sizes = sorted(set(facts.copies), reverse=True)
    copies = ", ".join(f"{size}B x{facts.copies.count(size)}" for size in sizes)
    return f"{one.device:<7} {name}  {launch:<20} {numbers}  {', '.join(facts.mma):<28} {copies}"


def small_configurations() -> Iterator[tuple[str, str, str]]:
    """Every kernel that multiplies nothing, for every device and dtype."""
    return itertools.product(DEVICES, SMALL_KERNELS, DTYPES)


def small_faults(one: Small) -> list[str]:
    """The rules that these keep."""
    found = [f"{one.facts.spills} bytes of spilled registers"] if one.facts.spills else []
    return found + ([f"{one.facts.registers} registers"] if one.facts.registers > SMALL_REGISTERS else [])


def small_row(one: Small) -> str:
    """One line of the table."""
    about = f"{one.device:<7} {one.kind:<25} {'':<13} {one.dtype:<8} {'':>7} {'':>4}  {'':<20}"
    return f"{about} {one.facts.registers:>4} {one.facts.spills:>6} {one.facts.shared:>7}"
