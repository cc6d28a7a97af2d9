"""What stages read from one another: networks rebuilt from files, and synthetic samples that come again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from edgekd.errors import InputFileError
from edgekd.machine import Float32Linear
from edgekd.models import artefacts
from edgekd.run import checkpoint
from edgekd.run.cards.teacher import PixelsCard
from edgekd.run.directory import RunDir

CPU = torch.device("cpu")


def test_the_description_and_the_pixels_are_what_ingest_wrote(ingested: RunDir) -> None:
    found = artefacts.description_of(ingested)
    assert (found.input_shape, found.classes, found.head, found.output_transform) == (
        toy.SHAPE,
        toy.CLASSES,
        "linear",
        "none",
    )
    assert found.pixels == 64
    assert ingested.read(PixelsCard) == PixelsCard(mean=None, std=None, class_names=None)


def test_the_teacher_is_rebuilt_frozen_with_a_float32_head(ingested: RunDir) -> None:
    teacher, description = toy.teacher_of(ingested, "bf16")
    saved = checkpoint.load_tensors(ingested.stage("teacher") / "teacher.safetensors")
    rebuilt = teacher.network.state_dict()
    assert {name.rsplit(".", 1)[1] for name in rebuilt.keys() - saved.keys()} <= {"num_batches_tracked"}
    assert all(torch.equal(rebuilt[name], value) for name, value in saved.items())
    assert isinstance(teacher.network.get_submodule(description.head), Float32Linear)
    assert not teacher.network.training
    assert teacher.precision.bf16
    weight = teacher.network.get_parameter("conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_weights_that_do_not_fit_are_named(damage: str, ingested: RunDir, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(ingested.path, tmp_path / "toy")))
    path = run.stage("teacher") / "teacher.safetensors"
    tensors = checkpoint.load_tensors(path)
    path.unlink()
    if damage == "other":
        del tensors["linear.bias"]
        checkpoint.save_tensors(tensors, path)
    with pytest.raises(InputFileError, match=r"teacher\.safetensors"):
        toy.teacher_of(run)


def test_the_selected_student_is_rebuilt(finished: Any) -> None:
    student = artefacts.student_network(finished.run)
    saved = checkpoint.load_tensors(finished.run.stage("select") / "student.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in student.state_dict().items())
    assert not student.training
    assert not any(p.requires_grad for p in student.parameters())


def test_a_fresh_student_depends_on_the_seed_alone(finished: Any, ingested: RunDir) -> None:
    description = artefacts.description_of(ingested)
    first, again = (
        artefacts.build_student(finished.recipe, description).get_parameter("conv1.weight") for _ in range(2)
    )
    assert torch.equal(first, again)
    other = finished.recipe.model_copy(update={"seed": 9})
    assert not torch.equal(first, artefacts.build_student(other, description).get_parameter("conv1.weight"))


def test_the_students_footprint_counts_weights_and_products(finished: Any, ingested: RunDir) -> None:
    description = artefacts.description_of(ingested)
    student = artefacts.build_student(finished.recipe, description)
    found = artefacts.student_footprint(finished.recipe, description)
    assert found.parameters == sum(p.numel() for p in student.parameters())
    assert found.macs > found.parameters
    assert artefacts.student_head(student, toy.SHAPE) == "linear"
