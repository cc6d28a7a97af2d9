"""A teacher as its weights tell: the architecture, what was assumed of it, and the network itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from edgekd.errors import InputFileError
from edgekd.ingestion.weights import require_floats
from edgekd.models import registry
from edgekd.models.registry import ArchSpec
from edgekd.models.stems import Shape

OWN_CODE = "--arch package.module:factory"
"""The flag for whatever no other describes."""


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
    """Names in the file, without wrappers, to names of the zoo; empty where they are the same."""
    state_dict: Mapping[str, Tensor] = field(repr=False, compare=False)
    remarks: tuple[str, ...] = ()
    """What the user is warned of."""


def build_teacher(inferred: Inferred) -> nn.Module:
    """Build the network, fill in its weights, and return it frozen in eval mode."""
    net = registry.build(inferred.arch, input_shape=inferred.input_shape, classes=inferred.classes, seed=0)
    fresh = net.state_dict()
    counters = {name: t for name, t in fresh.items() if name.endswith("num_batches_tracked")}
    require_floats(inferred.state_dict, fresh)
    try:
        net.load_state_dict({**counters, **inferred.state_dict}, strict=True)
    except RuntimeError as error:
        raise InputFileError(f"The weights do not load into {inferred.arch}: {error}") from error
    return net.eval().requires_grad_(False)
