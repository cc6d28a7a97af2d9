"""Hints: feature maps of the student learn what the teacher's say at the same resolution (FitNets, arXiv 1412.6550).

The logits of an image are ten numbers, its feature maps tens of thousands: a short run learns more from these. Where
student and teacher are of one family their maps compare channel by channel; elsewhere a 1x1 convolution, learned beside
the student and dropped afterwards, maps the student's channels to the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.models.inheritance import MapPair
from edgekd.synthesis.hooks import HookRecorder

NamedMap = tuple[str, Tensor]
"""A module's name and the feature map (N, C, H, W) it sent on."""


class MapRecorder(HookRecorder[NamedMap]):
    """Records the feature maps that the named modules of a network send on."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        for name in names:
            network.get_submodule(name).register_forward_hook(partial(self._hook, name))
        for module in network.modules():
            if hasattr(module, "inplace"):  # else it would change what the module before it has sent on
                module.inplace = False  # type: ignore[assignment]

    def _hook(self, name: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if self.recorded is not None and isinstance(output, Tensor):
            self.recorded.append((name, output))


class Hints:
    """Pairs of feature maps of student and teacher, and the learned 1x1 convolutions between them."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Sequence[MapPair]) -> None:
        self.pairs = tuple(pairs)
        self.of_student = MapRecorder(student, [pair.student for pair in pairs])
        self.of_teacher = MapRecorder(teacher, [pair.teacher for pair in pairs])
        self.adapters = nn.ModuleList(
            nn.Identity() if pair.same else nn.Conv2d(pair.student_channels, pair.teacher_channels, 1) for pair in pairs
        )

    @property
    def same(self) -> bool:
        """Whether the maps compare channel by channel, without a learned convolution."""
        return all(pair.same for pair in self.pairs)

    def distance(self, student_maps: Sequence[NamedMap], teacher_maps: Sequence[NamedMap]) -> Tensor:
        """Return the squared error of each map relative to the teacher's mean square, averaged over the pairs.

        A map that one of both has not sent on, or that is nothing but zeros in the teacher, teaches nothing.
        """
        by_student, by_teacher = dict(student_maps), dict(teacher_maps)
        errors = []
        for pair, learned in zip(self.pairs, self.adapters, strict=True):
            if pair.student in by_student and pair.teacher in by_teacher:
                target = by_teacher[pair.teacher].float()
                power = target.square().mean()
                error = F.mse_loss(learned(by_student[pair.student].float()), target)
                errors.append(torch.where(power > 0, error / power.clamp_min(1e-12), power))
        return torch.stack(errors).mean() if errors else torch.zeros((), device=student_maps[0][1].device)
