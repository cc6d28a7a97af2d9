"""Dead ReLU channels are seen, and pulled back until they answer again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.synthesis import revival
from edgekd.synthesis.hooks import recording
from edgekd.synthesis.revival import ReluInputMaxima


def network() -> nn.Sequential:
    """Return a convolution, whose second channel is dead, with a ReLU, and a linear layer with a ReLU6."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 2), nn.ReLU6(inplace=True)
    )
    convolution, linear = net[0], net[3]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert convolution.bias is not None
    with torch.no_grad():
        convolution.weight.fill_(0.1)
        convolution.bias.copy_(torch.tensor([1.0, -2.0, 0.5]))
        linear.weight.fill_(0.1)
        linear.bias.zero_()
    return net


def images() -> Tensor:
    return torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_the_highest_input_of_each_channel_is_seen() -> None:
    net, x = network(), images()
    before = net[0](x)
    with recording(ReluInputMaxima(net)) as maxima:
        net(x)
    assert [len(part) for part in maxima] == [3, 2]
    assert torch.allclose(maxima[0], before.amax(dim=(0, 2, 3)))
    assert maxima[0][1] < 0 < maxima[0][0]
    assert float(revival.dead_share(maxima)) == pytest.approx(1 / 5)
    assert torch.isclose(revival.pull(maxima), -maxima[0][1] / 5)


def test_nothing_is_seen_outside_or_without_a_watch() -> None:
    net = network()
    inputs = ReluInputMaxima(net)
    net(images())
    assert inputs.recorded is None
    nobody: ReluInputMaxima | None = None
    with recording(nobody) as maxima:
        net(images())
    assert maxima == []


def test_the_pull_moves_dead_channels_alone_and_brings_them_back() -> None:
    net, x = network(), images()
    inputs = ReluInputMaxima(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    old = {name: value.clone() for name, value in net.state_dict().items()}
    shares = []
    for _ in range(20):
        with recording(inputs) as maxima:
            net(x)
        shares.append(float(revival.dead_share(maxima)))
        optimizer.zero_grad()
        revival.pull(maxima).backward()
        optimizer.step()
    assert shares[0] > 0 == shares[-1]
    new = net.state_dict()
    for channel in (0, 2):
        assert torch.equal(new["0.weight"][channel], old["0.weight"][channel])
    assert not torch.equal(new["0.bias"][1], old["0.bias"][1])
    assert torch.equal(new["3.weight"], old["3.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_highest_input_and_its_gradient_are_those_of_amax(dtype: torch.dtype) -> None:
    drawn = torch.randperm(256, generator=torch.Generator().manual_seed(2)).view(4, 4, 4, 4)  # exact, no two alike
    x = drawn.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    mine, theirs = revival.highest_inputs(x), x.amax(dim=(0, 2, 3))
    assert torch.equal(mine, theirs)
    weights = torch.arange(1.0, 5.0).to(dtype)
    gradients = [torch.autograd.grad((weights * found).sum(), x)[0] for found in (mine, theirs)]
    assert torch.equal(*gradients)
