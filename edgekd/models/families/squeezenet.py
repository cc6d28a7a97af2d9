"""SqueezeNet 1.1; as a student without the ReLU on its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.models.families.base import BOOLEAN, DROP_STRIDES, Family, Option, activation_option, always
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    import torchvision.models as tv

    from edgekd.models.networks.torchvision_zoo import as_student, remove_logit_relu

    net = as_student(tv.squeezenet1_1(num_classes=classes), spec, input_shape, ("features.0", "features.2"))
    if spec.options.get("logit_relu") != "true":
        remove_logit_relu(net)
    return net


SQUEEZENET = Family(
    _make,
    students=("squeezenet",),
    tensors={"squeezenet": 52},
    spellings={"squeezenet1_1": "squeezenet"},
    note="(1.1)",
    options={
        "drop_strides": DROP_STRIDES,
        "activation": activation_option(),
        "logit_relu": Option(BOOLEAN, always("ReLU on the logits", "yes, as published", "false")),
    },
    options_from_shapes=lambda _shapes, _shape: {"logit_relu": "true"},  # a teacher was published with it
    first="features.0.weight",
)
