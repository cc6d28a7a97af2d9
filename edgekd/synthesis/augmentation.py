"""Random flips and shifts of synthetic images, which the teacher then answers as the student is shown them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.recipe.method import StudentUpdateTable
from edgekd.rng import KeyedDraws


@torch.no_grad()
def augment(x: Tensor, table: StudentUpdateTable, step: int, draws: KeyedDraws) -> Tensor:
    """Return images (N, C, H, W), each mirrored with probability 1/2 and moved by up to `shift` pixels both ways.

    What moves in from outside is 0, the mean of the teacher's normalised input space.
    """
    count, _, height, width = x.shape
    if table.flip:
        mirrored = draws.integers(step, "flip", 2, count).bool()
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    if table.shift:
        reach = 2 * table.shift + 1
        rows = draws.integers(step, "shift-rows", reach, count)[:, None] + torch.arange(height, device=x.device)
        columns = draws.integers(step, "shift-columns", reach, count)[:, None] + torch.arange(width, device=x.device)
        images = torch.arange(count, device=x.device)[:, None, None]
        padded = F.pad(x, [table.shift] * 4).permute(0, 2, 3, 1)
        x = padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x
