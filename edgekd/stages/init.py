"""Read the weights a student is to start from, check that they fit it, and publish them for distillation.

A run has this stage where `student.weights` names a file. The file may move away afterwards.
"""

from __future__ import annotations

from pathlib import Path

from edgekd import console
from edgekd.errors import InputFileError
from edgekd.ingestion import foreign, initial, outside_files, weights
from edgekd.models import artefacts
from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.run import checkpoint
from edgekd.run.cards.teacher import InitCard
from edgekd.run.ownership import STUDENT_WEIGHTS
from edgekd.stages.base import Execution


def read_initial_weights(execution: Execution) -> None:
    """Publish init/: the tensors to start from, and which layers stay random."""
    execution.stop.raise_if_interrupted("reading the student's weights")
    run_dir, recipe = execution.run, execution.recipe
    path = Path(recipe.student.weights)
    outside_files.require_file(path)
    run_dir.note_file(path, execution.inputs["file"])
    try:
        loaded = weights.weights_of(foreign.read_checkpoint(path, trust_pickle=None))
    except InputFileError as error:
        if str(path) in str(error):
            raise
        raise InputFileError(f"the student's weights {path}: {error}") from error
    fitted = fit_initial_weights(loaded, path, recipe, artefacts.description_of(run_dir))
    if loaded.others:
        console.say(f"init     weights = {loaded.entry}, not {', '.join(loaded.others)}")
    if fitted.left_random:
        console.say(f"init     left random: {', '.join(fitted.left_random)}")
    with execution.publish() as (folder, _):
        checkpoint.save_tensors(fitted.tensors, folder / STUDENT_WEIGHTS)
        InitCard(student=recipe.student.name, left_random=list(fitted.left_random)).write(folder)


def fit_initial_weights(
    loaded: weights.Weights, path: Path, recipe: Recipe, description: Description
) -> initial.InitialWeights:
    """Fit the weights of a checkpoint to the recipe's student."""
    student = artefacts.build_student(recipe, description)
    try:
        return initial.fit_to_student(student, loaded.tensors, description.input_shape)
    except InputFileError as error:
        raise InputFileError(
            f"{path} cannot start {recipe.student.name}: {error} Give its own weights with --student-weights, "
            "or none with --set student.weights=."
        ) from error
