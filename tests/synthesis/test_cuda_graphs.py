"""Recorded functions answer as the functions themselves do, and step aside where they cannot be recorded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.machine import Precision
from edgekd.models import registry
from edgekd.synthesis.cuda_graphs import CudaGraphs
from edgekd.synthesis.hints import StageOutputs
from edgekd.synthesis.teacher import Observation, Teacher

GPU = torch.device("cuda")


class Counted:
    """Multiply by a weight and count how often Python ran."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return (3 * x.square(), x.sum())


def test_on_a_cpu_functions_are_simply_called() -> None:
    graphs, function = switched_on(), Counted()
    x = torch.ones(2, requires_grad=True)
    for _ in range(3):
        values, total = graphs.call("name", function, x)
    assert function.calls == 3
    assert torch.equal(values, torch.full((2,), 3.0))
    assert torch.autograd.grad(values.sum() + total, x)[0].tolist() == [7.0, 7.0]


def draw(seed: int, count: int = 8) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).to(GPU)


def teacher() -> Teacher:
    network = registry.build("resnet20", input_shape=(3, 16, 16), classes=10, seed=1).to(GPU)
    made = Teacher(network, head="linear", undo="none", precision=Precision(GPU, bf16=True))
    made.graphs.on = True
    return made


def switched_on() -> CudaGraphs:
    graphs = CudaGraphs()
    graphs.on = True
    return graphs


def pull(seen: Observation, x: Tensor) -> Tensor:
    return torch.autograd.grad(seen.logits.square().sum() + seen.features.sum() + seen.batchnorm, x)[0]


@pytest.mark.gpu
def test_a_recorded_teacher_shows_what_it_shows_operation_by_operation() -> None:
    graphed = teacher()
    for seed in range(4):
        x = draw(seed).requires_grad_()
        seen = graphed.observe(x, batchnorm=True)
        with graphed.operation_by_operation():
            exact = teacher().observe(x, batchnorm=True)
        for name in ("logits", "features", "batchnorm"):
            assert torch.allclose(getattr(seen, name), getattr(exact, name), rtol=1e-3, atol=1e-3), name
        mine, theirs = pull(seen, x), pull(exact, x)
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-2
    assert len(graphed.graphs._recorded) == 1


@pytest.mark.gpu
def test_stages_are_seen_in_a_replay_too() -> None:
    graphed = teacher()
    stages = StageOutputs(graphed.network, ["layer1", "layer3"])
    with torch.no_grad():
        graphed.observe(draw(1), stages=stages)
        seen = graphed.observe(draw(2), stages=stages)
        exact = teacher()
        wanted = exact.observe(draw(2), stages=StageOutputs(exact.network, ["layer1", "layer3"]))
    assert [name for name, _ in seen.maps] == ["layer1", "layer3"]
    for (_, mine), (_, theirs) in zip(seen.maps, wanted.maps, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-2)
        assert mine.any()


@pytest.mark.gpu
def test_python_runs_at_the_recording_alone_and_each_shape_has_its_own() -> None:
    graphs, function = switched_on(), Counted()
    with torch.no_grad():
        first, _ = graphs.call("name", function, torch.full((2,), 2.0, device=GPU))
        calls = function.calls
        second, _ = graphs.call("name", function, torch.full((2,), 3.0, device=GPU))
        assert function.calls == calls
        assert (first.tolist(), second.tolist()) == ([12.0, 12.0], [27.0, 27.0]), "what was returned is kept"
        graphs.call("name", function, torch.ones(3, device=GPU))
        assert function.calls > calls
        graphs.on = False
        calls = function.calls
        graphs.call("name", function, torch.ones(3, device=GPU))
    assert function.calls == calls + 1


@pytest.mark.gpu
def test_a_call_before_the_gradient_of_the_last_leaves_it_right() -> None:
    graphs, function = switched_on(), Counted()
    for value in (1.0, 2.0):
        x = torch.full((4,), value, device=GPU).requires_grad_()
        outputs, _ = graphs.call("name", function, x)
        between = torch.full((4,), 9.0, device=GPU).requires_grad_()
        later, _ = graphs.call("name", function, between)
        assert torch.autograd.grad(outputs.sum(), x)[0].tolist() == [6 * value] * 4
        assert torch.autograd.grad(later.sum(), between)[0].tolist() == [54.0] * 4


@pytest.mark.gpu
def test_what_cannot_be_recorded_is_called_as_it_is_with_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    graphs, layer = switched_on(), nn.Linear(2, 2).to(GPU).requires_grad_(False)

    def branching(x: Tensor) -> tuple[Tensor, ...]:
        return (layer(x) if float(x.sum()) > 0 else -layer(x),)

    with torch.no_grad():
        for value in (1.0, -1.0, 1.0):
            x = torch.full((3, 2), value, device=GPU)
            assert torch.equal(graphs.call("name", branching, x)[0], branching(x)[0])
    assert capsys.readouterr().err.count("kernel by kernel") == 1
