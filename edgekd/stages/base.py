"""What a stage is: a name, a folder, what it reads, and a `run` that publishes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgekd.recipe import Recipe
from edgekd.run.cards.record import Notes, Record
from edgekd.run.directory import RecordFields, RunDir
from edgekd.run.files import digest
from edgekd.stopping import Stop

if TYPE_CHECKING:
    from edgekd.run.run_logger import Accuracy


class Stage(ABC):
    """One stage of a run. Its record says which version made it from which slice of the recipe and which inputs."""

    name: ClassVar[str]
    folder: ClassVar[str]
    """Where in the run it publishes."""
    version: ClassVar[int]
    """Raised whenever the same recipe and inputs give other outputs."""
    command: ClassVar[str]
    """What the user types to make it."""
    reads: ClassVar[Reads] = {}
    file_key: ClassVar[str] = ""
    """Recipe key of a file from outside the run that it reads."""

    @abstractmethod
    def slice(self, recipe: Recipe) -> dict[str, JsonValue]:
        """Return the part of the recipe that its outputs depend on, as it is hashed and recorded."""

    @abstractmethod
    def run(self, execution: Execution) -> None:
        """Make the outputs and publish them."""

    def wanted(self, recipe: Recipe) -> bool:
        """Return whether a run with this recipe has the stage."""
        return True

    def outside(self, recipe: Recipe, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the hashes of what it reads from outside the run; what has moved away keeps its recorded hash."""
        return {}

    def file(self, recipe: Recipe) -> Path:
        """Return the file from outside that the recipe names; the empty path where it names none."""
        return Path(attrgetter(self.file_key)(recipe) if self.file_key else "")

    def key(self, recipe: Recipe, inputs: Mapping[str, str]) -> str:
        """Return the key that its record carries while it is up to date."""
        return digest([self.name, self.version, self.slice(recipe), dict(inputs)])


Reads = Mapping[Stage, tuple[str, ...]]
"""Outputs of earlier stages that a stage reads, by name; an empty tuple means all of them."""


@dataclass(frozen=True)
class Execution:
    """One execution of a stage in a run whose lock is held."""

    stage: Stage
    run: RunDir
    recipe: Recipe
    inputs: dict[str, str]
    stop: Stop
    accuracy: Accuracy | None = None

    @property
    def key(self) -> str:
        """The key of this execution's outputs."""
        return self.stage.key(self.recipe, self.inputs)

    @contextmanager
    def publish(self) -> Iterator[tuple[Path, dict[str, JsonValue]]]:
        """Publish the stage's folder whole or not at all; yield a folder and the record's notes to fill."""
        with self.run.publish(self.stage.folder) as (folder, fields):
            notes: dict[str, JsonValue] = {}
            yield folder, notes
            fields |= {**self._fields(), "notes": notes}

    def publish_in_place(self, outputs: dict[str, str], notes: Notes) -> None:
        """Publish a folder that exists already by writing its record; `outputs` are hashes by relative path."""
        fields: RecordFields = {**self._fields(), "notes": notes.to_json()}
        Record(outputs=outputs, pruned=[], **fields).write(self.run.stage(self.stage.folder))

    def _fields(self) -> RecordFields:
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "key": self.key,
            "recipe_slice": self.stage.slice(self.recipe),
            "inputs": self.inputs,
        }
