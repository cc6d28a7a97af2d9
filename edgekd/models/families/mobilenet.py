"""MobileNetV2 and V3, of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.models.families.base import DROP_STRIDES, Family, activation_option
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec


_EARLY = {
    "mobilenetv2": ("features.0", "features.2"),
    "mobilenetv3-small": ("features.0", "features.1"),
    "mobilenetv3-large": ("features.0", "features.2"),
}
"""The modules that downsample first, in order."""


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    import torchvision.models as tv

    from edgekd.models.networks.torchvision_zoo import as_student

    build = {
        "mobilenetv2": tv.mobilenet_v2,
        "mobilenetv3-small": tv.mobilenet_v3_small,
        "mobilenetv3-large": tv.mobilenet_v3_large,
    }[spec.name]
    net = build(width_mult=spec.width or 1.0, num_classes=classes)
    return as_student(net, spec, input_shape, _EARLY[spec.name])


MOBILENETV2 = Family(
    _make,
    students=("mobilenetv2",),
    tensors={"mobilenetv2": 262},
    options={"drop_strides": DROP_STRIDES, "activation": activation_option("relu6")},
    widths=None,
    first="features.0.0.weight",
)
MOBILENETV3 = Family(
    _make,
    students=("mobilenetv3-small", "mobilenetv3-large"),
    tensors={"mobilenetv3-small": 210, "mobilenetv3-large": 266},
    options={"drop_strides": DROP_STRIDES},
    widths=None,
    first="features.0.0.weight",
)
