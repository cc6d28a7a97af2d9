"""Networks of other code: `timm:NAME`, and the user's own, `package.module:factory` or `net.py:factory`."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import MachineError, UsageError, did_you_mean
from edgekd.models.families.base import Family, Option
from edgekd.models.stems import Shape
from edgekd.text import first_line

if TYPE_CHECKING:
    from torch import nn

    from edgekd.models.registry import ArchSpec

PREFIX = "timm:"
"""What the name of one of timm's models begins with."""
_CLASSES = ("n_classes", "nb_classes", "num_class", "n_class", "nclass", "num_labels", "num_outputs", "n_outputs")
_CHANNELS = ("in_channels", "in_chans", "num_channels", "n_channels", "input_channels", "channels", "in_ch")
"""Names that factories have for the numbers of classes and channels."""
TWINS = re.compile(r"(?:timm:)?resnet(blur|aa)\d+[a-z]*")
"""timm's ResNets whose names and shapes are torchvision's, but not their strides and pools."""


def names_own_code(name: str) -> bool:
    """Return whether a name is the user's own code: `package.module:factory`, but not `timm:NAME`."""
    return (":" in name or name.endswith(".py")) and not name.startswith(PREFIX)


def own_code(name: str) -> str:
    """Return own code as `package.module:factory`, also where a file is named: `nets/net.py:Net`."""
    place, _, factory = (part.strip() for part in name.partition(":"))
    if not place.endswith(".py"):
        return f"{place}:{factory}"
    path = Path(place)
    if not factory:
        raise UsageError(f"{name} is a file; name the class or function in it that makes the network: {name}:NAME.")
    try:
        parts = Path(os.path.normpath(Path.cwd() / path)).relative_to(Path.cwd()).with_suffix("").parts
    except ValueError:
        raise UsageError(
            f"{place} lies outside of the working directory, so nothing that it imports would be found. Give the "
            f"command in its folder, as {path.name}:{factory}."
        ) from None
    if any("." in part for part in parts):
        raise UsageError(f"{place} cannot be imported: Python takes no dot in the name of a module. Rename it.")
    return f"{'.'.join(parts)}:{factory}"


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

    from edgekd.models.code import adapting, imports, trust

    code = trust.factory(spec.name)
    trust.require_approval([code])
    module_name, _, factory_name = spec.name.partition(":")
    outputs = int(spec.options.get("outputs", classes))
    with imports.from_here(code.files):
        try:
            factory = getattr(importlib.import_module(module_name), factory_name)
            net = factory(**_arguments(factory, input_shape, outputs))
        except (Exception, SystemExit) as error:  # the user's own code may raise anything, or parse arguments
            what = f"{type(error).__name__}: {first_line(error)}.{imports.unapproved(error)}"
            raise UsageError(f"{spec} cannot be built: {what}") from error
        if not isinstance(net, nn.Module):
            raise UsageError(f"{spec} returned a {type(net).__name__}; it must return a torch.nn.Module.")
        return adapting.as_classifier(net, input_shape, str(spec))


def _arguments(factory: Callable[..., Any], input_shape: Shape, classes: int) -> dict[str, Any]:
    """What a factory is given: the usual names for the number of classes, and others only where it insists on them."""
    accepted = inspect.signature(factory).parameters
    offered: dict[str, Any] = {"input_shape": input_shape, "classes": classes, "num_classes": classes}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    names = {*accepted, "num_classes"} if takes_any else set(accepted)  # torchvision's take **kwargs
    needed = {name for name, parameter in accepted.items() if parameter.default is parameter.empty}
    offered |= {name: classes for name in _CLASSES if name in needed}
    offered |= {name: input_shape[0] for name in _CHANNELS if name in needed}
    return {name: value for name, value in offered.items() if name in names}


TIMM = Family(_make_timm, recognize=lambda name: name if name.startswith(PREFIX) else None, note="`timm:NAME`")
CODE = Family(
    _make_own,
    recognize=lambda name: own_code(name) if names_own_code(name) else None,
    note="`package.module:factory`",
    options={"outputs": Option(("1",))},
)
