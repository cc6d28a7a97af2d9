"""The residual networks of the CIFAR papers: ResNets of 6n+2 layers and wide ResNets of 6n+4."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekd.errors import UsageError
from edgekd.models.families.base import Family, Option, Unseen, activation_option
from edgekd.models.shapes import Shapes
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec

_STUDENTS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110))
_MOST_BLOCKS = 200
"""Blocks a stage has at most in weights that are compared."""


def _make_resnet(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    from edgekd.models.networks import cifar

    numbers = [int(number) for number in re.findall(r"\d+", spec.name)]
    blocks = numbers if len(numbers) == 3 else [(numbers[0] - 2) // 6] * 3
    base = max(1, round(16 * (spec.width or 1.0)))
    return cifar.CifarResNet(
        blocks, base, input_shape[0], classes, spec.options.get("shortcut", "A"), spec.options.get("pad", "middle")
    )


def _recognize_resnet(name: str) -> str | None:
    stages = re.fullmatch(r"resnet[-_](\d{1,3})[-_](\d{1,3})[-_](\d{1,3})", name.lower())
    if stages:
        return _named([int(number) for number in stages.groups()])
    match = re.fullmatch(r"resnet[-_]?(\d+)", name.lower())
    depth = int(match[1]) if match else 0
    return f"resnet{depth}" if depth % 6 == 2 and 8 <= depth <= 1202 else None


def _named(blocks: Sequence[int]) -> str | None:
    """The name of the ResNet with so many blocks in each of its three stages: `resnet20`, or `resnet-3-4-6`."""
    if not 1 <= min(blocks) <= max(blocks) <= _MOST_BLOCKS:
        return None
    return f"resnet{6 * blocks[0] + 2}" if len(set(blocks)) == 1 else f"resnet-{'-'.join(map(str, blocks))}"


def _uneven_resnets(shapes: Shapes) -> Sequence[str]:
    """The ResNet whose stages have different numbers of blocks, by how many BatchNorm layers there are of each size."""
    sizes = Counter(shape[0] for name, shape in shapes.items() if name.endswith("running_mean") and len(shape) == 1)
    base = min(sizes, default=0)
    first, second, third = (sizes[base * factor] for factor in (1, 2, 4))
    blocks, projections = [first // 2, second // 2, third // 2], second % 2
    tensors = 7 + 10 * (sum(blocks) + projections)
    name = _named(blocks)
    if name is None or len(set(blocks)) == 1 or (first % 2, third % 2, len(shapes)) != (1, projections, tensors):
        return []
    return _with_shortcuts(name, projections)


def _with_shortcuts(name: str, projections: int) -> Sequence[str]:
    return [f"{name},shortcut=B", f"{name},shortcut=3x3"] if projections else [name]


def _resnets_with(tensors: int) -> Sequence[str]:
    """A CIFAR ResNet has 7 + 30n tensors, 10 more with projections."""
    blocks, rest = divmod(tensors - 7, 30)
    if not 1 <= blocks <= _MOST_BLOCKS or rest not in (0, 10):
        return []
    return _with_shortcuts(f"resnet{6 * blocks + 2}", rest)


def _unseen_pad(spec: ArchSpec, _shape: Shape) -> Unseen | None:
    if spec.options.get("shortcut", "A") != "A":
        return None
    return Unseen("zeros of the shortcuts", "on both sides of the old channels", "end")


def _make_wide(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    from edgekd.models.networks import cifar

    _, depth, widen = spec.name.split("-")
    return cifar.WideResNet(int(depth), int(widen), input_shape[0], classes)


def _recognize_wide(name: str) -> str | None:
    match = re.fullmatch(r"(?:wrn|wideresnet)[-_]?(\d+)[-_](\d+)", name.lower())
    if match is None:
        return None
    depth, widen = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6 or not 1 <= widen <= 64:
        raise UsageError(f"wrn-D-K needs a depth of 6n+4 (10, 16, 22, 28, 40) and K of 1 to 64, not {name}.")
    return f"wrn-{depth}-{widen}"


def _wide_resnets_with(tensors: int) -> Sequence[str]:
    """A WRN has 7 + 30n tensors and 3 (or 2, if K is 1) of shortcuts."""
    blocks, rest = divmod(tensors - 7, 30)
    return [f"wrn-{6 * blocks + 4}-{rest - 1}"] if 1 <= blocks <= _MOST_BLOCKS and rest in (2, 3) else []


def _name_with_width(name: str, shapes: Shapes) -> str:
    return f"{name.rpartition('-')[0]}-{max(1, shapes['block1.layer.0.conv1.weight'][0] // 16)}"


CIFAR_RESNET = Family(
    _make_resnet,
    students=_STUDENTS,
    recognize=_recognize_resnet,
    note="and any other depth of 6n+2, or `resnet-3-4-6` by the blocks of each stage: for CIFAR, 16 to 64 channels",
    options={
        "shortcut": Option(("A", "B", "3x3")),
        "pad": Option(("middle", "end"), _unseen_pad),
        "activation": activation_option(),
    },
    widths=None,
    side=32,
    archs_with=_resnets_with,
    archs_like=_uneven_resnets,
    first="conv1.weight",
)
WIDE_RESNET = Family(
    _make_wide,
    students=("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2"),
    recognize=_recognize_wide,
    note="and any `wrn-D-K` with D = 6n+4, K times as wide",
    options={"activation": activation_option()},
    side=32,
    archs_with=_wide_resnets_with,
    name_with_width=_name_with_width,
    first="conv1.weight",
)
