"""The generator: sizes of the released one, any image size, moments of its last layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekd.synthesis.networks.generator import Generator, initialize, upsamplings_for

SIZES = json.loads((Path(__file__).parents[1] / "pre_dfkd.json").read_text())["sizes"]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def shape_of(size: dict[str, Any]) -> tuple[int, int, int]:
    return size["channels"], size["image"], size["image"]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_released_generator_has_as_many_parameters(size: dict[str, Any]) -> None:
    with torch.device("meta"):
        novel = Generator(size["latent"], shape_of(size), width=128, upsamplings=2, affine_output=False)
    assert parameters(novel) == size["decoder"]


def test_spectral_normalization_adds_no_parameters() -> None:
    size = SIZES[1]
    novel = Generator(
        size["latent"], shape_of(size), width=128, upsamplings=2, spectral=True, affine_output=False, norm_eps=0.8
    )
    assert parameters(novel) == size["novel_generator"]


@pytest.mark.parametrize(
    ("side", "doublings", "start"), [(4, 1, 2), (8, 1, 4), (16, 1, 8), (17, 2, 5), (28, 2, 7), (32, 2, 8), (224, 5, 7)]
)
def test_it_starts_at_four_to_eight_pixels_a_side(side: int, doublings: int, start: int) -> None:
    assert upsamplings_for(side, side) == doublings
    assert Generator(8, (1, side, side), width=4).start == (4, start, start)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 33, 20), (2, 5, 7)])
def test_images_have_exactly_the_shape_that_was_asked_for(shape: tuple[int, int, int]) -> None:
    images = Generator(5, shape, width=4)(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (3, *shape)
    assert images.dtype == torch.float32


def test_the_number_of_doublings_can_be_given() -> None:
    generator = Generator(5, (1, 16, 16), width=8, upsamplings=3)
    assert generator.start == (8, 2, 2)
    assert len(generator.convolutions) == 3
    assert generator(torch.randn(2, 5, generator=torch.Generator().manual_seed(0))).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("affine", [True, False])
def test_images_have_the_moments_of_the_last_layer(affine: bool) -> None:
    generator = Generator(6, (3, 16, 16), width=16, affine_output=affine)
    assert sum(p.numel() for p in generator.image_norm.parameters()) == (6 if affine else 0)
    if affine:
        with torch.no_grad():
            generator.image_norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
            generator.image_norm.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    with torch.no_grad():
        images = generator(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    scale = torch.tensor([1.0, 2.0, 3.0]) if affine else torch.ones(3)
    shift = torch.tensor([0.5, 0.0, -1.0]) if affine else torch.zeros(3)
    assert torch.allclose(images.mean((0, 2, 3)), shift, atol=1e-3)
    assert torch.allclose(images.std((0, 2, 3)), scale, rtol=0.02)


def test_the_released_epsilon_is_that_of_the_inner_norms_only() -> None:
    generator = Generator(6, (1, 16, 16), width=8, norm_eps=0.8)
    assert {norm.eps for norm in generator.norms} == {0.8}
    assert generator.project_norm.eps == generator.image_norm.eps == 1e-5


def test_weights_are_drawn_as_in_the_released_code() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(50, 50), nn.BatchNorm2d(3), nn.Linear(4, 4, bias=False))
    initialize(network)
    weights = torch.cat([network.get_parameter(f"{layer}.weight").flatten() for layer in (0, 1)]).detach()
    assert weights.abs().max() <= 0.08
    assert weights.abs().max() > 0.079
    assert abs(float(weights.std()) - 0.08 / 3**0.5) < 2e-3
    assert not network.get_parameter("0.bias").any()
    assert torch.equal(network.get_parameter("2.weight"), torch.ones(3))


def test_spectral_normalization_bounds_each_convolution() -> None:
    generator = Generator(6, (1, 16, 16), width=8, spectral=True).train()
    z = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        generator(z)
    for convolution in [*generator.convolutions, generator.to_image]:
        weight = convolution.weight.detach().flatten(1)
        assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.02)
