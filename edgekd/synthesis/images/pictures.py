"""The user's own pictures as a source of images: random crops, brought to the teacher's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.models.stems import Shape
from edgekd.rng import KeyedDraws


@dataclass(frozen=True)
class Pictures:
    """Unlabelled pictures in memory, (C, height, width) in uint8 and of any size, and how they are normalised."""

    pixels: Sequence[Tensor]
    shape: Shape
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def batch(self, draws: KeyedDraws, purpose: str, index: int, size: int) -> Tensor:
        """Return random crops of random pictures, (size, C, H, W) in the teacher's normalised space, channels last.

        A crop has the teacher's aspect ratio, and any size from the teacher's own to the largest that the picture
        holds: larger pictures give many different images. A picture of the teacher's size is taken as it is.
        """
        chosen = draws.integers(index, f"{purpose}/picture", len(self.pixels), size).tolist()
        places = draws.uniform(index, f"{purpose}/crop", size, 3).tolist()
        crops = torch.stack([self._crop(self.pixels[i], *place) for i, place in zip(chosen, places, strict=True)])
        normalized = (crops.to(draws.device) - self.mean[:, None, None]) / self.std[:, None, None]
        return normalized.contiguous(memory_format=torch.channels_last)

    def _crop(self, pixels: Tensor, zoom: float, down: float, right: float) -> Tensor:
        _, height, width = self.shape
        largest = min(pixels.shape[1] / height, pixels.shape[2] / width)
        scale = 1 + zoom * (largest - 1)
        rows, columns = round(scale * height), round(scale * width)
        top, left = round(down * (pixels.shape[1] - rows)), round(right * (pixels.shape[2] - columns))
        crop = pixels[:, top : top + rows, left : left + columns].float() / 255
        if crop.shape[1:] == (height, width):
            return crop
        return F.interpolate(crop[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
