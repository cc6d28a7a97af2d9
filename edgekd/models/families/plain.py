"""Plain networks: convolutions, BatchNorms and linear layers in one chain, written out as text.

`plain/conv+conv1+6k5/relu/max2/flatten/linear+fc1+120/relu/linear+fc2+10` is a whole network: its layers in the order
in which they run, each with its name in the checkpoint. `plain` alone, with options, is how a user settles what a
checkpoint leaves open (`ingestion/wiring/plain.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.errors import UsageError
from edgekd.models.families.base import Family, Option
from edgekd.models.stems import Shape
from edgekd.text import counted

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec

NAME = "plain"
ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "elu": "ELU",
    "selu": "SELU",
    "relu6": "ReLU6",
    "silu": "SiLU",
    "gelu": "GELU",
    "hardswish": "Hardswish",
}
"""Activations by their name in a program, and their class in torch.nn."""
MOST_LAYERS = 200
_MOST_CHANNELS = 2**16
LAYER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
"""Names of layers that can be written into a program."""
_SYNTAX = {
    "conv": re.compile(
        rf"conv\+({LAYER_NAME.pattern})\+(\d{{1,5}})k(\d{{1,2}})(?:x(\d{{1,2}}))?(?:s(\d))?(?:p(\d{{1,2}}))?(?:g(\d{{1,5}}))?(n)?"
    ),
    "bn": re.compile(rf"bn\+({LAYER_NAME.pattern})"),
    "linear": re.compile(rf"linear\+({LAYER_NAME.pattern})\+(\d{{1,5}})(n)?"),
    "pool": re.compile(r"(max|avg)(\d)(?:s(\d))?"),
    "gap": re.compile(r"gap(\d{1,2})?"),
}


@dataclass(frozen=True)
class Op:
    """One step of a plain network; what a kind has no use for keeps its default."""

    kind: str
    """`conv`, `bn`, `linear`, an activation, `max`, `avg`, `gap` (adaptive average pooling) or `flatten`."""
    name: str = ""
    out: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True

    def __str__(self) -> str:
        bias = "" if self.bias else "n"
        if self.kind == "conv":
            height, width = self.kernel
            kernel = f"k{height}" + (f"x{width}" if width != height else "")
            rest = (
                (f"s{self.stride}", self.stride != 1),
                (f"p{self.padding}", self.padding),
                (f"g{self.groups}", self.groups != 1),
            )
            return f"conv+{self.name}+{self.out}{kernel}{''.join(text for text, shown in rest if shown)}{bias}"
        if self.kind == "linear":
            return f"linear+{self.name}+{self.out}{bias}"
        if self.kind == "bn":
            return f"bn+{self.name}"
        if self.kind in ("max", "avg"):
            size = self.kernel[0]
            return f"{self.kind}{size}" + (f"s{self.stride}" if self.stride != size else "")
        if self.kind == "gap":
            return "gap" + (str(self.out) if self.out > 1 else "")
        return self.kind


def program_text(ops: tuple[Op, ...]) -> str:
    """Return the name of the architecture that runs these steps."""
    return "/".join([NAME, *map(str, ops)])


def in_short(arch: str) -> str:
    """Return an architecture as a line of output names it: a written-out network by what it has."""
    if not arch.startswith(f"{NAME}/"):
        return arch
    kinds = [step.partition("+")[0] for step in arch.split("/")]
    named = {"conv": "convolution", "bn": "BatchNorm", "linear": "linear layer"}
    return f"{NAME} ({', '.join(counted(kinds.count(kind), what) for kind, what in named.items() if kind in kinds)})"


def parse_program(name: str) -> tuple[Op, ...]:
    """Read the steps back from a name; raise UsageError for what is none."""
    first, *tokens = name.split("/")
    if first != NAME or not tokens or len(tokens) > 4 * MOST_LAYERS:
        raise UsageError(f"{NAME}/STEP/STEP... takes 1 to {4 * MOST_LAYERS} steps, not {len(tokens)}.")
    return tuple(map(_op, tokens))


def _op(token: str) -> Op:
    if token in ACTIVATIONS or token == "flatten":  # noqa: S105  (no password)
        return Op(token)
    for kind, syntax in _SYNTAX.items():
        match = syntax.fullmatch(token)
        if match is None:
            continue
        if kind == "conv":
            layer, out, height, width, stride, padding, groups, no_bias = match.groups()
            kernel = (int(height), int(width or height))
            op = Op("conv", layer, int(out), kernel, int(stride or 1), int(padding or 0), int(groups or 1), not no_bias)
        elif kind == "linear":
            op = Op("linear", match[1], int(match[2]), bias=not match[3])
        elif kind == "bn":
            op = Op("bn", match[1])
        elif kind == "gap":
            op = Op("gap", out=int(match[1] or 1))
        else:
            size = int(match[2])
            op = Op(match[1], kernel=(size, size), stride=int(match[3] or size))
        if (
            min(*op.kernel, op.stride, op.groups) < 1
            or op.out > _MOST_CHANNELS
            or (op.name and kind != "bn" and not op.out)
        ):
            break
        return op
    raise UsageError(
        f'"{token[:80]}" is no step of a plain network: conv+NAME+6k5s1p2, bn+NAME, linear+NAME+120, max2, avg2, gap, '
        f"flatten, {', '.join(ACTIVATIONS)}."
    )


def _recognize(name: str) -> str | None:
    if name.lower() == NAME:
        return NAME
    if not name.startswith(f"{NAME}/"):
        return None
    return program_text(parse_program(name))


def _make(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    from edgekd.models.networks import plain

    if spec.name == NAME:
        raise UsageError(
            f"{NAME} alone says how to read a checkpoint; a network is written out as {NAME}/conv+conv1+6k5/relu/..."
        )
    return plain.PlainNetwork(parse_program(spec.name), input_shape, classes)


def _option(values: tuple[str, ...], free: str = "") -> Option:
    return Option(values, free=free)


_NUMBERS = r"\d{1,2}(\+\d{1,2})*"
PLAIN = Family(
    _make,
    recognize=_recognize,
    note="and `plain/STEP/STEP...`, a chain of layers that is written out",
    makes_activations=True,
    options={
        "activation": _option(tuple(ACTIVATIONS)),
        "pool": _option(("each", "none", "LAYER+LAYER..."), rf"{LAYER_NAME.pattern}(\+{LAYER_NAME.pattern})*"),
        "pooling": _option(("max", "avg")),
        "padding": _option(("none", "same", "2+0+..."), _NUMBERS),
        "stride": _option(("1+2+...",), _NUMBERS),
        "order": _option(("bn-act", "act-bn")),
    },
)
