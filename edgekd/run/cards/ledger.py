"""run.json, the ledger: what was done with a run, where, and what it read from outside."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import ConfigDict, Field, JsonValue

from edgekd.run.cards.base import Card, CardPart


class ImagesReadPart(CardPart):
    """One reading of a folder of real images."""

    folder: str
    images: int
    purpose: str = Field("", alias="for")
    stages_done: list[str] = Field(default_factory=list)
    at: str = ""
    """When it began, which tells it from every other; older ones have none."""


class EnvironmentDifference(CardPart):
    """A resumption in another environment: [before, now] by name."""

    step: int
    changed: dict[str, list[JsonValue]]


class ProbeTiming(CardPart):
    """What the probe's batch took on the machine that read the teacher."""

    images: int
    seconds: float
    threads: int


class LedgerCard(Card):
    """The ledger of a run; what another edgekd entered besides stays in it."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]
    file: ClassVar[str] = "run.json"

    files_read: dict[str, str]
    commands: list[list[str]]
    real_images_read: int
    data_free: bool = True
    run: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    host: dict[str, str] = Field(default_factory=dict)
    threads: int | None = None
    real_images: list[ImagesReadPart] = Field(default_factory=list)
    not_bit_identical: list[EnvironmentDifference] = Field(default_factory=list)
    trusted_pickles: dict[str, str] = Field(default_factory=dict)
    teacher_probe: ProbeTiming | None = None

    @classmethod
    def blank(cls) -> LedgerCard:
        """Return the ledger of a run that has only begun."""
        return cls(files_read={}, commands=[], real_images_read=0, data_free=True)

    def changed(self, **facts: object) -> Self:
        """Return the ledger with other facts."""
        return self.model_copy(update=facts)
