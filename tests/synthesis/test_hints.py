"""What a student's stages learn from the teacher's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.synthesis import hints
from edgekd.synthesis.hints import StageOutputs
from edgekd.synthesis.watching import watched


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3)))


def test_stages_are_seen_in_order_while_somebody_watches() -> None:
    net = network(0)
    stages = StageOutputs(net, ["0", "1"])
    x = torch.randn(4, 1, 8, 8)
    net(x)
    with watched(stages) as seen:
        output = net(x)
    net(x)
    assert [tuple(s.shape) for s in seen] == [(4, 2, 6, 6), (4, 3, 4, 4)]
    assert seen[1] is output


def test_the_distance_is_the_relative_squared_error_of_each_stage() -> None:
    wanted = [torch.randn(2, 3, 4, 4), 100 * torch.randn(2, 5, 2, 2)]
    given = [1.1 * wanted[0], 1.3 * wanted[1]]
    assert float(hints.distance(given, wanted)) == pytest.approx((0.1**2 + 0.3**2) / 2, rel=1e-4)
    assert float(hints.distance(wanted, wanted)) == 0


def test_stages_of_a_dead_teacher_give_a_finite_distance() -> None:
    assert torch.isfinite(hints.distance([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3, 4, 4)]))


def test_a_student_that_learns_from_hints_alone_comes_to_answer_like_the_teacher() -> None:
    student, teacher = network(1), network(2)
    ours, theirs = StageOutputs(student, ["0", "1"]), StageOutputs(teacher, ["0", "1"])
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    errors = []
    for _ in range(150):
        x = torch.randn(16, 1, 8, 8)
        with torch.no_grad(), watched(theirs) as wanted:
            answers = teacher(x)
        with watched(ours) as given:
            errors.append(float((student(x) - answers).square().mean().detach()))
        optimizer.zero_grad()
        hints.distance(given, wanted).backward()
        optimizer.step()
    assert errors[-1] < 0.05 * errors[0]
