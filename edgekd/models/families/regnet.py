"""RegNet-Y of 400 MF; its larger siblings are among the published networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.models.families.base import DROP_STRIDES, Family, activation_option
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    import torchvision.models as tv

    from edgekd.models.networks.torchvision_zoo import as_student

    net = tv.regnet_y_400mf(num_classes=classes)
    return as_student(net, spec, input_shape, ("stem", "trunk_output.block1.block1-0"))


REGNET_Y_400MF = Family(
    _make,
    students=("regnet-y-400mf",),
    tensors={"regnet-y-400mf": 331},
    options={"drop_strides": DROP_STRIDES, "activation": activation_option()},
    first="stem.0.weight",
)
