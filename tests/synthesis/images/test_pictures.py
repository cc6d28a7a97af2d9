"""Crops of the user's own pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.rng import KeyedDraws
from edgekd.synthesis.images.pictures import Pictures

DRAWS = KeyedDraws(1, "test", torch.device("cpu"))


def pictures(*pixels: Tensor) -> Pictures:
    return Pictures(pixels, (3, 8, 8), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.1]))


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_a_picture_of_the_teachers_size_is_normalised_and_nothing_else() -> None:
    pixels = noise(8, 8)
    batch = pictures(pixels).batch(DRAWS, "novel", 3, 2)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.1]))
    assert torch.allclose(batch[0], (pixels.float() / 255 - mean) / std, atol=1e-5)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_larger_picture_gives_different_crops_at_each_step() -> None:
    source = pictures(noise(40, 20))
    first, second = source.batch(DRAWS, "novel", 1, 16), source.batch(DRAWS, "novel", 2, 16)
    assert first.shape == (16, 3, 8, 8)
    assert torch.equal(first, source.batch(DRAWS, "novel", 1, 16))
    assert not torch.equal(first, second)
    assert len({round(float(image.sum()), 3) for image in first}) > 12


def test_all_pictures_are_shown() -> None:
    grey = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in range(0, 200, 20)]
    batch = pictures(*grey).batch(DRAWS, "novel", 1, 200)
    assert len({round(float(image.mean()), 3) for image in batch}) == len(grey)
