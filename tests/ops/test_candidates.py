"""The planner times blocks for masks that may have full ones, takes them only when they win, and says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse.formats import BSR, Reordered
from lth_sparse.formats.reorder import live_blocks, reorder
from lth_sparse.ops import candidates, plan
from lth_sparse.ops.candidates import LEAST_FILL, block_candidates, likely_fill
from lth_sparse.ops.measure import Timing


def hidden(grid: tuple[int, int], block: tuple[int, int], share: float = 0.25) -> Tensor:
    """Whole blocks, their rows and columns shuffled."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(grid, generator=generator) < share
    mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    rows, cols = (torch.randperm(size, generator=generator) for size in mask.shape)
    return mask[rows][:, cols]


def test_hidden_blocks_are_candidates_after_reordering() -> None:
    found = block_candidates(hidden((8, 8), (8, 8)))
    assert {"reordered 4x1", "reordered 8x8"} <= set(found)
    for name, layout in found.items():
        assert isinstance(layout, BSR)
        assert name == f"{layout.kind} {layout.block[0]}x{layout.block[1]}"
        assert layout.nnz >= LEAST_FILL * layout.nblocks * layout.block[0] * layout.block[1]


def test_column_vectors_are_candidates_where_they_lie() -> None:
    mask = (torch.rand(16, 40, generator=torch.Generator().manual_seed(0)) < 0.2).repeat_interleave(4, 0)
    found = block_candidates(mask)
    assert "bsr 4x1" in found
    assert "reordered 4x1" not in found  # they are as full as they can be


@pytest.mark.parametrize("shape", [(128, 128), (64, 64, 3, 3), (0, 5), (3, 2)])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4])
def test_a_mask_without_structure_is_not_reordered(
    shape: tuple[int, ...], density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("searched for an order")

    monkeypatch.setattr(candidates, "reorder", refuse)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < density
    assert not [name for name in block_candidates(mask) if name.startswith("reordered")]


def test_channels_of_groups_keep_their_place() -> None:
    mask = hidden((8, 8), (8, 8))[..., None, None].expand(-1, -1, 3, 3).contiguous()
    assert any(name.startswith("reordered") for name in block_candidates(mask))
    assert not any(name.startswith("reordered") for name in block_candidates(mask, groups=2))


def test_the_estimate_is_about_what_reordering_achieves() -> None:
    mask = hidden((16, 40), (4, 1), 0.3)
    assert likely_fill(mask, 4) == pytest.approx(1.0)
    blocks = live_blocks(mask, (4, 1), reorder(mask, (4, 1)).rows)
    assert float(blocks[blocks > 0].float().mean()) == 4.0
    noise = torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) < 0.05
    blocks = live_blocks(noise, (4, 1), reorder(noise, (4, 1)).rows)
    assert float(blocks[blocks > 0].float().mean()) / 4 < likely_fill(noise, 4) < 0.6
    assert likely_fill(noise, 4) == pytest.approx(likely_fill(noise, 4, by_chance=True), rel=0.1)
    assert likely_fill(mask, 4, by_chance=True) < 0.7
    assert likely_fill(torch.zeros(4, 4, dtype=torch.bool), 2) == 1.0


def choose(monkeypatch: pytest.MonkeyPatch, times: dict[str, float], search: bool = True) -> plan.Choice:
    """What the planner chooses for a mask of hidden blocks when training steps take so long; others take 5 seconds."""

    def measure(weight: object, layouts: dict[str, object], *_: object, **__: object) -> dict[str, Timing]:
        return {name: Timing(0.4, times.get(name, 5.0)) for name in ("torch", "masked", *layouts)}

    monkeypatch.setattr(plan, "measure", measure)
    monkeypatch.setenv("LTH_SPARSE_CACHE", "0")
    mask = hidden((8, 8), (8, 8))
    return plan.choose_layout(torch.randn(64, 64), mask, sample=torch.randn(2, 64), search=search)


def test_blocks_that_win_are_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {"csr": 2.0, "dense": 3.0, "reordered 8x8": 1.0})
    assert (choice.kind, choice.block, choice.searched, choice.note) == (
        "reordered",
        (8, 8),
        True,
        "measured, 2.00x csr",
    )
    assert choice.order is not None
    layout = Reordered.from_mask(hidden((8, 8), (8, 8)), (8, 8), "zeros", order=choice.order)
    assert layout.nblocks == choice.order.blocks_after


@pytest.mark.parametrize("reordered", [1.99, 2.5])
def test_blocks_that_do_not_clearly_win_are_not_taken(reordered: float, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {"csr": 2.0, "dense": 3.0, "reordered 8x8": reordered})
    assert (choice.kind, choice.searched, choice.order) == ("csr", False, None)


def test_without_a_search_nothing_else_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "block_candidates", lambda *_: pytest.fail("searched"))
    assert choose(monkeypatch, {"csr": 2.0, "dense": 3.0}, search=False).kind == "csr"
