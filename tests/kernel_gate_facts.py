"""What a kernel becomes when it is compiled ahead of time: the facts that the rules of ``kernel_gate`` are about.

Triton brings NVIDIA's assembler and disassembler, so registers, spills, shared memory and instructions are facts that
need no device. They follow from the kernel's source, the specialisation, the target and the version of Triton, which
name them in ``KNOWN``: what is known is not compiled once more.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lth_sparse.kernels.launch import Device

#: Name, compiler target, device: the shared memory is what one program may use, from the vendors' manuals.
DEVICES: dict[str, tuple[GPUTarget, Device]] = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device("sm_80", 80, 166912, 108)),
    "sm_86": (GPUTarget("cuda", 86, 32), Device("sm_86", 86, 101376, 84)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device("sm_90", 90, 232448, 132)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device("gfx942", 942, 65536, 304, hip=True)),
}
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    del DEVICES["gfx942"]  # linked by ROCm's own linker, which older wheels do not bring
REGISTERS = 255
LOADS = {
    "cuda": r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfus](\d+)\b",
    "hip": r"(?:global|buffer)_load_(ubyte|ushort|short_d16\w*|dwordx[234]|dword)\b",
}
HIP_BYTES = {"ubyte": 1, "ushort": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


@dataclass(frozen=True)
class Facts:
    """What one kernel became.

    Attributes:
        registers, spills: registers of a thread and bytes of its stack, if any is used (bytes of scratch on gfx942).
        shared: bytes of shared memory of a program.
        mma: the matrix instructions in it, most frequent first.
        copies: bytes of each asynchronous copy in it; empty where loads go through registers.
        bulk: number of copies of whole tiles by descriptor.
        loads: bytes that each load of global memory moves for one thread, asynchronous copies among them; widest first.
        counts: whether bits are counted by the instruction for it.
    """

    registers: int
    spills: int
    shared: int
    mma: tuple[str, ...]
    copies: tuple[int, ...]
    bulk: int
    loads: tuple[int, ...]
    counts: bool


#: Facts by :func:`key_of`. ``kernel_gate_run`` fills it with those of earlier runs.
KNOWN: dict[str, Facts] = {}
_READING = Path(__file__).read_text()


def key_of(name: str, source: ASTSource, options: dict[str, Any]) -> str:
    """A name of one compilation: of all that its result follows from, this file's reading of it included."""
    parts = (triton.__version__, name, source.hash(), sorted(options.items()), _READING)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def facts_of(name: str, source: ASTSource, options: dict[str, Any]) -> Facts:
    """Compile a kernel for a device, or know what became of it."""
    key = key_of(name, source, options)
    if key not in KNOWN:
        KNOWN[key] = _compiled(name, source, options)
    return KNOWN[key]


def _compiled(name: str, source: ASTSource, options: dict[str, Any]) -> Facts:
    target, device = DEVICES[name]
    built = triton.compile(source, target=target, options=options)
    registers, spills = resources(built, device)
    if device.hip:
        text = built.asm["amdgcn"]
        mma = re.findall(r"v_mfma_\w+", text)
        copies, bulk = [], 0
        loads = [HIP_BYTES.get(one, 2) for one in re.findall(LOADS["hip"], text)]
    else:
        text = built.asm["ptx"]
        mma = re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m64n\d+k\d+)|mma\.sync\.aligned\.(m\d+n\d+k\d+)", text)
        mma = ["wgmma " + wide if wide else "mma " + narrow for wide, narrow in mma]
        sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", text)
        copies = [int(size, 0) for size in sizes]
        bulk = len(re.findall(r"cp\.async\.bulk\.tensor\.2d\.shared::\w+\.global", text))
        loads = [int(vector or 1) * int(bits) // 8 for vector, bits in re.findall(LOADS["cuda"], text)] + copies
    frequent = tuple(sorted(set(mma), key=lambda one: (-mma.count(one), one)))
    wide_first = tuple(sorted(loads, reverse=True))
    counts = "popc" in text or "bcnt" in text
    return Facts(registers, spills, built.metadata.shared, frequent, tuple(copies), bulk, wide_first, counts)


def resources(built: Any, device: Device) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) of a compiled kernel."""
    if not device.hip:
        return disassemble(built.asm["cubin"])
    patterns = (r"\.vgpr_count:\s+(\d+)", r"\.private_segment_fixed_size:\s+(\d+)")
    registers, spills = (int(re.findall(pattern, built.asm["amdgcn"])[0]) for pattern in patterns)
    return registers, spills


def disassemble(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) of the one kernel of a cubin.

    A stack that no instruction stores to or loads from, which ptxas reserves now and then, counts as none.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _dumped("--dump-resource-usage", file.name)
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
        if found is None:
            raise ValueError(f"cuobjdump: expected a line of resource usage, got {text!r}")
        spills = int(found[2]) + int(found[3])
        if spills and not re.search(r"\b(?:STL|LDL)\b", _dumped("--dump-sass", file.name)):
            spills = 0
    return int(found[1]), spills


def _dumped(what: str, path: str) -> str:
    """What cuobjdump prints."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, what, path], capture_output=True, text=True, check=True).stdout
