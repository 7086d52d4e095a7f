"""The part of the ahead-of-time gate for unstructured weights: ``csr_linear`` and ``bitmap_linear``.

These kernels live on their loads: the table says how many bytes each load in the compiled code moves for one thread,
widest first; asynchronous copies count as loads. Tokens must be loaded in vectors of 16 bytes, or of as many as a few
tokens have, bits be counted by the instruction for it, and no configuration may spill.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kernel_gate_facts import DEVICES, REGISTERS, Facts, facts_of
from kernel_gate_linear import SHORT
from triton.compiler import ASTSource

from lth_sparse.kernels import bitmap_linear, csr_linear, launch_csr
from lth_sparse.kernels.launch import DTYPES, Problem, precision_of

#: A layer of 4096 x 4096 at a density of a tenth, and its fewest and most tokens.
SIDE, DENSITY = 4096, 0.1
TOKENS = (4096, 64, 16, 4, 1)
KERNELS = ("csr_gather", "csr_gather_transposed", "csr_scatter", "bitmap", "bitmap_ragged", "csr_copy")
#: The most registers that leave room for sixteen warps of a program's kind on a multiprocessor of 65536.
MOST_REGISTERS = 128


@dataclass(frozen=True)
class Compiled:
    """One configuration, and what it became."""

    device: str
    kernel: str
    dtype: str
    tokens: int
    index: str
    tile: Any
    facts: Facts


def facts_of_launch(name: str, kernel: Any, pointers: dict[str, str], constants: dict[str, Any], warps: int) -> Facts:
    """The kernel compiled as a launch on aligned tensors whose sizes and strides 16 divides specialises it."""
    given = [(index, arg) for index, arg in enumerate(kernel.arg_names) if arg not in constants]
    attrs = {(index,): [["tt.divisibility", 16]] for index, _ in given}
    signature = {
        arg: "constexpr" if arg in constants else f"*{pointers[arg]}" if arg in pointers else "i32"
        for arg in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    return facts_of(name, source, {"num_warps": warps, "enable_fp_fusion": True})


def compile_one(name: str, kernel: str, dtype: str, tokens: int, index: str = "i32", tile: Any = None) -> Compiled:
    """Compile one of ``KERNELS`` for one device; without a tile, the one that ``launch_csr`` takes."""
    device, element = DEVICES[name][1], SHORT[dtype]
    nnz = int(SIDE * SIDE * DENSITY)
    pointers = dict.fromkeys(("x", "values", "bias", "y", "grad", "source", "target"), element)
    pointers |= dict.fromkeys(("offsets", "perm", "rank"), "i32") | {"indices": index, "words": "u32"}
    constants: dict[str, Any]
    if kernel == "csr_copy":
        function, warps = csr_linear.copy_kernel, 8
        constants = {"SIDE": csr_linear.COPY_SIDE, "s_r": 1, "t_c": 1}
    elif kernel == "csr_scatter":
        tile = tile or launch_csr.scatter(device, dtype, tokens, SIDE, nnz)
        function, warps = csr_linear.scatter_kernel, tile.num_warps
        constants = {"grad_m": 1, "x_m": 1, "WIDE": False, "ENTRIES": tile.entries, "BLOCK_M": tile.block_m}
        pointers["target"] = "fp32"
    elif kernel.startswith("bitmap"):
        tile = tile or launch_csr.bitmap(device, dtype, tokens, SIDE, SIDE)
        function, warps = bitmap_linear.bitmap_kernel, tile.num_warps
        constants = {
            "ALIGNED": kernel == "bitmap",
            "ACTIVATION": "none",
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
        }
        constants |= {"UNROLL": tile.unroll, "PRECISION": precision_of(device, Problem("forward", dtype, (1, 1), 1))}
        constants |= {"x_k": 1, "y_n": 1}
    else:
        tile = tile or launch_csr.gather(device, dtype, tokens, SIDE, nnz)
        function, warps = csr_linear.gather_kernel, tile.num_warps
        constants = {"x_m": 1, "WIDE": False, "ACTIVATION": "none", "ROWS": tile.rows, "LANES": tile.lanes}
        constants |= {"UNROLL": tile.unroll, "BLOCK_M": tile.block_m}
        constants |= {"y_m": 1} if tokens > launch_csr.FEW_TOKENS else {"y_n": 1}
        constants["bias" if kernel == "csr_gather_transposed" else "perm"] = None
    facts = facts_of_launch(name, function, pointers, constants, warps)
    return Compiled(name, kernel, dtype, tokens, index, tile, facts)


def faults(one: Compiled) -> list[str]:
    """The rules that a shipped configuration keeps; empty when it keeps all."""
    device, facts, found = DEVICES[one.device][1], one.facts, list[str]()
    if facts.spills:
        found.append(f"{facts.spills} bytes of spilled registers")
    if facts.registers > (MOST_REGISTERS if not device.hip else 2 * REGISTERS):
        found.append(f"{facts.registers} registers")
    if facts.shared > device.shared:
        found.append(f"{facts.shared} bytes of shared memory, the device has {device.shared}")
    size = DTYPES[one.dtype]
    wanted = 16 if one.kernel in ("csr_scatter", "csr_copy") else 0
    if one.kernel.startswith("csr_gather"):
        wanted = min(16, one.tile.block_m * size)
    if facts.loads and max(facts.loads) < wanted:
        found.append(f"loads of {max(facts.loads)} bytes, tokens would allow {wanted}")
    if not facts.loads:
        found.append("no loads of global memory were recognised")
    if one.kernel.startswith("bitmap") and not facts.counts:
        found.append("bits are counted without the instruction for it")
    return found


def configurations() -> Iterator[tuple[str, str, str, int, str]]:
    """Every configuration for the layer of this file."""
    for name in DEVICES:
        for kernel in KERNELS:
            for dtype in DTYPES:
                for tokens in TOKENS:
                    few = tokens <= launch_csr.FEW_TOKENS
                    if (kernel.startswith("bitmap") and not few) or (
                        kernel in ("csr_copy", "csr_scatter") and tokens < 64
                    ):
                        continue
                    for index in ("i32", "u16") if kernel.startswith("csr_gather") else ("i32",):
                        yield name, kernel, dtype, tokens, index


def row(one: Compiled) -> str:
    """One line of the table."""
    loads = ", ".join(f"{size}B x{one.facts.loads.count(size)}" for size in sorted(set(one.facts.loads), reverse=True))
    shape = " ".join(f"{key}={value}" for key, value in vars(one.tile).items()) if one.tile else ""
    facts = f"{one.facts.registers:>4} {one.facts.spills:>6} {one.facts.shared:>7}"
    return f"{one.device:<7} {one.kernel:<22} {one.dtype:<8} {one.index} {one.tokens:>4}  {facts}  {loads:<34} {shape}"
