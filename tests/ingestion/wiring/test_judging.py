"""What weights leave open is held against the teacher's own BatchNorm statistics; no right teacher is rewired."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from with_statistics import pictures, show_pictures, trained_on_pictures

from edgekd.errors import InputFileError
from edgekd.ingestion import identify
from edgekd.models import families
from edgekd.models.statistics import StatisticsJudge

JUDGE = StatisticsJudge(pictures)
SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    ("arch", "assumed"),
    [("resnet8,pad=end", "resnet8"), ("resnet14@0.5,activation=silu", "resnet14@0.5")],
)
def test_a_teacher_is_rewired_where_its_statistics_speak_for_it(arch: str, assumed: str) -> None:
    weights = trained_on_pictures(arch, SHAPE).state_dict()
    assert str(identify.infer(weights).arch) == assumed, "without a judge the usual is taken"
    inferred = identify.infer(weights, judge=JUDGE)
    assert str(inferred.arch) == arch
    told = inferred.assumptions[-1]
    option = arch.partition(",")[2]
    assert told.value.startswith(f"{option} by its BatchNorm statistics (")
    back = identify.infer(weights, arch=told.flag.removeprefix("--arch "), judge=JUDGE)
    assert back.arch.options[option.partition("=")[0]] in ("middle", "relu"), "what the user says stays"


SMALL = ["resnet20", "resnet8@0.5", "resnet14,shortcut=B"]


@pytest.mark.parametrize("arch", SMALL)
def test_a_right_teacher_is_never_rewired(arch: str) -> None:
    _stays(arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [family.students[0] for family in families.FAMILIES if family.students])
def test_no_right_teacher_of_the_zoo_is_ever_rewired(arch: str) -> None:
    _stays(arch)


def _stays(arch: str) -> None:
    network = trained_on_pictures(arch, SHAPE)
    before = identify.infer(network.state_dict(), input_shape=SHAPE)
    inferred = identify.infer(network.state_dict(), input_shape=SHAPE, judge=JUDGE)
    assert (inferred.arch, inferred.assumptions) == (before.arch, before.assumptions)
    assert inferred.remarks == ()


def chain(padding: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return convolutions with a global average pool, whose padding shapes do not show."""
    layers: list[nn.Module] = []
    for before, out in ((3, 12), (12, 12), (12, 12), (12, 24), (24, 24), (24, 24)):
        layers += [nn.Conv2d(before, out, 3, padding=padding), nn.BatchNorm2d(out), activation()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)]
    return nn.Sequential(*layers)


def seen(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network whose BatchNorms have seen pictures."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    show_pictures(network, SHAPE)
    return network.state_dict()


class ThreeConvolutions(nn.Module):
    """The layers of a chain; how they are wired is left to others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(a, 16, 3, padding=1) for a in (3, 16, 16))
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(16) for _ in range(3))
        self.fc = nn.Linear(16, 4)


class Pooled(ThreeConvolutions):
    """Three convolutions, each with a pool that leaves no trace in the names."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = nn.functional.max_pool2d(torch.relu(norm(conv(x))), 2)
        return torch.as_tensor(self.fc(x.mean(dim=(2, 3))))


def test_statistics_leave_fewer_ways_to_wire_a_chain() -> None:
    weights = seen(Pooled())
    with pytest.raises(InputFileError, match=r"wired in 8 ways.*--arch plain,padding=same,pool=each "):
        identify.infer(weights, arch="plain,padding=same")
    # A pool after the last BatchNorm changes nothing that a BatchNorm sees.
    with pytest.raises(InputFileError, match=r"wired in 2 ways.*pool=each .*pool=conv1\+conv2 "):
        identify.infer(weights, arch="plain,padding=same", judge=JUDGE)


def test_a_chain_has_the_activation_that_its_statistics_say() -> None:
    inferred = identify.infer(seen(chain(1, nn.SiLU)), arch="plain,padding=same", judge=JUDGE)
    assert "conv+3+12k3p1/bn+4/silu" in str(inferred.arch)
    assert inferred.assumptions[-1].flag == "--arch plain,padding=same,pool=none,activation=relu"


class RoundAbout(ThreeConvolutions):
    """A network whose names are those of a chain, with a way round two layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        first = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(3 * first))) + 4 * first + 2
        return torch.as_tensor(self.fc((self.bn3(self.conv3(x)) + 4 * first).mean(dim=(2, 3))))


def test_a_network_with_a_way_round_is_refused_by_its_statistics() -> None:
    with pytest.raises(InputFileError, match="may have a way round some layers"):
        identify.infer(seen(RoundAbout()), arch="plain,padding=same,pool=none", judge=JUDGE)


class Irregular(nn.Module):
    """Pools after the first, second and fourth of four convolutions, and a global average: any place would fit."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 12, 16, 16)
        pairs = itertools.pairwise(widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)) for a, b in pairs
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, block in enumerate(self.blocks):
            x = torch.relu(block(x))
            x = x if place == 2 else nn.functional.max_pool2d(x, 2)
        return torch.as_tensor(self.fc(x.mean(dim=(2, 3))))


def test_statistics_find_pools_at_odd_places_among_all() -> None:
    with pytest.raises(InputFileError, match=r"wired in 2 ways\. Choose") as caught:
        identify.infer(seen(Irregular()), judge=JUDGE)
    flag = "--arch plain,padding=same,pool=blocks.0.0+blocks.1.0+blocks.3.0 --input 3x32x32"
    assert flag in str(caught.value), "the last pool changes nothing that a BatchNorm sees"
