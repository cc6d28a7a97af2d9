"""A network that is one chain of layers, built from its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.models.families.plain import ACTIVATIONS, Op
from edgekd.models.stems import Shape

_MOST_NUMBERS = 2**29


class PlainNetwork(nn.Module):
    """A chain of layers; those with weights sit under the names that they have in the checkpoint, dots included.

    Raises ValueError where a step does not fit what comes before it.
    """

    def __init__(self, ops: Sequence[Op], input_shape: Shape, classes: int) -> None:
        super().__init__()
        self._steps: list[str] = []
        shape: tuple[int, ...] = input_shape
        for op in ops:
            _require_room(op, shape)
            layer, shape = _layer(op, shape)
            if op.name:
                _attach(self, op.name, layer)
                self._steps.append(op.name)
            else:
                self._steps.append(f"_{len(self._steps)}_{op.kind}")
                self.add_module(self._steps[-1], layer)
        if shape != (classes,):
            raise ValueError(f"its steps end in {'x'.join(map(str, shape))} values, not in {classes} classes")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W)."""
        x = images
        for name in self._steps:
            x = self.get_submodule(name)(x)
        return torch.as_tensor(x)


def _attach(root: nn.Module, dotted: str, layer: nn.Module) -> None:
    """Put a layer under a name with dots; what lies between are modules without weights."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if hasattr(root, last):
        raise ValueError(f"the name {dotted} is taken")
    root.add_module(last, layer)


def _require_room(op: Op, shape: tuple[int, ...]) -> None:
    """Refuse a layer of more numbers than any classifier has, before they are allocated."""
    if op.out * math.prod(op.kernel) * (shape[0] if op.kind != "gap" else 1) // op.groups > _MOST_NUMBERS:
        raise ValueError(f"{op} has more than {_MOST_NUMBERS:,} weights")


def _layer(op: Op, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the layer of a step for what comes in, and the shape that it sends on."""
    maps = len(shape) == 3
    if op.kind in ACTIVATIONS:
        return getattr(nn, ACTIVATIONS[op.kind])(), shape
    if op.kind == "bn":
        return (nn.BatchNorm2d if maps else nn.BatchNorm1d)(shape[0]), shape
    if op.kind == "linear":
        if maps:
            raise ValueError(f"{op} wants flat input: a flatten is missing before it")
        return nn.Linear(shape[0], op.out, bias=op.bias), (op.out,)
    if not maps:
        raise ValueError(f"{op} wants feature maps, and what comes before it is flat")
    channels, height, width = shape
    if op.kind == "flatten":
        return nn.Flatten(), (channels * height * width,)
    if op.kind == "gap":
        return nn.AdaptiveAvgPool2d(op.out), (channels, op.out, op.out)
    sides = [
        (side + 2 * op.padding - kernel) // op.stride + 1 for side, kernel in zip(shape[1:], op.kernel, strict=True)
    ]
    if min(sides) < 1:
        raise ValueError(f"nothing is left of a {height}x{width} map after {op}")
    if op.kind == "conv":
        if channels % op.groups or op.out % op.groups:
            raise ValueError(f"{op} has {op.groups} groups of {channels} channels")
        layer = nn.Conv2d(channels, op.out, op.kernel, op.stride, op.padding, groups=op.groups, bias=op.bias)
        return layer, (op.out, *sides)
    pool = nn.MaxPool2d if op.kind == "max" else nn.AvgPool2d
    return pool(op.kernel[0], op.stride), (channels, *sides)
