"""Plain CNNs and MLPs are read off their shapes, and answer as the network that was saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.errors import InputFileError
from edgekd.ingestion import identify
from edgekd.ingestion.wiring.chain import chain_of
from edgekd.models.families.plain import in_short
from edgekd.models.stems import Shape


class Tutorial(nn.Module):
    """The network of pytorch.org's CIFAR-10 tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return torch.as_tensor(self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.flatten(x, 1)))))))


class Mnist(nn.Module):
    """The network of PyTorch's MNIST example: one pool, after the second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return torch.as_tensor(self.fc2(F.relu(self.fc1(torch.flatten(x, 1)))))


class Together(nn.Module):
    """BatchNorms registered together behind the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 12)))
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        return torch.as_tensor(self.fc(torch.flatten(x, 1)))


class Blocks(nn.Module):
    """TinyVGG: two blocks of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.block_1, self.block_2 = self.block(1, 10), self.block(10, 10)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(490, 10))

    @staticmethod
    def block(before: int, out: int) -> nn.Sequential:
        """Return one block."""
        convs = nn.Conv2d(before, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return torch.as_tensor(self.classifier(self.block_2(self.block_1(x))))


def lenet_in_one() -> nn.Sequential:
    """Return LeNet in one Sequential."""
    convs = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    linears = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 30)]
    return nn.Sequential(*convs, nn.Flatten(), *linears)


def strided() -> nn.Sequential:
    """Return a network that strides in place of pools, with kernels of even size."""
    convs = [nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10))


def padded_lenet() -> nn.Sequential:
    """Return LeNet for 28 pixels, padded in its first layer alone."""
    convs = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 17, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(17 * 25, 60), nn.ReLU(), nn.Linear(60, 10))


def depthwise() -> nn.Sequential:
    """Return a network with grouped convolutions, and a BatchNorm behind the activation."""
    convs = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(12), nn.MaxPool2d(2)]
    convs += [nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU(), nn.BatchNorm2d(12), nn.MaxPool2d(2)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(12 * 64, 7))


def mlp() -> nn.Sequential:
    """Return linear layers with BatchNorm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Case:
    """A network as somebody trained it, its images, and what is to be known of it."""

    make: Callable[[], nn.Module]
    shape: Shape
    words: str
    given: str = ""
    """`--arch` where several readings fit."""
    sized: bool = False


CASES = {
    "tutorial": Case(Tutorial, (3, 32, 32), "max-pool 2x2 after conv1, conv2 · relu · no padding"),
    "sequential": Case(lenet_in_one, (1, 32, 32), "max-pool 2x2 after 0, 3 · relu · no padding"),
    "blocks": Case(Blocks, (1, 28, 28), "max-pool 2x2 after block_1.2, block_2.2 · relu · same padding"),
    "strides": Case(strided, (3, 32, 32), "no pool · relu · same padding · strides 2, 2"),
    "together": Case(
        Together, (3, 32, 32), "max-pool 2x2 after conv1, conv2, conv3 · relu · same padding", "plain,padding=same"
    ),
    "depthwise": Case(
        depthwise, (3, 32, 32), "max-pool 2x2 after 0, 4 · relu · same padding · activation before BatchNorm"
    ),
    "mlp": Case(mlp, (3, 32, 32), "linear layers alone · relu"),
    "mnist": Case(
        Mnist, (1, 28, 28), "max-pool 2x2 after conv2 · relu · no padding", "plain,padding=none,pool=conv2", sized=True
    ),
    "padded": Case(padded_lenet, (1, 28, 28), "max-pool 2x2 after 0, 3 · relu · padding 2+0", "plain,padding=2+0"),
}


def saved(network: nn.Module) -> dict[str, Tensor]:
    """Return a state dict whose BatchNorms have seen something."""
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, tensor in state.items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return state


@pytest.mark.parametrize("name", CASES)
def test_a_plain_network_is_wired_as_it_was(name: str) -> None:
    case = CASES[name]
    network = case.make().eval()
    input_shape = case.shape if case.sized else None
    inferred = identify.infer(saved(network), arch=case.given or None, input_shape=input_shape)
    assert inferred.input_shape == case.shape
    assert inferred.assumptions[0].value == case.words
    images = torch.randn(3, *case.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(identify.build_teacher(inferred)(images), network(images))


@pytest.mark.parametrize("name", ["tutorial", "together", "sequential"])
def test_sorted_names_as_safetensors_has_them_are_put_in_order(name: str) -> None:
    case = CASES[name]
    network = case.make()
    state = {f"module.{key}": tensor for key, tensor in sorted(saved(network).items())}
    arch = case.given or None
    assert identify.infer(state, arch=arch).arch == identify.infer(saved(network), arch=arch).arch


def test_where_several_readings_fit_they_are_listed_as_flags_that_work() -> None:
    network = Mnist()
    with pytest.raises(InputFileError, match="2 convolutions, 2 linear layers, which can be wired in") as caught:
        identify.infer(saved(network))
    flag = "--arch plain,padding=none,pool=conv2 --input 1x28x28"
    assert flag in str(caught.value)
    inferred = identify.infer(saved(network), arch=flag.split()[1], input_shape=(1, 28, 28))
    assert inferred.arch.name.startswith("plain/conv+conv1+32k3/relu/conv+conv2+64k3/relu/max2/flatten")


def test_one_reading_that_is_unusual_is_the_users_to_confirm() -> None:
    with pytest.raises(InputFileError, match=r"and no usual wiring fits.*: --arch plain,padding=2\+0,pool=each \("):
        identify.infer(saved(padded_lenet()), input_shape=(1, 28, 28))


def test_activation_and_pooling_are_settled_by_flags() -> None:
    inferred = identify.infer(saved(Tutorial()), arch="plain,activation=tanh,pooling=avg")
    assert "/tanh/avg2/" in inferred.arch.name
    assert "relu" not in inferred.arch.name


@pytest.mark.parametrize(
    ("arch", "input_shape", "message"),
    [
        ("plain,pool=conv9", None, "There is no convolution conv9; there are conv1, conv2"),
        ("plain,padding=1+1+1", None, "padding takes one number, or 2 joined by +"),
        ("plain,stride=0", None, "A stride is 1 or more"),
        ("plain,pool=none,stride=1", (3, 32, 32), "no usual image size, pooling, padding or stride leads"),
        ("plain", (1, 32, 32), "take 3 channels, not 1: --input 3x32x32"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(arch: str, input_shape: Shape | None, message: str) -> None:
    with pytest.raises(InputFileError, match=message.replace("+", r"\+")):
        identify.infer(saved(Tutorial()), arch=arch, input_shape=input_shape)


@pytest.mark.parametrize(
    "layers",
    [
        {"conv1": nn.Conv2d(3, 8, 3), "conv2": nn.Conv2d(9, 8, 3), "fc": nn.Linear(8, 4)},  # the channels do not meet
        {"conv1": nn.Conv2d(3, 8, 3), "conv2": nn.Conv2d(8, 8, 3), "fc": nn.Linear(9, 4)},
        {"conv1": nn.Conv1d(3, 8, 3), "fc": nn.Linear(8, 4)},
        {"conv1": nn.Conv2d(3, 8, 3), "skip": nn.Conv2d(8, 8, 1), "fc": nn.Linear(8, 4)},
        {"conv1": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(6), "fc": nn.Linear(8, 4)},
        {"embedding": nn.Embedding(8, 4), "fc": nn.LayerNorm(4)},
        {"conv1": nn.Conv2d(3, 8, 3)},
    ],
    ids=["channels", "head", "rank", "name", "norm", "kinds", "one"],
)
def test_what_is_no_chain_is_not_taken_for_one(layers: dict[str, nn.Module]) -> None:
    assert chain_of(nn.ModuleDict(layers).state_dict()) is None


def test_a_line_of_output_names_what_a_network_has() -> None:
    arch = str(identify.infer(saved(Together()), arch="plain,padding=same").arch)
    assert in_short(arch) == "plain (3 convolutions, 3 BatchNorms, 1 linear layer)"
    assert in_short("resnet20,pad=end") == "resnet20,pad=end"
