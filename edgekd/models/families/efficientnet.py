"""EfficientNet-B0; its larger siblings are among the published networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.models.families.base import DROP_STRIDES, Family
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    import torchvision.models as tv

    from edgekd.models.networks.torchvision_zoo import as_student

    return as_student(tv.efficientnet_b0(num_classes=classes), spec, input_shape, ("features.0", "features.2"))


EFFICIENTNET_B0 = Family(
    _make,
    students=("efficientnet-b0",),
    tensors={"efficientnet-b0": 311},
    options={"drop_strides": DROP_STRIDES},
    first="features.0.0.weight",
)
