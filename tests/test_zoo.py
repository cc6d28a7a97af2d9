"""Every student of the zoo is distilled for a step, selected and exported; its file keeps its answers.

The default tests work on 16x16 pixels and take the smallest network of each kind of the registry; the slow tests take
every student at two sizes of images, from digits to 224 pixels, each at others than the student before it.
"""

from __future__ import annotations

import shutil
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from edgekd import recipe, state_dict
from edgekd.export.fidelity import TOLERANCE_FP32, check_parity
from edgekd.export.graph import read_model
from edgekd.export.onnx_export import export_fp32
from edgekd.export.samples import ExportSamples
from edgekd.models import artefacts, registry
from edgekd.models.registry import ArchSpec
from edgekd.recipe import Recipe
from edgekd.run import checkpoint
from edgekd.run.directory import RunDir
from edgekd.stages.select import reestimate_batchnorm

SMALLEST = {
    "lenet5-half": "lenet5-half",
    "lenet5": "lenet5",
    "resnet8": "resnet8@0.25",
    "wrn-16-1": "wrn-10-1",
    "mobilenetv2": "mobilenetv2@0.1",
    "mobilenetv3-small": "mobilenetv3-small@0.1",
    "mobilenetv3-large": "mobilenetv3-large@0.1",
    "shufflenetv2": "shufflenetv2@0.5",
    "squeezenet": "squeezenet",
    "mnasnet": "mnasnet@0.1",
    "efficientnet-b0": "efficientnet-b0",
    "regnet-y-400mf": "regnet-y-400mf",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}
"""The smallest network of each kind; the other students of the zoo are longer or wider."""
HEAVY = {
    "lenet5",
    "wrn-16-1",
    "squeezenet",
    "mobilenetv3-small",
    "resnet18",
    "mobilenetv3-large",
    "shufflenetv2",
    "mnasnet",
    "efficientnet-b0",
    "regnet-y-400mf",
    "resnet50",
}
"""Kinds whose smallest takes long, or is much like another."""

SHAPES = ((1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224))
Shape = tuple[int, int, int]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that makes a run with a teacher for an input shape, once."""

    @cache
    def at(shape: Shape) -> tuple[RunDir, Path]:
        folder = tmp_path_factory.mktemp("zoo")
        teacher = toy.write_teacher(folder / "teacher.pt", shape)
        return toy.advance(folder / "run", one_step(teacher, shape, toy.STUDENT), ("ingest",)), teacher

    return at


def one_step(teacher: Path, shape: Shape, student: str) -> Recipe:
    """Return a recipe of a single step on four images, whose generator and VAE are tiny."""
    method = {
        "steps": 1,
        "generator": {"warmup": 0},
        "student": {"batch_size": 4},
        "replay": {"batch_size": 2},
        "vae": {"novel": 2, "rehearsed": 2},
    }
    changes = {
        "teacher": {"input": "x".join(map(str, shape))},
        "student": {"name": student},
        "select": {"reestimate_batches": 0},
    }
    return recipe.with_changes(toy.toy_recipe(teacher, precision="fp32", method=method), changes)


def distilled(student: str, shape: Shape, ingested: Any, folder: Path, stages: tuple[str, ...]) -> RunDir:
    """Take a student through stages after ingest, and check that its one step taught it something."""
    run, teacher = ingested(shape)
    shutil.copytree(run.path, folder / "run")
    run = toy.advance(folder / "run", one_step(teacher, shape, student), stages)
    states = [
        state_dict.tensors_of(state_dict.unflatten(checkpoint.load_tensors(path), {}), "student")
        for path in sorted(run.stage("distill").glob("checkpoints/step-*/state.safetensors"))
    ]
    before, after = states
    network = artefacts.build_student(one_step(teacher, shape, student), artefacts.description_of(run))
    weights = [name for name, value in network.named_parameters() if value.ndim > 1]
    still = [name for name in weights if torch.equal(before[name], after[name])]
    assert not still, f"{student} did not learn {still}"
    assert all(value.isfinite().all() for value in after.values())
    return run


def check_export(run: RunDir, file: Path) -> None:
    """Export the selected student; check the opset that was reached, and that the file gives its answers.

    One step leaves BatchNorm statistics and a generator under which all answers are almost equal. So the student is
    asked about noise, with the statistics it has on noise.
    """
    shape = artefacts.description_of(run).input_shape
    samples = torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))
    student = reestimate_batchnorm(artefacts.student_network(run), iter([samples]))
    export_fp32(student, shape, file)
    model = read_model(file)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    left = {node.op_type for node in model.graph.node} & {"Split", "ReduceMean"}
    assert not left, f"TensorRT 8 misreads {left} of this opset"
    replayed = ExportSamples.of_run(run, None).draw("zoo", len(samples))
    assert replayed.shape == samples.shape
    assert replayed.isfinite().all()
    with torch.no_grad():
        answers = student(samples).numpy()
    assert np.ptp(answers, axis=0).max() > 0.01, "equal answers would compare nothing"
    parity = check_parity(file, samples.numpy(), answers, TOLERANCE_FP32)
    assert parity.passed, parity


def test_each_kind_of_student_has_its_smallest() -> None:
    def kind(text: str) -> int:
        return id(registry.family_of(ArchSpec.parse(text).name))

    assert {kind(text) for text in SMALLEST.values()} == {kind(name) for name in registry.student_names()}
    assert all(kind(text) == kind(name) for name, text in SMALLEST.items())


@pytest.mark.parametrize(
    "student",
    [pytest.param(text, id=kind, marks=pytest.mark.slow if kind in HEAVY else ()) for kind, text in SMALLEST.items()],
)
def test_each_kind_of_student_is_distilled_and_exported(student: str, ingested: Any, tmp_path: Path) -> None:
    run = distilled(student, (1, 16, 16), ingested, tmp_path, ("distill", "select"))
    check_export(run, tmp_path / "student.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "shape"),
    [
        (name, SHAPES[(place + more) % len(SHAPES)])
        for place, name in enumerate(registry.student_names())
        for more in (0, 2)
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
def test_every_student_is_distilled_and_exported(student: str, shape: Shape, ingested: Any, tmp_path: Path) -> None:
    run = distilled(student, shape, ingested, tmp_path, ("distill", "select"))
    check_export(run, tmp_path / "student.onnx")


def test_a_student_of_your_own_is_distilled_and_exported(
    ingested: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Any
) -> None:
    approve(["our_students:narrow"])
    (tmp_path / "our_students.py").write_text(
        textwrap.dedent("""
            from torch import nn

            def narrow(input_shape, classes, width=6):
                convolution = nn.Conv2d(input_shape[0], width, 3, stride=2, padding=1)
                head = nn.Linear(width, classes)
                return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = distilled("our_students:narrow", (1, 16, 16), ingested, tmp_path, ("distill", "select"))
    check_export(run, tmp_path / "student.onnx")
