"""A part of the ahead-of-time gate in every run; `make gpu-compile` compiles all of it."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

import kernel_gate_csr
from kernel_cases import BY_NEWEST
from kernel_gate import SMALL_KERNELS, compile_one, compile_small, faults, small_faults
from kernel_gate_facts import DEVICES

from lth_sparse.kernels.bsr_linear import PIPELINES_DESCRIPTORS
from lth_sparse.kernels.conv_tiles import Conv
from lth_sparse.kernels.launch import CONV_PRODUCTS, NHWC_PRODUCTS, PRODUCTS, Problem, heuristic

pytestmark = pytest.mark.skipif(BY_NEWEST, reason="the oldest and the newest Triton compile these, each in a process")


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("device", "dtype", "block", "tokens"),
    [
        ("sm_90", "bfloat16", (16, 16), 4096),
        ("sm_90", "bfloat16", (128, 128), 4096),
        ("sm_90", "float32", (32, 32), 4096),
        ("sm_90", "float16", (64, 16), 1),
        ("sm_80", "float16", (64, 64), 4096),
        ("sm_86", "float32", (64, 64), 4096),
        ("gfx942", "bfloat16", (32, 32), 4096),
    ],
)
def test_shipped_configurations_compile_as_intended(
    device: str, dtype: str, block: tuple[int, int], tokens: int, product: str
) -> None:
    if device not in DEVICES:
        pytest.skip(f"this Triton cannot compile for {device}")
    assert faults(compile_one(device, Problem(product, dtype, block, tokens))) == []


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("device", "dtype", "block", "memory", "extent"),
    [
        ("sm_90", "bfloat16", (64, 64), "contiguous", "full"),
        ("sm_86", "bfloat16", (128, 128), "contiguous", "full"),
        ("gfx942", "float16", (64, 64), "feature_major", "full"),
    ],
)
def test_products_with_all_beside_them_and_in_other_memory_compile_as_intended(
    device: str, dtype: str, block: tuple[int, int], memory: str, extent: str, product: str
) -> None:
    if device not in DEVICES:
        pytest.skip(f"this Triton cannot compile for {device}")
    assert faults(compile_one(device, Problem(product, dtype, block, 4096), memory=memory, extent=extent)) == []


@pytest.mark.parametrize("tokens", [1, 4096])
@pytest.mark.parametrize("device", ["sm_86", "sm_90"])
def test_rows_of_an_odd_width_fit_into_shared_memory(device: str, tokens: int) -> None:
    """Their elements are loaded one by one, and what is left of the pipeline has other buffers."""
    one = compile_one(device, Problem("forward", "float16", (128, 128), tokens), memory="ragged")
    assert not one.facts.spills
    assert one.facts.shared <= DEVICES[device][1].shared


@pytest.mark.skipif(not PIPELINES_DESCRIPTORS, reason="this Triton makes poor kernels of them")
@pytest.mark.parametrize(
    ("product", "block", "tokens", "extent"),
    [("forward", (128, 128), 1, "plain"), ("input_gradient", (64, 64), 4096, "full")],
)
def test_tiles_by_descriptor_compile_as_intended(
    product: str, block: tuple[int, int], tokens: int, extent: str
) -> None:
    problem = Problem(product, "bfloat16", block, tokens, tma=True)
    assert heuristic(DEVICES["sm_90"][1], problem).tma
    one = compile_one("sm_90", problem, extent=extent)
    assert faults(one) == []
    assert one.facts.bulk >= 4
    assert not heuristic(DEVICES["sm_80"][1], problem).tma


@pytest.mark.parametrize("product", CONV_PRODUCTS)
@pytest.mark.parametrize(
    ("device", "dtype", "block", "tokens", "memory"),
    [
        ("sm_90", "bfloat16", (16, 16), 4096, "contiguous"),
        ("sm_90", "bfloat16", (128, 128), 4096, "feature_major"),
        ("sm_90", "float32", (64, 64), 4096, "contiguous"),
        ("sm_90", "float16", (64, 16), 4096, "channels_last"),
        ("sm_80", "float16", (128, 128), 4096, "contiguous"),
        ("sm_86", "float32", (16, 64), 64, "feature_major"),
        ("gfx942", "bfloat16", (32, 32), 4096, "contiguous"),
        ("gfx942", "float32", (128, 128), 4096, "channels_last"),
    ],
)
def test_shipped_convolutions_compile_as_intended(
    device: str, dtype: str, block: tuple[int, int], tokens: int, memory: str, product: str
) -> None:
    if device not in DEVICES:
        pytest.skip(f"this Triton cannot compile for {device}")
    assert faults(compile_one(device, Problem(product, dtype, block, tokens), memory=memory)) == []


@pytest.mark.parametrize("product", NHWC_PRODUCTS)
@pytest.mark.parametrize(
    ("device", "dtype", "block", "tokens", "memory"),
    [
        ("sm_90", "bfloat16", (64, 64), 4096, "channels_last"),
        ("sm_90", "float16", (16, 16), 4096, "channels_last"),
        ("sm_90", "float32", (32, 32), 4096, "channels_last"),
        ("sm_90", "float32", (64, 64), 4096, "contiguous"),
        ("sm_80", "bfloat16", (64, 16), 4096, "channels_last"),
        ("sm_86", "float16", (128, 128), 64, "channels_last"),
        ("sm_80", "float16", (32, 32), 4096, "feature_major"),
        ("sm_90", "float16", (128, 128), 4096, "contiguous"),
        ("gfx942", "bfloat16", (32, 32), 4096, "channels_last"),
    ],
)
def test_shipped_nhwc_convolutions_compile_as_intended(
    device: str, dtype: str, block: tuple[int, int], tokens: int, memory: str, product: str
) -> None:
    if device not in DEVICES:
        pytest.skip(f"this Triton cannot compile for {device}")
    assert faults(compile_one(device, Problem(product, dtype, block, tokens), memory=memory)) == []


@pytest.mark.parametrize("block", [(16, 16), (64, 64)])
@pytest.mark.parametrize("conv", [Conv((3, 3), (2, 2), (1, 1)), Conv((3, 3), padding=(1, 1), groups=2)], ids=str)
def test_an_input_gradient_tap_by_tap_compiles_as_intended(conv: Conv, block: tuple[int, int]) -> None:
    """With strides and with groups every tap's list is a pipelined loop of its own."""
    problem = Problem(NHWC_PRODUCTS[1], "bfloat16", block, 4096)
    assert faults(compile_one("sm_90", problem, memory="channels_last", convolution=conv)) == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", SMALL_KERNELS)
def test_kernels_that_only_add_up_do_not_spill(kind: str, device: str) -> None:
    assert small_faults(compile_small(device, kind, "bfloat16")) == []


def test_the_gate_sees_what_it_is_for() -> None:
    problem = Problem("forward", "bfloat16", (128, 128), 4096)
    tile = heuristic(DEVICES["sm_90"][1], problem)
    spilling = compile_one("sm_90", problem, dataclasses.replace(tile, num_warps=1))
    assert any("spilled" in fault for fault in faults(spilling))
    unpipelined = compile_one("sm_90", problem, dataclasses.replace(tile, num_stages=1))
    assert any("no asynchronous copies" in fault for fault in faults(unpipelined))
    assert any("less than two steps" in fault for fault in faults(unpipelined))
    problem = Problem("input_gradient", "float32", (16, 16), 4096)
    narrow = compile_one(
        "sm_90", problem, dataclasses.replace(heuristic(DEVICES["sm_90"][1], problem), precision="tf32")
    )
    assert any("copies of 16 bytes" in fault for fault in faults(narrow))


def test_the_gate_sees_a_tile_without_wgmma() -> None:
    problem = Problem("forward", "bfloat16", (128, 128), 4096)
    tile = heuristic(DEVICES["sm_90"][1], problem)
    no_wgmma = compile_one("sm_90", problem, dataclasses.replace(tile, num_warps=2, block_m=64, block_n=32))
    assert any("instead of wgmma" in fault for fault in faults(no_wgmma))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kernel", "dtype", "tokens", "index"),
    [
        ("csr_gather", "float32", 4096, "i32"),
        ("csr_gather", "bfloat16", 1, "u16"),
        ("csr_gather_transposed", "float16", 4096, "u16"),
        ("csr_scatter", "float32", 4096, "i32"),
        ("csr_copy", "bfloat16", 4096, "i32"),
        ("bitmap", "bfloat16", 1, "i32"),
        ("bitmap", "float32", 16, "i32"),
    ],
)
def test_unstructured_kernels_compile_as_intended(
    kernel: str, dtype: str, tokens: int, index: str, device: str
) -> None:
    assert kernel_gate_csr.faults(kernel_gate_csr.compile_one(device, kernel, dtype, tokens, index)) == []


def test_the_gate_of_unstructured_kernels_sees_what_it_is_for() -> None:
    one = kernel_gate_csr.compile_one("sm_90", "csr_gather", "float32", 4096)
    wide = dataclasses.replace(one.tile, unroll=8, lanes=32, num_warps=1)
    crowded = kernel_gate_csr.compile_one("sm_90", "csr_gather", "float32", 4096, tile=wide)
    assert any("registers" in fault for fault in kernel_gate_csr.faults(crowded))
    scalar = dataclasses.replace(one, facts=dataclasses.replace(one.facts, loads=(4, 4, 2)))
    assert any("loads of 4 bytes" in fault for fault in kernel_gate_csr.faults(scalar))
    counted = dataclasses.replace(one, kernel="bitmap", facts=dataclasses.replace(one.facts, counts=False))
    assert any("without the instruction" in fault for fault in kernel_gate_csr.faults(counted))
