"""MNASNet, of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.models.families.base import DROP_STRIDES, Family, activation_option
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    from edgekd.models.networks.torchvision_zoo import as_student, build_mnasnet

    net = build_mnasnet(spec.width or 1.0, classes)
    return as_student(net, spec, input_shape, ("layers.0", "layers.8"))


MNASNET = Family(
    _make,
    students=("mnasnet",),
    tensors={"mnasnet": 262},
    options={"drop_strides": DROP_STRIDES, "activation": activation_option()},
    widths=None,
    first="layers.0.weight",
)
