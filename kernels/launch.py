"""Launch configurations: which tile, how many warps and pipeline stages, for which device and problem.

Chosen in Python from (device, dtype, block, bucketed sizes and density), never by ``@triton.autotune``: inductor drops
its keys for kernels inside operators. A measured configuration wins, see :func:`select`; without one, the heuristic
below takes tiles that compile without spills and reach the device's matrix instructions (``make gpu-compile`` shows
both). No table is shipped until it was measured. This module needs no Triton.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lth_sparse.kernels import tables, trials
from lth_sparse.kernels.tables import Bucket
from lth_sparse.kernels.tiles import CSR_PRODUCTS, LEAST_SIDE, AnyTile, Tile, kind_of, unstructured_fault

__all__ = ["CONV_PRODUCTS", "CSR_PRODUCTS", "DTYPES", "LEAST_SIDE", "NHWC_PRODUCTS", "PRODUCTS", "Device", "Problem",
           "Tile", "asked", "beside_relu", "cdiv", "fault", "forget", "heuristic", "in_precision", "install",
           "installed", "measured", "padded", "precision_of", "read_table", "select", "splits_for",
           "without_runs"]  # fmt: skip

TABLES = Path(__file__).parent / "tables"
PRODUCTS = ("forward", "input_gradient", "weight_gradient")
#: The same of a convolution, in the same order; its tokens are the output pixels of all images.
CONV_PRODUCTS = ("conv_forward", "conv_input_gradient", "conv_weight_gradient")
#: The same where the weight's columns are those of channels_last memory.
NHWC_PRODUCTS = ("conv_nhwc_forward", "conv_nhwc_input_gradient", "conv_nhwc_weight_gradient")
#: Bytes of an element, by the names that tables use.
DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}
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

    @property
    def family(self) -> str:
        """All devices with the same instructions: ``sm-90``, or ``gfx-94``."""
        return f"{'gfx' if self.hip else 'sm'}-{self.arch}"


@dataclass(frozen=True)
class Problem:
    """One product: its kind, dtype, block ``(R, C)``, number of tokens, the weight, and what the operands allow.

    ``rows`` and ``cols`` are the sizes of the weight's matrix view, ``density`` the share of its blocks that are
    stored; None where they are not known. ``tma``: the operands' alignment and strides allow tiles by descriptor
    (``bsr_linear.allows_tma``). ``scattered``: of a product in ``NHWC_PRODUCTS``, the gathered images do not lie
    channels_last, so that neighbouring channels are no neighbours in memory.
    """

    product: str
    dtype: str
    block: tuple[int, int]
    tokens: int
    rows: int | None = None
    cols: int | None = None
    density: float | None = None
    tma: bool = False
    scattered: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Padded sides of a block along (the accumulator's columns, the gathered axis)."""
        r, c = self.block
        transposed = self.product.endswith("input_gradient")
        return (padded(c), padded(r, 1)) if transposed else (padded(r), padded(c, 1))

    @property
    def bucket(self) -> Bucket:
        """What the problem counts as in a table. Flags of a problem belong to its product: ``forward+flag``."""
        product = "+".join([self.product, *(name for name in _flags() if getattr(self, name))])
        return tables.bucket_of(product, self.dtype, self.block, self.tokens, self.rows, self.cols, self.density)

    @classmethod
    def of(cls, bucket: Bucket) -> Problem:
        """The problem that a bucket stands for.

        Raises:
            ValueError: a flag that no problem has.
        """
        product, *flags = bucket.product.split("+")
        if unknown := sorted(set(flags) - set(_flags())):
            raise ValueError(f"{'+'.join(unknown)}: expected flags among {', '.join(_flags()) or 'none'}")
        return cls(product, *bucket[1:], **dict.fromkeys(flags, True))  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        """The name of its bucket."""
        return self.bucket.key


@functools.cache
def _flags() -> tuple[str, ...]:
    """Names of the bool fields of a problem: what its operands allow, and how they lie."""
    return tuple(name for name, kind in typing.get_type_hints(Problem).items() if kind is bool)


def cdiv(a: int, b: int) -> int:
    """``ceil(a / b)`` of non-negative ints."""
    return -(-a // b)


def padded(size: int, least: int = LEAST_SIDE) -> int:
    """The smallest power of two that is neither below ``size`` nor below ``least``."""
    return tables.power_of_two(size, least)


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
    room = device.shared - 32 * block_k  # the indices of all stages have their own
    # Float32 is rearranged in registers, and then 3.8 reads it no stage earlier: every stage is a buffer.
    held = room // bytes_of_step - (1 if size == 4 and not takes_shared(device, block_m) else 0)
    buffers = max(2, min(4 if block_m <= 32 or not gathers else 3, held))
    tma = problem.tma and gathers and device.arch // 10 == 9 and not device.hip and problem.sides[1] % block_k == 0
    tile = Tile(block_m, block_n, block_k, warps, 2, precision_of(device, problem), tma)
    return replace(tile, num_stages=stages_for(device, tile, buffers, gathers=gathers))


def conv_heuristic(device: Device, problem: Problem) -> Tile:
    """The same for a convolution, where every element of a gathered tile has an address and a mask in registers.

    A step is therefore half as deep, and a large tile is spread over eight warps. It has its full width only on devices
    with room for it, or that take operands from shared memory: others would spill. Where columns are runs of channels,
    a run shares an address and a mask, and a step has its full depth; but not where channels are scattered and every
    column has an address of its own, in large tiles, wide blocks and weight gradients. Input gradients are narrower
    there.
    """
    size, runs = DTYPES[problem.dtype], problem.product in NHWC_PRODUCTS
    side, _ = problem.sides
    gathers = not problem.product.endswith("weight_gradient")
    block_m = min(padded(problem.tokens), 128) if gathers else 128
    roomy = device.hip or device.arch // 10 == 9
    narrow = problem.scattered and problem.product == NHWC_PRODUCTS[1]
    block_n = min(side, (256 if roomy and not narrow else 128) // size)
    large = problem.product == NHWC_PRODUCTS[0] and block_m * block_n * size >= 128 * 64 * 2
    # Of the widest tiles that gather element by element, half the rows: before Triton 3.7 registers would not do.
    apart = problem.scattered if runs else gathers
    if roomy and size == 2 and gathers and apart and block_n >= (64 if runs else 128):
        block_m = min(block_m, 64)
    # A full step would be one block, with a mask for every channel.
    wide = problem.product == NHWC_PRODUCTS[0] and size == 2 and problem.sides[1] >= 128
    shallow = problem.scattered and not roomy and (large or wide or (narrow and block_m >= 64))
    shallow = shallow or (problem.scattered and not device.hip and not gathers)
    shallow = shallow or (narrow and not device.hip and problem.sides[1] < 128 // size)
    # Steps over several blocks, each with a tap of its own, leave no registers for three TF32 products twice as deep.
    crowded = runs and not roomy and size == 4 and problem.sides[1] < 256 // size
    block_k = (128 if block_m <= 32 and not crowded else 64) * (2 if runs and not shallow else 1) // size
    warps = 8 if block_m == 128 or block_m * block_n * size >= 64 * 64 * 4 else 4
    tile = Tile(block_m, block_n, block_k, warps, 2, precision_of(device, problem))
    buffers = 3 if device.arch // 10 == 9 else 2
    if runs and problem.sides[1] >= block_k:  # a step within one block, whose number is loaded a step ahead
        gathers = False
    return replace(tile, num_stages=stages_for(device, tile, buffers, gathers=gathers))


def takes_shared(device: Device, block_m: int) -> bool:
    """Whether the matrix instructions read their operands from shared memory: ``wgmma``, of 64 rows."""
    return device.arch // 10 == 9 and block_m >= 64 and not device.hip


def stages_for(device: Device, tile: Tile, buffers: int, *, gathers: bool) -> int:
    """``num_stages`` that makes Triton keep ``buffers`` copies of the operands in shared memory.

    The loads of a gather wait for the loads of its indices, and Triton gives both levels an equal share of the stages:
    four stages are one step of look-ahead for the operands, not three. ``mma.sync`` reads its operands a stage earlier
    than ``wgmma`` and so holds one buffer fewer. AMD's pipeline has its own rules and is best left at two.
    """
    if device.hip:
        return 2
    held = buffers if takes_shared(device, tile.block_m) else buffers + 1
    return 2 * held if gathers else held


def beside_relu(tile: Tile, *, gathers: bool) -> Tile:
    """``tile`` for a gradient whose kernel also reads the result of the ReLU in front of it, element by element.

    The third operand takes buffers from the other two, down to the fewest that overlap copies and arithmetic. A large
    tile is spread over eight warps and goes in steps of half the depth, or it would spill.
    """
    size = tile.block_m * tile.block_n
    warps = max(tile.num_warps, 8) if size >= 128 * 64 else tile.num_warps
    deep = tile.block_k >= 64 and not gathers and size >= 128 * 32
    # Three TF32 products beside it would not fit sm_86 where every stage is a buffer (Triton 3.8).
    halves = 2 if deep or (gathers and size >= 128 * 64 and tile.precision == "tf32x3") else 1
    third = tile.block_m if gathers else tile.block_n
    step = tile.block_m + tile.block_n
    stages = max(halves * tile.num_stages * step // (step + third), min(tile.num_stages, 6 if gathers else 3))
    # an odd stage of a gather holds indices alone, and two is what AMD's pipeline has
    stages = stages - stages % 2 if gathers else stages
    stages = stages if tile.num_stages > 2 else tile.num_stages
    return replace(tile, block_k=tile.block_k // halves, num_warps=warps, num_stages=stages)


def without_runs(tile: Tile) -> Tile:
    """``tile`` for a forward gather whose activations Triton cannot copy asynchronously.

    The values alone are then pipelined, and they wait for no index: every stage is a buffer of theirs. Activations are
    in registers from one step to the next: eight warps share them, and beside the largest accumulator steps are short.
    """
    large = tile.block_m * tile.block_n >= 128 * 128
    block_k = min(tile.block_k, 32) if large else tile.block_k
    return replace(tile, block_k=block_k, num_warps=8, num_stages=max(tile.num_stages // 2, 2))


def precision_of(device: Device, problem: Problem, tf32: bool = False, rows: bool = True) -> str:
    """Float32 on tensor cores: three TF32 products, as accurate as float32, or one where the user allows TF32.

    Gradients and convolutions take three on Hopper even then, and so does a forward whose activations do not have
    their ``rows`` contiguous. ``wgmma`` wants float32 operands with the summed axis contiguous, and theirs are not: a
    single product copies them 4 bytes at a time, while three rearrange them in registers anyway.
    """
    if problem.dtype != "float32" or device.hip or device.arch < 80:
        return "ieee"
    one = problem.product == "forward" and rows if device.arch // 10 == 9 else True
    return "tf32" if tf32 and one else "tf32x3"


def in_precision(tile: Tile, precision: str, *, rows: bool) -> Tile:
    """The heuristic's ``tile`` in a precision of :func:`precision_of`.

    Of one TF32 product ``mma.sync`` holds operands a step ahead in registers. Beside a large accumulator that leaves
    room for one buffer fewer where ``rows`` do not lie in runs.
    """
    tight = precision == "tf32" and not rows and tile.num_warps > 4
    return replace(tile, precision=precision, num_stages=min(tile.num_stages, 6) if tight else tile.num_stages)


def select(device: Device, problem: Problem, *, tf32: bool = False, rows: bool = True) -> Tile:
    """The configuration for a problem.

    ``tf32`` and ``rows`` are those of :func:`precision_of`; the rest of it does not depend on them.

    Looked for in the user's own table (see :func:`install`), in the shipped table of the device and in that of its
    family: first the problem's own bucket in each, then the nearest measured one in each by the order of
    :func:`lth_sparse.kernels.tables.nearest`, but for tiles with more rows than there are tokens. Where none is near,
    the heuristic's.

    Raises:
        ValueError: a shipped table is damaged.
    """
    tile = asked(device, problem)
    if tile is None:
        return _select(device, problem, tf32, rows)
    return replace(tile, precision=precision_of(device, problem, tf32, rows))


def asked(device: Device, problem: Problem) -> Any:
    """What the trial that the caller is in wants for a problem, which is noted there; None where nothing is tried."""
    if (under_trial := trials.current()) is None:
        return None
    under_trial.seen[problem] = device
    return under_trial.tiles.get(problem)


@functools.lru_cache(maxsize=4096)
def _select(device: Device, problem: Problem, tf32: bool, rows: bool) -> Tile:
    precision = precision_of(device, problem, tf32, rows)
    if (tile := measured(device, problem.bucket)) is not None:
        return replace(tile, precision=precision)
    return in_precision(heuristic(device, problem), precision, rows=rows)


@functools.lru_cache(maxsize=4096)
def measured(device: Device, wanted: Bucket) -> Any:
    """The measured configuration that serves a bucket best, of the class that its product has; None where none does."""
    held = (installed(device.name), read_table(device.name), read_table(device.family))
    for table in held:
        if (tile := table.get(wanted)) is not None:
            return tile
    gathers = "weight_gradient" not in wanted.product
    for table in held:
        # More rows than tokens are rows of nothing: such a tile is for more tokens than these.
        able = [bucket for bucket, tile in table.items() if not gathers or tile.block_m <= wanted.tokens]
        if (bucket := tables.nearest(able, wanted)) is not None:
            return table[bucket]
    return None


#: Tables that were measured on this machine, by the device's name.
_INSTALLED: dict[str, Mapping[Bucket, AnyTile]] = {}


def installed(device_name: str) -> Mapping[Bucket, AnyTile]:
    """What :func:`install` was last given for this device."""
    return _INSTALLED.get(device_name, {})


def install(device_name: str, tiles: Mapping[Bucket, AnyTile]) -> None:
    """Let launches look at ``tiles`` first for this device, instead of what was installed before."""
    _INSTALLED[device_name] = dict(tiles)
    forget()


def forget() -> None:
    """Choose anew: what is installed has changed."""
    _select.cache_clear()
    measured.cache_clear()


def fault(problem: Problem, tile: AnyTile) -> str | None:
    """Why the kernels cannot take ``tile`` for ``problem``; None when they can."""
    if not isinstance(tile, Tile):
        return unstructured_fault(tile)
    for name in ("block_m", "block_n", "block_k"):
        if (size := getattr(tile, name)) != padded(size):
            return f"{name}: expected a power of two of at least {LEAST_SIDE}, got {size}"
    if tile.num_warps != padded(tile.num_warps, 1):
        return f"num_warps: expected a power of two, got {tile.num_warps}"
    if (side := problem.sides[0]) % tile.block_n:
        return f"block_n: expected a divisor of {side}, the padded side of the block, got {tile.block_n}"
    for name in _flags():
        if getattr(tile, name, False) and not getattr(problem, name):
            return f"{name}: expected false for a problem whose operands do not allow it, got true"
    return None


def splits_for(device: Device, programs: int, tokens: int) -> int:
    """Parts into which a weight gradient cuts its tokens, so that ``programs`` times parts fill the device."""
    wanted = cdiv(PROGRAMS_PER_PROCESSOR * device.processors, max(programs, 1))
    return max(1, min(wanted, tokens // LEAST_TOKENS))


def table_path(device_name: str, folder: Path = TABLES) -> Path:
    """``tables/nvidia-h200.json`` for "NVIDIA H200"."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".json")


@functools.cache
def read_table(device_name: str, folder: Path = TABLES) -> dict[Bucket, AnyTile]:
    """``{bucket: configuration}`` of the table shipped for a device, or a family of devices; empty where none is.

    Raises:
        ValueError: the file is no table, or holds a configuration that the kernels cannot take.
    """
    path = table_path(device_name, folder)
    if not path.exists():
        return {}
    found = tables.read(path, lambda bucket: kind_of(bucket.product))
    for bucket, tile in found.items():
        try:
            reason = fault(Problem.of(bucket), tile)
        except ValueError as error:
            reason = str(error)
        if reason:
            raise ValueError(f"{path}: {bucket.key}: {reason}")
    return found
