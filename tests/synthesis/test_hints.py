"""What a student's stages learn from the teacher's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.synthesis import hints
from edgekd.synthesis.hints import StageOutputs
from edgekd.synthesis.hooks import recording


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3)))


def test_stages_are_seen_by_name_while_somebody_watches() -> None:
    net = network(0)
    stages = StageOutputs(net, ["0", "1"])
    x = torch.randn(4, 1, 8, 8)
    net(x)
    with recording(stages) as seen:
        output = net(x)
    net(x)
    assert [(name, tuple(s.shape)) for name, s in seen] == [("0", (4, 2, 6, 6)), ("1", (4, 3, 4, 4))]
    assert seen[1][1] is output


def test_a_relu_that_works_in_place_leaves_what_a_stage_sent_on() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.ReLU(inplace=True))
    with recording(StageOutputs(net, ["0"])) as seen:
        net(torch.randn(4, 1, 8, 8))
    assert float(seen[0][1].detach().min()) < 0


def test_the_distance_is_the_relative_squared_error_of_each_stage_by_name() -> None:
    first, second = torch.randn(2, 3, 4, 4), 100 * torch.randn(2, 5, 2, 2)
    wanted = [("a", first), ("b", second)]
    given = [("b", 1.3 * second), ("a", 1.1 * first), ("teacher skips it", first)]
    assert float(hints.hint_distance(given, wanted)) == pytest.approx((0.1**2 + 0.3**2) / 2, rel=1e-4)
    assert float(hints.hint_distance(wanted, wanted)) == 0
    assert float(hints.hint_distance(given[:1], wanted[:1])) == 0, "no stage in common"


def test_a_dead_stage_of_the_teacher_teaches_nothing() -> None:
    ours = torch.randn(2, 3, 4, 4, requires_grad=True)
    error = hints.hint_distance([("a", ours)], [("a", torch.zeros(2, 3, 4, 4))])
    error.backward()
    assert float(error.detach()) == 0
    assert ours.grad is not None
    assert not ours.grad.any()


def test_the_error_of_bfloat16_maps_is_computed_in_float32() -> None:
    map_ = torch.randn(2, 3, 4, 4).bfloat16()
    assert hints.hint_distance([("a", map_)], [("a", 2 * map_)]).dtype == torch.float32


def test_a_student_that_learns_from_hints_alone_comes_to_answer_like_the_teacher() -> None:
    student, teacher = network(1), network(2)
    ours, theirs = StageOutputs(student, ["0", "1"]), StageOutputs(teacher, ["0", "1"])
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    errors = []
    for _ in range(150):
        x = torch.randn(16, 1, 8, 8)
        with torch.no_grad(), recording(theirs) as wanted:
            answers = teacher(x)
        with recording(ours) as given:
            errors.append(float((student(x) - answers).square().mean().detach()))
        optimizer.zero_grad()
        hints.hint_distance(given, wanted).backward()
        optimizer.step()
    assert errors[-1] < 0.05 * errors[0]
