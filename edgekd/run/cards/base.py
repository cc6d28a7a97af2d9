"""The base of all cards: how they are read, written, and refused."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator

from edgekd.agent.device.files import read_bytes
from edgekd.errors import InputFileError
from edgekd.run.files import digest, read_json, write_json
from edgekd.text import visible

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=300)]
SEAL = "sha256_of_the_rest"


class NewerSchemaError(InputFileError):
    """A file of a run was written by a newer edgekd than this one."""


class BrokenSealError(InputFileError):
    """A file of a run holds what belongs there, but other values than edgekd wrote."""


class CardPart(BaseModel):
    """A JSON file of a run, or an object in one; a key that older files lack has a default."""

    # Built at its first use: `edgekd status` looks at two of these and shall not pay for all.
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    def to_json(self) -> dict[str, JsonValue]:
        """Convert to JSON values: the fields that were given or read, by their keys, without defaults."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Card(CardPart):
    """One JSON file of a run."""

    folder: ClassVar[str] = ""
    """Its folder within the run; empty for the run's own."""
    file: ClassVar[str] = ""
    """Its name in that folder; empty where each file has its own."""
    newest_schema: ClassVar[int] = 1
    """The number of the schema that this edgekd writes."""
    hashed_into_stage_keys: ClassVar[bool] = False
    """Whether the file is hashed into stage keys: then it omits schema 1, which would change the keys of older runs."""

    seal: ClassVar[str] = ""
    """Under which key the file holds a hash of the rest of itself, where no record does; older files lack it."""

    schema_number: int = Field(1, alias="schema", ge=1)
    """Is raised when an older edgekd would misread the file; files from before there were schemas lack it."""

    @field_validator("schema_number")
    @classmethod
    def _refuse_newer(cls, number: int, info: ValidationInfo) -> int:
        if number > cls.newest_schema:
            raise NewerSchemaError(
                f"{info.context or cls.file} has schema {number}, and this edgekd knows {cls.newest_schema}: a newer "
                "edgekd wrote it, so use that one, or name another run."
            )
        return number

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the file from its folder; see `load_file` for errors."""
        return cls.load_file(folder / cls.file)

    @classmethod
    def load_file(cls, path: Path) -> Self:
        """Read a file, which may be truncated or hostile.

        Raises:
            NewerSchemaError: a newer edgekd wrote it.
            BrokenSealError: it was changed since.
            InputFileError: it cannot be read, or does not hold what belongs there.
        """
        try:
            data = read_bytes(path)
            card = cls.model_validate_json(data.removeprefix(BOM_UTF8), context=path)
            if cls.seal and not _is_intact(read_json(path), cls.seal):
                raise BrokenSealError(
                    f"{path} is damaged, or was changed by hand: it does not hash as its {cls.seal} says. Bring back "
                    "what stood there, or take out that key, and the file is used as it is."
                )
            if card.model_extra:
                card.model_extra.pop(cls.seal, None)
            return card
        except OSError as error:
            raise InputFileError(f"{path} cannot be read as JSON ({error}).") from error
        except ValidationError as error:
            malformed = error.errors(include_url=False)[0]["type"] == "json_invalid"
            refusal = "cannot be read as JSON" if malformed else "does not hold what belongs there"
            raise InputFileError(f"{path} {refusal} ({_first_problem(error)}).") from error

    def to_json(self) -> dict[str, JsonValue]:
        """Convert to the JSON of the whole file, with the number of its schema."""
        content = super().to_json()
        content.pop("schema", None)
        if self.hashed_into_stage_keys and self.newest_schema == 1:
            return content
        content = {"schema": self.newest_schema, **content}
        return {**content, self.seal: digest(content)} if self.seal else content

    def write(self, folder: Path) -> None:
        """Write the file into its folder atomically."""
        write_json(folder / self.file, self.to_json())


def _is_intact(content: dict[str, JsonValue], seal: str) -> bool:
    """Whether the content of a file hashes as it says itself; that of an older edgekd does not say."""
    rest = {key: value for key, value in content.items() if key != seal}
    return seal not in content or content[seal] == digest(rest)


def _first_problem(error: ValidationError) -> str:
    """The first problem and its place, safe to print: at most 200 characters, control characters escaped."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    text = visible(f"{place}: {problem['msg']}" if place else problem["msg"])
    return text if len(text) <= 200 else f"{text[:200]}…"
