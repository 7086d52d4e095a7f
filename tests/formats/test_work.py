"""Work lists hold every entry of every row once, in pieces that none of their programs is late with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lth_sparse.formats import BSR
from lth_sparse.formats.work import LEAST_POSITIONS, work_lists


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 9, 40, 300]), max_size=12), extent=st.sampled_from([1, 16, 64, 600])
)
def test_pieces_are_the_rows_and_parts_are_even(counts: list[int], extent: int) -> None:
    offsets = offsets_of(counts)
    items, splits = work_lists(offsets, extent)
    assert items.dtype == splits.dtype == torch.int32
    assert items.shape[1:] == (4,)
    assert splits.shape[1:] == (3,)
    limit = max(2 * sum(counts) // max(len(counts), 1), -(-LEAST_POSITIONS // extent))
    slots = [slot for _, _, _, slot in items.tolist() if slot >= 0]
    assert sorted(slots) == list(range(len(items) - len(counts) + len(splits)))
    for row, count in enumerate(counts):
        pieces = sorted((first, end, slot) for of, first, end, slot in items.tolist() if of == row)
        assert [first for first, _, _ in pieces] == [int(offsets[row]), *(end for _, end, _ in pieces[:-1])]
        assert pieces[-1][1] == int(offsets[row + 1])
        lengths = [end - first for first, end, _ in pieces]
        assert max(lengths) <= limit
        assert max(lengths) - min(lengths) <= 1
        held = [(first, end) for of, first, end in splits.tolist() if of == row]
        if count <= limit:
            assert [slot for _, _, slot in pieces] == [-1]
            assert held == []
        else:
            ((first_slot, end_slot),) = held
            assert [slot for _, _, slot in pieces] == list(range(first_slot, end_slot))


def test_pieces_come_longest_first_and_otherwise_in_order() -> None:
    items, splits = work_lists(offsets_of([3, 0, 100, 3, 0, 7]), 64)
    assert items.tolist() == [
        [2, 69, 103, 2], [2, 3, 36, 0], [2, 36, 69, 1],
        [5, 106, 113, -1], [0, 0, 3, -1], [3, 103, 106, -1], [1, 3, 3, -1], [4, 106, 106, -1],
    ]  # fmt: skip
    assert splits.tolist() == [[2, 0, 3]]


def test_short_rows_are_not_worth_parts() -> None:
    """Seven times the mean, and less than the least number of positions."""
    items, splits = work_lists(offsets_of([7, *[0] * 6]), 64)
    assert items[0].tolist() == [0, 0, 7, -1]
    assert splits.shape == (0, 3)


@pytest.mark.parametrize("shape", [(0, 32), (32, 0), (32, 32)])
@pytest.mark.parametrize("keep", [False, True])
def test_a_layout_has_a_piece_for_every_row_and_column(shape: tuple[int, int], keep: bool) -> None:
    layout = BSR.from_mask(torch.full(shape, keep), (16, 8))
    layout.validate()
    assert layout.row_work.shape == (shape[0] // 16, 4)
    assert layout.column_work.shape == (shape[1] // 8, 4)
    assert layout.row_splits.shape == layout.column_splits.shape == (0, 3)


def test_work_lists_follow_a_layout_and_are_not_part_of_a_state() -> None:
    layout = BSR.from_mask(torch.eye(8, dtype=torch.bool), (2, 2), "zeros")
    assert set(BSR.INDEX_NAMES) >= {"row_work", "row_splits", "column_work", "column_splits"}
    assert not set(BSR.KEY_NAMES) & {"row_work", "row_splits", "column_work", "column_splits"}
    moved = layout.with_index(tuple(tensor.clone() for tensor in layout.index))
    moved.validate()
    assert torch.equal(moved.row_work, layout.row_work)
    assert moved.nnz == layout.nnz
