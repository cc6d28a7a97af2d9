"""What lies in the folders of a run, as networks and descriptions: the one place that knows how files become these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from edgekd.errors import InputFileError
from edgekd.models import footprint, layout, probe, registry
from edgekd.models.description import Description
from edgekd.models.footprint import Footprint
from edgekd.models.stems import Shape
from edgekd.recipe import Recipe, load_resolved
from edgekd.run import checkpoint
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir
from edgekd.run.ownership import STUDENT_WEIGHTS, TEACHER_WEIGHTS
from edgekd.text import first_line, path_argument


def description_of(run: RunDir) -> Description:
    """Read teacher/teacher.json."""
    card = run.read(TeacherCard)
    batchnorm = card.probe.batchnorm_layers > 0
    return Description(card.arch, card.input_shape, card.classes, card.head, card.undo, batchnorm)


def _load(network: nn.Module, path: Path) -> nn.Module:
    try:
        network.load_state_dict(checkpoint.load_tensors(path))
    except RuntimeError as error:
        raise InputFileError(
            f"{path} does not fit the network that recipe.toml and teacher.json say it is ({first_line(error)}). Is "
            f"one of them of another run? `edgekd status {path_argument(path.parents[1])}` says what to do."
        ) from error
    return network


def teacher_network(run: RunDir, description: Description) -> nn.Module:
    """Rebuild the teacher in eval mode, in float32."""
    shape = description.input_shape
    network = registry.build(description.arch, input_shape=shape, classes=description.classes, seed=0)
    _load(network, run.stage("teacher") / TEACHER_WEIGHTS).eval().requires_grad_(False)
    return settled(network, description.arch, shape)


def settled(network: nn.Module, arch: str, input_shape: Shape) -> nn.Module:
    """Return a network kept in the memory layout that it takes; those of the zoo take any."""
    return layout.settled(network, input_shape) if registry.is_custom(arch) else network


def initial_weights(run: RunDir, recipe: Recipe) -> dict[str, Tensor]:
    """Return the tensors the student starts from in place of random ones; none without `student.weights`."""
    return checkpoint.load_tensors(run.stage("init") / STUDENT_WEIGHTS) if recipe.student.weights else {}


def build_student(recipe: Recipe, description: Description, initial: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a fresh student for the teacher's images and classes; `initial` replaces what was drawn at random."""
    shape, classes = description.input_shape, description.classes
    student = registry.build(recipe.student.name, input_shape=shape, classes=classes, seed=recipe.seed)
    if initial:
        student.load_state_dict(initial, strict=False)
    return settled(student, recipe.student.name, shape)


def student_network(run: RunDir) -> nn.Module:
    """Rebuild the selected student in eval mode."""
    network = build_student(load_resolved(run.recipe_file), description_of(run))
    return _load(network, run.stage("select") / STUDENT_WEIGHTS).eval().requires_grad_(False)


def precision_rank(name: str) -> tuple[int, str]:
    """Return a sort key for exported files: FP32, FP16, then INT8, in the order of the agreement chain."""
    kind = name.split(".")[1] if name.endswith(".onnx") else ""
    return (["", "fp32", "fp16"].index(kind) if kind in ("", "fp32", "fp16") else 3, name)


def student_footprint(recipe: Recipe, description: Description) -> Footprint:
    """Return what the student costs at the teacher's input; a student that does not take it is a `UsageError`."""
    shape, classes = description.input_shape, description.classes
    return footprint.build_with_footprint(recipe.student.name, input_shape=shape, classes=classes, seed=recipe.seed)[1]


def student_head(student: nn.Module, shape: Shape) -> str:
    """Return the name of the layer that makes the student's logits."""
    return probe.head_name(student, shape)
