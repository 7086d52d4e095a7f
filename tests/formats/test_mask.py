"""Masks of a model: counting, comparing, refusing what is no mask."""

from __future__ import annotations

import pytest
import torch

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import Mask


def two_layers() -> Mask:
    first = torch.zeros(4, 5, dtype=torch.bool)
    first[1, 2] = first[1, 3] = True
    return Mask({"fc1.weight": first, "conv.weight": torch.ones(2, 3, 3, 3, dtype=torch.bool)})


def test_density_is_the_share_kept_over_all_layers() -> None:
    mask = two_layers()
    assert (mask.nnz, mask.numel) == (2 + 54, 20 + 54)
    assert mask.density == pytest.approx(56 / 74)
    assert Mask({}).density == 0


def test_statistics_count_outputs_and_inputs_without_weights() -> None:
    first, conv = two_layers().stats()
    assert (first.nnz, first.numel, first.empty_rows, first.empty_cols) == (2, 20, 3, 3)
    assert (conv.density, conv.empty_rows, conv.empty_cols) == (1, 0, 0)


def test_subset_means_no_weight_comes_back() -> None:
    mask = two_layers()
    smaller = Mask({**mask, "fc1.weight": torch.zeros(4, 5, dtype=torch.bool)})
    assert smaller.is_subset(mask)
    assert not mask.is_subset(smaller)
    assert not mask.is_subset({"fc1.weight": mask["fc1.weight"]})


def test_equality_compares_every_entry() -> None:
    mask = two_layers()
    assert mask.equals({name: tensor.clone() for name, tensor in mask.items()})
    assert not mask.equals({**mask, "fc1.weight": ~mask["fc1.weight"]})


def test_text_lists_layers_and_total() -> None:
    text = str(two_layers())
    assert "fc1.weight" in text
    assert "75.68%" in text
    assert "2 layers" in repr(two_layers())


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ([1], ArgumentTypeError, "masks: expected a mapping"),
        ({1: torch.ones(1)}, ArgumentTypeError, "masks: expected parameter names as keys, got 1"),
        ({"a": 1}, ArgumentTypeError, r"masks\['a'\]: expected a bool tensor, got int"),
        ({"a": torch.ones(2, 2)}, ArgumentError, r"masks\['a'\]: expected dtype torch.bool, got torch.float32"),
    ],
)
def test_what_is_no_mask_is_refused(masks: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Mask(masks)  # type: ignore[arg-type]
