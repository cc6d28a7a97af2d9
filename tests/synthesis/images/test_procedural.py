"""Procedural images: what they are a function of, their moments, and that they differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekd.rng import generator
from edgekd.synthesis.images.procedural import render


def drawn(count: int = 128, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 1) -> Tensor:
    return render(generator(seed, "test"), count, shape)


def test_a_seed_gives_the_same_images_again_and_another_one_others() -> None:
    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), drawn(seed=2))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16), (3, 24, 40), (2, 7, 5)])
def test_images_of_any_size_lie_around_the_moments_of_normalised_ones(shape: tuple[int, int, int]) -> None:
    images = drawn(256, shape)
    assert images.shape == (256, *shape)
    assert torch.isfinite(images).all()
    assert abs(float(images.mean())) < 0.15
    assert 0.8 < float(images.std()) < 1.3
    assert float(images.abs().max()) < 12


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_can_be_of_one_kind(count: int) -> None:
    for seed in range(10):
        assert torch.isfinite(drawn(count, (1, 8, 8), seed)).all()


def test_images_of_a_batch_differ_and_none_is_of_one_colour() -> None:
    images = drawn().flatten(1)
    distances = torch.cdist(images, images) + 1e9 * torch.eye(len(images))
    assert float(distances.min()) > 1
    assert float(images.std(1).min()) > 0.05


def test_they_have_more_power_at_low_frequencies_as_photographs_do() -> None:
    images = drawn(256)
    power = torch.fft.rfft2(images - images.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    low, high = power[1:4, 1:4].mean(), power[12:16, 12:16].mean()
    assert float(low / high) > 5
