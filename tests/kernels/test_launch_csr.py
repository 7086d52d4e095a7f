"""Which launch configuration the unstructured kernels get."""

from __future__ import annotations

import pytest

from lth_sparse.kernels import launch_csr
from lth_sparse.kernels.launch import CSR_PRODUCTS, DTYPES, Device, Problem

DEVICES = (
    Device("NVIDIA H100", 90, 232448, 132),
    Device("small", 75, 65536, 4),
    Device("MI300", 942, 65536, 304, True),
)


def powers(*sizes: int) -> bool:
    return all(size >= 1 and size & (size - 1) == 0 for size in sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("tokens", [0, 1, 7, 16, 17, 100000])
@pytest.mark.parametrize(("rows", "nnz"), [(0, 0), (1, 1), (10, 40000), (4096, 0), (4096, 4096 * 400)])
def test_every_problem_has_a_tile_that_its_kernel_takes(
    rows: int, nnz: int, tokens: int, device: Device, dtype: str
) -> None:
    gather = launch_csr.gather(device, dtype, tokens, rows, nnz)
    threads = gather.num_warps * (64 if device.hip else 32)
    assert powers(gather.rows, gather.lanes, gather.block_m, gather.unroll)
    # no thread has nothing to do, and none more than a vector
    assert threads <= gather.rows * gather.lanes * gather.block_m <= threads * 16 // DTYPES[dtype]
    scatter = launch_csr.scatter(device, dtype, tokens, rows, nnz)
    assert powers(scatter.entries, scatter.block_m)
    assert min(scatter.pieces, scatter.splits) >= 1
    bitmap = launch_csr.bitmap(device, dtype, tokens, rows, nnz // max(rows, 1))
    assert powers(bitmap.block_n, bitmap.block_m, bitmap.unroll)
    assert bitmap.splits >= 1
    assert bitmap.block_m == (1 if tokens <= 1 else 16)


def test_long_rows_have_a_program_and_few_rows_are_split() -> None:
    h100 = DEVICES[0]
    assert launch_csr.gather(h100, "float32", 4096, 4096, 4096 * 400).rows == 1
    assert launch_csr.gather(h100, "float32", 4096, 4096, 4096 * 40).rows == 4
    assert launch_csr.gather(h100, "float16", 1, 4096, 4096 * 400).rows == 4
    assert launch_csr.gather(h100, "float16", 1, 100, 100 * 400).rows == 1
    assert (
        launch_csr.bitmap(h100, "float16", 1, 14336, 4096).splits
        < launch_csr.bitmap(h100, "float16", 1, 512, 4096).splits
    )
    assert launch_csr.scatter(h100, "float32", 100000, 10, 300).splits > 1


def test_the_heuristic_of_a_problem_is_that_of_its_sizes() -> None:
    device, about = DEVICES[0], ("float16", (1, 1), 50, 300, 200, 600 / 60000)
    forward, by_input, by_weight = (Problem(product, *about) for product in CSR_PRODUCTS)
    assert launch_csr.heuristic(device, forward) == launch_csr.gather(device, "float16", 50, 300, 600)
    assert launch_csr.heuristic(device, by_input) == launch_csr.gather(device, "float16", 50, 200, 600)
    assert launch_csr.heuristic(device, by_weight) == launch_csr.scatter(device, "float16", 50, 300, 600)
    empty = Problem(CSR_PRODUCTS[0], "float16", (1, 1), 0, 0, 0, 0.0)
    assert launch_csr.select(device, empty) == launch_csr.gather(device, "float16", 0, 0, 0)
