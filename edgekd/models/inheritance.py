"""What a student and its teacher have in common: layers by the same name of the same shapes, stages that answer alike.

A ResNet-8 is a ResNet-20 without two of three blocks; what is left of the teacher is a better start than random weights
(DistilBERT begins with every other layer of its teacher, arXiv 1910.01108, section 3).
"""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.models import probe
from edgekd.models.stems import Shape


def shared_layers(student: nn.Module, teacher: nn.Module, input_shape: Shape) -> dict[str, Tensor]:
    """Return the teacher's tensors of the layers it shares with the student, by name.

    None unless first layer and head are among them: of a network of other widths, few layers would fit by chance, and
    they would get input they were never trained for.
    """
    ours, theirs = _layers(student), _layers(teacher)
    shared = [name for name, layer in ours.items() if name in theirs and _sizes(layer) == _sizes(theirs[name])]
    if not {next(iter(ours)), probe.head_name(student, input_shape)} <= set(shared):
        return {}
    return {f"{name}.{role}": tensor.detach() for name in shared for role, tensor in theirs[name].items()}


def shared_stages(student: nn.Module, teacher: nn.Module, input_shape: Shape) -> list[str]:
    """Return the names of the stages that send on feature maps of the same size in both, in the student's order.

    Networks whose stages are called otherwise have none in common.
    """
    theirs = probe.stage_sizes(teacher, input_shape)
    return [name for name, size in probe.stage_sizes(student, input_shape).items() if theirs.get(name) == size]


def _layers(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each module that has some of its own, by role, in the order of definition."""
    own = {
        name: dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for name, module in network.named_modules()
    }
    return {name: tensors for name, tensors in own.items() if tensors}


def _sizes(layer: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {role: tuple(tensor.shape) for role, tensor in layer.items()}
