"""The VAE: encoder sizes, reparametrisation, and the running moments of its codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.networks.vae import POSTERIOR_DECAY, VAE, Encoder, ReleasedEncoder

SIZES = json.loads((Path(__file__).parents[1] / "pre_dfkd.json").read_text())["sizes"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_encoder_and_decoder_have_the_sizes_of_the_released_code(size: dict[str, Any]) -> None:
    shape = (size["channels"], size["image"], size["image"])
    with torch.device("meta"):
        vae = VAE(size["latent"], shape, width=128, upsamplings=2, released_encoder=True, affine_output=False)
    assert sum(p.numel() for p in vae.encoder.parameters()) == size["encoder"]
    assert sum(p.numel() for p in vae.decoder.parameters()) == size["decoder"]


SHAPES = [(1, 8, 8), (3, 32, 32), (3, 28, 28), (1, 20, 33)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [*((kind, shape) for kind in (Encoder, ReleasedEncoder) for shape in SHAPES), (Encoder, (1, 4, 4))],
)
def test_any_image_size_is_encoded(kind: type[Encoder | ReleasedEncoder], shape: tuple[int, int, int]) -> None:
    mean, log_variance = kind(5, shape)(draw(3, *shape))
    assert mean.shape == log_variance.shape == (3, 5)
    assert mean.dtype == log_variance.dtype == torch.float32
    assert not torch.equal(mean, log_variance)


def test_the_lean_encoder_halves_down_to_four_pixels() -> None:
    encoder = Encoder(5, (3, 32, 32), width=16)
    assert encoder.convolutions(draw(2, 3, 32, 32)).shape == (2, 16, 4, 4)


def test_the_released_encoder_sees_columns_of_unit_norm() -> None:
    encoder = ReleasedEncoder(4, (3, 16, 16)).eval()
    x = draw(2, 3, 16, 16)
    louder = x * torch.rand(2, 3, 1, 16, generator=torch.Generator().manual_seed(1)).add(0.5)
    assert torch.allclose(encoder(x)[0], encoder(louder)[0], atol=1e-5)
    assert torch.allclose(F.normalize(x, dim=2).norm(dim=2), torch.ones(2, 3, 16))


def test_a_code_is_the_mean_plus_the_deviation_times_the_noise() -> None:
    vae = VAE(5, (1, 8, 8), width=8).eval()
    x, noise = draw(3, 1, 8, 8), draw(3, 5, seed=1)
    code, mean, log_variance = vae.encode(x, noise)
    assert torch.allclose(code, mean + log_variance.exp().sqrt() * noise)
    assert torch.equal(vae.encode(x, torch.zeros(3, 5))[0], mean)


def test_the_decoder_is_a_generator_with_the_recipes_keys() -> None:
    vae = VAE(5, (1, 8, 8), width=8, norm_eps=0.3, affine_output=False, upsamplings=2)
    assert isinstance(vae.decoder, Generator)
    assert len(vae.decoder.convolutions) == 2
    assert {norm.eps for norm in vae.decoder.norms} == {0.3}
    assert vae.decoder.image_norm.weight is None


def test_the_running_moments_approach_those_of_the_aggregate_posterior() -> None:
    vae = VAE(3, (1, 8, 8), width=8)
    assert torch.equal(vae.latent_mean, torch.zeros(3))
    assert torch.equal(vae.latent_variance, torch.ones(3))
    mean, log_variance = draw(64, 3) + 2.0, torch.full((64, 3), -1.0)
    total = mean.var(0, unbiased=False) + torch.exp(torch.tensor(-1.0))
    vae.remember_codes(mean, log_variance)
    assert torch.allclose(vae.latent_mean, (1 - POSTERIOR_DECAY) * mean.mean(0))
    assert torch.allclose(vae.latent_variance, POSTERIOR_DECAY + (1 - POSTERIOR_DECAY) * total)
    for _ in range(400):
        vae.remember_codes(mean, log_variance)
    samples = mean.repeat(500, 1) + torch.exp(0.5 * log_variance.repeat(500, 1)) * draw(64 * 500, 3, seed=2)
    assert torch.allclose(vae.latent_mean, samples.mean(0), atol=0.02)
    assert torch.allclose(vae.latent_variance, samples.var(0), rtol=0.03)


def test_codes_of_the_posterior_are_scaled_noise_and_of_the_prior_the_noise_itself() -> None:
    vae = VAE(2, (1, 8, 8), width=8)
    vae.latent_mean.copy_(torch.tensor([1.0, -1.0]))
    vae.latent_variance.copy_(torch.tensor([4.0, 0.25]))
    noise = torch.tensor([[1.0, 1.0], [0.0, -2.0]])
    assert vae.codes(noise, posterior=False) is noise
    assert torch.equal(vae.codes(noise, posterior=True), torch.tensor([[3.0, -0.5], [1.0, -2.0]]))


def test_the_moments_travel_with_the_weights() -> None:
    assert {"latent_mean", "latent_variance"} <= set(VAE(3, (1, 8, 8), width=8).state_dict())
