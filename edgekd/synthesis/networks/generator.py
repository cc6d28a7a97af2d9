"""The generator of PRE-DFKD (arXiv 2201.03019) for any image size; the VAE's decoder has the same form."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from edgekd.models.stems import Shape
from edgekd.recipe.method import GeneratorTable

START_SIDE = 8
"""The first feature map is at most this many pixels a side."""


def upsamplings_for(height: int, width: int) -> int:
    """Return the smallest number of doublings that start from at most `START_SIDE` pixels a side, at least 1."""
    return max(1, math.ceil(math.log2(max(height, width) / START_SIDE)))


def initialize(network: nn.Module, bound: float = 0.08) -> None:
    """Draw convolution and linear weights from U(-bound, bound) and zero the biases, as the released code does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Map codes (N, latent) to images (N, C, H, W) in the teacher's normalised input space.

    Linear, BatchNorm, then `upsamplings` times (double, convolve, BatchNorm, LeakyReLU), then convolution, tanh
    and a BatchNorm on the image: the images have no pixel range, only the moments the last layer gives them.
    """

    @classmethod
    def from_table(cls, table: GeneratorTable, shape: Shape, *, batchnorm: bool) -> Generator:
        """Build the generator of a recipe for a teacher's images; `batchnorm` says whether the teacher has any."""
        return cls(
            table.latent,
            shape,
            width=table.width,
            upsamplings=table.upsamplings,
            spectral=table.spectral_norm,
            norm_eps=table.norm_eps,
            affine_output=learns_moments(table.image_moments, batchnorm=batchnorm),
        )

    def __init__(
        self,
        latent: int,
        shape: Shape,
        *,
        width: int = 128,
        upsamplings: int = 0,
        spectral: bool = False,
        norm_eps: float = 1e-5,
        affine_output: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width_px = shape
        doublings = upsamplings or upsamplings_for(height, width_px)
        self.shape = shape
        self.start = (width, math.ceil(height / 2**doublings), math.ceil(width_px / 2**doublings))
        self.project = nn.Linear(latent, math.prod(self.start))
        self.project_norm = nn.BatchNorm2d(width)
        sides = [width, *(max(width // 2**i, min(width, 16)) for i in range(doublings))]
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sides))
        self.norms = nn.ModuleList(nn.BatchNorm2d(after, eps=norm_eps) for after in sides[1:])
        self.to_image = nn.Conv2d(sides[-1], channels, 3, padding=1)
        self.image_norm = nn.BatchNorm2d(channels, affine=affine_output)
        initialize(self)
        if spectral:
            for convolution in [*self.convolutions, self.to_image]:
                spectral_norm(convolution)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (N, C, H, W), float32, channels last in memory."""
        x = self.project(z).unflatten(1, self.start).contiguous(memory_format=torch.channels_last)
        x = self.project_norm(x)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = F.leaky_relu(norm(convolution(x)), 0.2, inplace=True)
        image: Tensor = self.image_norm(torch.tanh(self.to_image(x)).float())
        return image[:, :, : self.shape[1], : self.shape[2]]


def learns_moments(image_moments: str, *, batchnorm: bool) -> bool:
    """Return whether the last BatchNorm learns the images' moments: `auto` asks for a teacher that knows them."""
    return image_moments == "learned" or (image_moments == "auto" and batchnorm)
