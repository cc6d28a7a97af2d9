"""What a student's feature maps learn from the teacher's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.models.inheritance import MapPair
from edgekd.synthesis.hints import Hints, MapRecorder
from edgekd.synthesis.hooks import recording

SAME = [MapPair("0", "0", 2, 2, same=True), MapPair("1", "1", 3, 3, same=True)]


def network(seed: int, channels: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, channels, 3)), nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 3, 3)))


def hints() -> Hints:
    return Hints(network(1), network(2), SAME)


def test_maps_are_recorded_by_name_within_the_block_alone() -> None:
    net = network(0)
    recorder = MapRecorder(net, ["0", "1"])
    x = torch.randn(4, 1, 8, 8)
    net(x)
    with recording(recorder) as maps:
        output = net(x)
    net(x)
    assert [(name, tuple(map_.shape)) for name, map_ in maps] == [("0", (4, 2, 6, 6)), ("1", (4, 3, 4, 4))]
    assert maps[1][1] is output


def test_a_relu_that_works_in_place_leaves_what_a_module_sent_on() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.ReLU(inplace=True))
    with recording(MapRecorder(net, ["0"])) as maps:
        net(torch.randn(4, 1, 8, 8))
    assert float(maps[0][1].detach().min()) < 0


def test_the_distance_is_the_relative_squared_error_of_each_map_by_name() -> None:
    first, second = torch.randn(2, 3, 4, 4), 100 * torch.randn(2, 5, 2, 2)
    of_teacher = [("0", first), ("1", second)]
    of_student = [("1", 1.3 * second), ("0", 1.1 * first), ("another", first)]
    assert float(hints().distance(of_student, of_teacher)) == pytest.approx((0.1**2 + 0.3**2) / 2, rel=1e-4)
    assert float(hints().distance(of_teacher, of_teacher)) == 0
    assert float(hints().distance(of_student[:1], of_teacher[:1])) == 0, "no map in common"


def test_a_dead_map_of_the_teacher_teaches_nothing() -> None:
    of_student = torch.randn(2, 3, 4, 4, requires_grad=True)
    error = hints().distance([("0", of_student)], [("0", torch.zeros(2, 3, 4, 4))])
    error.backward()
    assert float(error.detach()) == 0
    assert of_student.grad is not None
    assert not of_student.grad.any()


def test_the_error_of_bfloat16_maps_is_computed_in_float32() -> None:
    map_ = torch.randn(2, 3, 4, 4).bfloat16()
    assert hints().distance([("0", map_)], [("0", 2 * map_)]).dtype == torch.float32


def learn(student: nn.Module, teacher: nn.Module, pairs: list[MapPair]) -> list[Tensor]:
    """Train a student and its learned 1x1 convolutions on hints alone; return the distance at each step."""
    hints = Hints(student, teacher, pairs)
    optimizer = torch.optim.Adam([*student.parameters(), *hints.adapters.parameters()], lr=0.02)
    distances = []
    for _ in range(150):
        x = torch.randn(16, 1, 8, 8)
        with torch.no_grad(), recording(hints.of_teacher) as teacher_maps:
            teacher(x)
        with recording(hints.of_student) as student_maps:
            student(x)
        distances.append(hints.distance(student_maps, teacher_maps))
        optimizer.zero_grad()
        distances[-1].backward()
        optimizer.step()
    return distances


def test_a_student_that_learns_from_hints_alone_comes_to_answer_like_the_teacher() -> None:
    student, teacher, x = network(1), network(2), torch.randn(16, 1, 8, 8)
    before = float((student(x) - teacher(x)).square().mean().detach())
    learn(student, teacher, SAME)
    assert float((student(x) - teacher(x)).square().mean().detach()) < 0.05 * before


def test_learned_maps_lead_from_other_widths_to_the_teachers_channels() -> None:
    student, teacher = network(1, channels=5), network(2)
    distances = learn(student, teacher, [MapPair("0", "0", 5, 2, same=False), MapPair("1", "1", 3, 3, same=False)])
    assert float(distances[-1].detach()) < 0.05 * float(distances[0].detach())
