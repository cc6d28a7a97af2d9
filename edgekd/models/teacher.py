"""Teachers from foreign weights: which architecture of the zoo they belong to, and the network itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from edgekd.errors import InputFileError
from edgekd.models import matching, registry
from edgekd.models import torchvision_zoo as zoo
from edgekd.models.matching import Miss, Structure
from edgekd.models.registry import ArchSpec
from edgekd.models.stems import Shape
from edgekd.models.weights import state_dict_of, weight_entries

__all__ = ["Assumption", "Inferred", "infer", "load", "state_dict_of", "weight_entries"]


@dataclass(frozen=True)
class Assumption:
    """Something the weights cannot show, the value taken for it, and the flag that changes it."""

    what: str
    value: str
    flag: str


@dataclass(frozen=True)
class Inferred:
    """A teacher: its architecture, what was assumed, and its weights under the names of the zoo."""

    arch: ArchSpec
    classes: int
    input_shape: Shape
    assumptions: tuple[Assumption, ...]
    mapping: Mapping[str, str] = field(repr=False)
    """Names in the file to names of the zoo; empty where they are the same."""
    state_dict: Mapping[str, Tensor] = field(repr=False, compare=False)


def infer(
    tensors: Mapping[str, Tensor],
    *,
    arch: str | None = None,
    input_shape: Shape | None = None,
    classes: int | None = None,
    accept_mapping: bool = False,
) -> Inferred:
    """Find the architecture whose parameter names and shapes are those of `tensors`.

    `arch` narrows the search to one name and fixes the options it spells out; `input_shape` (C, H, W) replaces the
    assumed image size. Raises InputFileError where the weights contradict these, fit several architectures, fit one
    only under other names (unless `accept_mapping`), or fit none (naming the nearest).
    """
    weights = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    weights, dropped = _without_auxiliary_heads(weights)
    requested = None if arch is None else ArchSpec.parse(arch)
    specs = matching.candidates(weights) if requested is None else matching.variants(requested, weights)
    structures: list[Structure] = []
    misses: list[Miss] = []
    for spec in specs:
        outcome = matching.fit(spec, weights, input_shape, classes)
        if isinstance(outcome, Structure):
            structures.append(outcome)
        else:
            misses.append(outcome)
    exact = [structure for structure in structures if not structure.mapping]
    structures = exact or structures
    if not structures:
        raise _nothing_fits(weights, misses, requested)
    if len(structures) > 1:
        listed = ", ".join(str(structure.spec) for structure in structures)
        raise InputFileError(f"The weights fit {len(structures)} architectures: {listed}. Choose one with --arch NAME.")
    found = structures[0]
    if found.mapping and not accept_mapping:
        raise _mapping_needed(found)
    assumptions = [] if input_shape is not None or found.side_is_fixed else [_assumed_size(found)]
    assumptions += _unseen(found, dropped)
    renamed = {found.mapping.get(name, name): tensor for name, tensor in weights.items()}
    return Inferred(found.spec, found.classes, found.input_shape, tuple(assumptions), found.mapping, renamed)


def load(inferred: Inferred) -> nn.Module:
    """Build the network, fill in its weights, and return it frozen in eval mode."""
    net = registry.build(inferred.arch, input_shape=inferred.input_shape, classes=inferred.classes, seed=0)
    counters = {name: t for name, t in net.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        net.load_state_dict({**counters, **inferred.state_dict}, strict=True)
    except RuntimeError as error:
        raise InputFileError(f"The weights do not load into {inferred.arch}: {error}") from error
    return net.eval().requires_grad_(False)


def _without_auxiliary_heads(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Leave out the heads that GoogLeNet and Inception v3 carry for training only."""
    if "Mixed_5b.branch1x1.conv.weight" not in weights and "inception3a.branch1.conv.weight" not in weights:
        return weights, False
    prefixes = tuple(prefix for group in zoo.TRAINING_ONLY.values() for prefix in group)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
    return kept, len(kept) < len(weights)


def _assumed_size(found: Structure) -> Assumption:
    channels, height, width = found.input_shape
    return Assumption("image size", f"{height}x{width}", f"--input {channels}x{height}x{width}")


def _unseen(found: Structure, dropped: bool) -> Iterable[Assumption]:
    """Return what these weights cannot show about their architecture."""
    name, given = found.spec.name, found.spec.options
    options = {} if registry.is_custom(name) else registry.family_of(name).options

    def flag(option: str, other: str) -> str:
        return f"--arch {replace(found.spec, options=dict(sorted({**given, option: other}.items())))}"

    for option, what, values in matching.unseen_choices(found):
        if option in options and option not in found.requested:
            value, other = values
            yield Assumption(what, value, flag(option, other))
    if dropped:
        yield Assumption("auxiliary classifiers", "left out, only training runs them", "--arch package.module:factory")


def _mapping_needed(found: Structure) -> InputFileError:
    modules: dict[str, str] = {}
    for theirs, ours in found.mapping.items():
        modules.setdefault(theirs.rpartition(".")[0], ours.rpartition(".")[0])
    pairs = [f"{theirs} -> {ours}" for theirs, ours in modules.items() if theirs != ours]
    more = f" and {len(pairs) - 12} more" if len(pairs) > 12 else ""
    return InputFileError(
        f"The weights fit {found.spec} in roles, order and shapes, under other names: {', '.join(pairs[:12])}{more}. "
        "Use this mapping with --accept-mapping, or name the architecture with --arch."
    )


def _nothing_fits(
    weights: Mapping[str, Tensor],
    misses: list[Miss],
    requested: ArchSpec | None,
) -> InputFileError:
    nearest = matching.nearest(weights, misses, requested)
    size = f"the weights ({len(weights)} tensors)"
    what = f"{requested} does not fit {size}" if requested else f"Nothing fits {size}; the nearest is {nearest.spec}"
    return InputFileError(
        f"{what}: {'; '.join(nearest.differences)}. "
        "Give your own code with --arch package.module:factory, or timm's with --arch timm:NAME."
    )
