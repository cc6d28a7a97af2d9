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


def _topmost_leaves(draw: _Uniform, count: int, shape: Shape, *, least: float) -> Tensor:
    """Return which leaf lies on top at each pixel, (N, H, W): 1 to `_LEAVES`, and 0 where there is none.

    The leaves are turned ellipses and rectangles by turns; few are large, as areas in photographs.
    """
    rows, columns = _coordinates(shape, draw.source.device)
    y, x = draw(-1, 1, 2, count, _LEAVES, 1, 1)
    angle = draw(0, math.pi, count, _LEAVES, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    # The density of a radius r falls with 1/r^3 between `least` and 1 (dead leaves keep the statistics of scenes so).
    along, across = least / (1 - draw(0, 1, 2, count, _LEAVES, 1, 1) * (1 - least**2)).sqrt()
    # Sums of a row's part and a column's part, so that only these sums are as large as all leaves' pixels.
    u = (columns - x) * (cosine / along) + (rows - y) * (sine / along)
    v = (rows - y) * (cosine / across) - (columns - x) * (sine / across)
    level = torch.arange(1, _LEAVES + 1, dtype=torch.int16, device=rows.device)[:, None, None]
    ellipses = (u[:, ::2].square() + v[:, ::2].square() < 1) * level[::2]
    rectangles = (torch.maximum(u[:, 1::2].abs(), v[:, 1::2].abs()) < 0.8) * level[1::2]
    topmost: Tensor = torch.maximum(ellipses.amax(1), rectangles.amax(1)).long()
    return topmost


def _leaves(draw: _Uniform, count: int, shape: Shape) -> Tensor:
    """Paint shapes over each other, each with a colour, a shade that grows across the picture, and some texture."""
    rows, columns = _coordinates(shape, draw.source.device)
    topmost = _topmost_leaves(draw, count, shape, least=0.12).flatten(1)  # of each pixel

    def of_leaf(values: Tensor) -> Tensor:
        """Give every pixel the values (N, leaves, V) of its leaf: (N, V, H, W)."""
        chosen = values.gather(1, topmost[:, :, None].expand(-1, -1, values.shape[2]))
        return chosen.transpose(1, 2).reshape(count, values.shape[2], *shape[1:])

    leaves = _LEAVES + 1  # with the ground
    chroma = _CHROMA * draw.normal(count, leaves, shape[0])
    colors = draw.normal(count, leaves, 1) + chroma - chroma.mean(2, keepdim=True)
    slopes = 0.5 * draw.normal(count, leaves, 2)
    noise = _noise(draw, count, shape)
    textures = torch.stack([noise.roll(index, 0) for index in range(_TEXTURES)], 1)  # shared with other pictures
    strength = 0.5 * draw(0, 1, count, leaves, 1).square()
    which = torch.arange(leaves, device=rows.device) % _TEXTURES
    strengths = strength * F.one_hot(which, _TEXTURES)
    down, right = of_leaf(slopes).split(1, 1)
    shaded = of_leaf(colors) + down * rows + right * columns
    painted: Tensor = shaded + (of_leaf(strengths)[:, :, None] * textures).sum(1)
    return painted


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


def _product(weights: Tensor, x: Tensor) -> Tensor:
    """Multiply (N, O, I) by (N, I, P) as sums of elements: matrix products are counted as work of the networks."""
    total: Tensor = weights[:, :, 0, None] * x[:, None, 0]
    for i in range(1, x.shape[1]):
        total = torch.addcmul(total, weights[:, :, i, None], x[:, None, i])
    return total


def _formulas(draw: _Uniform, count: int, shape: Shape) -> Tensor:
    """Evaluate a small network with random weights and sines at every pixel's coordinates."""
    channels, height, width = shape
    rows, columns = _coordinates(shape, draw.source.device)
    plane = torch.stack([rows.expand(height, width), columns.expand(height, width)]).reshape(1, 2, -1)
    zoom = 2 * draw(0, 2, count, 1, 1).exp()
    x = _product(draw.normal(count, _HIDDEN, 2), plane * zoom) + draw(-math.pi, math.pi, count, _HIDDEN, 1)
    for _ in range(2):
        x = _product(draw.normal(count, _HIDDEN, _HIDDEN), x.sin()) + draw(-math.pi, math.pi, count, _HIDDEN, 1)
    colors = _product(draw.normal(count, channels, _HIDDEN), x.sin())
    images = _standardized(colors.reshape(count, channels, height, width))
    return images.mean(1, keepdim=True) + _CHROMA * images
