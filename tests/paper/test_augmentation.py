"""Augmented images: shifted and mirrored as told, drawn from the global generator alone."""

from __future__ import annotations

import pytest
import torch

from lth_sparse.paper.augmentation import augmented, cut


def reference(x: torch.Tensor, pad: int, corners: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """One image after the other, as one would write it."""
    found = []
    for image, row, column, mirror in zip(x, *corners.tolist(), mirrored.tolist(), strict=True):
        height, width = image.shape[1:]
        padded = torch.zeros(image.shape[0], height + 2 * pad, width + 2 * pad)
        padded[:, pad : pad + height, pad : pad + width] = image
        part = padded[:, row : row + height, column : column + width]
        found.append(part.flip(2) if mirror else part)
    return torch.stack(found) if found else x.clone()


@pytest.mark.parametrize("shape", [(7, 3, 5, 9), (1, 1, 4, 4), (6, 2, 1, 1), (0, 3, 4, 4)])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_images_are_cut_and_mirrored_as_told(shape: tuple[int, ...], pad: int, seed: int) -> None:
    x = torch.randn(shape)
    corners, mirrored = torch.randint(2 * pad + 1, (2, shape[0])), torch.rand(shape[0]) < 0.5
    assert torch.equal(cut(x, pad, corners, mirrored), reference(x, pad, corners, mirrored))


def test_a_tensor_that_is_not_contiguous_is_read_as_it_is(seed: int) -> None:
    x = torch.randn(4, 6, 5, 3).permute(0, 3, 1, 2)
    corners, mirrored = torch.randint(5, (2, 4)), torch.tensor([True, False, True, False])
    assert torch.equal(cut(x, 2, corners, mirrored), reference(x, 2, corners, mirrored))


def test_the_middle_of_the_padded_image_is_the_image(seed: int) -> None:
    x = torch.randn(3, 2, 4, 5)
    assert torch.equal(cut(x, 2, torch.full((2, 3), 2), torch.zeros(3, dtype=torch.bool)), x)


def test_without_augmentation_nothing_is_drawn_or_copied(seed: int) -> None:
    x, before = torch.randn(3, 1, 4, 4), torch.get_rng_state()
    assert augmented(x, flip=False, crop=0) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_random_state_gives_the_same_images(seed: int) -> None:
    x = torch.randn(20, 1, 6, 6)
    state = torch.get_rng_state()
    first = augmented(x, flip=True, crop=2)
    second = augmented(x, flip=True, crop=2)
    torch.set_rng_state(state)
    assert torch.equal(augmented(x, flip=True, crop=2), first)
    assert not torch.equal(second, first)


def test_every_shift_and_both_sides_come_equally_often(seed: int) -> None:
    """Each image holds a single 1 in its middle, so that its place tells the shift; 5 standard errors."""
    n, crop = 9_000, 1
    x = torch.zeros(n, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    places = augmented(x, flip=False, crop=crop).flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=25).view(5, 5)
    assert counts.sum() == counts[1:4, 1:4].sum() == n
    assert (counts[1:4, 1:4] - n / 9).abs().max() < 5 * (n / 9 * 8 / 9) ** 0.5
    x = torch.zeros(n, 1, 1, 2)
    x[..., 0] = 1
    mirrored = augmented(x, flip=True, crop=0)[:, 0, 0, 1].sum()
    assert abs(float(mirrored) - n / 2) < 5 * (n / 4) ** 0.5


def test_images_of_a_batch_move_independently(seed: int) -> None:
    x = torch.arange(36.0).view(1, 1, 6, 6).repeat(50, 1, 1, 1)
    assert len({tuple(image.flatten().tolist()) for image in augmented(x, flip=True, crop=1)}) > 9
