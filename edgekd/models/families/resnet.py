"""torchvision's ResNets, ResNeXts and wide ResNets, whose stem follows the size of the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekd.models import stems
from edgekd.models.families.base import BOOLEAN, Family, Option, Unseen, activation_option, always
from edgekd.models.shapes import Shapes
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec

_STEMS = ("3x3", "5x5", "7x7")


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    from edgekd.models.networks.torchvision_zoo import build_resnet

    stem = spec.options.get("stem", stems.resnet_stem(input_shape))
    as_published = stem == "7x7" or stems.resnet_maxpool(input_shape)
    maxpool = spec.options.get("maxpool", "true" if as_published else "false")
    return build_resnet(
        spec.name,
        input_shape,
        classes,
        stem=stem,
        stem_stride=int(spec.options.get("stem_stride", 2 if stem == "7x7" else 1)),
        maxpool=maxpool == "true",
        stride_in=spec.options.get("stride_in", "3x3"),
    )


def _kernel(shapes: Shapes) -> int:
    return shapes["conv1.weight"][-1]


def _read_side(shapes: Shapes) -> tuple[int, bool]:
    return 32 if _kernel(shapes) < 7 else 224, False


def _options_from_shapes(shapes: Shapes, shape: Shape) -> Mapping[str, str]:
    stem = f"{_kernel(shapes)}x{_kernel(shapes)}"
    return {"stem": stem} if stem != stems.resnet_stem(shape) and stem in _STEMS else {}


def _has_small_stem(spec: ArchSpec, shape: Shape) -> bool:
    return spec.options.get("stem", stems.resnet_stem(shape)) != "7x7"


def _maxpool(spec: ArchSpec, shape: Shape) -> Unseen | None:
    pooled = spec.options.get("maxpool") == "true" or stems.resnet_maxpool(shape)
    assumed, other = ("yes", "false") if pooled else ("no", "true")
    return Unseen("max-pool after the stem", assumed, other) if _has_small_stem(spec, shape) else None


def _stem_stride(spec: ArchSpec, shape: Shape) -> Unseen | None:
    return Unseen("stride of the stem", "1", "2") if _has_small_stem(spec, shape) else None


_STEM_OPTIONS = {
    "maxpool": Option(BOOLEAN, _maxpool),
    "stem": Option(_STEMS),
    "stem_stride": Option(("1", "2"), _stem_stride),
}

BASIC = Family(
    _make,
    students=("resnet18", "resnet34"),
    tensors={"resnet18": 102, "resnet34": 182},
    options={**_STEM_OPTIONS, "activation": activation_option()},
    read_side=_read_side,
    options_from_shapes=_options_from_shapes,
    first="conv1.weight",
)
BOTTLENECK = Family(
    _make,
    students=("resnet50",),
    tensors={
        "resnet50": 267,
        "resnet101": 522,
        "resnet152": 777,
        "resnext50_32x4d": 267,
        "resnext101_32x8d": 522,
        "resnext101_64x4d": 522,
        "wide_resnet50_2": 267,
        "wide_resnet101_2": 522,
    },
    options={
        **_STEM_OPTIONS,
        "stride_in": Option(("3x3", "1x1"), always("convolution that strides in a bottleneck", "3x3", "1x1")),
        "activation": activation_option(),
    },
    read_side=_read_side,
    options_from_shapes=_options_from_shapes,
    first="conv1.weight",
)
