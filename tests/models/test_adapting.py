"""Code from outside becomes a classifier of one tensor of logits, in float32, that leaves its images alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion.identify import build_teacher, infer
from edgekd.models import adapting, probe, registry

CODE = """
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

Answer = namedtuple("Answer", "features score")


@dataclass
class Output:
    loss: object
    logits: torch.Tensor


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, classes)

    def logits(self, x):
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))

    def forward(self, x):
        return self.logits(x)


class Pair(Net):
    def forward(self, x):
        return self.logits(x), x


class Dict(Net):
    def forward(self, x):
        return {"features": self.conv(x).mean((2, 3)), "logits": self.logits(x)}


class Data(Net):
    def forward(self, x):
        return Output(None, self.logits(x))


class Named(Net):
    def forward(self, x):
        return Answer(x, self.logits(x))


class Auxiliary(Net):
    def forward(self, x):
        return (self.logits(x), self.logits(x)) if self.training else self.logits(x)


class Spatial(Net):
    def forward(self, x):
        return self.logits(x)[:, :, None, None]


class Half(Net):
    def __init__(self):
        super().__init__()
        self.half()


class Double(Net):
    def __init__(self):
        super().__init__()
        self.fc.double()


class Casting(Net):
    def forward(self, x):
        return self.logits(x.double())


class Lazy(nn.Sequential):
    def __init__(self, n_classes):
        layers = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        super().__init__(*layers, nn.LazyLinear(n_classes))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(784, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.two(F.relu(self.one(x.view(-1, 28 * 28))))


class Fixed(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8 * 24 * 24, 6)

    def logits(self, x):
        return self.fc(F.max_pool2d(self.conv(x), 2).view(-1, 8 * 24 * 24))


class One(Net):
    def __init__(self):
        super().__init__(1)


class Free(Net):
    def forward(self, x):
        return self.logits(x).squeeze(1) if self.fc.out_features == 1 else self.logits(x)


class Sigmoid(One):
    def forward(self, x):
        return torch.sigmoid(self.logits(x)).squeeze()


class SigmoidDict(One):
    def forward(self, x):
        return {"score": torch.sigmoid(self.logits(x)), "features": x}


class Embedding(Net):
    def __init__(self):
        super().__init__(128)

    def forward(self, x):
        return F.normalize(self.logits(x))


class Frozen(Net):
    @torch.no_grad()
    def forward(self, x):
        return self.logits(x)


class Writing(Net):
    def forward(self, x):
        return self.logits(x.sub_(0.5))
"""
SHAPE = (3, 12, 12)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Callable[..., None]) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapted_nets.py").write_text(CODE)
    names = [line.split()[1].partition("(")[0] for line in CODE.splitlines() if line.startswith("class ")]
    approve(f"adapted_nets:{name}" for name in names)
    monkeypatch.delitem(sys.modules, "adapted_nets", raising=False)
    return "adapted_nets"


def built(arch: str, classes: int = 4, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    return registry.build(arch, input_shape=shape, classes=classes, seed=0).eval()


def images() -> Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["Pair", "Dict", "Data", "Named", "Auxiliary", "Spatial", "Half", "Double", "Writing"])
def test_whatever_a_network_returns_its_logits_are_found(code: str, name: str) -> None:
    network, x = built(f"{code}:{name}"), images()
    expected = network.get_submodule("fc")(
        network.get_submodule("conv")(x - 0.5 * (name == "Writing")).relu().mean((2, 3))
    )
    for mode in (False, True):
        assert torch.allclose(network.train(mode)(x), expected, atol=1e-5)
    assert torch.equal(x, images()), "others look at these images, too"
    assert all(weight.dtype == torch.float32 for weight in network.parameters())
    seen = probe.probe(network, input_shape=SHAPE, classes=4, seed=0)
    assert (seen.emits, seen.head_alive) == ("logits", True)


def test_what_was_taken_is_said_where_there_is_a_choice(code: str) -> None:
    said = {name: adapting.taken_for_logits(built(f"{code}:{name}")) for name in ("Net", "Dict", "Pair", "One")}
    assert said["Net"] == ""
    assert said["Dict"].startswith("logits, not features")
    assert said["Pair"].startswith("entry 0")
    assert said["One"] == "its one output z: 0 and z"


def test_of_one_output_come_two_logits(code: str) -> None:
    logits = built(f"{code}:One")(images())
    assert not logits[:, 0].any()
    network = built(f"{code}:Sigmoid")
    assert torch.allclose(
        network(images()).softmax(1)[:, 1],
        network.get_submodule("fc")(network.get_submodule("conv")(images()).relu().mean((2, 3))).sigmoid()[:, 0],
        atol=1e-5,
    )
    assert network(images()[:1]).shape == (1, 2)
    for name in ("One", "Sigmoid"):
        probe.probe(built(f"{code}:{name}"), input_shape=SHAPE, classes=2, seed=0)


def test_a_probability_in_a_dict_is_told_from_a_logit(code: str) -> None:
    alone, within = (built(f"{code}:{name}") for name in ("Sigmoid", "SigmoidDict"))
    within.load_state_dict(alone.state_dict())
    assert torch.allclose(alone(images()), within(images()), atol=1e-5)
    assert "probability" in adapting.taken_for_logits(within)


@pytest.mark.parametrize("name", ["One", "Sigmoid", "Free"])
def test_weights_of_one_output_are_a_teacher_of_two_classes(code: str, name: str) -> None:
    weights = built(f"{code}:Net", classes=2).state_dict()
    weights |= {key: weights[key][:1] for key in ("fc.weight", "fc.bias")}
    found = infer(weights, arch=f"{code}:{name}", input_shape=SHAPE)
    assert found.classes == 2
    logits = build_teacher(found)(images())
    assert logits.shape == (4, 2)
    assert torch.equal(found.state_dict["fc.weight"], weights["fc.weight"])


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("Lazy", (1, 28, 28), 7), ("Lazy", (3, 48, 48), 7), ("Flat", (1, 28, 28), 5), ("Fixed", (3, 48, 48), 6)],
)
def test_the_size_of_the_images_is_the_usual_one_that_the_code_takes(
    code: str, name: str, shape: tuple[int, int, int], classes: int
) -> None:
    weights = built(f"{code}:{name}", classes, shape).state_dict()
    found = infer(weights, arch=f"{code}:{name}")
    assert (found.input_shape, found.classes) == (shape, classes)
    assert [assumption.what for assumption in found.assumptions] == ["image size"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("Embedding", "embeds images"), ("Frozen", r"torch\.no_grad"), ("Casting", "leave .half")],
)
def test_what_cannot_be_a_teacher_is_called_what_it_is(code: str, name: str, words: str) -> None:
    network = built(f"{code}:{name}")
    classes = 128 if name == "Embedding" else 4
    with pytest.raises(InputFileError, match=words):
        probe.probe(network, input_shape=SHAPE, classes=classes, seed=0)


def test_a_student_that_cannot_learn_is_refused_before_it_is_trained(code: str) -> None:
    from edgekd.models.footprint import build_with_footprint

    for name, words in (("Frozen", "no gradient"), ("Casting", "leave .half")):
        with pytest.raises(UsageError, match=words):
            build_with_footprint(f"{code}:{name}", input_shape=SHAPE, classes=4, seed=0)


def test_a_file_of_code_is_named_as_its_module(code: str, tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/deeper.py").write_text("from adapted_nets import Net\n")
    expected = registry.ArchSpec("adapted_nets:Net")
    for name in ("adapted_nets.py:Net", "./adapted_nets.py:Net", f"{tmp_path}/adapted_nets.py:Net"):
        assert registry.ArchSpec.parse(name) == expected
    assert registry.ArchSpec.parse("nets/deeper.py:Net").name == "nets.deeper:Net"
    for name, words in (("net.py", "name the class"), ("../net.py:Net", "outside"), ("net.v2.py:Net", "no dot")):
        with pytest.raises(UsageError, match=words):
            registry.ArchSpec.parse(name)


def test_code_in_a_file_is_approved_of_by_naming_it(
    code: str, tmp_path: Path, approve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_nets.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "other_nets", raising=False)
    with pytest.raises(UsageError, match="nobody has approved"):
        built("other_nets.py:Net")
    approve(["other_nets.py:Net"])
    assert built("other_nets.py:Net")(images()).shape == (4, 4)
