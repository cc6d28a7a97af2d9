"""Augmentation: what moves, by how much, and that nothing else changes."""

from __future__ import annotations

import torch

from edgekd.recipe.method import StudentUpdateTable
from edgekd.rng import KeyedDraws
from edgekd.synthesis.augmentation import augment

DRAWS = KeyedDraws(1, "test", torch.device("cpu"))


def images(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 2, 5, 6, generator=torch.Generator().manual_seed(0))


def test_nothing_is_drawn_where_nothing_was_asked() -> None:
    x = images()
    assert augment(x, StudentUpdateTable(), 3, DRAWS) is x


def test_about_half_of_the_images_are_mirrored_and_the_rest_untouched() -> None:
    x = images()
    found = augment(x, StudentUpdateTable(flip=True), 3, DRAWS)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(found, x, strict=True)]
    assert 10 < sum(mirrored) < 30
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, found, x, strict=True))


def test_shifted_images_are_windows_of_the_padded_ones() -> None:
    x = images()
    found = augment(x, StudentUpdateTable(shift=2), 3, DRAWS)
    assert found.shape == x.shape
    padded = torch.nn.functional.pad(x, [2] * 4)
    seen = set()
    for image, around in zip(found, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if torch.equal(image, around[:, i : i + 5, j : j + 6])]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) > 12, "25 places are possible"
    assert {0, 4} <= {i for i, _ in seen} & {j for _, j in seen}


def test_draws_belong_to_the_step() -> None:
    table = StudentUpdateTable(flip=True, shift=2)
    assert torch.equal(augment(images(), table, 3, DRAWS), augment(images(), table, 3, DRAWS))
    assert not torch.equal(augment(images(), table, 3, DRAWS), augment(images(), table, 4, DRAWS))
