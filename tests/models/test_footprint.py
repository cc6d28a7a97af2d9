"""What a network costs: counted exactly, except for the files, which are estimated and held against real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.export.onnx_export import export_fp32
from edgekd.export.quantize import FLAVORS, quantize_to
from edgekd.export.ranges import collect_ranges
from edgekd.models import footprint, probe, registry


class Extra(nn.Module):
    """A linear layer and parameters that belong to no layer, as a transformer's position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Parameter(torch.zeros(1000))
        self.linear = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(torch.flatten(x, 1) + self.offsets[:10])
        return logits


def test_parameters_and_macs_are_the_probes() -> None:
    net = registry.build("resnet8@0.5", input_shape=(3, 16, 16), classes=7, seed=0)
    found, size = footprint.footprint_of(net, (3, 16, 16)), probe.complexity(net, (3, 16, 16))
    assert (found.parameters, found.macs) == (size.parameters, size.macs)


@pytest.mark.parametrize(("name", "shape"), [("resnet14@0.75", (1, 16, 16)), ("squeezenet", (3, 32, 32))])
def test_the_estimates_are_within_a_tenth_of_exported_files(
    name: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    net, found = footprint.build_with_footprint(name, input_shape=shape, classes=10, seed=0)
    fp32 = export_fp32(net, shape, tmp_path / "student.onnx")
    assert found.fp32_bytes == pytest.approx(fp32.size_bytes, rel=0.1)
    data = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)).numpy()
    ranges = collect_ranges(fp32.path, lambda: iter([data]))
    int8 = quantize_to(fp32.path, tmp_path / "int8.onnx", FLAVORS["cpu-x86"], ranges, "absmax")
    assert found.int8_bytes == pytest.approx(int8.size_bytes, rel=0.1)


def test_parameters_outside_of_layers_stay_float_in_both_files() -> None:
    found, bare = (
        footprint.footprint_of(net, (1, 2, 5)) for net in (Extra(), nn.Sequential(nn.Flatten(), nn.Linear(10, 4)))
    )
    assert found.parameters == bare.parameters + 1000
    assert found.fp32_bytes - bare.fp32_bytes == found.int8_bytes - bare.int8_bytes == 4000


NETS = """
from torch import nn


def answers(outputs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, outputs))


class Pair(nn.Linear):
    def __init__(self):
        super().__init__(16, 4)

    def forward(self, x):
        return super().forward(x), x


def one():
    return answers(1)


def thousand():
    return answers(1000)


def four():
    return answers(4)
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [("one", "has 2 outputs, not the 4"), ("thousand", "has 1000 outputs, not the 4"), ("Pair", "returns a tuple")],
)
def test_a_network_of_other_outputs_is_no_student(
    factory: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Any
) -> None:
    approve(["students_nets:four", f"students_nets:{factory}"])
    (tmp_path / "students_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "students_nets", raising=False)
    net, _ = footprint.build_with_footprint("students_nets:four", input_shape=(1, 16, 16), classes=4, seed=0)
    assert net.training
    with pytest.raises(UsageError, match=f"students_nets:{factory} is no student here: The network {message}"):
        footprint.build_with_footprint(f"students_nets:{factory}", input_shape=(1, 16, 16), classes=4, seed=0)


def test_a_network_that_does_not_take_the_image_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="alexnet does not take 1x32x32 images: ") as caught:
        footprint.build_with_footprint("alexnet", input_shape=(1, 32, 32), classes=10, seed=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="vit_b_16"):
        footprint.build_with_footprint("vit_b_16", input_shape=(3, 30, 30), classes=2, seed=0)
