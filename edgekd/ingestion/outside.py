"""Match weights with networks outside the zoo: the user's own code, and timm's models where timm is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.agent.device.files import read_text
from edgekd.errors import InputFileError, MachineError, UsageError
from edgekd.ingestion.matching import (
    MARKER_CLASSES,
    Match,
    Mismatch,
    WeightsOnMeta,
    classifier_weight,
    describe_mismatch,
    ranks_differ,
    stem_weight,
)
from edgekd.ingestion.renaming import rename
from edgekd.ingestion.views import common_prefix
from edgekd.models import probe, registry
from edgekd.models.code.adapting import LazySizeError
from edgekd.models.families.outside import PREFIX, TIMM
from edgekd.models.registry import ArchSpec
from edgekd.models.shapes import Shapes, shapes_in
from edgekd.models.stems import Shape, square_images
from edgekd.text import first_line

SEARCH_SECONDS = 60.0
"""After this time no further model of timm's is compared."""
FEWEST_TENSORS = 20
"""None of timm's models has fewer; importing them costs seconds."""
_SIDES = (32, 28, 64, 224, 48, 96, 128, 256, 299, 16)
"""The usual sides of images, which the user's own code is tried with."""
_FORGIVEN = (8, 250)
"""Weights of other shapes that are forgiven in a quick search and in a thorough one."""


_ENDS = ("first_conv", "classifier")
_END = re.compile(rf"""({"|".join(_ENDS)})['"]?\s*[=:]\s*(\([^)]*\)|['"][\w.]+['"])""")
_NAME = re.compile(r"""['"]([\w.]+)['"]""")
"""How timm's configurations name layers, one or several."""
_REAL_WEIGHTS = 2**27
"""Weights of a layer that may take memory although the checkpoint lacks them."""


class _OtherShape(Exception):  # noqa: N818 - a signal, not a fault
    """A network under construction has a weight that the checkpoint lacks."""


class _OnlyShapes(WeightsOnMeta):
    """Give up building a network once it has weights of shapes that the checkpoint lacks.

    A few are forgiven, because some models build parts that they throw away again.
    """

    def __init__(self, allowed: frozenset[tuple[int, ...]], *, meta: bool, forgiven: int) -> None:
        super().__init__()
        self._allowed, self._meta, self._forgiven = allowed, meta, forgiven

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.empty:
            size = (kwargs or {}).get("size", args[0] if args and not isinstance(args[0], int) else args)
            if tuple(size) not in self._allowed:
                self._forgiven -= 1
                if self._forgiven < 0 or (not self._meta and math.prod(size) > _REAL_WEIGHTS):
                    raise _OtherShape
        return super().__torch_function__(func, types, args, kwargs) if self._meta else func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class TimmMatches:
    """What a search of timm's models found."""

    structures: tuple[Match, ...]
    complete: bool
    """Whether there was time to look at every model with such a first and last layer."""


@dataclass(frozen=True)
class _Ends:
    """The first and last layers of a timm model and its image size, which timm knows without building it."""

    first: tuple[str, ...]
    heads: tuple[str, ...]
    side: int
    side_is_fixed: bool


class CustomArchitecture:
    """Code from outside the zoo, built once for each shape that weights are compared with."""

    def __init__(self, spec: ArchSpec) -> None:
        self.spec = spec
        self._built: dict[tuple[str, Shape, int], Shapes] = {}

    def fit(self, weights: Mapping[str, Tensor], input_shape: Shape | None, classes: int | None) -> Match | Mismatch:
        """Compare weights with the code; classes and channels come from its own last and first layers."""
        shapes_in_file = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        side, side_is_fixed = _image_side(self.spec, shapes_in_file)
        if input_shape is not None or registry.family_of(self.spec.name) is TIMM:
            shape = input_shape or (3, side, side)
            return self._fit(shapes_in_file, shape, input_shape, classes, side_is_fixed=side_is_fixed)
        first: Match | Mismatch | None = None
        refusal: LazySizeError | InputFileError | None = None
        for shape in _usual_shapes(side, shapes_in_file):
            try:
                found = self._fit(shapes_in_file, shape, None, classes, side_is_fixed=False)
            except (LazySizeError, InputFileError) as error:  # such images it does not take
                refusal = refusal or error
                continue
            if isinstance(found, Match) and self._answers(found):
                return found
            first = first or found
            if isinstance(found, Mismatch) and found.similarity < 1 / 2:
                break  # no other size of the images makes this the code
        if first is None:
            assert refusal is not None
            raise refusal
        return first

    def _fit(
        self,
        shapes_in_file: Shapes,
        shape: Shape,
        input_shape: Shape | None,
        classes: int | None,
        *,
        side_is_fixed: bool,
    ) -> Match | Mismatch:
        """Compare weights with the code for images of about that shape; `input_shape` is the one that the user gave."""
        prefixed_template = self._shapes(shape, MARKER_CLASSES)
        prefix = common_prefix(prefixed_template)
        template = {name.removeprefix(prefix): of_tensor for name, of_tensor in prefixed_template.items()}
        mapping = {} if set(template) == set(shapes_in_file) else rename(shapes_in_file, template)
        shapes = {(mapping or {}).get(name, name): of_tensor for name, of_tensor in shapes_in_file.items()}
        if mapping is None or ranks_differ(shapes, template):
            return describe_mismatch(self.spec, shapes, template)
        head, stem = classifier_weight(template), stem_weight(template)
        channels = shape[0] if stem is None else shapes[stem][1]
        if input_shape is not None and stem is not None and input_shape[0] != channels:
            raise InputFileError(
                f"The weights take {channels} channels, not {input_shape[0]}: "
                f"--input {channels}x{input_shape[1]}x{input_shape[2]}."
            )
        image_shape = input_shape or (channels, *shape[1:])
        class_count = classes or (shapes[head][0] if head is not None else _outputs(self.spec, image_shape))
        spec = self.spec
        if class_count == 1:  # one number, of which the code's hook makes the logits of two classes
            spec, class_count = spec.with_options({"outputs": "1"}), 2
        built = self._shapes(image_shape, class_count, spec)
        expected = {name.removeprefix(prefix): of_tensor for name, of_tensor in built.items()}
        if shapes != expected:
            return describe_mismatch(spec, shapes, expected)
        return Match(spec, image_shape, class_count, side_is_fixed, mapping, spec.options, prefix)

    def _answers(self, found: Match) -> bool:
        """Whether the code takes images of the size that was assumed, and gives one answer to each."""
        network = registry.build(found.spec, input_shape=found.input_shape, classes=found.classes, seed=0)
        try:
            output = probe.call_network(network.eval(), torch.zeros(2, *found.input_shape))
        except InputFileError:
            return False
        return isinstance(output, Tensor) and len(output) == 2

    def _shapes(self, shape: Shape, classes: int, spec: ArchSpec | None = None) -> Shapes:
        spec = spec or self.spec
        key = (str(spec), shape, classes)
        if key not in self._built:
            self._built[key] = shapes_in(_build(spec, shape, classes))
        return self._built[key]


def timm_is_installed() -> bool:
    """Return whether timm can be searched, without importing it."""
    return importlib.util.find_spec("timm") is not None


def timm_may_fit(weights: Mapping[str, Tensor]) -> bool:
    """Return whether timm is installed and has models with such a first and last layer, without importing it.

    Importing it brings torchvision and PyTorch's compiler, which takes longer than all else that a refused file costs.
    """
    if not timm_is_installed():
        return False
    ends = _named_ends()
    parts = [set(_tails(name)) for name, tensor in weights.items() if tensor.ndim >= 2]
    return all(any(not names.isdisjoint(tails) for tails in parts) for names in ends)


def _tails(name: str) -> Iterator[str]:
    """The layer's name, and what is left of it below each of its parents."""
    layer = name.rpartition(".")[0]
    while layer:
        yield layer
        layer = layer.partition(".")[2]


@cache
def _named_ends() -> tuple[frozenset[str], frozenset[str]]:
    """The first and the last layers of timm's models, as its code spells them; empty where it is not installed."""
    spec = importlib.util.find_spec("timm")
    folders = [Path(folder, "models") for folder in (spec and spec.submodule_search_locations) or ()]
    text = "".join(read_text(file) for folder in folders for file in sorted(folder.glob("*.py")))
    found = _END.findall(text)
    first, last = (
        frozenset(name for key, names in found if key == end for name in _NAME.findall(names)) for end in _ENDS
    )
    return first, last


def published_moments(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation that timm's configuration gives a model, `timm:NAME`, for its pixels."""
    if not timm_is_installed():
        raise MachineError(f"{arch} needs the timm package: pip install 'edgekd[timm]'.")
    try:
        config = _timm().get_pretrained_cfg(arch.removeprefix(PREFIX))
    except RuntimeError as error:
        raise UsageError(f"{arch}: {first_line(error)}.") from error
    return None if config is None else (tuple(config.mean), tuple(config.std))


def timm_alike(weights: Mapping[str, Tensor], hint: str = "") -> tuple[str, ...]:
    """Return the timm models whose first and last layers are among the weights, `hint` first."""
    ranks = {name: tensor.ndim for name, tensor in weights.items()}
    names = []
    for name in sorted(_timm().list_models(), key=lambda name: name != hint):
        ends = _ends(name)
        needed = [f"{layer}.weight" for layer in (*ends.first, *ends.heads)]
        if ends.heads and all(ranks.get(layer, 0) >= 2 for layer in needed):
            names.append(name)
    return tuple(names)


def search_timm(
    names: tuple[str, ...], weights: Mapping[str, Tensor], input_shape: Shape | None, *, deadline: float
) -> TimmMatches:
    """Find those of timm's models that have exactly these names and shapes, until `deadline` (of `time.monotonic`).

    They are built without memory, and only as far as their weights have shapes of the checkpoint.
    """
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    matches: list[Match] = []
    for forgiven in _FORGIVEN:
        for name in names:
            if time.monotonic() > deadline:
                return TimmMatches(tuple(matches), complete=False)
            ends = _ends(name)
            classes = theirs[f"{ends.heads[0]}.weight"][0]
            channels = theirs[f"{ends.first[0]}.weight"][1] if ends.first else 3
            if classes < 2 or channels < 1 or (input_shape is not None and input_shape[0] != channels):
                continue
            spec, shape = ArchSpec(f"{PREFIX}{name}"), input_shape or (channels, ends.side, ends.side)
            if _timm_shapes(spec, shape, classes, frozenset(theirs.values()), forgiven) == theirs:
                matches.append(Match(spec, shape, classes, ends.side_is_fixed, {}))
        if matches:
            break
    return TimmMatches(tuple(matches), complete=True)


def published_pixels(names: Iterable[str]) -> tuple[str, ...]:
    """Return the means and standard deviations of timm's own weights for some of its models, as flags."""
    found = [config for name in names for config in _timm().models.get_arch_pretrained_cfgs(name).values()]
    return tuple(dict.fromkeys(f"--mean {_joined(config.mean)} --std {_joined(config.std)}" for config in found))


def _joined(values: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise MachineError(f"timm is installed but cannot be imported ({error}); mend or remove it.") from error


@cache
def _ends(name: str) -> _Ends:
    config = _timm().get_pretrained_cfg(name)
    if config is None:
        return _Ends((), (), 224, False)

    def layers(value: Any) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(value or ())

    side = config.input_size[-1]
    return _Ends(layers(config.first_conv), layers(config.classifier), side, bool(config.fixed_input_size))


def _timm_shapes(
    spec: ArchSpec, shape: Shape, classes: int, allowed: frozenset[tuple[int, ...]], forgiven: int
) -> Shapes | None:
    """The shapes of a timm model, or None as soon as too many are not allowed or it cannot be built."""
    for meta in (True, False):  # a few models run while they are built, which needs real weights
        try:
            with warnings.catch_warnings(), _OnlyShapes(allowed, meta=meta, forgiven=forgiven):
                warnings.simplefilter("ignore")  # what timm has to say of models that are only tried
                return shapes_in(registry.build(spec, input_shape=shape, classes=classes, seed=0))
        except UsageError as error:
            if isinstance(error.__cause__, (_OtherShape, ValueError, AssertionError)):
                return None
    return None


def _image_side(spec: ArchSpec, theirs: Shapes) -> tuple[int, bool]:
    """The image side to assume, and whether the network takes no other."""
    if registry.family_of(spec.name) is TIMM and timm_is_installed():
        ends = _ends(spec.name.removeprefix(PREFIX))
        return ends.side, ends.side_is_fixed
    stem = next((shape for shape in theirs.values() if len(shape) == 4), None)
    return (224 if stem is not None and stem[-1] >= 7 else 32), False


def _usual_shapes(side: int, theirs: Shapes) -> list[Shape]:
    """Shapes that images may have for the user's own code, the likeliest first; `side` is what its stem suggests."""
    stem = next((shape for shape in theirs.values() if len(shape) == 4), None)
    if stem is not None:
        return [(stem[1], each, each) for each in dict.fromkeys([side, *_SIDES])]
    inputs = next((shape[1] for shape in theirs.values() if len(shape) == 2), 0)
    return square_images(inputs) or [(3, side, side)]


def _build(spec: ArchSpec, shape: Shape, classes: int) -> nn.Module:
    if registry.family_of(spec.name) is TIMM:
        with contextlib.suppress(UsageError), WeightsOnMeta():  # some run while they are built
            return registry.build(spec, input_shape=shape, classes=classes, seed=0)
    return registry.build(spec, input_shape=shape, classes=classes, seed=0)


def _outputs(spec: ArchSpec, shape: Shape) -> int:
    """The number of outputs of code that takes no number of classes; what is no classifier the probe tells."""
    output = probe.call_network(
        registry.build(spec, input_shape=shape, classes=1000, seed=0).eval(), torch.zeros(2, *shape)
    )
    return int(output.shape[1]) if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1 else 1000
