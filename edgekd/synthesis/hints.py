"""Hints: a stage of the student learns what the same stage of the teacher sends on (FitNets, arXiv 1412.6550).

The logits of an image are ten numbers, its feature maps tens of thousands: a short run learns more from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.synthesis.hooks import HookRecorder

Map = tuple[str, Tensor]
"""A stage's name and the feature map (N, C, H, W) it sent on."""


class StageOutputs(HookRecorder[Map]):
    """Sees what the named stages of a network send on."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        for name in names:
            network.get_submodule(name).register_forward_hook(partial(self._hook, name))
        for module in network.modules():
            if hasattr(module, "inplace"):  # else it would change what the stage before it has sent on
                module.inplace = False  # type: ignore[assignment]

    def _hook(self, name: str, _stage: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if self.seen is not None and isinstance(output, Tensor):
            self.seen.append((name, output))


def hint_distance(given: Sequence[Map], teacher_maps: Sequence[Map]) -> Tensor:
    """Return the squared error of each stage relative to the teacher's mean square, averaged over stages.

    A stage that one of both has not run, or that sends on nothing but zeros in the teacher, teaches nothing.
    """
    theirs = dict(teacher_maps)
    errors = []
    for name, ours in given:
        if name in theirs:
            target = theirs[name].float()
            power = target.square().mean()
            errors.append(torch.where(power > 0, F.mse_loss(ours.float(), target) / power.clamp_min(1e-12), power))
    return torch.stack(errors).mean() if errors else torch.zeros((), device=given[0][1].device)
