"""Match weights with the architectures of the zoo by the names and shapes of their tensors.

Networks are built without memory (their weights live on the meta device), so a comparison takes milliseconds.
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
from edgekd.models.registry import ArchSpec
from edgekd.models.shapes import Shapes, shapes_in
from edgekd.models.stems import Shape
from edgekd.text import listed, sizes

MARKER_CLASSES = 1009
"""A prime no layer is wide, so that the head of a reference network is found by its rows."""


@dataclass(frozen=True)
class Match:
    """A fit: the architecture with what the weights show of it."""

    spec: ArchSpec
    input_shape: Shape
    classes: int
    side_is_fixed: bool
    mapping: Mapping[str, str]
    requested: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    """What every name of the network begins with, where the weights' names do not."""


@dataclass(frozen=True)
class Mismatch:
    """An architecture that does not fit, how much of it does (0 to 1), and the first differences."""

    spec: ArchSpec
    likeness: float
    differences: tuple[str, ...]


class WeightsOnMeta(TorchFunctionMode):
    """Allocate layers' weights without memory; unlike torch.device("meta"), small computations stay real."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@lru_cache(maxsize=512)
def _shapes(text: str, input_shape: Shape, classes: int) -> Shapes:
    """The shape of each tensor of an architecture, in the order of its state dict."""
    with WeightsOnMeta():
        return shapes_in(registry.build(text, input_shape=input_shape, classes=classes, seed=0))


def candidate_archs(weights: Mapping[str, Tensor]) -> list[ArchSpec]:
    """Return the architectures of the zoo with as many tensors as `weights`."""
    count = len(weights)
    names = [name for name, tensors in registry.tensor_counts().items() if tensors == count]
    for family in families.FAMILIES:
        names += [arch for arch in family.count(count) if registry.family_of(arch.partition(",")[0]) is family]
    return [ArchSpec.parse(arch) for arch in names]


def variants(requested: ArchSpec, weights: Mapping[str, Tensor]) -> list[ArchSpec]:
    """Return `requested`, with the kind of shortcut that the number of tensors shows."""
    specs = [spec for spec in candidate_archs(weights) if spec.name == requested.name]
    return [replace(requested, options={**spec.options, **requested.options}) for spec in specs] or [requested]


def match(
    spec: ArchSpec, weights: Mapping[str, Tensor], input_shape: Shape | None, classes: int | None
) -> Match | Mismatch:
    """Compare `weights` with one architecture; its width, stem, classes, channels and size are read off them."""
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    family = registry.family_of(spec.name)
    reference = _shapes(str(spec), (3, family.side, family.side), MARKER_CLASSES)
    head, first = classifier_weight(reference), stem_of(reference)
    assert head is not None
    mapping = {} if set(reference) == set(theirs) else rename(theirs, reference)
    ours = {(mapping or {}).get(name, name): shape for name, shape in theirs.items()}
    if mapping is None or unlike(ours, reference):
        return mismatch(spec, ours, reference)
    first = first or head
    seen_classes, channels = ours[head][0], ours[first][1]
    if classes is not None and classes != seen_classes:
        raise InputFileError(
            f"The weights have {seen_classes} classes, not {classes}; leave out the number of classes."
        )
    if input_shape is not None and input_shape[0] != channels:
        raise InputFileError(
            f"The weights take {channels} channels, not {input_shape[0]}: "
            f"--input {channels}x{input_shape[1]}x{input_shape[2]}."
        )
    if seen_classes < 2 or channels < 1:
        return replace(mismatch(spec, ours, reference), differences=(ONE_OUTPUT,))
    side, fixed = family.image_side(ours)
    if fixed and input_shape is not None and side != max(input_shape[1], family.padded_side):
        raise InputFileError(
            f"The weights of {spec} fix the image size at {side}x{side}: --input {channels}x{side}x{side}."
        )
    shape = input_shape or (channels, side, side)
    shown = _with_shown(spec, ours, shape)
    try:
        shown = _with_width(shown, ours, shape, seen_classes)
        expected = _shapes(str(shown), shape, seen_classes)
    except UsageError:  # sizes that no such network has
        if input_shape is not None and not fixed:
            raise
        return mismatch(spec, ours, reference)
    if dict(expected) != ours:
        return mismatch(shown, ours, expected)
    return Match(shown, shape, seen_classes, fixed, mapping, spec.options)


ONE_OUTPUT = (
    "its last layer has one output where classes need two or more; make it two logits with "
    "weight = torch.cat([-w / 2, w / 2]), and the bias alike"
)
"""What keeps a network for two classes with one output out."""


def nearest(
    weights: Mapping[str, Tensor],
    misses: Sequence[Mismatch],
    requested: ArchSpec | None,
) -> Mismatch:
    """Return the architecture most like `weights`: of those with a similar number of tensors, then of each kind."""
    if requested is None:
        counts = registry.tensor_counts()
        by_count = sorted(counts, key=lambda name: abs(counts[name] - len(weights)))
        neighbors = [name for family in families.FAMILIES for name in family.neighbors]
        lookalikes = [name for family in families.FAMILIES for name in family.lookalikes]
        for names in ([*by_count[:6], *neighbors], lookalikes):
            if any(miss.likeness >= 0.5 for miss in misses):
                break
            outcomes = (match(ArchSpec(name), weights, None, None) for name in names)
            misses = [*misses, *(outcome for outcome in outcomes if isinstance(outcome, Mismatch))]
    return max(misses, key=lambda mismatch: mismatch.likeness)


def _with_shown(spec: ArchSpec, ours: Shapes, shape: Shape) -> ArchSpec:
    """Set the options that shapes show and the small-image rule would choose otherwise."""
    shown = registry.family_of(spec.name).shown(ours, shape)
    if shown.keys() <= spec.options.keys():
        return spec
    return replace(spec, options=dict(sorted({**shown, **spec.options}.items())))


def _with_width(spec: ArchSpec, ours: Shapes, shape: Shape, classes: int) -> ArchSpec:
    """Set the width multiplier: the most usual number that gives a network of exactly this size."""
    family = registry.family_of(spec.name)
    if family.resized is not None:
        return replace(spec, name=family.resized(spec.name, ours))
    if family.widths == () or spec.width is not None:
        return spec
    target = _size(ours)

    def size(hundredths: int) -> int:
        return _size(_shapes(str(replace(spec, width=hundredths / 100)), shape, classes))

    if size(100) == target:
        return spec
    if family.widths is not None:
        return next((replace(spec, width=w) for w in family.widths if size(round(w * 100)) == target), spec)
    grid = range(round(registry.MIN_WIDTH * 100), round(registry.MAX_WIDTH * 100) + 1)
    low = grid[0] + bisect.bisect_left(grid, target, key=size)
    high = grid[0] + bisect.bisect_right(grid, target, key=size)
    fitting = [hundredths / 100 for hundredths in range(low, high)]
    for width, name in family.named_widths.items():
        if width in fitting:
            return replace(spec, name=name)
    return replace(spec, width=min(fitting, key=_unusualness)) if fitting else spec


def _unusualness(width: float) -> tuple[bool, ...]:
    """Order the widths of one and the same network: 0.35 before 0.34, 0.5 before 0.45."""
    hundredths = round(width * 100)
    return tuple(hundredths % step != 0 for step in (25, 10, 5))


def _size(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def classifier_weight(reference: Shapes) -> str | None:
    """Return the last weight with as many rows as a reference network has classes."""
    rows = (name for name, shape in reversed(list(reference.items())) if shape[:1] == (MARKER_CLASSES,) and shape[1:])
    return next(rows, None)


def stem_of(reference: Shapes) -> str | None:
    """Return the weight of the first convolution."""
    return next((name for name, shape in reference.items() if len(shape) == 4), None)


def unlike(theirs: Shapes, reference: Shapes) -> bool:
    """Return whether a tensor has another number of dimensions than the reference's of that name, or is empty."""
    return any(
        len(theirs[name]) != len(shape) or (0 in theirs[name] and theirs[name] != shape)
        for name, shape in reference.items()
    )


def mismatch(spec: ArchSpec, theirs: Shapes, expected: Shapes) -> Mismatch:
    """Return how far weights are from an architecture."""
    expected = _as_far_as_shown(spec, theirs, expected)
    missing = [name for name in expected if name not in theirs]
    surplus = [name for name in theirs if name not in expected]
    other = [name for name in expected if name in theirs and theirs[name] != expected[name]]
    differences = [f"{name} is {sizes(theirs[name])}, expected {_open(expected[name])}" for name in other[:3]]
    differences += [f"missing {listed(missing)}"] if missing else []
    differences += [f"surplus {listed(surplus)}"] if surplus else []
    alike = len(expected) - len(missing) - len(other) / 2
    return Mismatch(spec, alike / max(len(expected), len(theirs)), tuple(differences))


def _as_far_as_shown(spec: ArchSpec, theirs: Shapes, expected: Shapes) -> Shapes:
    """A reference with the classes, channels and stem of the weights, which are no differences."""
    head, first = classifier_weight(expected), stem_of(expected)
    if head is None:
        return expected
    stems = registry.family_of(spec.name).options.get("stem")
    kernel = sizes(theirs.get(first, ())[2:]) if first is not None else ""
    stem = {1, 2, 3} if stems is not None and kernel in stems.values else {1}
    free = {first: stem, head: {0}, f"{head.removesuffix('weight')}bias": {0}}
    shown = dict(expected)
    for name in shown.keys() & free.keys() & theirs.keys():
        pairs = list(zip(theirs[name], shown[name], strict=False))
        alike = all(our == reference or side in free[name] for side, (our, reference) in enumerate(pairs))
        if len(theirs[name]) == len(shown[name]) and alike:
            shown[name] = theirs[name]
    return shown


def _open(shape: tuple[int, ...]) -> str:
    """A shape that was expected; a number of classes that only marks the head is N."""
    return "x".join("N" if side == MARKER_CLASSES else str(side) for side in shape) or "a single number"
