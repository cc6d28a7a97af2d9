"""The distance from BatchNorm statistics is small for the network that they are of, and for no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from with_statistics import pictures, trained_on_pictures

from edgekd.models import registry, statistics
from edgekd.models.statistics import StatisticsJudge

SHAPE = (3, 16, 16)


def test_the_distance_is_what_its_definition_says() -> None:
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean = torch.tensor([1.0, 0.0])
    norm.running_var = torch.tensor([4.0, 1.0])
    images = torch.tensor([[[[3.0, 5.0]], [[-1.0, 1.0]]]])  # means 4 and 0, variances 1 and 1
    expected = ((3**2 / 4 + torch.tensor(0.25).log() ** 2) + 0) / 2
    assert statistics.distance(norm, images) == pytest.approx(expected)


def test_a_network_comes_near_its_own_statistics_and_leaves_its_weights_alone() -> None:
    network = trained_on_pictures("resnet8", SHAPE)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    other = registry.build("resnet8,pad=end", input_shape=SHAPE, classes=10, seed=0)
    other.load_state_dict(network.state_dict())
    judge = StatisticsJudge(pictures)
    found = judge.distances([(network, SHAPE), (other.eval().requires_grad_(False), SHAPE)])
    assert found is not None
    assert found[0] < statistics.ENOUGH
    assert found[1] > 2 * found[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert judge.distances([(network, SHAPE)]) == found[:1], "the same again"


@pytest.mark.parametrize("arch", ["lenet5", "resnet8"])
def test_nothing_is_said_of_networks_without_statistics_of_a_training(arch: str) -> None:
    network = registry.build(arch, input_shape=(3, 32, 32), classes=10, seed=0).eval()
    assert StatisticsJudge(pictures).distances([(network, (3, 32, 32))]) is None


def test_nothing_is_said_where_it_would_take_long() -> None:
    network = trained_on_pictures("resnet8", SHAPE)
    assert StatisticsJudge(pictures).distances([(network, (3, 512, 512))] * 4) is None
