"""Stage order, and whether a stage has to run and why.

A stage is done when its record parses, its key matches and its outputs hash as recorded. The key covers the stage's
version, its slice of the recipe and the hashes of what it reads; nothing that only prints numbers is in a key.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from edgekd import afresh, console, foreign, machine, realdata
from edgekd import recipe as recipes
from edgekd.errors import RecipeError, RunBusyError, UsageError
from edgekd.ownership import is_run, remove
from edgekd.recipe import Recipe
from edgekd.rundir import RECORD, Record, RunDir, digest, write_text
from edgekd.stopping import Stop


@dataclass(frozen=True)
class Stage:
    """One stage: its folder, what it reads of the recipe, and which outputs of which stages it reads."""

    name: str
    folder: str
    version: int
    slice: Callable[[Recipe], dict[str, Any]]
    reads: Mapping[str, tuple[str, ...]]
    """Names of upstream outputs by stage; an empty tuple means all of them."""
    command: str
    """What the user types to make it."""
    file_key: str = ""
    """Recipe key of a file from outside the run that it reads."""
    optional: bool = False
    """Whether a recipe that names no such file does without the stage."""

    def file(self, recipe: Recipe) -> str:
        """Return the path of the file from outside, empty where there is none."""
        path: str = attrgetter(self.file_key)(recipe) if self.file_key else ""
        return path

    def wanted(self, recipe: Recipe) -> bool:
        """Return whether a run with this recipe has the stage."""
        return not self.optional or bool(self.file(recipe))


def _distill_slice(recipe: Recipe) -> dict[str, Any]:
    method = recipe.method.model_dump(mode="json", exclude={"minutes", "source", "steps_by_area"})
    student = {"name": recipe.student.name}
    if recipe.student.weights:  # their content comes with the inputs
        student["weights"] = "from a file"
    return {"seed": recipe.seed, "precision": recipe.precision, "student": student, "method": method}


def _ingest_slice(recipe: Recipe) -> dict[str, Any]:
    teacher = recipe.teacher.model_dump(mode="json", exclude={"file", "trust_pickle", "accept_mapping"})
    return {"teacher": teacher, "pixels": recipe.pixels.model_dump(mode="json")}


def _export_slice(recipe: Recipe) -> dict[str, Any]:
    table = recipe.export.model_dump(mode="json", exclude={"calibrate_on_real"})
    if recipe.export.calibrates_on_real:  # their content comes with the inputs
        table["calibrate_on_real"] = "a folder"
    return table


STAGES = {
    stage.name: stage
    for stage in (
        Stage("ingest", "teacher", 1, _ingest_slice, {}, "edgekd ingest TEACHER", file_key="teacher.file"),
        Stage(
            "init",
            "init",
            1,
            lambda recipe: {"student": recipe.student.name},
            {"ingest": ("teacher.json",)},
            "edgekd distill TEACHER --student NAME --student-weights FILE",
            file_key="student.weights",
            optional=True,
        ),
        Stage(
            "distill",
            "distill",
            1,
            _distill_slice,
            {"ingest": ("teacher.safetensors", "teacher.json"), "init": ("student.safetensors",)},
            "edgekd distill TEACHER --student NAME",
        ),
        Stage(
            "select",
            "select",
            3,
            lambda recipe: recipe.select.model_dump(mode="json"),
            {"ingest": ("teacher.safetensors", "teacher.json"), "distill": ()},
            "edgekd select",
        ),
        Stage(
            "export",
            "export",
            7,
            _export_slice,
            {
                "ingest": ("teacher.safetensors", "teacher.json", "pixels.json"),
                "select": ("student.safetensors", "replay.safetensors"),
            },
            "edgekd export",
        ),
        Stage(
            "bench",
            "bench/local",
            1,
            lambda recipe: recipe.bench.model_dump(mode="json"),
            {"export": ()},
            "edgekd bench",
        ),
    )
}


def _chosen(outputs: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: outputs[name] for name in (names or sorted(outputs)) if name in outputs}


def inputs(stage: Stage, run: RunDir, recipe: Recipe) -> dict[str, str]:
    """Return the hashes of what a stage reads, from the records of the stages that wrote it."""
    hashes: dict[str, str] = {}
    if stage.file_key:
        record, path = Record.read(run.stage(stage.folder)), Path(stage.file(recipe))
        kept = "" if record is None else record.inputs.get("file", "")
        hashes["file"] = foreign.sha256_of(path) if path.name and os.access(path, os.F_OK) else kept  # moved: no change
    for upstream, names in stage.reads.items():
        record = Record.read(run.stage(STAGES[upstream].folder))
        if record is not None and STAGES[upstream].wanted(recipe):
            hashes |= {f"{upstream}/{k}": v for k, v in _chosen(record.outputs, names).items()}
    if stage.name == "export" and recipe.export.calibrates_on_real:
        record, folder = Record.read(run.stage(stage.folder)), Path(recipe.export.calibrate_on_real)
        kept = "" if record is None else record.inputs.get("calibration_images", "")
        images = realdata.open_unlabelled(folder, recipe.export.calibration_samples) if folder.is_dir() else None
        hashes["calibration_images"] = images.sha256() if images else kept
    if stage.name == "bench":  # a latency belongs to a machine and its runtime
        hashes["machine"] = digest([machine.cpu_model(), version("onnxruntime")])
    return hashes


def key(stage: Stage, recipe: Recipe, hashes: Mapping[str, str]) -> str:
    """Return the key a stage's record must carry to count as done."""
    return digest([stage.name, stage.version, stage.slice(recipe), dict(hashes)])


def stages(recipe: Recipe) -> list[Stage]:
    """Return the stages of a run with this recipe, in order."""
    return [stage for stage in STAGES.values() if stage.wanted(recipe)]


def reason_to_run(stage: Stage, run: RunDir, recipe: Recipe) -> str | None:
    """Return why a stage has to run, or None when it is done."""
    folder = run.stage(stage.folder)
    record = Record.read(folder)
    if record is None:
        return "it never finished" if folder.exists() else "it never ran"
    if record.version != stage.version:
        return f"its version changed ({record.version} -> {stage.version})"
    hashes = inputs(stage, run, recipe)
    changed = [name for name in {**hashes, **record.inputs} if hashes.get(name) != record.inputs.get(name)]
    if changed:
        return f"{sorted(changed)[0]} changed"
    if record.key != key(stage, recipe, hashes):
        return "its part of the recipe changed"
    return record.damaged_output(folder)


def intact(stage: Stage, run: RunDir) -> bool:
    """Return whether a stage's published outputs are whole, stale or not."""
    folder = run.stage(stage.folder)
    record = Record.read(folder)
    return record is not None and record.damaged_output(folder) is None


def require(run: RunDir, recipe: Recipe, name: str) -> None:
    """Make sure a stage's outputs are there; say so in one line when they are stale."""
    stage = STAGES[name]
    if not intact(stage, run):
        reason = reason_to_run(stage, run, recipe)
        raise UsageError(f"run {run.path} has no {name} to work on ({reason}); make it with `{stage.command}`.")
    reason = reason_to_run(stage, run, recipe)
    if reason is not None:
        console.warn(f"{name} is stale ({reason}); using it as it is. `{stage.command}` would make it anew.")


def advance(run: RunDir, recipe: Recipe, names: tuple[str, ...], *, stop: Stop, **extras: Any) -> list[str]:
    """Run those of the named stages that need it, in order; return the names of those that ran.

    `extras` maps a stage's name to further keyword arguments of its function.
    """
    ran = []
    for name in names:
        stage = STAGES[name]
        if not stage.wanted(recipe):
            continue
        stop.raise_if_requested(f"the run before {name}")
        reason = reason_to_run(stage, run, recipe)
        if reason is None:
            console.say(f"{name:<9}already done")
            continue
        refuse_pruned(stage, run)
        hashes = inputs(stage, run, recipe)
        module = importlib.import_module(f"edgekd.stages.{name}")
        machine.use_threads(recipe.machine.threads)
        module.run(run, recipe, key=key(stage, recipe, hashes), inputs=hashes, stop=stop, **extras.get(name, {}))
        ran.append(name)
    return ran


def refuse_pruned(stage: Stage, run: RunDir) -> None:
    """Raise `UsageError` when a stage needs what was pruned."""
    for upstream, names in stage.reads.items():
        record = Record.read(run.stage(STAGES[upstream].folder))
        gone = [] if record is None else [name for name in record.pruned if not names or name in names]
        if gone:
            raise UsageError(
                f"{stage.name} needs {upstream}/{gone[0]}, which was pruned from {run.path}; distil again with --fresh."
            )


def open_recipe(run: RunDir) -> Recipe:
    """Read a run's resolved recipe; exit 2 when there is no such run."""
    if not is_run(run.path):
        raise UsageError(f"there is no run {run.path}; `edgekd distill TEACHER` starts one.")
    if not run.recipe_file.is_file():
        raise UsageError(f"run {run.path} was stopped before it had a recipe; give its first command again.")
    return recipes.load_resolved(run.recipe_file)


def adopt(run: RunDir, wanted: Recipe, *, reads_teacher: bool = True) -> Recipe:
    """Make `wanted` the run's recipe, unless it changes what ingest, distill or select were made from.

    Pixels are metadata: they may change at any time. A verb that does not read the files from outside does
    not ask whether they are still those the run began with.
    """
    if run.recipe_file.is_file():
        old = recipes.load_resolved(run.recipe_file)
        lines = []
        for name in ("ingest", "distill", "select"):
            stage = STAGES[name]
            if Record.read(run.stage(stage.folder)) is None and not run.stage(stage.folder).exists():
                continue
            before, after = stage.slice(old), stage.slice(wanted)
            before.pop("pixels", None)
            after.pop("pixels", None)
            lines += recipes.differences(before, after)
        if reads_teacher:
            lines += _other_files(run, old, wanted)
        if lines:
            raise RecipeError(
                f"run {run.path} was started with another recipe: {'; '.join(lines)}. Start anew with --fresh, use "
                "another run with --run NAME, or leave these settings as they were."
            )
    images = wanted.export.calibrate_on_real
    if images:  # the next command may be given elsewhere
        wanted = recipes.with_changes(wanted, {"export": {"calibrate_on_real": str(Path(images).resolve())}})
    text = recipes.to_toml(wanted)
    if not run.recipe_file.is_file() or run.recipe_file.read_text(encoding="utf-8") != text:
        write_text(run.recipe_file, text)
    return wanted


def _other_files(run: RunDir, old: Recipe, wanted: Recipe) -> list[str]:
    """Return one line for each file from outside whose content is not what the run began with.

    The student's initial weights may still be exchanged as long as nothing was trained from them.
    """
    lines = []
    for stage in stages(wanted):
        record = Record.read(run.stage(stage.folder))
        begun = stage.name == "ingest" or run.stage("distill").exists()
        if not stage.file_key or not begun or record is None:
            continue
        if inputs(stage, run, wanted)["file"] != record.inputs.get("file"):
            before, after = stage.file(old), stage.file(wanted)
            lines.append(f"{stage.file_key}: {before!r} -> {after!r}, with another content")
    return lines


def prune(run: RunDir) -> list[str]:
    """Remove checkpoints and replay networks and mark them in their records; return what was removed."""
    removed = []
    for stage, sensitive in (("distill", "checkpoints"), ("select", "replay.safetensors")):
        folder = run.stage(STAGES[stage].folder)
        record, place = Record.read(folder), folder / sensitive
        names = [] if record is None else [name for name in record.outputs if Path(name).parts[0] == sensitive]
        if record is not None and not set(names) <= set(record.pruned):
            # Marked first: a kill in between leaves files, which the next prune removes, never an unexplained hole.
            replace(record, pruned=sorted({*record.pruned, *names})).write(folder)
        files = sorted(path for path in [place, *place.rglob("*")] if path.is_file() and path.name != RECORD)
        removed += [f"{stage}/{path.relative_to(folder)}" for path in files]
        remove(place)
    return removed


def newest_run(root: Path, stage: str) -> RunDir:
    """Return the run under `root` that most recently published what a verb needs."""
    folder, busy = STAGES[stage].folder, []
    for ledger in sorted(root.glob("*/run.json")):
        try:
            afresh.recover(RunDir(ledger.parent))
        except RunBusyError as error:
            busy.append(error)
    found = [
        (record.stat().st_mtime_ns, record.parents[len(Path(folder).parts)])
        for record in root.glob(f"*/{folder}/record.json")
        if is_run(record.parents[len(Path(folder).parts)])
    ]
    if busy and not found:
        raise busy[0]
    if not found:
        raise UsageError(f"no run under {root}/ has a finished {stage}; `{STAGES[stage].command}` makes one.")
    return RunDir(max(found)[1])
