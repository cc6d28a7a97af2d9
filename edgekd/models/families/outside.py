"""Networks of other code: `timm:NAME`, and the user's own `package.module:factory`."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING

from edgekd.errors import MachineError, UsageError, did_you_mean
from edgekd.models.families.base import Family
from edgekd.models.stems import Shape
from edgekd.text import first_line

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec

PREFIX = "timm:"
"""What the name of one of timm's models begins with."""
TWINS = re.compile(r"(?:timm:)?resnet(blur|aa)\d+[a-z]*")
"""timm's ResNets whose names and shapes are torchvision's, but not their strides and pools."""


def names_own_code(name: str) -> bool:
    """Return whether a name is the user's own code: `package.module:factory`, but not `timm:NAME`."""
    return ":" in name and not name.startswith(PREFIX)


def _make_timm(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    name = spec.name.removeprefix(PREFIX)
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise MachineError(f"{spec} needs the timm package: pip install 'edgekd[timm]'.") from error
    if not timm.is_model(name):
        raise UsageError(f'timm has no model "{name}".{did_you_mean(name, timm.list_models())}')
    try:
        net: nn.Module = timm.create_model(name, pretrained=False, in_chans=input_shape[0], num_classes=classes)
    except Exception as error:  # models refuse channels and classes with whatever their code happens to raise
        raise UsageError(f"{spec} cannot be built: {type(error).__name__}: {first_line(error)}.") from error
    return net


def _make_own(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    from torch import nn

    from edgekd.models import imports, trust

    code = trust.factory(spec.name)
    trust.require_approval([code])
    module_name, _, factory_name = spec.name.partition(":")
    with imports.from_here(code.files):
        try:
            factory = getattr(importlib.import_module(module_name), factory_name)
            accepted = inspect.signature(factory).parameters
            offered = {"input_shape": input_shape, "classes": classes, "num_classes": classes}
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
            parameters = {*accepted, "num_classes"} if takes_any else set(accepted)  # torchvision's take **kwargs
            net = factory(**{key: value for key, value in offered.items() if key in parameters})
        except (Exception, SystemExit) as error:  # the user's own code may raise anything, or parse arguments
            what = f"{type(error).__name__}: {first_line(error)}.{imports.unapproved(error)}"
            raise UsageError(f"{spec} cannot be built: {what}") from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"{spec} returned a {type(net).__name__}; it must return a torch.nn.Module.")
    return net


TIMM = Family(_make_timm, recognize=lambda name: name if name.startswith(PREFIX) else None, note="`timm:NAME`")
CODE = Family(_make_own, recognize=lambda name: name if names_own_code(name) else None, note="`package.module:factory`")
