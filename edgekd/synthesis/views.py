"""Views of images: each one mirrored, moved, cropped, recoloured or mixed with another; the teacher answers the view.

Mixing takes two images of the batch: mixup their weighted mean (arXiv 1710.09412), CutMix a rectangle of one in the
other (arXiv 1905.04899). Weights are uniform and drawn for each image, as in function matching (arXiv 2106.05237).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.recipe.method import StudentUpdateTable
from edgekd.rng import KeyedDraws


@torch.no_grad()
def view(x: Tensor, table: StudentUpdateTable, step: int, draws: KeyedDraws) -> Tensor:
    """Return a view (N, C, H, W) of every image, drawn for this step alone.

    What moves in from outside is 0, the mean of the teacher's normalised input space.
    """
    count = len(x)
    colored, side = x.shape[1] == 3, min(x.shape[2:])
    flip = colored if table.flip == "auto" else table.flip
    shift = side // (8 if colored else 16) if table.shift == "auto" else table.shift
    if flip:
        mirrored = draws.integers(step, "flip", 2, count).bool()
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    if shift:
        x = _shifted(x, shift, step, draws)
    if table.mixup:
        mixed = draws.uniform(step, "mixup", count) < table.mixup
        weight = draws.uniform(step, "mixup-weight", count).where(mixed, torch.ones((), device=x.device))
        x = torch.lerp(x[_partners(step, "mixup", count, draws)], x, weight[:, None, None, None])
    if table.cutmix:
        cut = draws.uniform(step, "cutmix", count) < table.cutmix
        inside = _rectangles(x, step, draws) & cut[:, None, None]
        x = torch.where(inside[:, None], x[_partners(step, "cutmix", count, draws)], x)
    return x


def _partners(step: int, purpose: str, count: int, draws: KeyedDraws) -> Tensor:
    """Return for every image the index of another image of the batch (of itself where it is the only one)."""
    offsets = 1 + draws.integers(step, f"{purpose}-partner", max(1, count - 1), count)
    return (torch.arange(count, device=draws.device) + offsets) % count


def _shifted(x: Tensor, shift: int, step: int, draws: KeyedDraws) -> Tensor:
    count, _, height, width = x.shape
    reach = 2 * shift + 1
    rows = draws.integers(step, "shift-rows", reach, count)[:, None] + torch.arange(height, device=x.device)
    columns = draws.integers(step, "shift-columns", reach, count)[:, None] + torch.arange(width, device=x.device)
    images = torch.arange(count, device=x.device)[:, None, None]
    padded = F.pad(x, [shift] * 4).permute(0, 2, 3, 1)
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _rectangles(x: Tensor, step: int, draws: KeyedDraws) -> Tensor:
    """Return masks (N, H, W) of rectangles whose area is uniform and whose centre may lie anywhere."""
    count, _, height, width = x.shape
    center, half = draws.uniform(step, "cutmix-center", 2, count, 1), draws.uniform(step, "cutmix-area", count, 1)
    rows, columns = (
        (torch.arange(side, device=x.device) + 0.5).div(side).sub(at).abs() < half.sqrt() / 2
        for side, at in zip((height, width), center, strict=True)
    )
    return rows[:, :, None] & columns[:, None, :]
