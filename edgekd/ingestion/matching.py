"""Find the architecture of the zoo that weights belong to, by the names and shapes of their tensors.

Networks are built on the meta device, so a comparison takes milliseconds. The template of an architecture is the shapes
of its network for `MARKER_CLASSES` classes. It shows which layers depend on the numbers of classes and channels before
those of the weights are known.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion.renaming import rename
from edgekd.models import families, registry
from edgekd.models.families.convolutions import CONVOLUTIONS
from edgekd.models.registry import ArchSpec
from edgekd.models.shapes import Shapes, shapes_in
from edgekd.models.stems import Shape
from edgekd.text import listed, sizes

MARKER_CLASSES = 1009
"""Classes of a template: a prime that no other layer has as its width, which marks the classifier's weight."""


@dataclass(frozen=True)
class Match:
    """An architecture that fits the weights exactly, with what their shapes tell of it."""

    spec: ArchSpec
    input_shape: Shape
    classes: int
    side_is_fixed: bool
    """Whether the weights fix the image size; else the network takes others, and `input_shape` has the usual one."""
    mapping: Mapping[str, str]
    """Names of the network by those of the weights; empty where they are the same."""
    known_options: Mapping[str, str] = field(default_factory=dict)
    """The options that need no assumption: given by `--arch`, or fixed by the name or the number of tensors."""
    prefix: str = ""
    """A prefix of all names of the network that the weights' names lack."""


@dataclass(frozen=True)
class Mismatch:
    """An architecture that does not fit the weights."""

    spec: ArchSpec
    similarity: float
    """The share of tensors that fit, 0 to 1; one of another shape counts half."""
    fitting: float
    """The share of tensors that fit by name and shape."""
    differences: tuple[str, ...]
    """The first differences, for the error message."""


_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


class WeightsOnMeta(TorchFunctionMode):
    """Allocate layers' weights on the meta device; unlike `torch.device("meta")`, other tensors stay real."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        if func in _DRAWS and args[0].is_meta:
            return args[0]  # without numbers nothing is drawn, for which torch would import its compiler
        return func(*args, **kwargs)


@lru_cache(maxsize=512)
def network_shapes(arch: str, input_shape: Shape, classes: int) -> Shapes:
    """Build an architecture without memory; return the shape of each tensor, in the order of its state dict."""
    with WeightsOnMeta():
        return shapes_in(registry.build(arch, input_shape=input_shape, classes=classes, seed=0))


def candidate_archs(weights: Mapping[str, Tensor]) -> list[ArchSpec]:
    """List the architectures of the zoo with as many tensors and convolutions, which alone are worth building."""
    tensors, convolutions = len(weights), sum(tensor.ndim == 4 for tensor in weights.values())
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    alike = [name for name, count in registry.tensor_counts().items() if count == tensors]
    archs = [name for name in alike if CONVOLUTIONS.get(name, convolutions) == convolutions]
    for family in families.FAMILIES:
        found = (*family.archs_with(tensors), *family.archs_like(shapes))
        archs += [arch for arch in found if registry.family_of(arch.partition(",")[0]) is family]
    return [ArchSpec.parse(arch) for arch in archs]


def variants(requested: ArchSpec, weights: Mapping[str, Tensor]) -> list[ArchSpec]:
    """Complete `requested` by options that the number of tensors fixes, such as a CIFAR ResNet's kind of shortcut."""
    specs = [spec for spec in candidate_archs(weights) if spec.name == requested.name]
    return [replace(requested, options={**spec.options, **requested.options}) for spec in specs] or [requested]


def match(
    spec: ArchSpec, weights: Mapping[str, Tensor], input_shape: Shape | None, classes: int | None
) -> Match | Mismatch:
    """Compare `weights` with one architecture; its width, stem, classes, channels and size are read off them.

    Args:
        spec: the architecture; options that it names must fit.
        weights: the checkpoint's tensors by name.
        input_shape: (C, H, W) as the user gave it, or None.
        classes: as the user gave it, or None.

    Raises:
        InputFileError: the weights contradict `input_shape` or `classes`.
    """
    shapes_in_file = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    family = registry.family_of(spec.name)
    template = network_shapes(str(spec), (3, family.side, family.side), MARKER_CLASSES)
    head, stem = classifier_weight(template), stem_weight(template)
    assert head is not None
    mapping = {} if set(template) == set(shapes_in_file) else rename(shapes_in_file, template)
    shapes = {(mapping or {}).get(name, name): shape for name, shape in shapes_in_file.items()}
    if mapping is None or ranks_differ(shapes, template):
        return describe_mismatch(spec, shapes, template)
    stem = stem or head
    classes_in_file, channels = shapes[head][0], shapes[stem][1]
    if classes is not None and classes != classes_in_file:
        raise InputFileError(
            f"The weights have {classes_in_file} classes, not {classes}; leave out the number of classes."
        )
    if input_shape is not None and input_shape[0] != channels:
        raise InputFileError(
            f"The weights take {channels} channels, not {input_shape[0]}: "
            f"--input {channels}x{input_shape[1]}x{input_shape[2]}."
        )
    if classes_in_file < 2 or channels < 1:
        return replace(
            describe_mismatch(spec, shapes, template), differences=("its last layer has fewer than two outputs",)
        )
    side, side_is_fixed = family.image_side(shapes)
    # A network that pads smaller images itself (LeNet: 28 to 32) shows the padded side alone.
    if side_is_fixed and input_shape is not None and side != max(input_shape[1], family.padded_side):
        raise InputFileError(
            f"The weights of {spec} fix the image size at {side}x{side}: --input {channels}x{side}x{side}."
        )
    image_shape = input_shape or (channels, side, side)
    fitted_spec = _with_options_from_shapes(spec, shapes, image_shape)
    try:
        fitted_spec = _with_width_from_shapes(fitted_spec, shapes, image_shape, classes_in_file)
        expected = network_shapes(str(fitted_spec), image_shape, classes_in_file)
    except UsageError:  # sizes that no such network has
        if input_shape is not None and not side_is_fixed:
            raise
        return describe_mismatch(spec, shapes, template)
    if dict(expected) != shapes:
        return describe_mismatch(fitted_spec, shapes, expected)
    return Match(fitted_spec, image_shape, classes_in_file, side_is_fixed, mapping, spec.options)


def nearest(
    weights: Mapping[str, Tensor],
    mismatches: Sequence[Mismatch],
    requested: ArchSpec | None,
) -> Mismatch | None:
    """Find the architecture most similar to `weights`, for the message that none fits.

    Without a `requested` one, `mismatches` are joined by architectures with about as many tensors whose first layer is
    called as one of the weights; None where of none at least half the tensors fit by name and shape.
    """
    if requested is None:
        outcomes = (match(ArchSpec.parse(arch), weights, None, None) for arch in _archs_of_about_as_many(weights))
        mismatches = [*mismatches, *(outcome for outcome in outcomes if isinstance(outcome, Mismatch))]
        mismatches = [mismatch for mismatch in mismatches if mismatch.fitting >= _FAIR_SHARE]
    return max(mismatches, key=lambda mismatch: mismatch.similarity, default=None)


_FAIR_SHARE = 0.5
"""The share of tensors that a network must have in common with weights to be called their nearest."""
_MOST_NEIGHBOURS = 8
"""How many networks are compared with weights that fit none."""


def _archs_of_about_as_many(weights: Mapping[str, Tensor]) -> list[str]:
    """The architectures with about as many tensors, as far as their first layer may be among the weights."""
    tensors, archs = len(weights), []
    reach = max(6, tensors // 5)
    for family in families.FAMILIES:
        if family.first in weights:
            archs += [name for name, count in family.tensors.items() if abs(count - tensors) <= reach]
            near = (arch for count in range(tensors - reach, tensors + reach + 1) for arch in family.archs_with(count))
            archs += [arch for arch in near if registry.family_of(arch.partition(",")[0]) is family]
    counts = registry.tensor_counts()
    return sorted(archs, key=lambda name: abs(counts.get(name, tensors) - tensors))[:_MOST_NEIGHBOURS]


def _with_options_from_shapes(spec: ArchSpec, shapes: Shapes, image_shape: Shape) -> ArchSpec:
    """Set the options that the shapes tell and that differ from those that the registry chooses for such images."""
    options = registry.family_of(spec.name).options_from_shapes(shapes, image_shape)
    if options.keys() <= spec.options.keys():
        return spec
    return spec.with_options({**options, **spec.options})


def _with_width_from_shapes(spec: ArchSpec, shapes: Shapes, image_shape: Shape, classes: int) -> ArchSpec:
    """Set the width multiplier: of those with exactly as many tensor elements as the weights, the most usual one."""
    family = registry.family_of(spec.name)
    if family.name_with_width is not None:
        return replace(spec, name=family.name_with_width(spec.name, shapes))
    if family.widths == () or spec.width is not None:
        return spec
    target_numel = _numel(shapes)

    def numel_at(hundredths: int) -> int:
        return _numel(network_shapes(str(replace(spec, width=hundredths / 100)), image_shape, classes))

    if numel_at(100) == target_numel:
        return spec
    if family.widths is not None:
        widths = (width for width in family.widths if numel_at(round(width * 100)) == target_numel)
        return next((replace(spec, width=width) for width in widths), spec)
    grid = range(round(registry.MIN_WIDTH * 100), round(registry.MAX_WIDTH * 100) + 1)
    low = grid[0] + bisect.bisect_left(grid, target_numel, key=numel_at)
    high = grid[0] + bisect.bisect_right(grid, target_numel, key=numel_at)
    fitting = [hundredths / 100 for hundredths in range(low, high)]
    for width, name in family.named_widths.items():
        if width in fitting:
            return replace(spec, name=name)
    return replace(spec, width=min(fitting, key=_unusualness)) if fitting else spec


def _unusualness(width: float) -> tuple[bool, ...]:
    """Order the widths of one and the same network: 0.35 before 0.34, 0.5 before 0.45."""
    hundredths = round(width * 100)
    return tuple(hundredths % step != 0 for step in (25, 10, 5))


def _numel(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def classifier_weight(template: Shapes) -> str | None:
    """Find the name of a template's last weight with `MARKER_CLASSES` rows."""
    named = reversed(list(template.items()))
    return next((name for name, shape in named if shape[:1] == (MARKER_CLASSES,) and shape[1:]), None)


def stem_weight(template: Shapes) -> str | None:
    """Find the name of the first convolution's weight."""
    return next((name for name, shape in template.items() if len(shape) == 4), None)


def ranks_differ(shapes: Shapes, template: Shapes) -> bool:
    """Tell whether a tensor of the weights has another `ndim` than in the template of the same names, or is empty."""
    return any(
        len(shapes[name]) != len(shape) or (0 in shapes[name] and shapes[name] != shape)
        for name, shape in template.items()
    )


def describe_mismatch(spec: ArchSpec, shapes: Shapes, expected: Shapes) -> Mismatch:
    """Say how similar weights are to an architecture and where they differ from it.

    Args:
        spec: the architecture.
        shapes: of the weights, under the network's names as far as these are known.
        expected: of the network, which may be a template.
    """
    expected = _with_free_sizes_of(spec, shapes, expected)
    missing = [name for name in expected if name not in shapes]
    surplus = [name for name in shapes if name not in expected]
    reshaped = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    differences = [
        f"{name} is {sizes(shapes[name])}, expected {_expected_sizes(expected[name])}" for name in reshaped[:3]
    ]
    differences += [f"missing {listed(missing)}"] if missing else []
    differences += [f"surplus {listed(surplus)}"] if surplus else []
    fitting, tensors = len(expected) - len(missing) - len(reshaped), max(len(expected), len(shapes))
    return Mismatch(spec, (fitting + len(reshaped) / 2) / tensors, fitting / tensors, tuple(differences))


def _with_free_sizes_of(spec: ArchSpec, shapes: Shapes, expected: Shapes) -> Shapes:
    """Set the sizes that an architecture leaves open (classes, channels, stem kernel) to those of the weights."""
    head, stem = classifier_weight(expected), stem_weight(expected)
    if head is None:
        return expected
    stem_option = registry.family_of(spec.name).options.get("stem")
    kernel = sizes(shapes.get(stem, ())[2:]) if stem is not None else ""
    free_in_stem = {1, 2, 3} if stem_option is not None and kernel in stem_option.values else {1}
    free_dims = {stem: free_in_stem, head: {0}, f"{head.removesuffix('weight')}bias": {0}}
    adapted = dict(expected)
    for name in adapted.keys() & free_dims.keys() & shapes.keys():
        if len(shapes[name]) == len(adapted[name]):
            pairs = enumerate(zip(shapes[name], adapted[name], strict=True))
            adapted[name] = tuple(theirs if dim in free_dims[name] else ours for dim, (theirs, ours) in pairs)
    return adapted


def _expected_sizes(shape: tuple[int, ...]) -> str:
    """Write an expected shape such as 64x3x7x7; `MARKER_CLASSES` is written N."""
    return "x".join("N" if size == MARKER_CLASSES else str(size) for size in shape) or "a single number"
