"""Launch configurations: which tile, how many warps and pipeline stages, for which device and problem.

Chosen in Python from (device, dtype, block, bucketed sizes), never by ``@triton.autotune``: inductor drops its keys for
kernels inside operators. A measured configuration in ``tables/<device>.json`` wins; without one, the heuristic below
takes tiles that compile without spills and reach the device's matrix instructions (``make gpu-compile`` shows both).
No table is shipped until it was measured. This module needs no Triton.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

__all__ = ["CONV_PRODUCTS", "DTYPES", "NHWC_PRODUCTS", "PRODUCTS", "Device", "Problem", "Tile", "cdiv", "heuristic",
           "padded", "read_table", "select", "splits_for"]  # fmt: skip

TABLES = Path(__file__).parent / "tables"
PRODUCTS = ("forward", "input_gradient", "weight_gradient")
#: The same of a convolution, in the same order; its tokens are the output pixels of all images.
CONV_PRODUCTS = ("conv_forward", "conv_input_gradient", "conv_weight_gradient")
#: The same where the weight's columns are those of channels_last memory.
NHWC_PRODUCTS = ("conv_nhwc_forward", "conv_nhwc_input_gradient", "conv_nhwc_weight_gradient")
#: Bytes of an element, by the names that tables use.
DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}
#: ``tl.dot`` takes no side below 16.
LEAST_SIDE = 16
#: Programs for each multiprocessor below which the tokens of a weight gradient are split, and the least share of tokens
#: that is worth a part.
PROGRAMS_PER_PROCESSOR, LEAST_TOKENS = 2, 512


@dataclass(frozen=True)
class Device:
    """What a choice depends on.

    Attributes:
        name: as the driver gives it; names the table.
        arch: ``10 * major + minor`` of the compute capability (90 for Hopper); for ``hip`` the ``gfx`` number.
        shared: bytes of shared memory that one program may use.
        processors: number of multiprocessors.
        hip: an AMD device.
    """

    name: str
    arch: int
    shared: int
    processors: int
    hip: bool = False


@dataclass(frozen=True)
class Problem:
    """One product: its kind, dtype, block ``(R, C)`` and number of tokens."""

    product: str
    dtype: str
    block: tuple[int, int]
    tokens: int

    @property
    def sides(self) -> tuple[int, int]:
        """Padded sides of a block along (the accumulator's columns, the gathered axis)."""
        r, c = self.block
        transposed = self.product.endswith("input_gradient")
        return (padded(c), padded(r, 1)) if transposed else (padded(r), padded(c, 1))

    @property
    def key(self) -> str:
        """The name of the problem in a table: tokens count by the power of two that holds them, at most 4096."""
        bucket = min(padded(self.tokens), 4096)
        return f"{self.product}/{self.dtype}/{self.block[0]}x{self.block[1]}/{bucket}"


@dataclass(frozen=True)
class Tile:
    """One launch configuration.

    Attributes:
        block_m: rows of the accumulator: tokens, or positions of a block row for the weight gradient.
        block_n: its columns; divides the padded block side.
        block_k: elements summed in one step: positions, or tokens for the weight gradient.
        precision: ``tl.dot``'s ``input_precision``, of meaning for float32 alone.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"


def cdiv(a: int, b: int) -> int:
    """``ceil(a / b)`` of non-negative ints."""
    return -(-a // b)


def padded(size: int, least: int = LEAST_SIDE) -> int:
    """The smallest power of two that is neither below ``size`` nor below ``least``."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def heuristic(device: Device, problem: Problem) -> Tile:
    """A configuration by reasoning alone.

    128 rows feed two ``m64`` instructions and halve the traffic of a gathered operand; fewer when there are fewer
    tokens. 128 bytes of an operand row in one step fill a shared-memory swizzle; 256 where so few tokens are at hand
    that reading the weights is all the work.
    """
    if problem.product in CONV_PRODUCTS + NHWC_PRODUCTS:
        return conv_heuristic(device, problem)
    size = DTYPES[problem.dtype]
    side, _ = problem.sides
    gathers = problem.product != "weight_gradient"
    block_m = min(padded(problem.tokens), 128) if gathers else 128
    block_n = min(side, 128 if size == 2 else 64)
    block_k = (256 if block_m <= 32 else 128) // size
    # An accumulator of 64 registers a thread at most; 32 where three TF32 products need their operands in registers.
    warps = 8 if block_m * block_n * size > 128 * 64 * 2 else 4
    bytes_of_step = (block_m + block_n) * block_k * size
    buffers = max(2, min(4 if block_m <= 32 or not gathers else 3, device.shared // bytes_of_step))
    tile = Tile(block_m, block_n, block_k, warps, 2, precision_of(device, problem))
    return replace(tile, num_stages=stages_for(device, tile, buffers, gathers=gathers))


def conv_heuristic(device: Device, problem: Problem) -> Tile:
    """The same for a convolution, where every element of a gathered tile has an address and a mask in registers.

    A step is therefore half as deep, and a large tile is spread over eight warps. It has its full width only on devices
    with room for it, or that take operands from shared memory: others would spill. Where columns are runs of channels,
    a run shares an address and a mask, and a step has its full depth.
    """
    size, runs = DTYPES[problem.dtype], problem.product in NHWC_PRODUCTS
    side, _ = problem.sides
    gathers = not problem.product.endswith("weight_gradient")
    block_m = min(padded(problem.tokens), 128) if gathers else 128
    block_n = min(side, (256 if device.hip or device.arch // 10 == 9 else 128) // size)
    block_k = (128 if block_m <= 32 else 64) * (2 if runs else 1) // size
    warps = 8 if block_m == 128 or block_m * block_n * size >= 64 * 64 * 4 else 4
    tile = Tile(block_m, block_n, block_k, warps, 2, precision_of(device, problem))
    buffers = 3 if device.arch // 10 == 9 else 2
    if runs and problem.sides[1] >= block_k:  # a step within one block, whose number is loaded a step ahead
        gathers = False
    return replace(tile, num_stages=stages_for(device, tile, buffers, gathers=gathers))


def stages_for(device: Device, tile: Tile, buffers: int, *, gathers: bool) -> int:
    """``num_stages`` that makes Triton keep ``buffers`` copies of the operands in shared memory.

    The loads of a gather wait for the loads of its indices, and Triton gives both levels an equal share of the stages:
    four stages are one step of look-ahead for the operands, not three. ``mma.sync`` reads its operands a stage earlier
    than ``wgmma`` and so holds one buffer fewer. AMD's pipeline has its own rules and is best left at two.
    """
    if device.hip:
        return 2
    held = buffers if device.arch // 10 == 9 and tile.block_m >= 64 else buffers + 1
    return 2 * held if gathers else held


def precision_of(device: Device, problem: Problem, tf32: bool = False) -> str:
    """Float32 on tensor cores: three TF32 products, as accurate as float32, or one where the user allows TF32.

    Gradients and convolutions take three on Hopper even then. ``wgmma`` wants float32 operands with the summed axis
    contiguous, and theirs are not: a single product copies them 4 bytes at a time, while three rearrange them in
    registers anyway.
    """
    if problem.dtype != "float32" or device.hip or device.arch < 80:
        return "ieee"
    return "tf32" if tf32 and (problem.product == "forward" or device.arch // 10 != 9) else "tf32x3"


def select(device: Device, problem: Problem, *, tf32: bool = False) -> Tile:
    """The table's configuration for the problem on this device, else the heuristic's."""
    tile = read_table(device.name).get(problem.key) or heuristic(device, problem)
    if problem.dtype != "float32":
        return tile
    return replace(tile, precision=precision_of(device, problem, tf32))


def splits_for(device: Device, programs: int, tokens: int) -> int:
    """Parts into which a weight gradient cuts its tokens, so that ``programs`` times parts fill the device."""
    wanted = cdiv(PROGRAMS_PER_PROCESSOR * device.processors, max(programs, 1))
    return max(1, min(wanted, tokens // LEAST_TOKENS))


def table_path(device_name: str, folder: Path = TABLES) -> Path:
    """``tables/nvidia-h200.json`` for "NVIDIA H200"."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".json")


@functools.cache
def read_table(device_name: str, folder: Path = TABLES) -> dict[str, Tile]:
    """``{problem key: Tile}`` of the device's table; empty where none is shipped.

    The file is ``{"device", "date", "triton", "tiles": {key: {field of Tile: value}}}``.

    Raises:
        ValueError: the file is no such table.
    """
    path = table_path(device_name, folder)
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    names = {field.name for field in fields(Tile)} - {"precision"}
    tiles: dict[str, Tile] = {}
    for key, entry in content["tiles"].items():
        if set(entry) != names or not all(type(value) is int and value > 0 for value in entry.values()):
            raise ValueError(f"{path.name}: {key}: expected positive ints for {', '.join(sorted(names))}, got {entry}")
        tiles[key] = Tile(**entry)
    return tiles
