"""run.json, the ledger: commands, machines, and what the run read from outside."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import ConfigDict, Field, JsonValue

from edgekd.run.cards.base import SEAL, Card, CardPart


class ImagesReadPart(CardPart):
    """One reading of a folder of real images."""

    folder: str
    images: int
    """Images that were opened."""
    purpose: str = Field("", alias="for")
    stages_done: list[str] = Field(default_factory=list)
    """The stages that were published before it began."""
    at: str = ""
    """When it began (ISO 8601), which identifies the reading; empty in older ledgers."""


class EnvironmentDifference(CardPart):
    """A resumption at `step` in another environment, after which the run is not bit-identical."""

    step: int
    changed: dict[str, list[JsonValue]]
    """[before, now] by the name of what differs."""


class ProbeTiming(CardPart):
    """How long the teacher's forward pass on the probe's batch took, on the machine that ran ingest."""

    images: int
    seconds: float
    threads: int


class CostPart(CardPart):
    """Seconds and FLOPs of some work, the FLOPs by the precision they run in."""

    seconds: float
    flops: dict[str, float]


class PlanningPart(CardPart):
    """What a planning had measured when it was stopped."""

    key: str
    """A hash of what the times depend on."""
    costs: dict[str, CostPart]
    """By the kind of update."""
    peak_memory_bytes: int


class LedgerCard(Card):
    """The ledger of a run; keys that this edgekd does not know are kept."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]
    file: ClassVar[str] = "run.json"
    seal: ClassVar[str] = SEAL

    files_read: dict[str, str]
    """SHA-256 by path."""
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
    """SHA-256 by path, of pickles whose code was run."""
    teacher_probe: ProbeTiming | None = None
    planning: PlanningPart | None = None

    @classmethod
    def blank(cls) -> LedgerCard:
        """Make the ledger of a new run."""
        return cls(files_read={}, commands=[], real_images_read=0, data_free=True)

    def with_fields(self, **fields: object) -> Self:
        """Copy the ledger with these fields replaced."""
        return self.model_copy(update=fields)
