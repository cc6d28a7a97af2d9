"""Hold what weights leave open about a network against its own BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import nn

from edgekd.errors import InputFileError
from edgekd.ingestion.inferred import OWN_CODE, Assumption, Inferred, build_teacher
from edgekd.models import registry
from edgekd.models.families import plain
from edgekd.models.statistics import ENOUGH, FAR, StatisticsJudge
from edgekd.models.stems import Shape

RATIO = 2.0
"""How much farther another reading must be from the statistics to be ruled out."""
_MOST_READINGS = 32
_MANY, _SCREENED = 8, 1.5
"""More readings than this are screened first: one so many times farther than the nearest is left out."""


def likeliest(candidates: Sequence[Inferred], judge: StatisticsJudge) -> list[int]:
    """Return the places of the readings that their statistics do not rule out, the nearest first."""
    everything = list(range(len(candidates)))
    if not 2 <= len(candidates) <= _MOST_READINGS:
        return everything
    networks, left = [_network(candidate) for candidate in candidates], everything
    far = judge.distances(networks, screening=True) if len(candidates) > _MANY else None
    if far is not None:
        nearest = min(far)
        left = [place for place in everything if far[place] < _SCREENED * nearest or far[place] <= 0]
    distances = judge.distances([networks[place] for place in left]) if len(left) > 1 else None
    if distances is None:
        return left
    found = sorted(zip(distances, left, strict=True))
    nearest = found[0][0]
    return [place for own, place in found if own < RATIO * nearest or own <= 0]


def rewired(inferred: Inferred, settled: Mapping[str, str], judge: StatisticsJudge) -> Inferred:
    """Return the teacher with the options that its statistics speak for, twice as clearly as for those assumed.

    `settled` are the options that are known, and stay. Where even the best is far from its statistics a remark says so.
    """
    if registry.is_custom(inferred.arch.name):
        return inferred
    inferred, own = _nearest_of_all(inferred, partial(_others, settled=settled), judge)
    if own > FAR:
        remark = (
            f"no images bring {inferred.arch} near its own BatchNorm statistics ({own:.2g} from them, where others "
            "come to 0.03): something in how it is wired may differ from what is assumed. Check it with --data."
        )
        inferred = replace(inferred, remarks=(*inferred.remarks, remark))
    return inferred


def _nearest_of_all(inferred: Inferred, others: _Others, judge: StatisticsJudge) -> tuple[Inferred, float]:
    """Return the teacher that its statistics speak for, and its distance; as it is, and 0, where they say nothing.

    Rare kinds of wiring are compared only where what is usual is not near enough.
    """
    begun = judge.distances([_network(inferred)])
    if begun is None:
        return inferred, 0.0
    inferred, own = _nearest(inferred, list(others(inferred, rarer=False)), judge, begun[0])
    return _nearest(inferred, list(others(inferred, rarer=True)), judge, own) if own > ENOUGH else (inferred, own)


def _nearest(
    inferred: Inferred, others: Sequence[_Other], judge: StatisticsJudge, own: float
) -> tuple[Inferred, float]:
    """Return the teacher with the other option that its statistics clearly speak for, if any, and its distance."""
    distances = judge.distances([_network(other.inferred) for other in others])
    best = min(distances or [own])
    if distances is None or own < RATIO * best:
        return inferred, own
    chosen = others[distances.index(best)]
    value = f"{chosen.option}={chosen.value} by its BatchNorm statistics ({best:.2g} from them, {own:.2g} else)"
    assumptions = [one for one in inferred.assumptions if f"{chosen.option}=" not in one.flag]
    told = Assumption("wiring", value, chosen.back)
    return replace(chosen.inferred, assumptions=(*assumptions, told)), best


@dataclass(frozen=True)
class _Other:
    """A teacher with another value of one option."""

    option: str
    value: str
    inferred: Inferred
    back: str
    """The flag that keeps the value which was assumed."""


class _Others(Protocol):
    """What a teacher is compared with."""

    def __call__(self, inferred: Inferred, *, rarer: bool) -> Iterator[_Other]: ...


def _others(inferred: Inferred, settled: Mapping[str, str], *, rarer: bool) -> Iterator[_Other]:
    """Yield the teacher with another value of each option that leaves no trace in weights, one at a time.

    Of the values the next to the usual one comes, or with `rarer` all that are left.
    """
    arch = inferred.arch
    for name, option in registry.family_of(arch.name).options.items():
        unseen = option.unseen(arch, inferred.input_shape)
        if name in settled or unseen is None:
            continue
        assumed = arch.options.get(name, option.values[0])
        for value in option.values:
            if value != assumed and rarer == (value != unseen.other):
                back = arch.with_options({name: assumed})
                yield _Other(name, value, replace(inferred, arch=arch.with_options({name: value})), f"--arch {back}")


def _activations(inferred: Inferred, flag: str, *, rarer: bool) -> Iterator[_Other]:
    """Yield a plain network with other activations; `flag` is what leads to it as it is."""
    for value in plain.ACTIVATIONS:
        if value != "relu" and rarer == (value != "leaky_relu"):
            name = inferred.arch.name.replace("/relu", f"/{value}")
            other = replace(inferred, arch=replace(inferred.arch, name=name))
            yield _Other("activation", value, other, f"{flag},activation=relu")


def chain(inferred: Inferred, flag: str, judge: StatisticsJudge, *, any_activation: bool) -> Inferred:
    """Return a plain network with the activation that its statistics speak for.

    Raises:
        InputFileError: they speak against all of them, so that it is no chain, or wired in some unusual way.
    """
    others = partial(_activations, flag=flag) if any_activation else lambda _inferred, rarer: iter(())
    inferred, own = _nearest_of_all(inferred, others, judge)
    if own > FAR:
        raise InputFileError(
            f"The weights could be a chain of layers ({inferred.assumptions[0].value}), but no images bring it near "
            f"its own BatchNorm statistics ({own:.2g} from them, where others come to 0.03): it may have a way round "
            f"some layers, or other strides and pools. Give your own code with {OWN_CODE}, or write "
            f"out its layers: --arch {inferred.arch}."
        )
    return inferred


def _network(inferred: Inferred) -> tuple[nn.Module, Shape]:
    return build_teacher(inferred), inferred.input_shape
