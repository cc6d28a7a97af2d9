"""Code that takes no channels-last images is kept contiguous wherever it runs; what takes them stays channels-last."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toy
from edgekd import machine
from edgekd.models import artefacts, layout, registry

CODE = """
import torch
from torch import nn


class View(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.fc = nn.Linear(8 * 4 * 4, classes)

    def forward(self, x):
        return self.fc(self.flat(self.stem(x)))

    def flat(self, x):
        return x.view(-1, 8 * 4 * 4)


class Shuffle(View):
    def flat(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1)


class Strided(View):
    def flat(self, x):
        return x.as_strided((len(x), 128), (128, 1))


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.flip(3)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(len(gradient), -1).view(gradient.shape).flip(3)


class Backward(View):
    def flat(self, x):
        return Flip.apply(x).mean((2, 3), keepdim=True).expand(-1, -1, 4, 4).flatten(1)

    def forward(self, x):
        return self.fc(self.flat(self.stem[2](self.stem[1](Flip.apply(self.stem[0](x))))))


class Usual(View):
    def flat(self, x):
        return x.flatten(1)
"""
NAMES = ("View", "Shuffle", "Strided", "Backward")
"""Networks that fail, or answer otherwise, on channels-last images."""
SHAPE = (3, 8, 8)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Callable[..., None]) -> str:
    approve(f"layout_nets:{name}" for name in (*NAMES, "Usual"))
    (tmp_path / "layout_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "layout_nets", raising=False)
    return "layout_nets"


def built(arch: str) -> nn.Module:
    return registry.build(arch, input_shape=SHAPE, classes=4, seed=0).eval()


def images() -> Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_such_code_answers_channels_last_images_as_it_does_contiguous_ones(code: str, name: str) -> None:
    network = built(f"{code}:{name}")
    expected = network(images())
    network = copy.deepcopy(layout.laid_out(layout.settled(network, SHAPE)))
    x = machine.channels_last(images()).requires_grad_()
    answers = network(x)
    answers.sum().backward()
    assert torch.allclose(answers, expected, atol=1e-5)
    assert x.grad is not None


def test_code_that_takes_either_is_laid_out_channels_last(code: str) -> None:
    network = built(f"{code}:Usual")
    before = copy.deepcopy(network.state_dict())
    network = layout.laid_out(layout.settled(network, SHAPE))
    weight = network.get_parameter("stem.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "trying left no trace"


@pytest.fixture
def wanted(code: str, tmp_path: Path) -> Any:
    torch.save(built(f"{code}:View").state_dict(), tmp_path / "view.pt")
    arch = f"{code}:View"
    changes = {"teacher": {"input": "3x8x8", "arch": arch}, "student": {"name": f"{code}:Shuffle"}}
    return toy.toy_recipe(tmp_path / "view.pt", **changes, method={"steps": 4})


def test_teacher_and_student_of_such_code_go_through_every_stage(wanted: Any, tmp_path: Path) -> None:
    run = toy.advance(tmp_path / "run", wanted)
    assert (run.stage("export") / "student.fp32.onnx").is_file()
    student = artefacts.student_network(run)
    assert torch.equal(student(machine.channels_last(images())), student(images()))
