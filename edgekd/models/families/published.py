"""torchvision's other classifiers: teachers as they were published, too large to be offered as students."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgekd.models.families.base import BOOLEAN, Family, Option, activation_option, always
from edgekd.models.shapes import Shapes
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    return _published(spec, input_shape, classes)


def _published(spec: ArchSpec, input_shape: Shape, classes: int, **arguments: Any) -> nn.Module:
    from edgekd.models.networks.torchvision_zoo import build_published

    return build_published(spec.name, input_shape, classes, **arguments)


def _make_inception(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    transform = spec.options.get("transform_input") == "true"
    return _published(spec, input_shape, classes, aux_logits=False, init_weights=False, transform_input=transform)


def _make_maxvit(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    return _published(spec, input_shape, classes, input_size=input_shape[1:])


def _make_vit(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    return _published(spec, input_shape, classes, image_size=input_shape[1])


def _vit_side(shapes: Shapes) -> tuple[int, bool]:
    patches = math.isqrt(max(1, shapes["encoder.pos_embedding"][1] - 1))
    return max(1, patches * shapes["conv_proj.weight"][-1]), True


_RELU = {"activation": activation_option()}
_INCEPTION = {"transform_input": Option(BOOLEAN, always("ImageNet renormalisation inside the network", "no", "true"))}

PUBLISHED = (
    Family(_make, tensors={"alexnet": 16}, options=_RELU, first="features.0.weight"),
    Family(
        _make,
        tensors={"convnext_tiny": 182, "convnext_small": 344, "convnext_base": 344, "convnext_large": 344},
        first="features.0.0.weight",
    ),
    Family(
        _make,
        tensors={"densenet121": 606, "densenet161": 806, "densenet169": 846, "densenet201": 1006},
        first="features.conv0.weight",
    ),
    Family(
        _make,
        tensors={
            "efficientnet_b1": 439, "efficientnet_b2": 439, "efficientnet_b3": 496, "efficientnet_b4": 610,
            "efficientnet_b5": 738, "efficientnet_b6": 852, "efficientnet_b7": 1037,
            "efficientnet_v2_s": 672, "efficientnet_v2_m": 963, "efficientnet_v2_l": 1331,
        },
        first="features.0.0.weight",
    ),
    Family(
        _make_inception,
        tensors={"googlenet": 287},
        options=_INCEPTION,
        training_only=("aux1.", "aux2."),
        telltale="inception3a.branch1.conv.weight",
        first="conv1.conv.weight",
    ),
    Family(
        _make_inception,
        tensors={"inception_v3": 472},
        options=_INCEPTION,
        side=299,
        training_only=("AuxLogits.",),
        telltale="Mixed_5b.branch1x1.conv.weight",
        first="Conv2d_1a_3x3.conv.weight",
    ),
    Family(_make_maxvit, tensors={"maxvit_t": 548}, first="stem.0.0.weight"),
    Family(
        _make,
        tensors={
            "regnet_x_400mf": 357, "regnet_x_800mf": 267, "regnet_x_1_6gf": 297, "regnet_x_3_2gf": 402,
            "regnet_x_8gf": 372, "regnet_x_16gf": 357, "regnet_x_32gf": 372,
            "regnet_y_800mf": 293, "regnet_y_1_6gf": 540, "regnet_y_3_2gf": 426, "regnet_y_8gf": 350,
            "regnet_y_16gf": 369, "regnet_y_32gf": 407, "regnet_y_128gf": 540,
        },
        first="stem.0.weight",
        options=_RELU,
    ),
    Family(_make, tensors={"squeezenet1_0": 52}, options=_RELU, first="features.0.weight"),
    Family(
        _make,
        tensors={
            "swin_t": 185, "swin_s": 353, "swin_b": 353, "swin_v2_t": 233, "swin_v2_s": 449, "swin_v2_b": 449,
        },
        first="features.0.0.weight",
    ),
    Family(
        _make,
        tensors={
            "vgg11": 22, "vgg13": 26, "vgg16": 32, "vgg19": 38,
            "vgg11_bn": 54, "vgg13_bn": 66, "vgg16_bn": 84, "vgg19_bn": 102,
        },
        options=_RELU,
        first="features.0.weight",
    ),
    Family(
        _make_vit,
        tensors={"vit_b_16": 152, "vit_b_32": 152, "vit_l_16": 296, "vit_l_32": 296, "vit_h_14": 392},
        read_side=_vit_side,
        first="class_token",
    ),
)  # fmt: skip
