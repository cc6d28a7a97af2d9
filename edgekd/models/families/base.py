"""What is known of a family of networks, in one object: nothing else in edgekd knows a network by its name.

A file of this folder imports no torch: names are parsed, and refused, without it. What builds a network imports what it
needs when it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.models import stems
from edgekd.models.shapes import Shapes
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec

ACTIVATIONS = {"relu": "ReLU", "relu6": "ReLU6", "leaky_relu": "LeakyReLU", "silu": "SiLU", "gelu": "GELU"}
"""What may stand in place of every ReLU, and its class in torch.nn."""
BOOLEAN = ("true", "false")


@dataclass(frozen=True)
class Unseen:
    """A choice that leaves no trace in weights: what it decides, what is assumed, and another value of the option."""

    what: str
    assumed: str
    other: str


@dataclass(frozen=True)
class Option:
    """What may be chosen about a network beside its name and width."""

    values: tuple[str, ...]
    unseen: Callable[[ArchSpec, Shape], Unseen | None] = lambda _spec, _shape: None
    """What ingestion has to assume of a teacher; None where the shapes of its weights show it."""
    free: str = ""
    """A regular expression of further values, of which `values` shows the form."""

    def takes(self, value: str) -> bool:
        """Return whether it is one of the values."""
        return value in self.values or bool(self.free and re.fullmatch(self.free, value))


@dataclass(frozen=True, eq=False)
class Family:
    """The networks of one kind: how they are named, built, and known by their weights."""

    make: Callable[[ArchSpec, Shape, int], nn.Module]
    """Build a network from its spec, the image's shape and the number of classes."""

    students: tuple[str, ...] = ()
    """The names that are offered as students, smallest first."""
    tensors: Mapping[str, int] = field(default_factory=dict)
    """torchvision's networks, and how many tensors each has (BatchNorm counters aside)."""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Other names for a name, beyond upper case and other separators."""
    recognize: Callable[[str], str | None] = lambda _name: None
    """Return the canonical name where names follow a rule; raise UsageError for what only almost does."""
    note: str = ""
    """What docs/students.md says of further names."""

    options: Mapping[str, Option] = field(default_factory=dict)
    """By name, in the order in which assumptions are told."""
    makes_activations: bool = False
    """Whether `make` sees to the option `activation`; else every ReLU is replaced."""
    widths: tuple[float, ...] | None = ()
    """The allowed multipliers; None allows any, an empty tuple none."""
    named_widths: Mapping[float, str] = field(default_factory=dict)
    """Multipliers that have a name of their own."""

    side: int = 224
    """The usual side of an image."""
    read_side: Callable[[Shapes], tuple[int, bool]] | None = None
    """Return the image side that weights show, and whether they fix it; without it the side is the usual one."""
    padded_side: int = 0
    """The side to which the network itself pads smaller images, so that weights do not tell them apart."""
    smaller_side: int = 0
    """The usual side of these smaller images."""

    archs_with: Callable[[int], Sequence[str]] = lambda _tensors: ()
    """Return the architectures with so many tensors, where their number follows a rule."""
    archs_like: Callable[[Shapes], Sequence[str]] = lambda _shapes: ()
    """Return further architectures that weights of such shapes, under any names, may belong to."""
    options_from_shapes: Callable[[Shapes, Shape], Mapping[str, str]] = lambda _shapes, _shape: {}
    """Return the options that the weights' shapes tell, as far as a student for such images would not have them."""
    name_with_width: Callable[[str, Shapes], str] | None = None
    """Return the name with the width that the shapes show, where a name holds the width."""
    training_only: tuple[str, ...] = ()
    """Prefixes of auxiliary heads that published checkpoints carry and inference never runs."""
    telltale: str = ""
    """A tensor by which weights with such heads are known."""
    first: str = ""
    """The first tensor of each of these networks: weights without it are not compared with them for a message."""

    def image_side(self, shapes: Shapes) -> tuple[int, bool]:
        """Return the image side the weights were made for, and whether they fix it or it is only usual."""
        return (self.side, False) if self.read_side is None else self.read_side(shapes)


def always(what: str, assumed: str, other: str) -> Callable[[ArchSpec, Shape], Unseen]:
    """Return an `Option.unseen` that assumes the same of every network."""
    return lambda _spec, _shape: Unseen(what, assumed, other)


def activation_option(usual: str = "relu") -> Option:
    """Return the option that replaces every ReLU of a network."""
    return Option(tuple(ACTIVATIONS), always("activation", usual, "leaky_relu"))


def _early_strides(_spec: ArchSpec, shape: Shape) -> Unseen:
    drop = stems.early_strides_to_drop(shape)
    strides = "as published" if drop == 0 else f"the first {drop} left out, for small images"
    return Unseen("early strides", strides, "1" if drop == 0 else "0")


DROP_STRIDES = Option(("0", "1", "2"), _early_strides)
