"""Architectures by name: `mobilenetv2@0.35,drop_strides=0`, `timm:NAME` or `package.module:factory`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from edgekd.errors import UsageError, did_you_mean
from edgekd.models import families
from edgekd.models.families.base import ACTIVATIONS, Family
from edgekd.models.stems import Shape
from edgekd.text import sizes

if TYPE_CHECKING:
    from torch import nn

MIN_WIDTH, MAX_WIDTH = 0.05, 4.0


@dataclass(frozen=True)
class ArchSpec:
    """An architecture: its registered name, a width multiplier, and options that differ from the default."""

    name: str
    width: float | None = None
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @staticmethod
    def parse(text: str) -> ArchSpec:
        """Parse `NAME[@WIDTH][,OPTION=VALUE]...`; raise UsageError for what is not registered."""
        head, *pairs = text.strip().split(",")
        name, at, width_text = head.partition("@")
        name, family = _lookup(name.strip())
        width = _width(name, width_text.strip(), family) if at else None
        options: dict[str, str] = {}
        for pair in pairs:
            key, equals, value = (part.strip() for part in pair.partition("="))
            option, option_names = family.options.get(key), sorted(family.options)
            if option is None:
                raise UsageError(
                    f'Architecture {name} has no option "{key}".{did_you_mean(key, option_names)} '
                    f"Its options: {', '.join(option_names) or 'none'}."
                )
            if not equals or not option.takes(value):
                raise UsageError(f'Option {key} of {name} is one of {", ".join(option.values)}, not "{value}".')
            options[key] = value
        return ArchSpec(name, width, dict(sorted(options.items())))

    def with_options(self, options: Mapping[str, str]) -> ArchSpec:
        """Return the architecture with these options over its own, in the order in which they are written."""
        return replace(self, options=dict(sorted({**self.options, **options}.items())))

    def __str__(self) -> str:
        width = "" if self.width is None else f"@{self.width:g}"
        return f"{self.name}{width}" + "".join(f",{key}={value}" for key, value in self.options.items())


def build(spec: ArchSpec | str, *, input_shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a freshly initialised network in training mode; its weights are a function of (seed, spec).

    Options that the spec leaves open follow the small-image rule of `edgekd.models.stems`.
    """
    spec = ArchSpec.parse(spec) if isinstance(spec, str) else spec
    if min(input_shape) < 1 or classes < 2:
        raise UsageError(
            f"A classifier needs an image of at least 1x1x1 and two classes, not {input_shape}, {classes}."
        )
    from edgekd import rng  # which imports torch, and parsing does without

    family = family_of(spec.name)
    with rng.seeded_global_rng(seed, "build", str(spec)):
        try:
            net = family.make(spec, input_shape, classes)
        except (ValueError, AssertionError) as error:
            raise UsageError(f"{spec} cannot be built for {sizes(input_shape)} images: {error}") from error
    kind = spec.options.get("activation")
    if kind is not None and not family.makes_activations:
        _replace_activations(net, ACTIVATIONS[kind])
    return net


def names() -> list[str]:
    """Return every registered name; `wrn-D-K` stands for wide ResNets of any depth 6n+4 and any widening."""
    return list(dict.fromkeys([*student_names(), *tensor_counts()]))


def student_names() -> list[str]:
    """Return the names offered as students, smallest kinds first."""
    return [name for family in families.FAMILIES for name in family.students]


def tensor_counts() -> dict[str, int]:
    """Return the number of tensors of each network of torchvision's: what inference looks at first."""
    return {name: count for family in families.FAMILIES for name, count in family.tensors.items()}


def is_custom(name: str) -> bool:
    """Return whether `name` is code outside the registry: `package.module:factory` or `timm:NAME`."""
    return ":" in name


def family_of(name: str) -> Family:
    """Return the family of a registered name; raise UsageError otherwise."""
    return _lookup(name)[1]


@cache
def _owners(among: tuple[Family, ...]) -> dict[str, Family]:
    """The family of every name that is written out."""
    return {name: family for family in among for name in (*family.students, *family.tensors)}


@cache
def _spellings(among: tuple[Family, ...]) -> dict[str, str]:
    """Every accepted spelling of the names, in lower case: with underscores, and without any separator."""
    loose = {_squeezed(name): name for name in _owners(among)}
    exact = {name.replace("-", "_"): name for name in _owners(among)}  # regnet_x_1_6gf is not regnet_x_16gf
    return {**loose, **exact, **{other: name for family in among for other, name in family.spellings.items()}}


def _squeezed(name: str) -> str:
    return re.sub(r"[-_.]", "", name.lower())


def _lookup(name: str) -> tuple[str, Family]:
    """The canonical spelling of `name` and its family."""
    among = families.FAMILIES
    for family in among:
        canonical = family.recognize(name)
        if canonical is not None:  # resnet50 follows the rule of the CIFAR ResNets, too, and is torchvision's
            return canonical, _owners(among).get(canonical, family)
    spellings = _spellings(among)
    match = spellings.get(name.lower().replace("-", "_")) or spellings.get(_squeezed(name))
    if match is None:
        raise UsageError(
            f'There is no architecture "{name}".{did_you_mean(name, names())} '
            "`edgekd students` lists them; your own code is package.module:factory, or net.py:factory."
        )
    return match, _owners(among)[match]


def _width(name: str, text: str, family: Family) -> float:
    if family.widths == ():
        raise UsageError(f"{name} has no width multiplier; leave out @{text}.")
    try:
        width = float(text)
    except ValueError as error:
        raise UsageError(f'The width of {name} is a number such as {name}@0.5, not "@{text}".') from error
    if family.widths is not None and width not in family.widths:
        raise UsageError(f"{name} exists with the widths {', '.join(f'{w:g}' for w in family.widths)}, not {text}.")
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise UsageError(f"The width of {name} lies between {MIN_WIDTH} and {MAX_WIDTH}, not {text}.")
    if round(width, 2) != width:
        raise UsageError(f"The width of {name} has at most two decimals, not {text}.")
    return width


def _replace_activations(net: nn.Module, kind: str) -> None:
    from torch import nn

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, getattr(nn, kind)())
