"""Layers over blocks of channels_last weights: conversion, the report, and the way from one order to the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError
from lth_sparse.formats.layout import from_tap_matrix


def blocks(shape: tuple[int, ...], share: float) -> Tensor:
    """A mask of 2x2 blocks of channels at one kernel position each."""
    grid = torch.rand(-(-shape[0] // 2), int(torch.tensor(shape[2:]).prod()) * -(-shape[1] // 2)) < share
    return from_tap_matrix(grid.repeat_interleave(2, 0).repeat_interleave(2, 1)[: shape[0]], shape, 2)


def network() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, (1, 2)), nn.Flatten(2), nn.Conv1d(4, 6, 3), nn.Linear(23, 7)
    )
    masks = {f"{i}.weight": blocks(tuple(model[i].weight.shape), 0.5) for i in (0, 1, 3)}
    masks["4.weight"] = torch.arange(7)[:, None].expand(7, 23) < 4
    return model, masks, torch.randn(2, 3, 5, 6)


@pytest.mark.usefixtures("seed")
def test_the_model_computes_what_it_computed_with_its_masks() -> None:
    model, masks, x = network()
    x = x.contiguous(memory_format=torch.channels_last)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
    report = ls.sparsify_(model, masks, layout="bsr", block=(2, 2), cover="zeros", channels_last=True)
    assert [layer.channels_last for layer in report] == [True, True, True, False]
    assert [layer.backend for layer in report][:3] == ["reference"] * 3
    assert "bsr 2x2 channels_last" in str(report)
    assert "layout=bsr 2x2 channels_last" in repr(model[0])
    assert "channels_last" not in repr(model[4])
    torch.testing.assert_close(model(x), masked(x))
    assert model[0](x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("seed")
def test_a_layer_changes_its_order() -> None:
    model, masks, x = network()
    ls.sparsify_(model, masks, layout="bsr", block=(2, 2), cover="zeros", channels_last=True)
    before, y = model[0], model(x)
    for order in (False, True):
        ls.sparsify_(model, masks, layout="bsr", block=(2, 2), cover="zeros", channels_last=order)
        assert model[0].layout.channels_last == order
        assert torch.equal(model[0].mask, masks["0.weight"])
        torch.testing.assert_close(model(x), y)
    after = model[0]
    ls.sparsify_(model, masks, layout="bsr", block=(2, 2), cover="zeros", channels_last=True)
    assert model[0] is after is not before


@pytest.mark.usefixtures("seed")
def test_auto_does_not_take_what_no_kernel_runs() -> None:
    model, masks, _ = network()
    report = ls.sparsify_(model, masks, layout="auto", block=(2, 2), cover="zeros", channels_last=True)
    assert all(layer.layout != "bsr" for layer in report if layer.kind != "Linear")


def test_it_is_refused_where_there_are_no_blocks() -> None:
    model, masks, _ = network()
    with pytest.raises(ArgumentError, match="channels_last: expected False with layout='csr'"):
        ls.sparsify_(model, masks, layout="csr", channels_last=True)
    with pytest.raises(ArgumentError, match="block: expected"):
        ls.sparsify_(model, masks, layout="auto", channels_last=True)
    with pytest.raises(ArgumentError, match="a union of 2x2 blocks, got"):
        ls.sparsify_(model, masks, layout="bsr", block=(2, 2))
