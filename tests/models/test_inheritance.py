"""Which layers a student takes over from its teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.models import inheritance, registry

SHAPE = (3, 16, 16)


def network(name: str, seed: int = 0, classes: int = 5) -> nn.Module:
    return registry.build(name, input_shape=SHAPE, classes=classes, seed=seed)


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet8", "resnet20"), ("wrn-16-1", "wrn-22-1"), ("resnet18", "resnet34")]
)
def test_a_network_of_fewer_blocks_takes_over_all_of_its_layers(student: str, teacher: str) -> None:
    ours, theirs = network(student, seed=1), network(teacher, seed=2)
    shared = inheritance.shared_layers(ours, theirs, SHAPE)
    assert shared.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in shared.items())


def test_a_deeper_student_draws_the_other_blocks_at_random() -> None:
    shared = inheritance.shared_layers(network("resnet20"), network("resnet8"), SHAPE)
    assert {name.split(".")[1] for name in shared if name.startswith("layer")} == {"0"}
    assert "linear.weight" in shared


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet8@0.5", "resnet20"), ("wrn-16-2", "wrn-16-1"), ("mobilenetv2", "resnet18")]
)
def test_of_a_network_of_other_widths_nothing_is_taken(student: str, teacher: str) -> None:
    assert inheritance.shared_layers(network(student), network(teacher), SHAPE) == {}


def test_of_a_network_of_other_classes_nothing_is_taken() -> None:
    assert inheritance.shared_layers(network("resnet8"), network("resnet20", classes=6), SHAPE) == {}
