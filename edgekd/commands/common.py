"""What every verb needs: which run, which recipe, the lock and the signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekd import console, pipeline
from edgekd import recipe as recipe_module
from edgekd.commands.flags import Changes
from edgekd.errors import InputFileError
from edgekd.recipe import Recipe
from edgekd.rundir import RunDir, command_line
from edgekd.stopping import Stop, graceful

RUNS = Path("runs")


@dataclass(frozen=True)
class Options:
    """Flags that are in no recipe: they steer this one command."""

    max_seconds: float | None = None
    data: Path | None = None
    fresh: bool = False
    json: bool = False
    yes: bool = False


def named_run(name: str) -> RunDir:
    """Return the run of a name under runs/, or of a path."""
    return RunDir(Path(name) if "/" in name or Path(name, "recipe.toml").is_file() else RUNS / name)


def find_run(name: str, needed: str) -> RunDir:
    """Return the named run, or the newest one that has what the verb needs; say which in the first line."""
    if name:
        run = named_run(name)
    else:
        run = pipeline.newest_run(RUNS, needed)
        console.say(f"run      {run.path}")
    pipeline.open_recipe(run)
    return run


@contextmanager
def at_work(run: RunDir, options: Options, *, teacher: Path | None = None) -> Iterator[Stop]:
    """Hold the run's lock and turn signals into requests; with --fresh replace what the run holds.

    What it held is deleted only when training has begun anew; whatever fails before brings it back.
    """
    with run.lock(), graceful(options.max_seconds) as stop:
        pipeline.settle_afresh(run)  # a --fresh that was killed
        if options.fresh:
            if teacher is None or not teacher.is_file():
                raise InputFileError(
                    f"--fresh replaces nothing: the teacher {teacher or ''} is not there to begin with."
                )
            pipeline.start_afresh(run)
        try:
            run.note_command(command_line())
            yield stop
        except BaseException:
            pipeline.settle_afresh(run)
            raise
        pipeline.settle_afresh(run, succeeded=True)


def wanted_recipe(run: RunDir, flags: Changes) -> Recipe:
    """Return the run's recipe, or a new one, with the flags applied."""
    if run.recipe_file.is_file():
        kept = recipe_module.load_resolved(run.recipe_file)
        asked = flags.get("method", {})
        if asked.get("minutes", kept.method.minutes) != kept.method.minutes and "steps" not in asked:
            flags = {**flags, "method": {**asked, "steps": 0}}  # another request needs another answer
        return recipe_module.with_changes(kept, flags)
    preset = flags.get("method", {}).get("preset")
    base = recipe_module.parse({"method": {"preset": preset}} if preset else {}, origin="flags")
    return recipe_module.with_changes(base, flags)
