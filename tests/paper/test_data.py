"""The data sets: sizes, shapes, scale, and splits that depend on nothing but their own seed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from lth_sparse.errors import ArgumentError, ArgumentTypeError, DataError
from lth_sparse.paper import DATASETS, DataSet, Split, load_dataset
from lth_sparse.paper.data import stratified

Numbers = Callable[[DataSet, Split], list[int]]


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits")


def parts(data: DataSet) -> tuple[Split, Split, Split]:
    return data.train, data.val, data.test


def equal(a: DataSet, b: DataSet) -> bool:
    return all(torch.equal(p.x, q.x) and torch.equal(p.y, q.y) for p, q in zip(parts(a), parts(b), strict=True))


def test_digits_are_1797_images_of_28x28(digits: DataSet) -> None:
    assert [len(split) for split in parts(digits)] == [997, 300, 500]
    assert all(split.x.shape == (len(split), 1, 28, 28) for split in parts(digits))
    assert all(split.x.dtype == torch.float32 and split.y.dtype == torch.int64 for split in parts(digits))
    assert (digits.classes, digits.shape) == (10, (1, 28, 28))
    assert str(digits) == "digits: 997 / 300 / 500 images of 1x28x28, 10 classes"


def test_digits_splits_are_disjoint_and_complete(digits: DataSet) -> None:
    raw = torch.from_numpy(load_digits().images).float().unsqueeze(1)
    enlarged = F.interpolate(raw, size=(28, 28), mode="bilinear", align_corners=False)
    images = torch.cat([split.x for split in parts(digits)]) * digits.std[0] + digits.mean[0]
    # Twins aside (there are none), each enlarged original is nearest to exactly one image of the splits.
    nearest = torch.cdist(images.flatten(1), enlarged.flatten(1)).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(1797))
    labels = torch.cat([split.y for split in parts(digits)])
    assert torch.equal(labels, torch.from_numpy(load_digits().target)[nearest])


def test_digits_splits_hold_each_class_in_proportion(digits: DataSet) -> None:
    share = torch.bincount(torch.from_numpy(load_digits().target)).double() / 1797
    for split in parts(digits):
        counts = torch.bincount(split.y, minlength=10)
        assert (counts - share * len(split)).abs().max() <= 1.5


@pytest.mark.parametrize("side", [8, 16, 33])
def test_digits_come_in_the_side_asked_for(side: int) -> None:
    data = load_dataset("digits", side=side)
    assert data.shape == tuple(data.train.x.shape[1:]) == (1, side, side)


def test_digits_at_their_own_size_are_the_originals() -> None:
    data = load_dataset("digits", side=8)
    images = torch.cat([split.x for split in parts(data)]) * data.std[0] + data.mean[0]
    originals = {tuple(image.reshape(-1).astype(int)) for image in load_digits().images}
    assert {tuple(image.flatten().round().int().tolist()) for image in images} == originals


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_training_images_have_mean_0_and_deviation_1_in_each_channel(name: str, request: Any) -> None:
    data = load_dataset(name, None if name == "digits" else request.getfixturevalue(name))
    per_channel = data.train.x.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(per_channel.mean(dim=1), torch.zeros(data.shape[0]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(per_channel.std(dim=1), torch.ones(data.shape[0]).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "sizes"), [("mnist", [100, 20, 40]), ("cifar10", [130, 20, 30])])
def test_splits_of_files_are_disjoint_and_complete(name: str, sizes: list[int], request: Any, numbers: Numbers) -> None:
    data = load_dataset(name, request.getfixturevalue(name))
    found = [numbers(data, split) for split in parts(data)]
    assert [len(set(part)) for part in found] == sizes
    assert sorted(found[0] + found[1]) == list(range(sizes[0] + sizes[1]))
    first = 1_000 if name == "mnist" else 150
    assert found[2] == list(range(first, first + sizes[2]))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_labels_stay_with_their_images(name: str, request: Any, numbers: Numbers) -> None:
    data = load_dataset(name, request.getfixturevalue(name))
    for split in parts(data):
        assert split.y.tolist() == [number % 10 for number in numbers(data, split)]


def test_the_global_generator_neither_chooses_the_split_nor_notices(digits: DataSet, seed: int) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = load_dataset("digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(again, digits)


def test_another_seed_holds_out_other_images(digits: DataSet) -> None:
    assert not equal(load_dataset("digits", seed=1), digits)
    assert equal(load_dataset("digits", seed=1), load_dataset("digits", seed=1))


def test_another_seed_leaves_the_test_files_whole(mnist: Path, numbers: Numbers) -> None:
    data = load_dataset("mnist", mnist, seed=5)
    assert numbers(data, data.test) == list(range(1_000, 1_040))
    assert numbers(data, data.val) != numbers(data, load_dataset("mnist", mnist).val)


@pytest.mark.parametrize("sizes", [(7, 3), (10,), (0, 10), (1, 1, 1, 7)])
def test_stratified_sizes_are_exact(sizes: tuple[int, ...]) -> None:
    labels = torch.tensor([3, 3, 3, 3, 3, 3, 7, 7, 7, 9])
    found = stratified(labels, sizes, torch.Generator().manual_seed(0))
    assert tuple(part.numel() for part in found) == sizes
    assert sorted(torch.cat(found).tolist()) == list(range(10))


def test_stratified_sizes_must_add_up() -> None:
    with pytest.raises(ArgumentError, match="sizes: expected a sum of 4"):
        stratified(torch.zeros(4), (1, 2), torch.Generator())


@pytest.mark.parametrize("name", ["fashion", "MNIST", "", None, 3, ["digits"]])
def test_an_unknown_name_lists_the_known_ones(name: Any) -> None:
    with pytest.raises(ArgumentError, match="name: expected one of digits, mnist, cifar10, got"):
        load_dataset(name)
    assert DATASETS == ("digits", "mnist", "cifar10")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": 1.0}, ArgumentTypeError, "seed: expected an int"),
        ({"seed": True}, ArgumentTypeError, "seed: expected an int"),
        ({"seed": -1}, ArgumentError, "seed: expected at least 0"),
        ({"seed": 2**63}, ArgumentError, r"seed: expected less than 2\*\*63"),
        ({"directory": 5}, ArgumentTypeError, "directory: expected a path"),
        ({"directory": "here"}, ArgumentError, "directory: expected none, as digits comes with scikit-learn, got here"),
        ({"side": 7}, ArgumentError, "side: expected at least 8"),
        ({"side": 28.0}, ArgumentTypeError, "side: expected an int"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_dataset("digits", **arguments)


def test_a_side_for_files_is_refused(mnist: Path) -> None:
    with pytest.raises(ArgumentError, match="side: expected none, as the images of mnist keep their size, got 14"):
        load_dataset("mnist", mnist, side=14)


def test_without_scikit_learn_digits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="digits: expected scikit-learn"):
        load_dataset("digits")
