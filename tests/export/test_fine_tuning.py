"""Quantisation-aware fine-tuning reaches a gate that the other remedies miss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import live
from torch import Tensor, nn

from edgekd import rng
from edgekd.export.fine_tuning import FineTuning
from edgekd.export.int8 import HeldOutSet
from edgekd.export.int8_chain import FINE_TUNING, quantize_keeping_answers
from edgekd.export.onnx_export import export_fp32
from edgekd.export.quantize import FLAVORS
from edgekd.export.ranges import collect_ranges
from edgekd.export.samples import ExportSamples
from edgekd.recipe import ExportTable
from edgekd.rng import KeyedDraws
from edgekd.stopping import Stop

SHAPE, FACTOR, TARGET = (3, 8, 8), 30, 0.785


class Source:
    """Draws smooth random images as a run draws from its replay networks."""

    decoder = None

    def batches(self, _draws: KeyedDraws, purpose: str, count: int, batch_size: int = 64) -> Iterator[Tensor]:
        for start in range(0, count, batch_size):
            draw, size = rng.generator(0, "tests", f"{purpose}/{start // batch_size}"), min(batch_size, count - start)
            coarse = torch.randn(size, 3, 4, 4, generator=draw) * 2
            fine = torch.randn(size, *SHAPE, generator=draw) * 0.5
            yield nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear") + fine


def unbalanced() -> nn.Module:
    """Return a network one channel of each layer of which is 30 times larger, its readers' weights smaller.

    That changes no answer, but leaves the other channels few of the 256 levels (arXiv 1906.04721, section 3.2).
    """
    layers = (
        part
        for before in (3, 8, 8, 8)
        for part in (nn.Conv2d(before, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    )
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = live(lambda: nn.Sequential(*layers, *ends, nn.Linear(8, 5)), SHAPE)
    assert isinstance(net, nn.Sequential)
    net.requires_grad_(False)
    (x,) = Source().batches(KeyedDraws(1, "synthetic", torch.device("cpu")), "centre", 512, 512)
    logits, head = net(x), net[-1]
    assert isinstance(head, nn.Linear)
    head.weight /= logits.std(0)[:, None]
    head.bias.copy_((head.bias - logits.mean(0)) / logits.std(0))
    norms = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    readers = [layer for layer in net if isinstance(layer, nn.Conv2d | nn.Linear)][1:]
    for channel, (norm, reader) in enumerate(zip(norms, readers, strict=True)):
        norm.weight[channel] *= FACTOR
        norm.bias[channel] *= FACTOR
        reader.weight[:, channel] /= FACTOR
    return net


class Own:
    """The student as its own teacher."""

    def __init__(self, network: nn.Module) -> None:
        self.logits = network


@pytest.mark.slow
def test_fine_tuning_reaches_what_the_other_remedies_miss(tmp_path: Path) -> None:
    student, path = unbalanced(), tmp_path / "student.fp32.onnx"
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    export_fp32(student, SHAPE, path, metadata={"edgekd.run": "toy"})
    source: Any = Source()
    teacher: Any = Own(student)
    samples = ExportSamples(source, KeyedDraws(1, "synthetic", torch.device("cpu")), None)
    calibration, held_out = samples.stream("cal", 128), samples.stream("held", 128)
    ranges, judge = collect_ranges(path, calibration), HeldOutSet.of(path, held_out)
    table = ExportTable(qat_steps=256, qat_lr=1e-4)
    tune = FineTuning(student, teacher, SHAPE, table, samples, calibration, {"edgekd.run": "toy"}, Stop())
    flavor = FLAVORS["cpu-x86"]
    plain = quantize_keeping_answers(path, flavor, ranges, judge, calibration, target=TARGET)
    tuned = quantize_keeping_answers(path, flavor, ranges, judge, calibration, target=TARGET, fine_tune=tune)

    assert [change.name for change in plain.changes] == ["ranges", "worst layers in float", "bias correction"]
    assert not plain.passed
    assert tuned.passed
    assert [change.to_card().to_json() for change in tuned.changes[:3]] == [
        change.to_card().to_json() for change in plain.changes
    ]
    last = tuned.changes[-1]
    assert (last.name, last.applied) == (FINE_TUNING, True)
    assert last.before == plain.quality
    assert judge.measure(tuned.plan.build(), flavor) == tuned.quality, "judged against the same float32 student"
    kept = json.loads(json.dumps(last.to_card().to_json()))
    assert kept["last_loss"] < kept["first_loss"]
    assert kept["steps"][0]["remedy"] == "ranges"
    properties = {entry.key: entry.value for entry in tuned.plan.build().metadata_props}
    assert properties["edgekd.run"] == "toy"
    assert json.loads(properties["edgekd.fine_tuned"]) == {"quantisation_aware": {"steps": 256, "lr": 1e-4}}
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_fine_tuning_that_diverges_fails_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, path = unbalanced(), tmp_path / "student.fp32.onnx"
    export_fp32(student, SHAPE, path)
    source: Any = Source()
    teacher: Any = Own(student)
    samples = ExportSamples(source, KeyedDraws(1, "synthetic", torch.device("cpu")), None)
    calibration, held_out = samples.stream("calibration", 64), samples.stream("held-out", 64)
    tune = FineTuning(student, teacher, SHAPE, ExportTable(qat_lr=1e30), samples, calibration, {}, Stop())
    ranges, judge = collect_ranges(path, calibration), HeldOutSet.of(path, held_out)
    found = quantize_keeping_answers(path, FLAVORS["trt"], ranges, judge, calibration, target=1.0, fine_tune=tune)
    assert not found.passed
    assert "export.qat_lr" in str(found.changes[-1].to_card().to_json()["failed"])
    assert found.quality == found.changes[-2].quality
