"""The ahead-of-time gate: compiles the shipped configurations without a GPU and reads what became of them.

Triton brings NVIDIA's assembler and disassembler, so registers, spills, shared memory and instructions are facts that
need no device. ``python tests/kernel_gate.py`` (``make gpu-compile``) prints the whole table and fails if a
configuration breaks a rule of :func:`faults`; ``tests/kernels/test_compile.py`` holds a part of it in every run.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import triton
from kernel_gate_conv import RAGGED, UNIT_STRIDES, conv_arguments
from kernel_gate_linear import EXTENTS, SHORT, arguments, combining, reducing, takes_tma
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lth_sparse.kernels import bsr_conv_backward
from lth_sparse.kernels.conv_tiles import Conv
from lth_sparse.kernels.launch import (
    CONV_PRODUCTS,
    DTYPES,
    NHWC_PRODUCTS,
    PRODUCTS,
    Device,
    Problem,
    Tile,
    beside_relu,
    heuristic,
    precision_of,
    without_runs,
)

#: Name, compiler target, device: the shared memory is what one program may use, from the vendors' manuals.
DEVICES: dict[str, tuple[GPUTarget, Device]] = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device("sm_80", 80, 166912, 108)),
    "sm_86": (GPUTarget("cuda", 86, 32), Device("sm_86", 86, 101376, 84)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device("sm_90", 90, 232448, 132)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device("gfx942", 942, 65536, 304, hip=True)),
}
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    del DEVICES["gfx942"]  # linked by ROCm's own linker, which older wheels do not bring
BLOCKS = ((16, 16), (32, 32), (64, 64), (128, 128), (64, 16), (16, 64))
REGISTERS = 255
LINEAR_MEMORY = ("contiguous", "feature_major")
#: The products over images.
IMAGE_PRODUCTS = CONV_PRODUCTS + NHWC_PRODUCTS


@dataclass(frozen=True)
class Compiled:
    """What one configuration became.

    Attributes:
        registers, spills: registers of a thread and bytes of its stack (bytes of scratch on gfx942).
        shared: bytes of shared memory of a program.
        mma: the matrix instructions in it, most frequent first.
        copies: bytes of each asynchronous copy in it; empty where loads go through registers.
        memory: how activations lie.
        extent: what a linear product does beside the product.
        bulk: number of copies of whole tiles by descriptor.
    """

    device: str
    problem: Problem
    tile: Tile
    registers: int
    spills: int
    shared: int
    mma: tuple[str, ...]
    copies: tuple[int, ...]
    memory: str = "contiguous"
    extent: str = "plain"
    bulk: int = 0


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
    target, device = DEVICES[name]
    tile = tile or heuristic(device, problem)
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
    built = triton.compile(source, target=target, options=options)
    registers, spills = resources(built, device)
    if device.hip:
        mma = re.findall(r"v_mfma_\w+", built.asm["amdgcn"])
        copies, bulk = [], 0
    else:
        ptx = built.asm["ptx"]
        mma = re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m64n\d+k\d+)|mma\.sync\.aligned\.(m\d+n\d+k\d+)", ptx)
        mma = ["wgmma " + wide if wide else "mma " + narrow for wide, narrow in mma]
        sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx)
        copies = [int(size, 0) for size in sizes]
        bulk = len(re.findall(r"cp\.async\.bulk\.tensor\.2d\.shared::\w+\.global", ptx))
    counted = tuple(sorted(set(mma), key=mma.count, reverse=True))
    facts = (registers, spills, built.metadata.shared, counted, tuple(copies))
    return Compiled(name, problem, tile, *facts, memory, extent, bulk)


def compile_small(name: str, kind: str, dtype: str) -> tuple[int, int]:
    """(registers, bytes of stack) of a kernel that multiplies nothing: one of ``SMALL_KERNELS``."""
    target, device = DEVICES[name]
    kernel, signature, constants = SMALL_KERNELS[kind](dtype)
    built = triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 4})
    return resources(built, device)


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


def resources(built: Any, device: Device) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) of a compiled kernel."""
    if not device.hip:
        return disassemble(built.asm["cubin"])
    patterns = (r"\.vgpr_count:\s+(\d+)", r"\.private_segment_fixed_size:\s+(\d+)")
    registers, spills = (int(re.findall(pattern, built.asm["amdgcn"])[0]) for pattern in patterns)
    return registers, spills


def disassemble(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) of the one kernel of a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump: expected a line of resource usage, got {text!r}")
    return int(found[1]), int(found[2]) + int(found[3])


def faults(one: Compiled) -> list[str]:
    """The rules that a shipped configuration keeps; empty when it keeps all."""
    target, device = DEVICES[one.device]
    found = []
    if one.spills:
        found.append(f"{one.spills} bytes of spilled registers")
    if one.registers > (REGISTERS if not device.hip else 512):
        found.append(f"{one.registers} registers")
    if one.shared > device.shared:
        found.append(f"{one.shared} bytes of shared memory, the device has {device.shared}")
    if not one.mma:
        found.append("no matrix instructions")
    if device.hip:
        return found
    if target.arch == 90 and one.tile.block_m >= 64 and not all(name.startswith("wgmma") for name in one.mma):
        found.append(f"{one.mma} instead of wgmma")
    conv = one.problem.product in IMAGE_PRODUCTS
    if conv and one.memory == "contiguous":  # its pixels are no aligned runs, and are loaded element by element
        return found
    if not one.copies:
        found.append("no asynchronous copies")
    # One buffer means that a copy and the arithmetic on it never overlap, which no other rule would show.
    step = (one.tile.block_m + one.tile.block_n) * one.tile.block_k * DTYPES[one.problem.dtype]
    if one.shared < 2 * step:
        found.append(f"{one.shared} bytes of shared memory hold less than two steps of {step}")
    if one.tile.tma:
        if one.bulk < 4:
            found.append(f"{one.bulk} copies by descriptor, two operands in two buffers have 4")
        return found
    # Copies of indices are narrow. A narrow copy of an operand is a lost alignment, and many times slower. The eight
    # warps of a convolution have less than 16 bytes each to copy of a small block.
    held = one.shared // step
    least = held * (one.tile.block_m * one.tile.block_k * DTYPES[one.problem.dtype] if conv else step)
    if (wide := one.copies.count(16) * 16 * 32 * one.tile.num_warps) < least:
        found.append(f"copies of 16 bytes move {wide} bytes, {held} steps have {least}")
    return found


#: Of one token: it lies as a contiguous one does.
FEATURE = "feature_major"


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
            problem = Problem(product, dtype, block, tokens)
            tile = heuristic(device, problem)
            linear = product in PRODUCTS
            memories = [
                memory for memory in (LINEAR_MEMORY if linear else UNIT_STRIDES) if tokens > 1 or memory != FEATURE
            ]
            pairs = [(memory, "plain") for memory in memories]
            for memory, extent in pairs + [("contiguous", "full")] * linear:
                yield name, problem, tile, memory, extent
                if (fewer := precision_of(device, problem, tf32=True)) != tile.precision:
                    yield name, problem, replace(tile, precision=fewer), memory, extent
            by_descriptor = heuristic(device, replace(problem, tma=linear and takes_tma(problem)))
            if by_descriptor.tma:
                for extent in EXTENTS:
                    yield name, problem, by_descriptor, "contiguous", extent


def row(one: Compiled) -> str:
    """One line of the table."""
    tile, problem = one.tile, one.problem
    dtype = "tf32" if tile.precision == "tf32" else problem.dtype
    launch = f"{tile.block_m}x{tile.block_n}x{tile.block_k} w{tile.num_warps} s{tile.num_stages}{' tma' * tile.tma}"
    block = f"{problem.block[0]:>3}x{problem.block[1]:<3}"
    extent = "+" if one.extent == "full" else ""
    name = f"{problem.product + extent:<25} {one.memory:<13} {dtype:<8} {block} {problem.tokens:>4}"
    facts = f"{one.registers:>4} {one.spills:>6} {one.shared:>7}"
    copies = ", ".join(f"{size}B x{one.copies.count(size)}" for size in sorted(set(one.copies), reverse=True))
    return f"{one.device:<7} {name}  {launch:<20} {facts}  {', '.join(one.mma):<28} {copies}"


def main() -> int:
    """Compile everything, print the table; 1 if a configuration breaks a rule."""
    print(f"Triton {triton.__version__}; compiled ahead of time, not run")
    head = f"{'device':<7} {'product':<25} {'memory':<13} {'dtype':<8} {'block':>7} {'M':>4}  {'tile':<20}"
    print(f"{head} regs spills  shared  {'mma':<28} asynchronous copies")
    broken = 0
    for name, kind, dtype in itertools.product(DEVICES, SMALL_KERNELS, DTYPES):
        registers, spills = compile_small(name, kind, dtype)
        print(
            f"{name:<7} {kind:<20} {'':<13} {dtype:<8} {'':>7} {'':>4}  {'':<20} {registers:>4} {spills:>6}", flush=True
        )
        broken += bool(spills)
    for device, problem, tile, memory, extent in configurations():
        one = compile_one(device, problem, tile, memory, extent)
        wrong = faults(one)
        broken += bool(wrong)
        print(row(one) + "".join(f"\n        FAULT: {fault}" for fault in wrong), flush=True)
    from kernel_gate_csr import report  # which imports this file

    print()
    broken += report()
    print(f"{broken} configurations break a rule" if broken else "every configuration keeps every rule")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
