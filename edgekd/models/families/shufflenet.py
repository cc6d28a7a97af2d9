"""ShuffleNetV2, of the four published widths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.models.families.base import DROP_STRIDES, Family, activation_option
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec


_WIDTHS = {0.5: "x0_5", 1.0: "x1_0", 1.5: "x1_5", 2.0: "x2_0"}


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    import torchvision.models as tv

    from edgekd.models.networks.torchvision_zoo import as_student

    net = tv.get_model(f"shufflenet_v2_{_WIDTHS[spec.width or 1.0]}", weights=None, num_classes=classes)
    return as_student(net, spec, input_shape, ("conv1", "maxpool"))


SHUFFLENETV2 = Family(
    _make,
    students=("shufflenetv2",),
    tensors={"shufflenetv2": 282},
    options={"drop_strides": DROP_STRIDES, "activation": activation_option()},
    widths=tuple(_WIDTHS),
    first="conv1.0.weight",
)
