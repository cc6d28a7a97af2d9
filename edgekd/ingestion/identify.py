"""Teachers from foreign weights: which architecture of the zoo they belong to, and the network itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from edgekd.errors import InputFileError
from edgekd.ingestion import contents, matching, outside, search, views
from edgekd.ingestion.inferred import OWN_CODE, Assumption, Inferred, build_teacher
from edgekd.ingestion.matching import Match
from edgekd.ingestion.rewriting import Rewriting, with_two_logits, without_biases
from edgekd.ingestion.search import NamedReading, ZooComparison
from edgekd.ingestion.weights import ITSELF, Weights, state_dict_of, weights_of
from edgekd.ingestion.wiring import judging, plain
from edgekd.ingestion.wiring.chain import chain_of
from edgekd.models import probe, registry
from edgekd.models.families.outside import PREFIX, TWINS
from edgekd.models.families.plain import NAME as PLAIN
from edgekd.models.registry import ArchSpec
from edgekd.models.statistics import StatisticsJudge
from edgekd.models.stems import Shape
from edgekd.text import listed

__all__ = [
    "Assumption",
    "Inferred",
    "Weights",
    "build_teacher",
    "infer",
    "other_entries",
    "state_dict_of",
    "weights_of",
]


_MOST_SHOWN = 6
"""Wirings that a message lists."""


def infer(
    tensors: Mapping[str, Tensor],
    *,
    arch: str | None = None,
    input_shape: Shape | None = None,
    classes: int | None = None,
    accept_mapping: bool = False,
    hint: str = "",
    judge: StatisticsJudge | None = None,
) -> Inferred:
    """Find the architecture whose parameter names and shapes are those of `tensors`.

    `arch` narrows the search to one name and fixes the options it spells out; `input_shape` (C, H, W) replaces the
    assumed image size; `hint`, a name that the file itself gives, only decides between architectures that all fit;
    `judge` holds what weights leave open against their own BatchNorm statistics.
    Raises InputFileError where the weights contradict these, fit several architectures, fit one only under other
    names (unless `accept_mapping`), or fit none (naming the nearest).
    """
    weights = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    requested = None if arch is None else ArchSpec.parse(arch)
    if requested is not None and requested.name == PLAIN:
        return _plain(search.plain(weights), requested, input_shape, judge)
    findings = search.compare_with_zoo(weights, requested, input_shape, classes, hint)
    chosen = findings.exact or findings.mapped
    if chosen is None:
        named = search.plain(weights)
        classifies = not contents.no_classifier({name: tuple(tensor.shape) for name, tensor in named.items()})
        if requested is None and findings.entangled is None and classifies and findings.is_chain:
            return _plain(named, requested, input_shape, judge)
        raise findings.entangled or _nothing_fits(search.plain(weights), findings, requested)
    chosen_match, decided = _only_one(chosen, hint if requested is None else "")
    named_by_size = requested is not None and registry.family_of(requested.name).name_with_width is not None
    if requested is not None and named_by_size and chosen_match.spec.name != requested.name:
        raise InputFileError(f"The weights are those of {chosen_match.spec}, not of {requested}.")
    if chosen_match.mapping and not accept_mapping:
        raise _mapping_needed(chosen_match)
    assumptions = [*decided, *_left_out(chosen, weights)]
    assumptions += _assumed_size(chosen_match) if input_shape is None else []
    assumptions += _unseen(chosen_match, chosen.dropped)
    assumptions += _published_pixels(chosen_match, chosen)
    inferred = _inferred(chosen_match, chosen.weights, tuple(assumptions))
    if findings.rewriting is not None:
        inferred = _rewritten(inferred, chosen_match, chosen, findings.rewriting)
    return inferred if judge is None else judging.rewired(inferred, chosen_match.known_options, judge)


def _plain(
    weights: Mapping[str, Tensor], requested: ArchSpec | None, input_shape: Shape | None, judge: StatisticsJudge | None
) -> Inferred:
    """Return the one way in which a chain of layers can be wired; several are the user's choice."""
    two_logits = with_two_logits(weights)
    if two_logits is not None:
        weights = two_logits.weights
    chain = chain_of(weights)
    if chain is None:
        raise InputFileError(
            "The weights are no chain of convolutions, BatchNorms and linear layers; give your own code with "
            f"{OWN_CODE}."
        )
    readings = plain.readings(chain, requested, input_shape)
    if not readings:
        raise InputFileError(
            f"The weights are a chain of {chain.words}, but no usual image size, pooling, padding or stride leads to "
            f"the values that {chain.linears[0].name} takes. Say what you know of it, such as --input "
            f"{chain.channels or 1}x64x64 --arch plain,padding=same,pool=each, or give your own code with "
            f"{OWN_CODE}."
        )
    candidates = [_as_inferred(reading, weights, sized=input_shape is not None) for reading in readings]
    if two_logits is not None:
        candidates = [replace(one, assumptions=(*one.assumptions, _zero_logit(two_logits))) for one in candidates]
    chosen = judging.likeliest(candidates, judge) if judge is not None else list(range(len(candidates)))
    if len(chosen) == 1 and readings[chosen[0]].usual:
        only = candidates[chosen[0]]
        free = requested is None or "activation" not in requested.options
        flag = only.assumptions[0].flag
        return only if judge is None else judging.chain(only, flag, judge, any_activation=free)
    shown = "; ".join(f"{readings[place].flag} ({readings[place].words})" for place in chosen[:_MOST_SHOWN])
    more = "; or another with --arch plain,padding=...,pool=LAYER+LAYER" if len(chosen) > _MOST_SHOWN else ""
    ways = f"which can be wired in {len(chosen)} ways. Choose one, the likeliest first"
    if len(chosen) == 1:
        ways = "and no usual wiring fits. If it is wired like this, say so"
    raise InputFileError(f"The weights are a chain of {chain.words}, {ways}: {shown}{more}.")


def _as_inferred(reading: plain.Reading, weights: Mapping[str, Tensor], *, sized: bool) -> Inferred:
    assumptions = [Assumption("wiring", reading.words, reading.flag.partition(" --input")[0])]
    if not sized:
        channels, height, width = reading.input_shape
        assumptions.append(Assumption("image size", f"{height}x{width}", f"--input {channels}x{height}x{width}"))
    return Inferred(reading.spec, reading.classes, reading.input_shape, tuple(assumptions), {}, weights)


def other_entries(weights: Weights) -> tuple[Assumption, ...]:
    """Return the assumption that a file's first set of weights is the wanted one, where it holds several."""
    if not weights.others:
        return ()
    value = f"{weights.entry}, not {', '.join(weights.others)}"
    if weights.others[0] == ITSELF:
        return (Assumption("weights", value, "a file that holds the others alone"),)
    keys = "".join(f"[{key!r}]" for key in weights.others[0].split("."))
    return (Assumption("weights", value, f"a file made by torch.save(torch.load(FILE){keys}, 'other.pt')"),)


def _only_one(reading: NamedReading, hint: str) -> tuple[Match, list[Assumption]]:
    """The only structure, the one that the file names itself, or any of several that answer alike."""
    first, *others = reading.structures
    if TWINS.fullmatch(hint) and not registry.is_custom(first.spec.name):
        raise InputFileError(
            f"The weights fit {first.spec}, but the file says {hint}, which has the same weights and pools otherwise. "
            f"Choose with --arch {first.spec} or --arch {PREFIX}{hint.removeprefix(PREFIX)}."
        )
    if not others:
        return first, []
    named = [s for s in reading.structures if s.spec.name.removeprefix(PREFIX) == hint.removeprefix(PREFIX)]
    if len(named) == 1:
        other = next(structure for structure in reading.structures if structure is not named[0])
        value = f"{named[0].spec}, as the file says (others fit too)"
        return named[0], [Assumption("architecture", value, f"--arch {other.spec}")]
    if _answer_alike(reading):
        value = f"{first.spec} ({', '.join(str(other.spec) for other in others)} answer alike)"
        return first, [Assumption("architecture", value, f"--arch {others[0].spec}")]
    listed = ", ".join(str(structure.spec) for structure in reading.structures)
    raise InputFileError(
        f"The weights fit {len(reading.structures)} architectures: {listed}. Choose one with --arch NAME."
    )


def _answer_alike(reading: NamedReading) -> bool:
    """Whether timm's models of different names compute the same function."""
    first, *others = reading.structures
    if len(others) > 4 or any(s.mapping or not registry.is_custom(s.spec.name) for s in reading.structures):
        return False
    if any(structure.input_shape != first.input_shape for structure in others):
        return False
    nets = [build_teacher(_inferred(structure, reading.weights, ())) for structure in reading.structures]
    return all(probe.same_answers(net, nets[0], first.input_shape, seed=0) for net in nets[1:])


def _inferred(match: Match, weights: Mapping[str, Tensor], assumptions: tuple[Assumption, ...]) -> Inferred:
    renamed = {match.prefix + match.mapping.get(name, name): tensor for name, tensor in weights.items()}
    return Inferred(match.spec, match.classes, match.input_shape, assumptions, match.mapping, renamed)


def _rewritten(inferred: Inferred, match: Match, reading: NamedReading, rewriting: Rewriting) -> Inferred:
    """A teacher whose weights fit in another form than the file's: the biases put where the network has a place."""
    assumptions = list(inferred.assumptions)
    if rewriting.head:
        assumptions.append(_zero_logit(rewriting))
    read = {theirs: reading.view.names[theirs] for theirs in rewriting.biases if theirs in reading.view.names}
    biases = {match.prefix + match.mapping.get(ours, ours): rewriting.biases[theirs] for theirs, ours in read.items()}
    if not biases:
        return replace(inferred, assumptions=tuple(assumptions))
    net = registry.build(inferred.arch, input_shape=inferred.input_shape, classes=inferred.classes, seed=0)
    folded = without_biases(net, inferred.state_dict, biases, inferred.input_shape)
    if folded is None:
        raise InputFileError(
            f"The weights fit {inferred.arch} but for biases of convolutions which no BatchNorm takes away: those of "
            f"{listed(name.removesuffix('.weight') for name in biases)}. Give your own code with {OWN_CODE}."
        )
    value = f"of {len(biases)} convolutions, subtracted from the running means: the same function"
    assumptions.append(Assumption("biases before BatchNorm", value, OWN_CODE))
    return replace(inferred, assumptions=tuple(assumptions), state_dict=folded)


def _zero_logit(rewriting: Rewriting) -> Assumption:
    value = "two classes with the logits 0 and z, which a softmax turns into what a sigmoid makes of z"
    return Assumption(f"the single output z of {rewriting.head}", value, OWN_CODE)


def _left_out(reading: NamedReading, tensors: Mapping[str, Tensor]) -> Iterator[Assumption]:
    """What stood beside the network in the file and was left out."""
    rest = views.left_out_tensors(reading.view)
    if rest.copies:
        value = f"{reading.view.part}, not {', '.join(rest.copies)}"
        yield Assumption("weights", value, "a file that holds the others alone")
    if rest.moments:
        # Pixels of 0 to 255, as some networks take them, deviate by more than 2.
        scale = 255 if bool((tensors[rest.moments["std"]] > 2).any()) else 1
        flags = (f"--{what} {_values(tensors[rest.moments[what]] / scale)}" for what in ("mean", "std"))
        value = "left out; real images need it instead"
        yield Assumption("pixel normalisation inside the network", value, " ".join(flags))
    if rest.training:
        yield Assumption(f"{listed(rest.training)}", "left out", OWN_CODE)


def _values(tensor: Tensor) -> str:
    return ",".join(f"{value:g}" for value in tensor.flatten()[:8].tolist())


def _assumed_size(match: Match) -> Iterator[Assumption]:
    """The assumed image size where the weights leave it open, also between an image and one that is padded."""
    channels, height, width = match.input_shape
    family = registry.family_of(match.spec.name)
    if not match.side_is_fixed:
        yield Assumption("image size", f"{height}x{width}", f"--input {channels}x{height}x{width}")
    elif height == family.padded_side:
        small = f"{family.smaller_side}x{family.smaller_side}"
        yield Assumption("image size", f"{height}x{height}, not {small} padded", f"--input {channels}x{small}")


def _unseen(match: Match, dropped: bool) -> Iterable[Assumption]:
    """What these weights cannot show about their architecture."""
    for name, option in registry.family_of(match.spec.name).options.items():
        unseen = option.unseen(match.spec, match.input_shape)
        if unseen is not None and name not in match.known_options:
            yield Assumption(unseen.what, unseen.assumed, f"--arch {match.spec.with_options({name: unseen.other})}")
    if dropped:
        yield Assumption("auxiliary classifiers", "left out, only training runs them", OWN_CODE)


def _published_pixels(match: Match, reading: NamedReading) -> Iterator[Assumption]:
    """What timm's own weights of this network, and of those that answer alike, want of pixels."""
    names = [str(match.spec), *(str(other.spec) for other in reading.structures)]
    timms = [name.removeprefix(PREFIX) for name in dict.fromkeys(names) if name.startswith(PREFIX)]
    if timms and match.input_shape[0] == 3:
        flags = outside.published_pixels(timms)
        if flags:
            yield Assumption(
                "mean and std of real images", "unknown; timm has weights of this network", " or ".join(flags)
            )


def _mapping_needed(match: Match) -> InputFileError:
    pairs = mapping_in_short(match.mapping)
    more = f" and {len(pairs) - 20} more" if len(pairs) > 20 else ""
    return InputFileError(
        f"The weights fit {match.spec} in roles, order and shapes, under other names: {', '.join(pairs[:20])}{more}. "
        f"Use this mapping with --accept-mapping, or give your own code with {OWN_CODE}."
    )


def mapping_in_short(mapping: Mapping[str, str]) -> list[str]:
    """Return what a mapping renames, each difference once: `shortcut -> downsample (3 layers)`."""
    layers = dict.fromkeys((theirs.rpartition(".")[0], ours.rpartition(".")[0]) for theirs, ours in mapping.items())
    counts = Counter(_difference(theirs.split("."), ours.split(".")) for theirs, ours in layers if theirs != ours)
    return [text if count == 1 else f"{text} ({count} layers)" for text, count in counts.items()]


def _difference(theirs: list[str], ours: list[str]) -> str:
    """Return `theirs -> ours` without the components that both begin or end with."""
    while len(theirs) > 1 and len(ours) > 1 and theirs[0] == ours[0]:
        theirs, ours = theirs[1:], ours[1:]
    while len(theirs) > 1 and len(ours) > 1 and theirs[-1] == ours[-1]:
        theirs, ours = theirs[:-1], ours[:-1]
    return f"{'.'.join(theirs)} -> {'.'.join(ours)}"


def _nothing_fits(weights: Mapping[str, Tensor], findings: ZooComparison, requested: ArchSpec | None) -> InputFileError:
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    nearest = matching.nearest(weights, findings.mismatches, requested)
    held = contents.in_words(shapes)
    size = f"the weights ({len(weights)} tensors{': ' if held else ''}{held})"
    what = f"{requested} does not fit {size}" if requested else f"Nothing fits {size}"
    if findings.timed_out:
        what = f"The search of timm's models stopped after {outside.SEARCH_SECONDS:.0f} s. {what}"
    if nearest is not None:
        what += f"{'' if requested else f'; the nearest is {nearest.spec}'}: {'; '.join(nearest.differences)}"
    other = "" if nearest is not None and not requested else contents.no_classifier(shapes)
    ways = [f"Give your own code with {OWN_CODE}"]
    if outside.timm_is_installed() or requested is not None:
        ways += ["timm's with --arch timm:NAME"] if len(weights) >= outside.FEWEST_TENSORS or requested else []
    elif len(weights) >= outside.FEWEST_TENSORS:
        ways.append("have timm's models searched: pip install 'edgekd[timm]'")
    return InputFileError(f"{what}. {f'{other} ' if other else ''}{', or '.join(ways)}.")
