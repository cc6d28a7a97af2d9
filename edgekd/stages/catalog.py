"""The stages of a run in their order: what each is called, reads and depends on, and the door to its work.

A stage's work is imported when it runs, so that `edgekd status` needs no torch to say what is stale.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgekd.recipe import Recipe
from edgekd.recipe.method import MethodTable
from edgekd.run.cards.teacher import PixelsCard, TeacherCard
from edgekd.run.files import digest
from edgekd.run.ownership import REPLAY_WEIGHTS, STUDENT_WEIGHTS, TEACHER_WEIGHTS
from edgekd.stages.base import Execution, Reads, Stage

_TEACHER = (TEACHER_WEIGHTS, TeacherCard.file)


def _file_hash(path: Path, recorded: Mapping[str, str]) -> dict[str, str]:
    from edgekd.ingestion import outside_files

    there = path.name and os.access(path, os.F_OK)
    return {"file": outside_files.sha256_of_input(path) if there else recorded.get("file", "")}


def _images_hash(folder: str, name: str, recorded: Mapping[str, str], count: int | None = None) -> dict[str, str]:
    """Return the hash of a folder's pictures, or of `count` of them, under a name; nothing without a folder."""
    if not folder:
        return {}
    from edgekd.run import image_folder

    images = image_folder.open_unlabeled(Path(folder), count) if Path(folder).is_dir() else None
    return {name: images.sha256() if images else recorded.get(name, "")}


ADDED_METHOD_KEYS = {
    "generator": ("batch_size", "every_step_until"),
    "procedural": ("share",),
    "student": ("reuse", "mixup", "cutmix", "inherit_slices", "hint_schedule", "hint_adapters"),
}
"""Keys that came after version 1 of distill; at their defaults they change nothing, so older runs stay up to date."""


class Ingest(Stage):
    """Read the teacher and find out what it is."""

    name, folder, version = "ingest", "teacher", 1
    command = "edgekd ingest TEACHER"
    file_key = "teacher.file"

    def slice(self, recipe: Recipe) -> dict[str, JsonValue]:
        """Return how the file is to be read, and what is known of real pixels."""
        teacher = recipe.teacher.model_dump(mode="json", exclude={"file", "trust_pickle", "accept_mapping"})
        return {"teacher": teacher, "pixels": recipe.pixels.model_dump(mode="json")}

    def outside(self, recipe: Recipe, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the hashes of the teacher's file and of the class names, where the user gave some."""
        from edgekd.ingestion import outside_files

        hashes, names = _file_hash(self.file(recipe), recorded), Path(recipe.pixels.classes)
        if names.name and os.access(names, os.F_OK):
            hashes["classes"] = outside_files.sha256_of_input(names)
        elif names.name and "classes" in recorded:  # an older record has none
            hashes["classes"] = recorded["classes"]
        return hashes

    def run(self, execution: Execution) -> None:
        """Publish teacher/."""
        from edgekd.stages import ingest

        ingest.ingest_teacher(execution)


INGEST = Ingest()


class Init(Stage):
    """Read the weights that the student starts from, where the user gives some."""

    name, folder, version = "init", "init", 1
    command = "edgekd distill TEACHER --student NAME --student-weights FILE"
    reads: ClassVar[Reads] = {INGEST: (TeacherCard.file,)}
    file_key = "student.weights"

    def slice(self, recipe: Recipe) -> dict[str, JsonValue]:
        """Return the student that the weights have to fit."""
        return {"student": recipe.student.name}

    def wanted(self, recipe: Recipe) -> bool:
        """Return whether the recipe names a file of weights."""
        return bool(recipe.student.weights)

    def outside(self, recipe: Recipe, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the hash of the file of weights."""
        return _file_hash(self.file(recipe), recorded)

    def run(self, execution: Execution) -> None:
        """Publish init/."""
        from edgekd.stages import init

        init.read_initial_weights(execution)


INIT = Init()


class Distill(Stage):
    """Train the student without data."""

    name, folder, version = "distill", "distill", 1
    command = "edgekd distill TEACHER --student NAME"
    reads: ClassVar[Reads] = {INGEST: _TEACHER, INIT: (STUDENT_WEIGHTS,)}

    def slice(self, recipe: Recipe) -> dict[str, JsonValue]:
        """Return seed, precision, student and method."""
        method = recipe.method.model_dump(mode="json", exclude={"minutes", "source", "steps_by_area"})
        defaults = MethodTable().model_dump(mode="json")
        for table, keys in ADDED_METHOD_KEYS.items():
            method[table] = {k: v for k, v in method[table].items() if k not in keys or v != defaults[table][k]}
        method = {name: table for name, table in method.items() if table != {}}
        student: dict[str, JsonValue] = {"name": recipe.student.name}
        if recipe.student.weights:  # their content comes with the inputs
            student["weights"] = "from a file"
        parts: dict[str, JsonValue] = {"seed": recipe.seed, "precision": recipe.precision, "student": student}
        if recipe.images.folder:  # likewise; how they are normalised is part of the student's input
            pixels = recipe.pixels.model_dump(mode="json", exclude={"classes"})
            parts["images"] = {"folder": "a folder", "pixels": pixels}
        return {**parts, "method": method}

    def outside(self, recipe: Recipe, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the hash of the pictures that the student learns on, where there are any."""
        return _images_hash(recipe.images.folder, "images", recorded)

    def run(self, execution: Execution) -> None:
        """Fill distill/ and publish it by its record."""
        from edgekd.stages import distill

        distill.distill_student(execution)


DISTILL = Distill()


class Select(Stage):
    """Choose the final student among those known at the end."""

    name, folder, version = "select", "select", 3
    command = "edgekd select"
    reads: ClassVar[Reads] = {INGEST: _TEACHER, DISTILL: ()}

    def slice(self, recipe: Recipe) -> dict[str, JsonValue]:
        """Return the whole table."""
        return recipe.select.model_dump(mode="json")

    def run(self, execution: Execution) -> None:
        """Publish select/."""
        from edgekd.stages import select

        select.select_student(execution)


SELECT = Select()


class Export(Stage):
    """Write the student as ONNX files."""

    name, folder, version = "export", "export", 7
    command = "edgekd export"
    reads: ClassVar[Reads] = {
        INGEST: (*_TEACHER, PixelsCard.file),
        SELECT: (STUDENT_WEIGHTS, REPLAY_WEIGHTS),
    }

    def slice(self, recipe: Recipe) -> dict[str, JsonValue]:
        """Return the table without the path of pictures, whose content comes with the inputs."""
        table = recipe.export.model_dump(mode="json", exclude={"images"})
        if recipe.export.calibrates_on_images:
            table["calibrate_on_real"] = "a folder"  # the key's old name, which earlier records hold
        return table

    def outside(self, recipe: Recipe, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the hash of the pictures that INT8 ranges are set from, where there are any."""
        folder = recipe.export.images if recipe.export.calibrates_on_images else ""
        return _images_hash(folder, "calibration_images", recorded, recipe.export.calibration_samples)

    def run(self, execution: Execution) -> None:
        """Publish export/."""
        from edgekd.stages import export

        export.export_student(execution)


EXPORT = Export()


class Bench(Stage):
    """Measure the latency of the ONNX files here."""

    name, folder, version = "bench", "bench/local", 1
    command = "edgekd bench"
    reads: ClassVar[Reads] = {EXPORT: ()}

    def slice(self, recipe: Recipe) -> dict[str, JsonValue]:
        """Return the whole table."""
        return recipe.bench.model_dump(mode="json")

    def outside(self, recipe: Recipe, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return this machine and its runtime: a latency belongs to both."""
        from edgekd import cpus

        return {"machine": digest([cpus.model(), version("onnxruntime")])}

    def run(self, execution: Execution) -> None:
        """Publish bench/local/."""
        from edgekd.stages import bench

        bench.measure_latency(execution)


BENCH = Bench()

STAGES: tuple[Stage, ...] = (INGEST, INIT, DISTILL, SELECT, EXPORT, BENCH)
