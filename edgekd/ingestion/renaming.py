"""Pair the names of a checkpoint with those of a network that differs from it in nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from edgekd.models.shapes import Shapes

_Modules = dict[str, dict[str, tuple[int, ...]]]
_REACH = 4
"""How many convolutions further on one may have been registered than it stands in the network."""
_SHORTCUT = re.compile(r"short|skip|down|proj|match", re.IGNORECASE)
"""In what code calls the shortcut of a residual block."""


def rename(shapes: Shapes, template: Shapes) -> dict[str, str] | None:
    """Pair modules by order, each with the same roles of the same rank; None if that fails.

    Where the shapes contradict that order, the convolutions of a block are paired by their shapes, and the BatchNorm
    layers behind them. Sorted names have no order: there equal names are pairs, then names in which one word is another
    throughout, and others must be the only ones of their shapes.

    Args:
        shapes: of the checkpoint's tensors.
        template: of the network's (see `matching`).

    Returns:
        The network's names by those of the checkpoint, where they differ.
    """
    left, right = _by_module(shapes), _by_module(template)
    if len(left) != len(right):
        return None
    pairs: dict[str, str] | None
    if list(shapes) == sorted(shapes) and list(template) != sorted(template):
        pairs = _without_order(left, right)
    else:
        pairs = _in_order(list(left), list(right))
        if not _alike(left, right, pairs) or not _of_equal_shapes(left, right, pairs):
            pairs = _by_shape(left, right) or pairs
    if pairs is None or not _alike(left, right, pairs):
        return None
    named = {
        f"{theirs}.{role}".lstrip("."): f"{ours}.{role}".lstrip(".")
        for theirs, ours in pairs.items()
        for role in left[theirs]
    }
    return {theirs: ours for theirs, ours in named.items() if theirs != ours}


def _by_module(shapes: Shapes) -> _Modules:
    """Module name -> role (weight, bias, running_mean ...) -> shape, in order."""
    modules: _Modules = {}
    for name, shape in shapes.items():
        module, _, role = name.rpartition(".")
        modules.setdefault(module, {})[role] = shape
    return modules


def _ranks(roles: Shapes) -> dict[str, int]:
    return {role: len(shape) for role, shape in roles.items()}


def _in_order(left: Sequence[str], right: Sequence[str]) -> dict[str, str]:
    return dict(zip(left, right, strict=True))


def _alike(left: _Modules, right: _Modules, pairs: dict[str, str]) -> bool:
    return all(_ranks(left[theirs]) == _ranks(right[ours]) for theirs, ours in pairs.items())


def _of_equal_shapes(left: _Modules, right: _Modules, pairs: dict[str, str]) -> bool:
    """Whether convolutions are paired with such of the same shapes; the kernel of the stem is an option."""
    _stem, *others = _convolutions(left) or [""]
    return all(_signature(left, name) == _signature(right, pairs[name]) for name in others)


def _without_order(left: _Modules, right: _Modules) -> dict[str, str] | None:
    """Pair modules of sorted names."""
    pairs = {name: name for name, roles in left.items() if _ranks(roles) == _ranks(right.get(name, {}))}
    rest = {name: roles for name, roles in left.items() if name not in pairs}
    free = {name: roles for name, roles in right.items() if name not in pairs}
    pairs |= _by_other_words(rest, free)
    last = [name for name in rest if name not in pairs]
    if any(list(left.values()).count(left[name]) > 1 for name in last):
        return None
    taken = set(pairs.values())
    return pairs | _in_order(last, [name for name in free if name not in taken])


def _by_other_words(left: _Modules, right: _Modules) -> dict[str, str]:
    """Pair names in which one word stands for another, the same wherever it is found; numbers are no words."""
    words: dict[str, Counter[str]] = {}
    for theirs, roles in left.items():
        for ours in right:
            differing = [(a, b) for a, b in zip(theirs.split("."), ours.split("."), strict=False) if a != b]
            if theirs.count(".") == ours.count(".") and len(differing) == 1 and _ranks(roles) == _ranks(right[ours]):
                word, other = differing[0]
                if not word.isdecimal() and not other.isdecimal():
                    words.setdefault(word, Counter())[other] += 1
    chosen = {word: _most_like(word, others) for word, others in words.items()}
    pairs = {name: ".".join(chosen.get(part) or part for part in name.split(".")) for name in left}
    sound = {name: ours for name, ours in pairs.items() if name != ours and ours in right}
    return sound if len(set(sound.values())) == len(sound) else {}


def _most_like(word: str, others: Counter[str]) -> str | None:
    """The most frequent of other words, or of several the one with the same digits."""
    frequent = [other for other, count in others.items() if count == max(others.values())]
    alike = [other for other in frequent if re.sub(r"\D", "", other) == re.sub(r"\D", "", word)]
    return next((found[0] for found in (frequent, alike) if len(found) == 1), None)


def _by_shape(left: _Modules, right: _Modules) -> dict[str, str] | None:
    """Pair convolutions with such of equal shapes nearby, the BatchNorm layers behind them, and the rest in order."""
    theirs, ours = _convolutions(left), _convolutions(right)
    norms, our_norms = _norms(left), _norms(right)
    if len(theirs) != len(ours) or len(norms) != len(our_norms):
        return None
    order = _order(left, theirs, right, ours, named=True) or _order(left, theirs, right, ours, named=False)
    if order is None:
        return None
    pairs = {theirs[index]: name for index, name in zip(order, ours, strict=True)}
    if len(norms) == len(theirs):
        if any(left[a]["running_mean"] != left[b]["weight"][:1] for a, b in zip(norms, theirs, strict=True)):
            return None
        norms = [norms[index] for index in order]
    elif order != sorted(order):
        return None
    pairs |= _in_order(norms, our_norms)
    return pairs | _in_order([m for m in left if m not in pairs], [m for m in right if m not in pairs.values()])


def _order(
    left: _Modules, theirs: Sequence[str], right: _Modules, ours: Sequence[str], *, named: bool
) -> list[int] | None:
    """For each of our convolutions the place of theirs of the same shapes; None where one has none within reach."""
    waiting = list(range(1, len(theirs)))
    order = [0]
    for name in ours[1:]:
        wanted = _signature(right, name, named=named)
        fitting = [index for index in waiting[:_REACH] if _signature(left, theirs[index], named=named) == wanted]
        if not fitting:
            return None
        last = name.rpartition(".")[2]
        order.append(next((index for index in fitting if theirs[index].rpartition(".")[2] == last), fitting[0]))
        waiting.remove(order[-1])
    return order


def _signature(modules: _Modules, name: str, *, named: bool = False) -> object:
    """What a convolution has in common with itself at another width: its kernel, and the ratio of its channels."""
    rows, columns, *kernel = modules[name]["weight"]
    ratio = Fraction(rows, columns) if columns > 1 else None
    return kernel, ratio, named and _SHORTCUT.search(name) is not None


def _convolutions(modules: _Modules) -> list[str]:
    return [name for name, roles in modules.items() if len(roles.get("weight", ())) > 2]


def _norms(modules: _Modules) -> list[str]:
    return [name for name, roles in modules.items() if "running_mean" in roles]
