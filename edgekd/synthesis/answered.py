"""Views with the teacher's answers to them, from which the student may learn several times.

A teacher costs more than its student: what it said of a view is worth a second look. An answer is that of one view
alone, so the views are kept as they are, and only their order and company in a batch change (fast knowledge
distillation stores both for this reason, arXiv 2112.01528).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekd.rng import KeyedDraws
from edgekd.synthesis.hints import NamedMap
from edgekd.synthesis.teacher import TeacherOutputs


@dataclass(frozen=True)
class PartSizes:
    """How many images of each part a batch has."""

    generated: int
    """Of the generator, or the user's pictures in their place."""
    procedural: int
    replayed: int

    @property
    def novel(self) -> int:
        """Generated and procedural ones."""
        return self.generated + self.procedural

    def times(self, batches: int) -> PartSizes:
        """Return the sizes of so many batches together."""
        return PartSizes(batches * self.generated, batches * self.procedural, batches * self.replayed)


@dataclass(frozen=True)
class AnsweredViews:
    """The views of one or more batches, part by part, and what the teacher said of them."""

    views: Tensor
    """(N, C, H, W): the generated ones of all batches, then the procedural ones, then the replayed ones."""
    outputs: TeacherOutputs
    teacher_maps: tuple[NamedMap, ...]
    sizes: PartSizes
    """Of one batch."""
    batches: int

    def batch(self, place: int, step: int, draws: KeyedDraws) -> AnsweredViews:
        """Return the batch of a step, `place` steps after the views were made.

        Each pass through the views deals them to batches anew; a single batch stays as it is.
        """
        if self.batches == 1:
            return self
        start, chosen = 0, []
        for name, size in vars(self.sizes).items():
            dealt = draws.permutation(step - place % self.batches, f"deal-{name}", self.batches * size)
            index = place % self.batches
            chosen.append(start + dealt[index * size : (index + 1) * size])
            start += self.batches * size
        rows = torch.cat(chosen)
        views = self.views[rows].contiguous(memory_format=torch.channels_last)
        maps = tuple((name, map_[rows]) for name, map_ in self.teacher_maps)
        return AnsweredViews(views, self.outputs.of(rows), maps, self.sizes, batches=1)
