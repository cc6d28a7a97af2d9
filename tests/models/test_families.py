"""What is known of a family of networks stands in one object, and is known without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import nn

from docs import students
from edgekd import rng
from edgekd.ingestion.identify import infer, state_dict_of
from edgekd.ingestion.matching import network_shapes
from edgekd.models import families, registry
from edgekd.models.families.base import Family, Option, always
from edgekd.models.families.convolutions import CONVOLUTIONS
from edgekd.models.families.lenet import LENET5
from edgekd.models.networks import cifar, lenet
from edgekd.models.registry import ArchSpec
from edgekd.models.stems import Shape

PROGRAM = """if True:
    import contextlib, json, sys
    from edgekd.errors import UsageError
    from edgekd.models import registry
    known = registry.ArchSpec.parse("ResNet_50,stem=3x3")
    refused = ""
    try:
        registry.ArchSpec.parse("mobilenetv4")
    except UsageError as error:
        refused = str(error)
    heavy = sorted({"torch", "torchvision", "onnxruntime", "timm", "numpy"} & sys.modules.keys())
    print(json.dumps([str(known), refused, "mobilenetv2" in registry.student_names(), heavy]))
"""


def test_names_are_parsed_listed_and_refused_without_torch() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    known, refused, listed, heavy = json.loads(ran.stdout)
    assert (known, listed, heavy) == ("resnet50,stem=3x3", True, [])
    assert 'Did you mean "mobilenetv2"' in refused


def tiny(spec: ArchSpec, input_shape: Shape, classes: int) -> nn.Module:
    width = round(4 * (spec.width or 1.0))
    return nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def test_a_new_family_is_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(
        tiny,
        students=("tiny-net",),
        tensors={"tiny-net": 4},
        spellings={"tn": "tiny-net"},
        options={"gate": Option(("open", "shut"), always("the gate", "open", "shut"))},
        widths=(0.5, 1.0),
        side=48,
    )
    assert "tiny-net" not in registry.names()
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, family))
    assert registry.student_names()[-1] == "tiny-net"
    assert "tiny-net" in registry.names()
    assert str(ArchSpec.parse("TN@0.5,gate=shut")) == "tiny-net@0.5,gate=shut"
    assert "| `tiny-net` | 0.5, 1 | `gate` |" in students.table()
    net = registry.build("tinynet@0.5", input_shape=(1, 16, 16), classes=3, seed=0)
    found = infer(state_dict_of(net.state_dict()))
    assert (str(found.arch), found.input_shape, found.classes) == ("tiny-net@0.5", (1, 48, 48), 3)
    told = {assumption.what: assumption.flag for assumption in found.assumptions}
    assert told == {"image size": "--input 1x48x48", "the gate": "--arch tiny-net@0.5,gate=shut"}


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("resnet8@0.5", lambda: cifar.CifarResNet([1, 1, 1], 8, 3, 4, "A")),
        ("wrn-10-1", lambda: cifar.WideResNet(10, 1, 3, 4)),
        ("lenet5-half", lambda: lenet.LeNet5((3, 32, 32), 4, 0.5, "relu", "max")),
        ("mobilenetv2@0.35", lambda: tv.mobilenet_v2(width_mult=0.35, num_classes=4)),
        ("shufflenetv2@0.5", lambda: tv.shufflenet_v2_x0_5(num_classes=4)),
        ("squeezenet,activation=silu", lambda: tv.squeezenet1_1(num_classes=4)),
    ],
)
def test_weights_are_what_the_network_draws_under_the_key_of_its_spec(text: str, make: Callable[[], nn.Module]) -> None:
    built = registry.build(text, input_shape=(3, 32, 32), classes=4, seed=5).state_dict()
    with rng.seeded_global_rng(5, "build", text):
        drawn = make().state_dict()
    assert built.keys() == drawn.keys()
    assert all(torch.equal(built[name], drawn[name]) for name in drawn)


def test_every_option_of_lenet_can_be_built() -> None:
    for option, described in LENET5.options.items():
        for value in described.values:
            registry.build(f"lenet5,{option}={value}", input_shape=(1, 28, 28), classes=4, seed=0)


def test_a_name_belongs_to_one_family() -> None:
    owned = [name for family in families.FAMILIES for name in {*family.students, *family.tensors}]
    assert sorted(owned) == sorted(registry.names())
    for family in families.FAMILIES:
        for name in (*family.students, *family.tensors):
            assert registry.family_of(name) is family


def _of_torchvision() -> list[Any]:
    """The first of each family's networks in every run, the others in the slow ones."""
    named = [family for family in families.FAMILIES if family.tensors]
    slow = pytest.mark.slow
    return [pytest.param(name, marks=slow if place else ()) for f in named for place, name in enumerate(f.tensors)]


@pytest.mark.parametrize("name", _of_torchvision())
def test_what_is_said_of_a_network_of_torchvisions_holds_for_it(name: str) -> None:
    family = registry.family_of(name)
    shapes = network_shapes(name, (3, family.side, family.side), 1000)
    assert len(shapes) == family.tensors[name]
    assert sum(len(shape) == 4 for shape in shapes.values()) == CONVOLUTIONS[name]
    assert family.first in shapes
