"""The layers of a checkpoint as one chain: convolutions, then linear layers, each with its BatchNorm."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from edgekd.models.families.plain import LAYER_NAME, MOST_LAYERS
from edgekd.text import counted

_BRANCHES = re.compile(
    r"short_?cut|down_?sampl|skip|resid|(^|\.)res\d*[_.]|identity|squeeze|excit|attn|attention|(^|\.)se\d?(\.|$)"
    r"|branch|lateral|decoder|proj|(^|\.)(layer|stage|block)s?\d*\.\d+\.(.*\.)?conv\d"
)
"""Names of layers that lie beside the chain, or in blocks with a way round them: such a network is no chain."""


@dataclass(frozen=True)
class Layer:
    """A layer with weights: `conv`, `bn` or `linear`."""

    kind: str
    name: str
    shape: tuple[int, ...]
    """Of the weight: (out, in, height, width), (out, in) or (channels,)."""
    bias: bool


@dataclass(frozen=True)
class Chain:
    """The layers of a chain in order, and what follows from their places in a Sequential."""

    convs: tuple[Layer, ...]
    norms: tuple[Layer | None, ...]
    """The BatchNorm of each convolution."""
    linears: tuple[Layer, ...]
    linear_norms: tuple[Layer | None, ...]

    @property
    def channels(self) -> int:
        """Channels of the images; of a network without convolutions only its number of inputs is known."""
        return self.convs[0].shape[1] if self.convs else 0

    @property
    def classes(self) -> int:
        """Outputs of the last layer."""
        return (self.linears or self.convs)[-1].shape[0]

    @property
    def words(self) -> str:
        """What it is made of, in words."""
        norms = sum(norm is not None for norm in (*self.norms, *self.linear_norms))
        parts = (len(self.convs), "convolution"), (norms, "BatchNorm"), (len(self.linears), "linear layer")
        return ", ".join(counted(n, what) for n, what in parts if n)


def chain_of(weights: Mapping[str, Tensor]) -> Chain | None:
    """Return the layers as one chain; None where they are none, or more than a chain."""
    layers = _layers(weights)
    if layers is None or any(_BRANCHES.search(layer.name) or not LAYER_NAME.fullmatch(layer.name) for layer in layers):
        return None
    convs = [layer for layer in layers if layer.kind == "conv"]
    linears = [layer for layer in layers if layer.kind == "linear"]
    if not linears and len(convs) < 2:
        return None
    widths = [layer.shape[0] for layer in convs]
    for before, layer in zip(widths, convs[1:], strict=False):
        groups, rest = divmod(before, layer.shape[1])
        if rest or layer.shape[0] % groups:
            return None
    if any(before.shape[0] != layer.shape[1] for before, layer in itertools.pairwise(linears)):
        return None
    if convs and linears and linears[0].shape[1] % widths[-1]:
        return None
    norms = _norms_by_layer(layers)
    if norms is None:
        return None
    of_convs, of_linears = (tuple(norms.get(layer.name) for layer in part) for part in (convs, linears))
    chain = Chain(tuple(convs), of_convs, tuple(linears), of_linears)
    return None if of_linears and of_linears[-1] is not None else chain


def gap_between(first: str, second: str) -> int | None:
    """Return how many layers without weights lie between two of one Sequential; None where they are of none."""
    (parent, _, number), (other, _, next_number) = first.rpartition("."), second.rpartition(".")
    if parent != other or not (number.isdecimal() and next_number.isdecimal()) or len(next_number) > 6:
        return None
    return int(next_number) - int(number) - 1


def _layers(weights: Mapping[str, Tensor]) -> list[Layer] | None:
    """The layers that hold the weights, in order; None where there is any other."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name in _in_order(weights):
        module, _, role = name.rpartition(".")
        modules.setdefault(module, {})[role] = weights[name]
    if not 1 <= len(modules) <= MOST_LAYERS or "" in modules:
        return None
    layers = []
    for name, roles in modules.items():
        layer = _layer(name, roles)
        if layer is None:
            return None
        layers.append(layer)
    return layers


def _layer(name: str, roles: Mapping[str, Tensor]) -> Layer | None:
    shapes = {role: tuple(tensor.shape) for role, tensor in roles.items()}
    shape = shapes.get("weight", ())
    if shapes.keys() == {"weight", "bias", "running_mean", "running_var"} and len(set(shapes.values())) == 1:
        return Layer("bn", name, shape, bias=True) if len(shape) == 1 else None
    if shapes.keys() - {"bias"} != {"weight"} or 0 in shape or shapes.get("bias", shape[:1]) != shape[:1]:
        return None
    kind = {4: "conv", 2: "linear"}.get(len(shape))
    if kind == "conv" and shape[2] != shape[3]:
        return None  # its padding differs by side
    return None if kind is None else Layer(kind, name, shape, bias="bias" in shapes)


def _in_order(names: Iterable[str]) -> list[str]:
    """Names as they were registered; sorted ones, as safetensors leaves them, by their numbers."""
    given = list(names)
    return sorted(given, key=_natural) if given == sorted(given) else given


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _norms_by_layer(layers: Sequence[Layer]) -> dict[str, Layer] | None:
    """The BatchNorm that follows each layer: the next one, or where all stand together the one of its number."""
    found: dict[str, Layer] = {}
    for before, layer in itertools.pairwise(layers):
        if layer.kind == "bn" and before.kind != "bn" and before.shape[0] == layer.shape[0]:
            found[before.name] = layer
    norms = [layer for layer in layers if layer.kind == "bn"]
    if len(found) == len(norms):
        return found
    found, free = {}, [layer for layer in layers if layer.kind != "bn"]
    for norm in norms:
        fitting = [layer for layer in free if layer.shape[0] == norm.shape[0]]
        numbered = [layer for layer in fitting if re.findall(r"\d+$", layer.name) == re.findall(r"\d+$", norm.name)]
        owner = next(iter(numbered or fitting), None)
        if owner is None:
            return None
        found[owner.name] = norm
        free = free[free.index(owner) + 1 :] if not numbered else [layer for layer in free if layer is not owner]
    return found
