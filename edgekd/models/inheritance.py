"""What a student has in common with its teacher: tensors to start from, feature maps that can be compared.

A ResNet-8 is a ResNet-20 without two of three blocks; what is left of the teacher is a better start than random weights
(DistilBERT begins with every other layer of its teacher, arXiv 1910.01108, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.models import probe
from edgekd.models.shapes import shapes_in
from edgekd.models.stems import Shape


def shared_tensors(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """Return the teacher's tensors that the student has too, by name; none where the two are no family.

    A family are two networks of which one has every tensor of the other by name and shape: the same widths, more or
    fewer blocks. Of any other pair few would fit, by chance, and get input they were never trained for.
    """
    smaller, larger = sorted((shapes_in(student), shapes_in(teacher)), key=len)
    if not smaller.items() <= larger.items():
        return {}
    tensors = teacher.state_dict()
    return {name: tensors[name] for name in smaller}


def sliced_tensors(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """Return a start for a narrower or shallower student of the teacher's kind; nothing for any other pair.

    Of each tensor evenly spaced channels are taken (weight selection, arXiv 2311.18823), of each stage with more blocks
    evenly spaced blocks. A sum over fewer channels is scaled up by what it has lost.
    """
    of_teacher, renamed = teacher.state_dict(), _block_names(student, teacher)
    start = {}
    for name, tensor in student.state_dict().items():
        source = of_teacher.get(renamed(name))
        if source is None or not _covers(source, tensor):
            return {}
        for dim, (fewer, more) in enumerate(zip(tensor.shape[:2], source.shape[:2], strict=True)):
            source = source.index_select(dim, torch.arange(fewer, device=source.device) * more // fewer)
            if dim == 1:
                source = source * (more / fewer)
        start[name] = source
    return start


def _covers(source: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is a slice of the source in its channels, with the same kernel."""
    return (
        source.ndim == tensor.ndim
        and source.shape[2:] == tensor.shape[2:]
        and all(more >= fewer for more, fewer in zip(source.shape, tensor.shape, strict=True))
    )


def _block_names(student: nn.Module, teacher: nn.Module) -> Callable[[str], str]:
    """Return the function from a student's tensor name to that of the teacher's evenly spaced block."""
    stages = dict(teacher.named_modules())
    prefixes = {}
    for name, stage in student.named_modules():
        deeper = stages.get(name)
        if isinstance(stage, nn.Sequential) and isinstance(deeper, nn.Sequential) and len(deeper) > len(stage):
            for index in range(len(stage)):
                prefixes[f"{name}.{index}."] = f"{name}.{index * (len(deeper) - 1) // max(1, len(stage) - 1)}."

    def renamed(name: str) -> str:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        return prefixes.get(prefix, "") + name.removeprefix(prefix)

    return renamed


@dataclass(frozen=True)
class MapPair:
    """Two feature maps of the same resolution, each by the module that sends it on, with its number of channels."""

    student: str
    teacher: str
    student_channels: int
    teacher_channels: int
    same: bool
    """Whether both mean the same, channel by channel, because both networks are of one family."""


def shared_maps(student: nn.Module, teacher: nn.Module, input_shape: Shape) -> list[MapPair]:
    """Return the feature maps at the end of the stages that both networks have, in the student's order."""
    teacher_sizes = probe.stage_sizes(teacher, input_shape)
    return [
        MapPair(name, name, size[0], size[0], same=True)
        for name, size in probe.stage_sizes(student, input_shape).items()
        if teacher_sizes.get(name) == size
    ]


def matched_maps(student: nn.Module, teacher: nn.Module, input_shape: Shape) -> list[MapPair]:
    """Return the last feature map of each resolution that any two networks share, in the student's order."""
    of_teacher = probe.last_maps(teacher, input_shape)
    return [
        MapPair(name, of_teacher[resolution][0], channels, of_teacher[resolution][1], same=False)
        for resolution, (name, channels) in probe.last_maps(student, input_shape).items()
        if resolution in of_teacher
    ]
