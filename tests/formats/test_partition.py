"""Partitioners make groups of exactly the rows of a block, and say what is missing when they are not installed."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lth_sparse.errors import BackendError
from lth_sparse.formats.partition import PARTITIONERS, _equal_groups, partition
from lth_sparse.formats.reorder import reorder


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.integers(0, 5), max_size=40), extent=st.integers(1, 7))
def test_parts_are_made_groups_of_equal_size(parts: list[int], extent: int) -> None:
    order = _equal_groups(torch.tensor(parts, dtype=torch.int64), extent)
    assert sorted(order.tolist()) == list(range(len(parts)))


def test_parts_of_the_right_size_stay_together() -> None:
    order = _equal_groups(torch.tensor([2, 0, 1, 2, 0, 1, 2]), 2)
    groups = {frozenset(order[i : i + 2].tolist()) for i in range(0, 6, 2)}
    assert {frozenset((1, 4)), frozenset((2, 5))} <= groups


@pytest.mark.parametrize("method", PARTITIONERS)
def test_a_missing_package_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PARTITIONERS[method][0], None)
    with pytest.raises(BackendError, match=rf"'{method}' to find the package {PARTITIONERS[method][0]}.*\[partition\]"):
        reorder(torch.rand(16, 16) < 0.3, (4, 4), method=method)


@pytest.mark.parametrize("method", PARTITIONERS)
def test_hidden_groups_are_found_again(method: str) -> None:
    package = PARTITIONERS[method][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    generator = torch.Generator().manual_seed(0)
    full = (torch.rand(16, 60, generator=generator) < 0.2).repeat_interleave(4, 0)
    mask = full[torch.randperm(64, generator=generator)]
    result = reorder(mask, (4, 1), method=method)
    assert result.blocks_after == int(full.sum()) // 4
    near = torch.full((64, 2), -1, dtype=torch.int32)
    near[:, 0] = torch.arange(64).roll(1)
    order = partition(method, mask, 4, near, seed=0)
    assert sorted(order.tolist()) == list(range(64))
