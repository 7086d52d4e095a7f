"""Masks in few bytes: round trips of every kind of mask, how near to the entropy they come, and damaged codes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats.coding import PLAIN, decode_mask, encode_mask


def random_mask(shape: tuple[int, ...], density: float) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < density


def entropy(p: float) -> float:
    """Bits of one weight that is live with probability p."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def assert_round_trip(mask: torch.Tensor) -> torch.Tensor:
    code = encode_mask(mask)
    assert code.dtype == torch.uint8
    assert torch.equal(decode_mask(code, tuple(mask.shape), int(mask.sum())), mask)
    return code


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=300), st.sampled_from([1, 3, 40]))
def test_any_mask_comes_back(bits: list[bool], stretch: int) -> None:
    mask = torch.zeros(1, len(bits) * stretch, dtype=torch.bool)
    mask[0, ::stretch] = torch.tensor(bits)
    assert_round_trip(mask)
    assert_round_trip(~mask)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 3, 3), (2, 5, 3), (0, 4), (1, 1)])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.5, 0.95, 1.1])
def test_every_shape_and_density_comes_back(shape: tuple[int, ...], density: float) -> None:
    assert_round_trip(random_mask(shape, density))


def test_a_non_contiguous_mask_comes_back() -> None:
    assert_round_trip(random_mask((40, 30), 0.1).t())


@pytest.mark.parametrize("density", [0.8, 0.2, 0.1, 0.05, 0.02, 0.001])
def test_random_masks_take_at_most_four_percent_more_than_their_entropy(density: float) -> None:
    mask = random_mask((1000, 2000), density)
    floor = mask.numel() * entropy(float(mask.float().mean())) / 8
    assert floor <= assert_round_trip(mask).numel() <= 1.04 * floor + 3


def test_no_mask_takes_more_than_a_byte_beside_its_plain_bits() -> None:
    code = encode_mask(random_mask((100, 80), 0.5))
    assert code.numel() <= 1 + 1000


def test_masks_that_keep_all_or_nothing_take_one_byte() -> None:
    for value in (True, False):
        assert assert_round_trip(torch.full((500, 300), value)).numel() == 1


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_a_truncated_code_is_refused(density: float) -> None:
    mask = random_mask((30, 40), density)
    code, nnz = encode_mask(mask), int(mask.sum())
    for length in range(len(code)):
        with pytest.raises(ArgumentError, match="code: expected"):
            decode_mask(code[:length], (30, 40), nnz)


def test_another_number_of_live_weights_is_refused() -> None:
    mask = random_mask((30, 40), 0.1)
    code, nnz = encode_mask(mask), int(mask.sum())
    for wrong in (0, nnz - 1, nnz + 1, 1200):
        with pytest.raises(ArgumentError, match="code: expected"):
            decode_mask(code, (30, 40), wrong)
    with pytest.raises(ArgumentError, match="code: expected places below 100"):
        decode_mask(code, (10, 10), nnz)


@pytest.mark.parametrize("head", [41, 63, 64 + 41, 128, 254, PLAIN])
def test_a_first_byte_of_no_code_is_refused(head: int) -> None:
    mask = random_mask((30, 40), 0.1)
    code = encode_mask(mask)
    code[0] = head
    with pytest.raises(ArgumentError, match="code: expected"):
        decode_mask(code, (30, 40), int(mask.sum()))


def test_a_code_of_another_dtype_or_shape_is_refused() -> None:
    for code in (torch.zeros(3), torch.zeros(0, dtype=torch.uint8), torch.zeros(1, 3, dtype=torch.uint8)):
        with pytest.raises(ArgumentError, match=r"code: expected uint8 \[bytes\]"):
            decode_mask(code, (2, 2), 0)


def test_a_mask_of_another_type_is_refused() -> None:
    with pytest.raises(ArgumentTypeError):
        encode_mask([True])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError):
        encode_mask(torch.ones(2, 2))
