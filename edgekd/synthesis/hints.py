"""Hints: a stage of the student learns what the same stage of the teacher sends on (FitNets, arXiv 1412.6550).

The logits of an image are ten numbers, its feature maps tens of thousands: a short run learns more from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.synthesis.watching import Watcher


class StageOutputs(Watcher):
    """Sees what the named stages of a network send on."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            network.get_submodule(name).register_forward_hook(self._hook)

    def _hook(self, _stage: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        self.see(output)


def distance(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the squared error of each stage relative to the teacher's mean square, averaged over stages."""
    errors = [
        (ours.float() - theirs.float()).square().mean() / theirs.float().square().mean().clamp_min(1e-12)
        for ours, theirs in zip(given, wanted, strict=True)
    ]
    return torch.stack(errors).mean()
