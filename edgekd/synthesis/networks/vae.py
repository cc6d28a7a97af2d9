"""The VAE of PRE-DFKD: an encoder to a diagonal Gaussian and a decoder of the generator's form."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.machine import channels_last
from edgekd.models.stems import Shape
from edgekd.recipe.method import VaeTable
from edgekd.synthesis.networks.generator import Generator, initialize, learns_moments

POSTERIOR_DECAY = 0.98
"""Decay an update of the running moments of the aggregate posterior."""


class Encoder(nn.Module):
    """Map images (N, C, H, W) to the mean and log variance (N, latent) of their code, halving down to 4 pixels."""

    def __init__(self, latent: int, shape: Shape, *, width: int = 64, norm_eps: float = 1e-5) -> None:
        super().__init__()
        channels, height, width_px = shape
        halvings = max(1, math.ceil(math.log2(max(height, width_px) / 4)))
        sides = [channels, *(min(max(width // 2, 8) * 2**i, width) for i in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(sides):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after, eps=norm_eps)]
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.convolutions = nn.Sequential(*layers)
        flat = sides[-1] * math.ceil(height / 2**halvings) * math.ceil(width_px / 2**halvings)
        self.mean = nn.Linear(flat, latent)
        self.log_variance = nn.Linear(flat, latent)
        initialize(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, float32."""
        x = self.convolutions(channels_last(x)).flatten(1)
        return self.mean(x).float(), self.log_variance(x).float()


class ReleasedEncoder(nn.Module):
    """The encoder of the authors' code: three convolutions, two of them at full resolution.

    Every image column is scaled to unit norm first (`F.normalize(dim=2)` on NCHW), which loses its contrast.
    """

    def __init__(self, latent: int, shape: Shape, *, norm_eps: float = 0.8) -> None:
        super().__init__()
        channels, height, width_px = shape
        self.full_size = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.BatchNorm2d(64, eps=norm_eps),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.BatchNorm2d(128, eps=norm_eps),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.strided = nn.Sequential(nn.Conv2d(128, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128))
        flat = 128 * _released_side(height) * _released_side(width_px)
        self.mean = nn.Linear(flat, latent)
        self.log_variance = nn.Linear(flat, latent)
        initialize(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, float32."""
        x = channels_last(F.normalize(x, p=2.0, dim=2))
        x = F.interpolate(self.full_size(x), scale_factor=0.5)
        x = F.interpolate(self.strided(x), scale_factor=0.5).flatten(1)
        return self.mean(x).float(), self.log_variance(x).float()


def _released_side(side: int) -> int:
    return ((side // 2 + 1) // 2) // 2


class VAE(nn.Module):
    """Encoder, decoder and the running moments of the codes seen (the aggregate posterior)."""

    latent_mean: Tensor
    latent_variance: Tensor

    @classmethod
    def from_table(cls, table: VaeTable, shape: Shape, *, batchnorm: bool, upsamplings: int) -> VAE:
        """Build the VAE of a recipe for a teacher's images, its decoder as deep as the generator."""
        return cls(
            table.latent,
            shape,
            width=table.width,
            released_encoder=table.released_encoder,
            norm_eps=table.norm_eps,
            affine_output=learns_moments(table.image_moments, batchnorm=batchnorm),
            upsamplings=upsamplings,
        )

    def __init__(
        self,
        latent: int,
        shape: Shape,
        *,
        width: int = 64,
        released_encoder: bool = False,
        norm_eps: float = 1e-5,
        affine_output: bool = True,
        upsamplings: int = 0,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = Generator(
            latent, shape, width=width, norm_eps=norm_eps, affine_output=affine_output, upsamplings=upsamplings
        )
        self.encoder: Encoder | ReleasedEncoder
        if released_encoder:
            self.encoder = ReleasedEncoder(latent, shape, norm_eps=norm_eps)
        else:
            self.encoder = Encoder(latent, shape, width=width, norm_eps=norm_eps)
        self.register_buffer("latent_mean", torch.zeros(latent))
        self.register_buffer("latent_variance", torch.ones(latent))

    def encode(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a code drawn by reparametrisation with `noise` (N, latent), its mean and log variance."""
        mean, log_variance = self.encoder(x)
        return mean + torch.exp(0.5 * log_variance) * noise, mean, log_variance

    @torch.no_grad()
    def remember_codes(self, mean: Tensor, log_variance: Tensor) -> None:
        """Move the running moments towards this batch's: variance of the means plus mean of the variances."""
        variance = mean.var(0, unbiased=False) + log_variance.exp().mean(0)
        self.latent_mean.lerp_(mean.mean(0), 1 - POSTERIOR_DECAY)
        self.latent_variance.lerp_(variance, 1 - POSTERIOR_DECAY)

    def codes(self, noise: Tensor, *, posterior: bool) -> Tensor:
        """Turn standard normal `noise` (N, latent) into codes: unchanged, or of the aggregate posterior."""
        return noise * self.latent_variance.sqrt() + self.latent_mean if posterior else noise
