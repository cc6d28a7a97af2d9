"""Architectures by name: `mobilenetv2@0.35,drop_strides=0`, `timm:NAME` or `package.module:factory`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import nn

from edgekd import rng
from edgekd.errors import MachineError, UsageError, did_you_mean
from edgekd.models import cifar, imports, lenet, stems, trust
from edgekd.models import torchvision_zoo as zoo
from edgekd.models.stems import Shape
from edgekd.text import first_line, sizes

MIN_WIDTH, MAX_WIDTH = 0.05, 4.0
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
_BOOLEAN = ("true", "false")
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


@dataclass(frozen=True)
class ArchSpec:
    """An architecture: its registered name, a width multiplier, and options that differ from the default."""

    name: str
    width: float | None = None
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @staticmethod
    def parse(text: str) -> ArchSpec:
        """Parse `NAME[@WIDTH][,OPTION=VALUE]...`; raise UsageError for what is not registered."""
        head, *pairs = text.strip().split(",")
        name, at, width_text = head.partition("@")
        name, family = _lookup(name.strip())
        width = _width(name, width_text.strip(), family) if at else None
        options: dict[str, str] = {}
        for pair in pairs:
            key, equals, value = (part.strip() for part in pair.partition("="))
            allowed = family.options.get(key)
            if allowed is None:
                known = ", ".join(family.options) or "none"
                raise UsageError(
                    f'Architecture {name} has no option "{key}".{did_you_mean(key, family.options)} '
                    f"Its options: {known}."
                )
            if not equals or value not in allowed:
                raise UsageError(f'Option {key} of {name} is one of {", ".join(allowed)}, not "{value}".')
            options[key] = value
        return ArchSpec(name, width, dict(sorted(options.items())))

    def __str__(self) -> str:
        width = "" if self.width is None else f"@{self.width:g}"
        return f"{self.name}{width}" + "".join(f",{key}={value}" for key, value in self.options.items())


@dataclass(frozen=True)
class Family:
    """How the architectures of one kind are built, and which widths and options they know."""

    make: Callable[[ArchSpec, Shape, int], nn.Module]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    widths: tuple[float, ...] | None = ()
    """The allowed multipliers; None allows any, an empty tuple none."""


def build(spec: ArchSpec | str, *, input_shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a freshly initialised network in training mode; its weights are a function of (seed, spec).

    Options that the spec leaves open follow the small-image rule of `edgekd.models.stems`.
    """
    spec = ArchSpec.parse(spec) if isinstance(spec, str) else spec
    if min(input_shape) < 1 or classes < 2:
        raise UsageError(
            f"A classifier needs an image of at least 1x1x1 and two classes, not {input_shape}, {classes}."
        )
    _, family = _lookup(spec.name)
    with rng.forked_global(seed, "build", str(spec)):
        try:
            net = family.make(spec, input_shape, classes)
        except (ValueError, AssertionError) as error:
            raise UsageError(f"{spec} cannot be built for {sizes(input_shape)} images: {error}") from error
    kind = spec.options.get("activation")
    if kind is not None and spec.name not in ("lenet5", "lenet5-half"):
        _replace_activations(net, _ACTIVATIONS[kind])
    return net


def names() -> list[str]:
    """Return every registered name; `wrn-D-K` stands for wide ResNets of any depth 6n+4 and any widening."""
    return [*student_names(), *(name for name in zoo.WEIGHT_TENSORS if name not in student_names())]


def student_names() -> list[str]:
    """Return the names offered as students, smallest kinds first."""
    return [
        "lenet5-half",
        "lenet5",
        *(f"resnet{depth}" for depth in CIFAR_DEPTHS),
        *("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2"),
        *zoo.EARLY_DOWNSAMPLINGS,
        *("resnet18", "resnet34", "resnet50"),
    ]


def is_custom(name: str) -> bool:
    """Return whether `name` is code outside the registry: `package.module:factory` or `timm:NAME`."""
    return ":" in name


def family_of(name: str) -> Family:
    """Return the family of a registered name; raise UsageError otherwise."""
    return _lookup(name)[1]


@cache
def _spellings() -> dict[str, str]:
    """Return every accepted spelling of the names, in lower case: with underscores, and without any separator."""
    loose = {_squeezed(name): name for name in names()}
    exact = {name.replace("-", "_"): name for name in names()}  # regnet_x_1_6gf is not regnet_x_16gf
    return {**loose, **exact, "squeezenet1_1": "squeezenet", "lenet": "lenet5"}


def _squeezed(name: str) -> str:
    return re.sub(r"[-_.]", "", name.lower())


def _lookup(name: str) -> tuple[str, Family]:
    """Return the canonical spelling of `name` and its family."""
    if name.startswith("timm:"):
        return name, _TIMM
    if is_custom(name):
        return name, _CUSTOM
    wide = re.fullmatch(r"(?:wrn|wideresnet)[-_]?(\d+)[-_](\d+)", name.lower())
    if wide:
        depth, widen = int(wide[1]), int(wide[2])
        if depth < 10 or (depth - 4) % 6 or not 1 <= widen <= 64:
            raise UsageError(f"wrn-D-K needs a depth of 6n+4 (10, 16, 22, 28, 40) and K of 1 to 64, not {name}.")
        return f"wrn-{depth}-{widen}", _FAMILIES["wrn"]
    cifar_depth = re.fullmatch(r"resnet[-_]?(\d+)", name.lower())
    if cifar_depth and int(cifar_depth[1]) % 6 == 2 and 8 <= int(cifar_depth[1]) <= 1202:
        short = f"resnet{int(cifar_depth[1])}"
        return short, _FAMILIES[_family_name(short)]
    found = _spellings().get(name.lower().replace("-", "_")) or _spellings().get(_squeezed(name))
    if found is None:
        raise UsageError(
            f'There is no architecture "{name}".{did_you_mean(name, names())} '
            "`edgekd students` lists them; your own code is package.module:factory."
        )
    return found, _FAMILIES[_family_name(found)]


def _family_name(name: str) -> str:
    if name.startswith("lenet5"):
        return name
    if name.startswith("wrn-"):
        return "wrn"
    if name.startswith("resnet") and name not in zoo.RESNETS:
        return "cifar"
    if name in zoo.RESNETS:
        return zoo.RESNETS[name]
    if name.startswith(("alexnet", "vgg", "squeezenet1_0", "regnet_")):
        return "published-relu"
    return name if name in _FAMILIES else "published"


def _width(name: str, text: str, family: Family) -> float:
    if family.widths == ():
        raise UsageError(f"{name} has no width multiplier; leave out @{text}.")
    try:
        width = float(text)
    except ValueError as error:
        raise UsageError(f'The width of {name} is a number such as {name}@0.5, not "@{text}".') from error
    if family.widths is not None and width not in family.widths:
        raise UsageError(f"{name} exists with the widths {', '.join(f'{w:g}' for w in family.widths)}, not {text}.")
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise UsageError(f"The width of {name} lies between {MIN_WIDTH} and {MAX_WIDTH}, not {text}.")
    if round(width, 2) != width:
        raise UsageError(f"The width of {name} has at most two decimals, not {text}.")
    return width


def _replace_activations(net: nn.Module, make: Callable[[], nn.Module]) -> None:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, make())


def _make_lenet(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    width = 0.5 if spec.name == "lenet5-half" else spec.width or 1.0
    activation, pool = spec.options.get("activation", "relu"), spec.options.get("pool", "max")
    return lenet.LeNet5(input_shape, classes, width, activation, pool)


def _make_cifar(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    depth, base = int(spec.name.removeprefix("resnet")), max(1, round(16 * (spec.width or 1.0)))
    return cifar.CifarResNet(depth, base, input_shape[0], classes, spec.options.get("shortcut", "A"))


def _make_wide(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    _, depth, widen = spec.name.split("-")
    return cifar.WideResNet(int(depth), int(widen), input_shape[0], classes)


def _make_student(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    drop = int(spec.options.get("drop_strides", stems.early_strides_to_drop(input_shape)))
    net = zoo.build_student(spec.name, spec.width or 1.0, input_shape, classes, drop=drop)
    if spec.name == "squeezenet" and spec.options.get("logit_relu") != "true":
        zoo.remove_logit_relu(net)
    return net


def _make_resnet(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    stem = spec.options.get("stem", stems.resnet_stem(input_shape))
    as_published = stem == "7x7" or stems.resnet_maxpool(input_shape)
    maxpool = spec.options.get("maxpool", "true" if as_published else "false")
    return zoo.build_resnet(
        spec.name,
        input_shape,
        classes,
        stem=stem,
        stem_stride=int(spec.options.get("stem_stride", 2 if stem == "7x7" else 1)),
        maxpool=maxpool == "true",
        stride_in=spec.options.get("stride_in", "3x3"),
    )


def _make_published(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    transform = spec.options.get("transform_input") == "true"
    return zoo.build_published(spec.name, input_shape, classes, transform_input=transform)


def _make_timm(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    name = spec.name.removeprefix("timm:")
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


def _make_custom(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    code = trust.factory(spec.name)
    trust.require([code])
    module_name, _, factory_name = spec.name.partition(":")
    with imports.from_here(code.files):
        try:
            factory = getattr(importlib.import_module(module_name), factory_name)
            accepted = inspect.signature(factory).parameters
            offered = {"input_shape": input_shape, "classes": classes, "num_classes": classes}
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
            wanted = {*accepted, "num_classes"} if takes_any else set(accepted)  # torchvision's take **kwargs
            net = factory(**{key: value for key, value in offered.items() if key in wanted})
        except (Exception, SystemExit) as error:  # the user's own code may raise anything, or parse arguments
            what = f"{type(error).__name__}: {first_line(error)}.{imports.unapproved(error)}"
            raise UsageError(f"{spec} cannot be built: {what}") from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"{spec} returned a {type(net).__name__}; it must return a torch.nn.Module.")
    return net


_SWAP = {"activation": tuple(_ACTIVATIONS)}
_LENET = {"activation": lenet.ACTIVATIONS, "pool": lenet.POOLS}
_DROP = {"drop_strides": ("0", "1", "2")}
_STEM = {"maxpool": _BOOLEAN, "stem": ("3x3", "5x5", "7x7"), "stem_stride": ("1", "2")}
_CUSTOM = Family(_make_custom)
_TIMM = Family(_make_timm)
_FAMILIES: dict[str, Family] = {
    "lenet5": Family(_make_lenet, _LENET, None),
    "lenet5-half": Family(_make_lenet, _LENET),
    "cifar": Family(_make_cifar, {**_SWAP, "shortcut": ("A", "B")}, None),
    "wrn": Family(_make_wide, _SWAP),
    "basic": Family(_make_resnet, {**_SWAP, **_STEM}),
    "bottleneck": Family(_make_resnet, {**_SWAP, **_STEM, "stride_in": ("3x3", "1x1")}),
    "published": Family(_make_published),
    "published-relu": Family(_make_published, _SWAP),
    "googlenet": Family(_make_published, {"transform_input": _BOOLEAN}),
    "inception_v3": Family(_make_published, {"transform_input": _BOOLEAN}),
    "mobilenetv2": Family(_make_student, {**_SWAP, **_DROP}, None),
    "mobilenetv3-small": Family(_make_student, _DROP, None),
    "mobilenetv3-large": Family(_make_student, _DROP, None),
    "mnasnet": Family(_make_student, {**_SWAP, **_DROP}, None),
    "shufflenetv2": Family(_make_student, {**_SWAP, **_DROP}, tuple(zoo.SHUFFLENET_WIDTHS)),
    "squeezenet": Family(_make_student, {**_SWAP, **_DROP, "logit_relu": _BOOLEAN}),
    "efficientnet-b0": Family(_make_student, _DROP),
    "regnet-y-400mf": Family(_make_student, {**_SWAP, **_DROP}),
}
