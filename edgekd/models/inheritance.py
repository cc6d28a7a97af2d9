"""What a student of its teacher's family has in common with it: tensors to start from, stages whose maps compare.

A ResNet-8 is a ResNet-20 without two of three blocks; what is left of the teacher is a better start than random weights
(DistilBERT begins with every other layer of its teacher, arXiv 1910.01108, section 3).
"""

from __future__ import annotations

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


def shared_stages(student: nn.Module, teacher: nn.Module, input_shape: Shape) -> list[str]:
    """Return the names of the stages that send on feature maps of the same size in both, in the student's order."""
    theirs = probe.stage_sizes(teacher, input_shape)
    return [name for name, size in probe.stage_sizes(student, input_shape).items() if theirs.get(name) == size]
