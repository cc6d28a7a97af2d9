"""What all cards have in common: how they are read, written, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator

from edgekd.agent.device.files import read_bytes
from edgekd.errors import InputFileError
from edgekd.run.files import write_json
from edgekd.text import visible

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=300)]


class NewerSchemaError(InputFileError):
    """A file of a run was written by a newer edgekd than this one."""


class CardPart(BaseModel):
    """What stands in a JSON file of a run; what an older edgekd did not write has a default."""

    # Built at its first use: `edgekd status` looks at two of these and shall not pay for all.
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    def to_json(self) -> dict[str, JsonValue]:
        """Return what the file holds: what was given or read, under its own names, and no default besides."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Card(CardPart):
    """One JSON file of a run."""

    folder: ClassVar[str] = ""
    """Where in the run it lies."""
    file: ClassVar[str] = ""
    """What it is called there."""
    newest: ClassVar[int] = 1
    """The schema that this edgekd writes."""
    in_keys: ClassVar[bool] = False
    """Whether keys of stages hash the file: then it names no schema 1, which would change the key of every run."""

    schema_number: int = Field(1, alias="schema", ge=1)
    """Raised when the file changes so that an older edgekd would misread it; absent from files older than schemas."""

    @field_validator("schema_number")
    @classmethod
    def _known(cls, number: int, info: ValidationInfo) -> int:
        if number > cls.newest:
            raise NewerSchemaError(
                f"{info.context or cls.file} has schema {number}, and this edgekd knows {cls.newest}: a newer edgekd "
                "wrote it, so use that one, or another run with --run NAME."
            )
        return number

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the file from its folder; see `load_file` for errors."""
        return cls.load_file(folder / cls.file)

    @classmethod
    def load_file(cls, path: Path) -> Self:
        """Read a file, which may be torn or hostile.

        Raises:
            NewerSchemaError: a newer edgekd wrote it.
            InputFileError: it cannot be read, or does not hold what belongs there.
        """
        try:
            return cls.model_validate_json(read_bytes(path), context=path)
        except OSError as error:
            raise InputFileError(f"{path} cannot be read as JSON ({error}).") from error
        except ValidationError as error:
            torn = error.errors(include_url=False)[0]["type"] == "json_invalid"
            what = "cannot be read as JSON" if torn else "does not hold what belongs there"
            raise InputFileError(f"{path} {what} ({_first(error)}).") from error

    def to_json(self) -> dict[str, JsonValue]:
        """Return what the file holds."""
        held = super().to_json()
        held.pop("schema", None)
        return held if self.in_keys and self.newest == 1 else {"schema": self.newest, **held}

    def write(self, folder: Path) -> None:
        """Write the file into its folder atomically."""
        write_json(folder / self.file, self.to_json())


def _first(error: ValidationError) -> str:
    """The first problem and its place, whatever characters stand in the file."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    text = visible(f"{place}: {problem['msg']}" if place else problem["msg"])
    return text if len(text) <= 200 else f"{text[:200]}…"
