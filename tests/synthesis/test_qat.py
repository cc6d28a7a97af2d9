from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgekd import rng
from edgekd.synthesis import qat
from edgekd.synthesis.losses import logit_distance


def network() -> nn.Sequential:
    with rng.seeded_global_rng(0, "tests", "qat"):
        net = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        )
        nn.init.normal_(net.get_parameter("1.weight"))
        net.train()(torch.randn(64, 3, 8, 8))
    return net.eval().requires_grad_(False)


def images(count: int, key: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=rng.generator(0, "tests", "images", key))


def test_rounding_weights_commutes_with_folding_batchnorm() -> None:
    net = network()
    round_weight = qat._Weight()
    convolution, norm = net[0], net[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    folded = fuse_conv_bn_eval(convolution, norm).weight
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert (factor < 0).any()
    torch.testing.assert_close(round_weight(folded), round_weight(convolution.weight) * factor[:, None, None, None])
    levels = round_weight(folded).flatten(1) / (folded.abs().flatten(1).amax(1, keepdim=True) / 127)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert levels.abs().max() <= 127.001


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (-0.5, 3.0), (0.0, 6.0)])
def test_activations_keep_256_levels_and_a_straight_through_gradient(low: float, high: float) -> None:
    x = torch.linspace(-8, 8, 4001, requires_grad=True)
    y = qat.fake_quantized(x, low, high)
    step = (high - low) / (254 if low == -high else 255)
    assert len(y.unique()) in (255, 256)
    inside = (x > low + step) & (x < high - step)
    assert (y - x)[inside].abs().max() <= step / 2 + 1e-5
    assert y[x.abs() < step / 2 - 1e-6].eq(0).all(), "zero stays zero"
    y.sum().backward()
    assert x.grad is not None
    assert x.grad[inside].eq(1).all()
    assert x.grad[(x < low - step) | (x > high + step)].eq(0).all()


def test_layer_inputs_are_what_each_layer_reads() -> None:
    net, x = network(), images(20)
    seen: dict[str, list[np.ndarray]] = {}
    for rows, pairs in qat.layer_inputs(net, [x[:11], x[11:]]):
        assert all(len(value) == rows <= 8 for _, value in pairs)
        for name, value in pairs:
            seen.setdefault(name, []).append(value)
    assert np.array_equal(np.concatenate(seen["0"]), x.numpy())
    np.testing.assert_allclose(np.concatenate(seen["5"]), net[:5](x).numpy(), rtol=1e-5, atol=1e-6)
    assert set(seen) == {"0", "5"}
    assert not net[0]._forward_pre_hooks


def test_fine_tuning_gives_a_plain_network_and_leaves_the_student_alone() -> None:
    student = network()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    limits, done = {"0": (-2.0, 2.0), "5": (0.0, 1.5)}, []

    def tuned() -> qat.QatResult:
        return qat.fine_tune(
            student,
            limits,
            (images(16, key) for key in range(30)),
            student,
            steps=30,
            lr=1e-3,
            on_step=lambda step, loss: done.append((step, loss)),
        )

    one, other = tuned(), tuned()
    assert one.losses == other.losses
    assert done[29] == (30, one.losses[-1])
    state = one.network.state_dict()
    assert set(state) == set(before)
    assert not torch.equal(state["0.weight"], before["0.weight"])
    assert torch.equal(state["1.running_mean"], before["1.running_mean"]), "BatchNorm stays in eval mode"
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert len(one.network.get_parameter("0.weight").unique()) > 100, "the weights are float again"


def test_the_teacher_counts_where_it_gives_the_students_answer() -> None:
    own = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[5.0, 0.0], [9.0, 0.0]])
    found = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = logit_distance(found, own, "kl", 4.0) + 0.5 * logit_distance(found[:1], teacher[:1], "kl", 4.0)
    assert qat.target_loss(found, own, teacher) == pytest.approx(float(expected))
    assert qat.target_loss(found, own, -teacher + 20 * own.eq(0)) == pytest.approx(
        float(logit_distance(found, own, "kl", 4.0))
    )
