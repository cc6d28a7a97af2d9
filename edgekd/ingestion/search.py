"""Compare every reading of a checkpoint with the architectures of the zoo, the user's code, or timm's models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from edgekd.errors import InputFileError
from edgekd.ingestion import matching, outside, timm_index, views
from edgekd.ingestion.matching import Match, Mismatch
from edgekd.ingestion.rewriting import Rewriting, rewritings, with_two_logits
from edgekd.ingestion.views import StateDictView
from edgekd.ingestion.wiring.chain import chain_of
from edgekd.models import families, registry
from edgekd.models.families.outside import PREFIX, names_own_code
from edgekd.models.registry import ArchSpec
from edgekd.models.stems import Shape
from edgekd.text import listed


@dataclass(frozen=True)
class NamedReading:
    """One way to read the checkpoint's names, and the architectures that it fits."""

    view: StateDictView
    weights: Mapping[str, Tensor]
    dropped: bool
    """Whether heads that only training runs were left out."""
    structures: tuple[Match, ...] = ()


@dataclass(frozen=True)
class ZooComparison:
    """What comparing every reading with the known architectures gave."""

    exact: NamedReading | None
    mapped: NamedReading | None = None
    """The reading that fits under the fewest other names."""
    mismatches: tuple[Mismatch, ...] = ()
    entangled: InputFileError | None = None
    """Why a part of the file that fits is not taken."""
    timed_out: bool = False
    rewriting: Rewriting | None = None
    """The form of the weights that fits, where the file's own does not."""
    is_chain: bool = False
    """Whether nothing fits exactly, and the layers make one chain: a plain network, and none of timm's."""


_Comparison = Callable[[Mapping[str, Tensor]], list[Match | Mismatch]]


def compare_with_zoo(
    weights: Mapping[str, Tensor],
    requested: ArchSpec | None,
    input_shape: Shape | None,
    classes: int | None,
    hint: str,
) -> ZooComparison:
    """Compare every reading with the architecture requested, or with the zoo and then with timm's models."""
    compare = _comparison(requested, input_shape, classes)
    as_they_are, *others = rewritings(weights)
    findings = _search(as_they_are.weights, compare)
    if requested is not None and names_own_code(requested.name):
        return findings
    for other in others:
        if findings.exact or findings.mapped:
            break
        found = _search(other.weights, compare)
        if found.exact or found.mapped:
            findings = replace(found, rewriting=other)
    findings = replace(findings, is_chain=findings.exact is None and chain_of(plain(weights)) is not None)
    if findings.exact or findings.is_chain or requested is not None or not outside.timm_is_installed():
        return findings
    return _compare_with_timm(weights, input_shape, classes, hint, findings)


def _compare_with_timm(
    weights: Mapping[str, Tensor], input_shape: Shape | None, classes: int | None, hint: str, findings: ZooComparison
) -> ZooComparison:
    """Return `findings` with what timm's models add: those looked up by their shapes, else those of such ends."""
    known = _or_of_two_logits(weights, lambda read: _known_of_timm(read, input_shape, classes, findings))
    few = len(weights) < outside.FEWEST_TENSORS
    if known.exact or few or timm_index.is_complete() or not outside.timm_may_fit(weights):
        return known
    return _or_of_two_logits(weights, lambda read: _search_timm(read, input_shape, hint, known))


def _or_of_two_logits(
    weights: Mapping[str, Tensor], compare: Callable[[Mapping[str, Tensor]], ZooComparison]
) -> ZooComparison:
    """Compare weights as they are, and where nothing fits exactly with the logits 0 and z of their single output z."""
    found = compare(weights)
    two = None if found.exact or found.timed_out else with_two_logits(weights)
    if two is None:
        return found
    other = compare(two.weights)
    return replace(other, rewriting=two) if other.exact else found


def plain(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights in the plainest reading: all of them, without a common prefix."""
    return next(_readings(weights)).weights


def _comparison(requested: ArchSpec | None, input_shape: Shape | None, classes: int | None) -> _Comparison:
    """What compares a reading of the weights: with the whole zoo, one architecture of it, or the user's code."""
    if requested is not None and registry.is_custom(requested.name):
        code = outside.CustomArchitecture(requested)
        return lambda read: [code.fit(read, input_shape, classes)]

    def with_zoo(read: Mapping[str, Tensor]) -> list[Match | Mismatch]:
        specs = matching.candidate_archs(read) if requested is None else matching.variants(requested, read)
        return [matching.match(spec, read, input_shape, classes) for spec in specs]

    return with_zoo


def _search(weights: Mapping[str, Tensor], compare: _Comparison) -> ZooComparison:
    """Read the names in every way until one fits exactly."""
    mapped: NamedReading | None = None
    mismatches: list[Mismatch] = []
    entangled: InputFileError | None = None
    for reading in _readings(weights):
        outcomes = compare(reading.weights)
        structures = tuple(outcome for outcome in outcomes if isinstance(outcome, Match))
        exact = tuple(structure for structure in structures if not structure.mapping)
        if exact:
            problem = _entangled(reading.view, exact[0], weights)
            if problem is None:
                return ZooComparison(replace(reading, structures=exact))
            entangled = entangled or problem
        elif structures and not reading.view.left_out:
            needed = min(len(structure.mapping) for structure in structures)
            if mapped is None or needed < min(len(structure.mapping) for structure in mapped.structures):
                mapped = replace(reading, structures=structures)
        if not reading.view.left_out:
            mismatches += [outcome for outcome in outcomes if isinstance(outcome, Mismatch)]
    return ZooComparison(None, mapped, tuple(mismatches), entangled)


def _search_timm(
    weights: Mapping[str, Tensor], input_shape: Shape | None, hint: str, findings: ZooComparison
) -> ZooComparison:
    """Return `findings` with what timm's models add to them."""
    deadline = time.monotonic() + outside.SEARCH_SECONDS
    searched: set[tuple[str, ...]] = set()
    for reading in _readings(weights):
        alike = outside.timm_alike(reading.weights, hint)
        if alike in searched:
            continue  # the same first and last layers: what this reading unwraps lies between them
        searched.add(alike)
        search = outside.search_timm(alike, reading.weights, input_shape, deadline=deadline)
        if search.structures:
            findings = _with_exact(findings, reading, search.structures, weights)
            if findings.exact:
                return findings
        if not search.complete:
            return replace(findings, timed_out=True)
    return findings


def _known_of_timm(
    weights: Mapping[str, Tensor], input_shape: Shape | None, classes: int | None, findings: ZooComparison
) -> ZooComparison:
    """Return `findings` with the timm model that has these shapes, found without building others."""
    for reading in _readings(weights):
        shapes = {name: tuple(tensor.shape) for name, tensor in reading.weights.items()}
        models = [outside.CustomArchitecture(ArchSpec(f"{PREFIX}{name}")) for name in timm_index.models_like(shapes)]
        fits = [model.fit(reading.weights, input_shape, classes) for model in models]
        structures = tuple(fit for fit in fits if isinstance(fit, Match))
        exact = tuple(structure for structure in structures if not structure.mapping)
        if exact:
            findings = _with_exact(findings, reading, exact, weights)
            if findings.exact:
                return findings
        elif structures and findings.mapped is None and not reading.view.left_out:
            findings = replace(findings, mapped=replace(reading, structures=structures))
    return findings


def _with_exact(
    findings: ZooComparison, reading: NamedReading, structures: tuple[Match, ...], weights: Mapping[str, Tensor]
) -> ZooComparison:
    """Return `findings` with a reading that fits, or with why the part of the file that fits is not taken."""
    entangled = _entangled(reading.view, structures[0], weights)
    if entangled is None:
        return replace(findings, exact=replace(reading, structures=structures))
    return replace(findings, entangled=findings.entangled or entangled)


def _readings(weights: Mapping[str, Tensor]) -> Iterator[NamedReading]:
    for view in views.views(weights):
        read = {ours: weights[theirs] for theirs, ours in view.names.items()}
        yield NamedReading(view, *_without_auxiliary_heads(read))


def _without_auxiliary_heads(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Leave out the heads that some networks carry for training only."""
    with_heads = [family for family in families.FAMILIES if family.training_only]
    if not any(family.telltale in weights for family in with_heads):
        return weights, False
    prefixes = tuple(prefix for family in with_heads for prefix in family.training_only)
    tensors = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
    return tensors, len(tensors) < len(weights)


def _entangled(view: StateDictView, match: Match, weights: Mapping[str, Tensor]) -> InputFileError | None:
    """The error for a part of a file that fits beside others of unknown meaning."""
    beside = views.left_out_tensors(view)
    root = view.part.removesuffix(".*")
    rivals = [part for part in beside.copies if not views.AVERAGED.fullmatch(part.removesuffix(".*"))]
    if rivals and not views.AVERAGED.fullmatch(root):
        return InputFileError(
            f"The file holds several networks of the same names ({view.part}, {', '.join(rivals)}). Save the teacher's "
            f"alone: {_save_part(view.part)}."
        )
    # A matrix is no class weight of a loss but a layer, such as the one that metric learning puts behind the network.
    layers = [name for name in beside.training if weights[name].ndim > 1]
    # Moments of pixels are one number, or one a channel.
    features = [name for name in beside.moments.values() if weights[name].numel() not in (1, match.input_shape[0])]
    unknown = [*beside.unknown, *layers, *features]
    if unknown:
        return InputFileError(
            f"The weights under {view.part} fit {match.spec}, but beside them stand others of unknown meaning: "
            f"{listed(unknown)}. If that part alone is the teacher, save it alone: "
            f"{_save_part(view.part)}; "
            "if not, give your own code with --arch package.module:factory."
        )
    return None


def _save_part(part: str) -> str:
    """The line that saves `model.*`, or `all but ema.*`, of a state dict alone."""
    prefix = part.removeprefix("all but ").removesuffix("*")
    if part.startswith("all but "):
        chosen = f"k: v for k, v in state_dict.items() if not k.startswith({prefix!r})"
    else:
        chosen = f"k.removeprefix({prefix!r}): v for k, v in state_dict.items() if k.startswith({prefix!r})"
    return f"torch.save({{{chosen}}}, 'weights.pt')"
