"""The frozen teacher: logits, features and the distance to BatchNorm statistics, against a reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekd.machine import Precision
from edgekd.models import registry
from edgekd.synthesis.teacher import Teacher

CPU = torch.device("cpu")
FP32 = Precision(CPU, False)


def network() -> nn.Module:
    net = registry.build("resnet8@0.5", input_shape=(1, 8, 8), classes=4, seed=3).train()
    with torch.no_grad():
        for seed in range(5):
            net(draw(16, seed=seed))
    return net


def draw(count: int, seed: int = 7) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def teacher_of(net: nn.Module, head: str = "linear", output_transform: str = "none", bf16: bool = False) -> Teacher:
    return Teacher(net, head=head, output_transform=output_transform, precision=Precision(CPU, bf16))


def reference_distance(net: nn.Module, x: Tensor) -> Tensor:
    """Sum the distances from module inputs that this test collects itself."""
    inputs: dict[nn.BatchNorm2d, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, arguments, _: inputs.update({module: arguments[0]}))
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    net(x)
    for handle in handles:
        handle.remove()
    total = torch.zeros(())
    for norm, seen in inputs.items():
        flat = seen.transpose(0, 1).flatten(1)
        mean = flat.mean(1)
        variance = ((flat - mean[:, None]) ** 2).mean(1)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        total = total + (mean - norm.running_mean).square().sum().sqrt()
        total = total + (variance - norm.running_var).square().sum().sqrt()
    return total


def test_the_batchnorm_distance_and_its_gradient_equal_a_reference() -> None:
    net = network()
    teacher = teacher_of(net)
    x = draw(8).requires_grad_()
    seen = teacher.observe(x, batchnorm=True)
    expected = reference_distance(net, x)
    assert expected > 0.1
    assert torch.allclose(seen.batchnorm, expected, rtol=1e-5)
    mine, theirs = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (seen.batchnorm, expected))
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert mine.any()


def test_the_distance_is_small_for_a_batch_with_the_recorded_statistics_and_large_for_another() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1, momentum=1.0), nn.Flatten(), nn.Linear(64, 4))
    x = draw(64)
    net.train()(x)
    teacher = teacher_of(net, head="2")
    assert float(teacher.observe(x, batchnorm=True).batchnorm) < 1e-3  # torch records the unbiased variance
    assert float(teacher.observe(x + 1, batchnorm=True).batchnorm) == pytest.approx(1, abs=1e-3)


def test_the_distance_is_not_computed_unless_asked_for() -> None:
    seen = teacher_of(network()).observe(draw(4).requires_grad_())
    assert float(seen.batchnorm) == 0
    assert not seen.batchnorm.requires_grad


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4)),
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(64, 4)),
    ],
    ids=["no BatchNorm", "no statistics"],
)
def test_a_teacher_without_batchnorm_statistics_has_distance_zero(make: Callable[[], nn.Module]) -> None:
    x = draw(4).requires_grad_()
    seen = teacher_of(make(), head="2").observe(x, batchnorm=True)
    assert float(seen.batchnorm) == 0
    (seen.logits.sum() + seen.batchnorm).backward()
    assert x.grad is not None


def test_logits_and_features_are_the_networks_own() -> None:
    net = network()
    teacher = teacher_of(net)
    x = draw(4)
    seen = teacher.observe(x)
    assert torch.equal(seen.logits, net(x))
    assert torch.equal(seen.logits, teacher.logits(x))
    assert torch.equal(net.get_submodule("linear")(seen.features), seen.logits)


def test_a_softmax_at_the_end_is_undone_up_to_a_constant_per_image() -> None:
    net = network()
    x = draw(6)
    logits = net.eval()(x).detach()
    teacher = teacher_of(nn.Sequential(net, nn.Softmax(1)), head="0.linear", output_transform="log")
    difference = teacher.logits(x) - logits
    assert torch.allclose(difference, difference[:, :1].expand(-1, 4), atol=1e-4)
    assert torch.allclose(teacher.observe(x).logits, teacher.logits(x))
    assert not torch.allclose(difference[:, 0], torch.zeros(6), atol=1e-3), "the constant is not zero"


def test_a_probability_of_zero_gives_finite_logits_and_gradients() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1))
    with torch.no_grad():
        net.get_parameter("1.weight").mul_(1e4)
    x = draw(4).requires_grad_()
    logits = teacher_of(net, head="1", output_transform="log").observe(x).logits
    assert torch.isfinite(logits).all()
    assert torch.isfinite(torch.autograd.grad(logits.sum(), x)[0]).all()


def test_the_teacher_is_frozen_in_eval_mode_and_keeps_no_gradient() -> None:
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    teacher = teacher_of(net)
    x = draw(8).requires_grad_()
    seen = teacher.observe(x, batchnorm=True)
    (seen.logits.sum() + seen.features.sum() + seen.batchnorm).backward()
    assert x.grad is not None
    assert x.grad.any()
    assert not net.training
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_plain_logits_build_no_graph() -> None:
    assert not teacher_of(network()).logits(draw(4).requires_grad_()).requires_grad


def test_nothing_is_kept_between_passes_even_after_an_error() -> None:
    teacher = teacher_of(network())
    teacher.observe(draw(4), batchnorm=True)
    with pytest.raises(RuntimeError):
        teacher.observe(torch.zeros(4, 3, 8, 8), batchnorm=True)
    again = teacher.observe(draw(4), batchnorm=True)
    assert torch.equal(again.batchnorm, teacher_of(network()).observe(draw(4), batchnorm=True).batchnorm)
    assert teacher._features is None
    assert teacher._distances is None


def test_statistics_and_answers_are_float32_under_autocast() -> None:
    teacher = teacher_of(network(), bf16=True)
    seen = teacher.observe(draw(8), batchnorm=True)
    assert seen.logits.dtype == seen.features.dtype == seen.batchnorm.dtype == torch.float32
    exact = teacher_of(network()).observe(draw(8), batchnorm=True)
    assert not torch.equal(seen.features, exact.features), "autocast was at work"
    assert torch.allclose(seen.batchnorm, exact.batchnorm, rtol=0.05)
