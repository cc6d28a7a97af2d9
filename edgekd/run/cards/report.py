"""`DistillationCard`, which `distill --json` prints, and report.json with every number of a run."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, JsonValue

from edgekd.agent.device.power import Energy
from edgekd.agent.numerics import LogitsCheck
from edgekd.run.cards.base import Card, CardPart
from edgekd.run.cards.evaluation import EvaluationCard, SelectionCard
from edgekd.run.cards.exported import AgreementPart, ParityCard
from edgekd.run.cards.teacher import TeacherCard


class Curve(CardPart):
    """Statistics over all points of an accuracy curve, 0 to 1; `sd` is the population's, `regret` is `max - final`."""

    points: int
    mean: float
    sd: float
    variance: float
    max: float
    final: float
    regret: float


class Health(CardPart):
    """The last logged values of `TrainEvent` and `GeneratorEvent`, and those of `DistillNotes`."""

    coverage: float | None = None
    confidence: float | None = None
    diversity: float | None = None
    agreement_novel: float | None = None
    agreement_replay: float | None = None
    reinits: int | None = None
    rescues: int | None = None
    replay: str | None = None
    replay_bytes: int | None = None
    replay_bytes_as_uint8_images: int | None = None


class DistillationCard(Card):
    """How a distillation went."""

    run: str
    steps: int
    seconds: float
    curve: Curve | None
    """Of the shipped weights, raw or averaged, as the recipe says; None without real images."""
    curve_other: Curve | None
    """Of the other ones."""
    health: Health

    def headline(self) -> str:
        """Say in one line how accurate the student became or, without real images, how well it agrees."""
        curve, novel = self.curve, self.health.agreement_novel
        if curve is not None:
            return f"accuracy {curve.final:.2%} at the end, mean {curve.mean:.2%}, regret {curve.regret:.2%}"
        return (
            "no step was made" if novel is None else f"{novel:.1%} synthetic agreement (not accuracy) on novel samples"
        )


class DevicePart(CardPart):
    """The results.json of a bench on one device (see `bench.results`), and that machine's environment."""

    data_free: bool | None = None
    target: str | None = None
    results: list[dict[str, JsonValue]]
    verdicts: dict[str, str]
    warnings: list[str]
    numerics: list[LogitsCheck] = Field(default_factory=list)
    energy: list[Energy] = Field(default_factory=list)
    energy_note: str = ""
    machine: dict[str, JsonValue]


class ArtefactPart(CardPart):
    """One row of the table of artefacts; an unknown value is None."""

    artefact: str
    accuracy: float | None
    size_bytes: int | None
    synthetic_agreement: float | None
    p50_ms: float | None
    p99_ms: float | None
    note: str


class ReportCard(Card):
    """Every number of a run; None where a stage has not run, or its file cannot be read."""

    folder: ClassVar[str] = "report"
    file: ClassVar[str] = "report.json"

    run: str
    data_free: bool
    real_images_read: int | None
    teacher: TeacherCard | None
    distillation: DistillationCard | None
    selection: SelectionCard | None
    size_bytes: dict[str, int]
    parity: ParityCard | None
    agreement: dict[str, AgreementPart] | None
    latency: list[dict[str, JsonValue]] | None
    verdict: str | None
    devices: dict[str, DevicePart]
    warnings: list[str]
    evaluations: dict[str, EvaluationCard | None]
    artefacts: list[ArtefactPart]
    left_out: list[str] = Field(default_factory=list)
