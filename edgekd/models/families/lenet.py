"""LeNet-5, which pads images under 32 pixels and fixes their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekd.models.families.base import Family, Option, always
from edgekd.models.shapes import Shapes
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec

_SIDE = 32


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    return _net(spec, input_shape, classes, spec.width or 1.0)


def _make_half(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    return _net(spec, input_shape, classes, 0.5)


def _net(spec: ArchSpec, input_shape: Shape, classes: int, width: float) -> nn.Module:
    from edgekd.models.networks import lenet

    activation, pool = spec.options.get("activation", "relu"), spec.options.get("pool", "max")
    return lenet.LeNet5(input_shape, classes, width, activation, pool)


def _read_side(shapes: Shapes) -> tuple[int, bool]:
    """The (smallest) image side whose last feature map has as many positions as the first linear layer reads."""
    positions = shapes["fc1.weight"][1] // max(1, shapes["conv3.weight"][0])
    side = round(positions**0.5)
    return (4 * side + 28 if side * side == positions else 0) or _SIDE, True


def _archs_with(tensors: int) -> Sequence[str]:
    return ["lenet5"] if tensors == 10 else []


_OPTIONS = {
    "activation": Option(("relu", "tanh"), always("activation", "relu", "tanh")),
    "pool": Option(("max", "avg"), always("pooling", "max", "avg")),
}

LENET5_HALF = Family(
    _make_half,
    students=("lenet5-half",),
    options=_OPTIONS,
    makes_activations=True,
    side=_SIDE,
    read_side=_read_side,
    padded_side=_SIDE,
    smaller_side=28,
)
LENET5 = Family(
    _make,
    students=("lenet5",),
    spellings={"lenet": "lenet5"},
    options=_OPTIONS,
    makes_activations=True,
    widths=None,
    named_widths={0.5: "lenet5-half"},
    side=_SIDE,
    read_side=_read_side,
    padded_side=_SIDE,
    smaller_side=28,
    archs_with=_archs_with,
    first="conv1.weight",
)
