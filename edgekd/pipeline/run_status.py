"""How far a run has come: which stages are done, which are stale or open, and why.

A stage is done when its record parses, its key matches and its outputs hash as recorded. The key covers the stage's
version, its slice of the recipe and the hashes of what it reads; nothing that only prints numbers is in a key.
"""

from __future__ import annotations

from edgekd import console
from edgekd.errors import UsageError
from edgekd.recipe import Recipe
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.stages.base import Stage
from edgekd.stages.catalog import STAGES


class RunStatus:
    """How far a run has come under a recipe; a record is read, and files are hashed, once."""

    def __init__(self, run: RunDir, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self._records: dict[Stage, Record | None] = {}
        self._damage: dict[Stage, str | None] = {}
        self._outside: dict[Stage, dict[str, str]] = {}

    @property
    def stages(self) -> list[Stage]:
        """The stages of a run with this recipe, in order."""
        return [stage for stage in STAGES if stage.wanted(self.recipe)]

    def record(self, stage: Stage) -> Record | None:
        """Return a stage's record, None where it is missing or does not parse."""
        if stage not in self._records:
            self._records[stage] = Record.read(self.run.stage(stage.folder))
        return self._records[stage]

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Return the hashes of what a stage reads, from outside and from the records of the stages that wrote it."""
        record = self.record(stage)
        if stage not in self._outside:
            self._outside[stage] = stage.outside(self.recipe, {} if record is None else record.inputs)
        hashes = {**self._outside[stage]}
        for upstream, names in stage.reads.items():
            made = self.record(upstream)
            if made is not None and upstream.wanted(self.recipe):
                chosen = (name for name in (names or sorted(made.outputs)) if name in made.outputs)
                hashes |= {f"{upstream.name}/{name}": made.outputs[name] for name in chosen}
        return hashes

    def reason_to_run(self, stage: Stage) -> str | None:
        """Return why a stage has to run, or None when it is done."""
        record = self.record(stage)
        if record is None:
            return "it never finished" if self.run.stage(stage.folder).exists() else "it never ran"
        if record.version != stage.version:
            return f"its version changed ({record.version} -> {stage.version})"
        hashes = self.inputs(stage)
        changed = [name for name in {**hashes, **record.inputs} if hashes.get(name) != record.inputs.get(name)]
        if changed:
            return f"{sorted(changed)[0]} changed"
        if record.key != stage.key(self.recipe, hashes):
            return "its part of the recipe changed"
        return self._damaged_output(stage, record)

    def intact(self, stage: Stage) -> bool:
        """Return whether a stage's published outputs are whole, stale or not."""
        record = self.record(stage)
        return record is not None and self._damaged_output(stage, record) is None

    def require(self, stage: Stage) -> None:
        """Raise `UsageError` unless a stage's outputs are there; say so in one line when they are stale."""
        reason = self.reason_to_run(stage)
        if not self.intact(stage):
            raise UsageError(
                f"run {self.run.path} has no {stage.name} to work on ({reason}); make it with `{stage.command}`."
            )
        if reason is not None:
            console.warn(f"{stage.name} is stale ({reason}); using it as it is. `{stage.command}` would make it anew.")

    def refuse_pruned(self, stage: Stage) -> None:
        """Raise `UsageError` when a stage needs what was pruned."""
        for upstream, names in stage.reads.items():
            record = self.record(upstream)
            gone = [] if record is None else [name for name in record.pruned if not names or name in names]
            if gone:
                raise UsageError(
                    f"{stage.name} needs {upstream.name}/{gone[0]}, which was pruned from {self.run.path}; distil "
                    "again with --fresh."
                )

    def forget(self, stage: Stage) -> None:
        """Look at a stage anew: it has just run."""
        self._records.pop(stage, None)
        self._damage.pop(stage, None)
        self._outside.pop(stage, None)

    def _damaged_output(self, stage: Stage, record: Record) -> str | None:
        if stage not in self._damage:
            self._damage[stage] = record.damaged_output(self.run.stage(stage.folder))
        return self._damage[stage]
