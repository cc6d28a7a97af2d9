"""Procedural images: shapes, noise and formulas rendered from a seed, with nothing trained and nothing stored.

Three kinds, each a published source of images that stand in for photographs: dead leaves and 1/f noise (Baradad et al.,
arXiv 2106.05963, section 3), and small coordinate networks with random weights (after arXiv 2411.12817, whose shaders
they replace). They keep to what photographs have in common: brightness varies more than colour, areas are shaded and
textured, edges are a little soft.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.models.stems import Shape
from edgekd.rng import KeyedDraws

_LEAVES = 24
"""Shapes painted over each other in one picture."""
_TEXTURES = 3
"""Textures that the shapes of one picture share."""
_HIDDEN = 12
"""Width of a coordinate network."""
_CHROMA = 0.35
"""Standard deviation of a colour's channels around its brightness, whose own is 1."""
_SHARES = (0.7, 0.85)
"""Cumulative shares of leaves, noise and, up to 1, formulas."""


@dataclass(frozen=True)
class ProceduralImages:
    """Procedural images of one size."""

    shape: Shape

    def batch(self, draws: KeyedDraws, purpose: str, index: int, size: int) -> Tensor:
        """Return images rendered for this batch alone."""
        return render(draws.source(index, purpose), size, self.shape)


class _Uniform:
    """Uniform draws from one torch generator."""

    def __init__(self, source: torch.Generator) -> None:
        self.source = source

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.source, device=self.source.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.source, device=self.source.device)


@torch.no_grad()
def render(source: torch.Generator, count: int, shape: Shape) -> Tensor:
    """Render images (count, C, H, W), float32, channels last, in the teacher's normalised input space.

    Mean 0 and variance 1 are what normalised images have; each picture has a brightness, a colour cast and a contrast
    of its own around them. The images depend on the state of `source` alone.
    """
    draw = _Uniform(source)
    chosen = torch.bucketize(draw(0, 1, count), torch.tensor(_SHARES, device=source.device))
    images = torch.empty(count, *shape, device=source.device)
    for index, kind in enumerate((_leaves, _noise, _formulas)):
        of_kind = chosen == index
        if of_kind.any():
            images[of_kind] = _standardized(kind(draw, int(of_kind.sum()), shape))
    images = _standardized(_softened(draw, images))
    contrast, cast = draw(0.5, 1.2, count, 1, 1, 1), _CHROMA * _colors(draw, count, shape[0])
    return (images * contrast + cast).contiguous(memory_format=torch.channels_last)


def _colors(draw: _Uniform, count: int, channels: int) -> Tensor:
    """Draw colours (N, C, 1, 1) whose channels go together, as in photographs."""
    chroma = _CHROMA * draw.normal(count, channels, 1, 1)
    return draw.normal(count, 1, 1, 1) + chroma - chroma.mean(1, keepdim=True)


def _softened(draw: _Uniform, images: Tensor) -> Tensor:
    """Blend each picture with the mean of 3x3 pixels by a weight of its own."""
    means = F.avg_pool2d(F.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
    return torch.lerp(images, means, draw(0, 1, len(images), 1, 1, 1))


def _standardized(images: Tensor) -> Tensor:
    """Shift and scale each picture to mean 0 and variance 1 over all its values."""
    deviation = images.std((1, 2, 3), keepdim=True)
    return (images - images.mean((1, 2, 3), keepdim=True)) / deviation.clamp_min(1e-4)


def _coordinates(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows (H, 1) and columns (1, W) of pixel centres; the longer side spans -1 to 1."""
    _, height, width = shape
    longer = max(height, width)
    rows, columns = (
        (torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2) * 2 / longer
        for side in (height, width)
    )
    return rows[:, None], columns[None, :]


def _leaf_mask(draw: _Uniform, count: int, shape: Shape, *, least: float) -> Tensor:
    """Return masks (N, H, W), each one turned ellipse or rectangle; few are large, as areas in photographs."""
    rows, columns = _coordinates(shape, draw.source.device)
    y, x = (draw(-1, 1, count)[:, None, None] for _ in range(2))
    angle, boxy = draw(0, math.pi, count)[:, None, None], draw(0, 1, count)[:, None, None] < 0.5
    u = torch.rand(2, count, generator=draw.source, device=draw.source.device)
    # The density of a radius r falls with 1/r^3 between `least` and 1 (dead leaves keep the statistics of scenes so).
    radii = least / (1 - u * (1 - least**2)).sqrt()
    along = ((columns - x) * angle.cos() + (rows - y) * angle.sin()) / radii[0][:, None, None]
    across = ((rows - y) * angle.cos() - (columns - x) * angle.sin()) / radii[1][:, None, None]
    return torch.where(boxy, torch.maximum(along.abs(), across.abs()) < 0.8, along.square() + across.square() < 1)


def _leaves(draw: _Uniform, count: int, shape: Shape) -> Tensor:
    """Paint shapes over each other, each with a colour, a shade that grows across the picture, and some texture."""
    rows, columns = _coordinates(shape, draw.source.device)
    textures = [_noise(draw, count, shape) for _ in range(_TEXTURES)]

    def surface(texture: Tensor) -> Tensor:
        shade = 0.5 * (draw.normal(count, 1, 1, 1) * rows + draw.normal(count, 1, 1, 1) * columns)
        return _colors(draw, count, shape[0]) + shade + 0.5 * draw(0, 1, count, 1, 1, 1).square() * texture

    images = surface(textures[0])
    for index in range(_LEAVES):
        mask = _leaf_mask(draw, count, shape, least=0.12)[:, None]
        images = torch.where(mask, surface(textures[index % _TEXTURES]), images)
    return images


def _noise(draw: _Uniform, count: int, shape: Shape) -> Tensor:
    """Shape white noise so that its amplitude falls with a power of the frequency, along a direction or evenly."""
    channels, height, width = shape
    rows = torch.fft.fftfreq(height, device=draw.source.device)[:, None]
    columns = torch.fft.rfftfreq(width, device=draw.source.device)[None, :]
    slope, stretch = draw(0.8, 2.2, count, 1, 1, 1), draw(-1, 1, count, 1, 1, 1).exp()
    angle = draw(0, math.pi, count, 1, 1, 1)
    along, across = columns * angle.cos() + rows * angle.sin(), rows * angle.cos() - columns * angle.sin()
    frequency = (stretch * along.square() + across.square() / stretch).sqrt().clamp_min(1 / max(height, width))
    spectrum = torch.fft.rfft2(draw.normal(count, 2, height, width)) / frequency**slope
    noise: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    noise = noise / noise.std((2, 3), keepdim=True).clamp_min(1e-4)
    return noise[:, :1] + _CHROMA * draw.normal(count, channels, 1, 1) * noise[:, 1:]


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply (N, P, I) by (N, I, O) as sums of elements: matrix products are counted as work of the networks."""
    return torch.stack([x[:, :, i, None] * weights[:, None, i] for i in range(x.shape[2])]).sum(0)


def _formulas(draw: _Uniform, count: int, shape: Shape) -> Tensor:
    """Evaluate a small network with random weights and sines at every pixel's coordinates."""
    channels, height, width = shape
    rows, columns = _coordinates(shape, draw.source.device)
    plane = torch.stack([rows.expand(height, width), columns.expand(height, width)], -1).reshape(1, -1, 2)
    zoom = 2 * draw(0, 2, count, 1, 1).exp()
    x = _product(plane * zoom, draw.normal(count, 2, _HIDDEN)) + draw(-math.pi, math.pi, count, 1, _HIDDEN)
    for _ in range(2):
        x = _product(x.sin(), draw.normal(count, _HIDDEN, _HIDDEN)) + draw(-math.pi, math.pi, count, 1, _HIDDEN)
    colors = _product(x.sin(), draw.normal(count, _HIDDEN, channels))
    images = _standardized(colors.transpose(1, 2).reshape(count, channels, height, width))
    return images.mean(1, keepdim=True) + _CHROMA * images
