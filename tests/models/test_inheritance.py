"""Which layers a student takes over from its teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.models import inheritance, registry

SHAPE = (3, 16, 16)


def network(name: str, seed: int = 0, classes: int = 5) -> nn.Module:
    return registry.build(name, input_shape=SHAPE, classes=classes, seed=seed)


def named(network: nn.Module) -> set[str]:
    return {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet8", "resnet20"), ("wrn-16-1", "wrn-22-1"), ("resnet18", "resnet34")]
)
def test_a_network_of_fewer_blocks_takes_over_all_of_its_tensors(student: str, teacher: str) -> None:
    ours, theirs = network(student, seed=1), network(teacher, seed=2)
    shared = inheritance.shared_tensors(ours, theirs)
    assert set(shared) == named(ours)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in shared.items())


def test_a_deeper_student_draws_the_other_blocks_at_random() -> None:
    teacher = network("resnet8")
    assert set(inheritance.shared_tensors(network("resnet20"), teacher)) == named(teacher)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("resnet8@0.5", "resnet20"),
        ("wrn-16-2", "wrn-16-1"),
        ("mobilenetv2", "resnet18"),
        ("mobilenetv2@0.9", "mobilenetv2"),  # equal first and last layers, by rounding
        ("shufflenetv2@0.5", "shufflenetv2"),  # the same, by design
        ("resnet18", "resnet50"),
    ],
)
def test_of_a_network_of_other_widths_or_another_family_nothing_is_taken(student: str, teacher: str) -> None:
    assert inheritance.shared_tensors(network(student), network(teacher)) == {}


def test_of_a_network_of_other_classes_nothing_is_taken() -> None:
    assert inheritance.shared_tensors(network("resnet8"), network("resnet20", classes=6)) == {}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("wrn-16-1", "wrn-22-2"),
        ("resnet8@0.5", "resnet20"),
        ("mobilenetv2@0.5", "mobilenetv2"),
        ("resnet18", "resnet34"),
        ("resnet20", "resnet20"),
    ],
)
def test_a_narrower_or_shallower_network_begins_with_slices(student: str, teacher: str) -> None:
    ours, theirs = network(student, seed=1), network(teacher, seed=2)
    start = inheritance.sliced_tensors(ours, theirs)
    ours.load_state_dict(start)
    if student == teacher:
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in start.items())


def test_slices_are_evenly_spaced_in_channels_and_blocks_and_keep_their_sums() -> None:
    ours, theirs = network("wrn-16-1", seed=1), network("wrn-22-2", seed=2)
    start, source = inheritance.sliced_tensors(ours, theirs), theirs.state_dict()
    norm = start["block2.layer.1.bn1.weight"]
    assert torch.equal(norm, source["block2.layer.2.bn1.weight"][::2]), "the last block of three"
    kernel = start["block2.layer.1.conv1.weight"]
    assert torch.equal(kernel, 2 * source["block2.layer.2.conv1.weight"][::2, ::2])
    assert torch.equal(start["conv1.weight"], source["conv1.weight"]), "of the same width"


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("mobilenetv2", "resnet18"), ("wrn-16-2", "wrn-16-1"), ("resnet18", "resnet50"), ("resnet20", "resnet8")],
)
def test_of_a_smaller_or_another_kind_of_network_there_are_no_slices(student: str, teacher: str) -> None:
    assert inheritance.sliced_tensors(network(student), network(teacher)) == {}


def test_parameters_of_the_network_itself_are_taken_too() -> None:
    class WithToken(nn.Module):
        def __init__(self, value: float, blocks: int) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.full((1, 4), value))
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))

    student = WithToken(0.0, 1)
    student.load_state_dict(inheritance.shared_tensors(student, WithToken(7.0, 3)), strict=False)
    assert float(student.token.detach().sum()) == 28


@pytest.mark.parametrize(
    ("student", "teacher", "stages"),
    [
        ("resnet8", "resnet20", ["layer1", "layer2", "layer3"]),
        ("resnet8@0.5", "resnet20", []),
        ("wrn-16-1", "wrn-22-1", ["block1", "block2", "block3"]),
        ("squeezenet", "squeezenet", ["features"]),  # its classifier answers K numbers, no map
    ],
)
def test_shared_maps_end_the_stages_that_are_of_the_same_size(student: str, teacher: str, stages: list[str]) -> None:
    pairs = inheritance.shared_maps(network(student), network(teacher), SHAPE)
    assert [(pair.student, pair.teacher) for pair in pairs] == [(stage, stage) for stage in stages]
    assert all(pair.same and pair.student_channels == pair.teacher_channels for pair in pairs)


@pytest.mark.parametrize(
    ("student", "teacher", "channels"),
    [
        ("mobilenetv2@0.5", "resnet20", [(16, 16), (16, 32), (48, 64)]),
        ("wrn-16-1", "wrn-40-2", [(16, 32), (32, 64), (64, 128)]),
        ("lenet5", "resnet20", []),  # its maps have sides of 28, 10 and 5 pixels, the teacher's 16, 8 and 4
    ],
)
def test_matched_maps_are_the_last_of_each_resolution_in_both(
    student: str, teacher: str, channels: list[tuple[int, int]]
) -> None:
    pairs = inheritance.matched_maps(network(student), network(teacher), SHAPE)
    assert [(pair.student_channels, pair.teacher_channels) for pair in pairs] == channels
    assert not any(pair.same for pair in pairs)
