"""Which run a verb works on, and whether it may take over another recipe."""

from __future__ import annotations

from pathlib import Path

from edgekd import console
from edgekd.agent.device import files
from edgekd.agent.device.files import real
from edgekd.errors import EdgekdError, RecipeError, RunBusyError, UsageError
from edgekd.pipeline import fresh_start
from edgekd.pipeline.run_status import RunStatus
from edgekd.recipe import AUTO, Recipe, differences, load_resolved, to_toml, with_changes
from edgekd.run.cards.record import RECORD
from edgekd.run.directory import RunDir
from edgekd.run.files import write_text
from edgekd.run.ownership import is_run
from edgekd.stages.base import Stage
from edgekd.stages.catalog import DISTILL, INGEST, SELECT


def open_recipe(run: RunDir) -> Recipe:
    """Read a run's resolved recipe; exit 2 when there is no such run."""
    if not run.ledger_file.is_file():  # a damaged one is told by whoever needs it
        raise UsageError(f"there is no run {run.path}; `edgekd distill TEACHER` starts one.")
    if not run.recipe_file.is_file():
        raise UsageError(f"run {run.path} was stopped before it had a recipe; give its first command again.")
    return load_resolved(run.recipe_file)


def adopt(run: RunDir, asked: Recipe, *, reads_teacher: bool = True) -> Recipe:
    """Make `wanted` the run's recipe, unless it changes what ingest, distill or select were made from.

    Pixels are metadata: they may change at any time. How the teacher is read may be corrected as long as nothing was
    learned from it. A verb that does not read the files from outside does not ask whether they are still those the run
    began with.
    """
    names_before = ""
    if run.recipe_file.is_file():
        old = load_resolved(run.recipe_file)
        names_before = old.pixels.classes
        lines = []
        begun = run.stage(DISTILL.folder).exists()
        for stage in (INGEST, DISTILL, SELECT):
            if not run.stage(stage.folder).exists() or (stage is INGEST and not begun):
                continue
            if stage is DISTILL and AUTO in (old.method.preset, old.method.student.reuse):
                continue  # its recipe.toml was lost and is made again; checkpoints know whose they are
            before, after = stage.slice(old), stage.slice(asked)
            before.pop("pixels", None)
            after.pop("pixels", None)
            lines += differences(before, after)
        if not asked.method.steps and asked.method.minutes != old.method.minutes:  # 0 steps is what nobody typed
            minutes = f"method.minutes: {old.method.minutes:g} -> {asked.method.minutes:g}"
            lines = [minutes if line.startswith("method.steps:") else line for line in lines]
        if reads_teacher:
            lines += _other_files(run, old, asked)
        if lines:
            raise RecipeError(
                f"run {run.path} was started with another recipe: {'; '.join(lines)}. Start anew with --fresh, use "
                "another run with --run NAME, or leave these settings as they were."
            )
    outside = [("images", "folder", asked.images.folder), ("export", "images", asked.export.images)]
    if asked.pixels.classes != names_before:  # what an older edgekd left as it was typed is part of a key
        outside.append(("pixels", "classes", asked.pixels.classes))
    for table, key, path in outside:
        if path:  # the next command may be given elsewhere
            asked = with_changes(asked, {table: {key: str(real(Path(path)))}})
    text = to_toml(asked)
    if not run.recipe_file.is_file() or files.read_text(run.recipe_file) != text:
        write_text(run.recipe_file, text)
    return asked


def _other_files(run: RunDir, old: Recipe, asked: Recipe) -> list[str]:
    """One line for each file from outside whose content is not what the run began with.

    The student's initial weights may still be exchanged as long as nothing was trained from them.
    """
    standing, lines = RunStatus(run, asked), []
    for stage in standing.stages:
        record = standing.record(stage)
        begun = stage is INGEST or run.stage(DISTILL.folder).exists()
        if not stage.file_key or not begun or record is None:
            continue
        if standing.inputs(stage)["file"] != record.inputs.get("file"):
            before, after = str(stage.file(old)), str(stage.file(asked))
            lines.append(f"{stage.file_key}: {before!r} -> {after!r}, with another content")
    return lines


def _published(folder: Path) -> int:
    """When a stage was published, 0 where the disk does not tell."""
    try:
        return (folder / RECORD).stat().st_mtime_ns
    except OSError:
        return 0


def newest_run(root: Path, stage: Stage) -> RunDir:
    """Return the run under `root` that most recently published what a verb needs."""
    folder, busy = stage.folder, []
    for ledger in sorted(root.glob("*/run.json")):
        try:
            fresh_start.recover(RunDir(ledger.parent))
        except RunBusyError as error:
            busy.append(error)
        except (EdgekdError, OSError) as error:  # another user's, or on a disk that is gone: the others are whole
            console.warn(f"{ledger.parent} is passed over: {error}")
    places = [record.parents[len(Path(folder).parts)] for record in root.glob(f"*/{folder}/record.json")]
    runs = [(published, run) for run in places if is_run(run) and (published := _published(run / folder))]
    if busy and not runs:
        raise busy[0]
    if not runs:
        raise UsageError(f"no run under {root}/ has a finished {stage.name}; `{stage.command}` makes one.")
    return RunDir(max(runs)[1])
