"""The lines of events.jsonl, by kind. Each has the keys that edgekd reads; a line's further keys are for people."""

from __future__ import annotations

from typing import ClassVar

from edgekd.run.cards.base import CardPart


class Event(CardPart):
    """One line of events.jsonl."""

    kind: ClassVar[str]
    step: int


class TrainEvent(Event):
    """A step of the student."""

    kind: ClassVar[str] = "train"

    seconds: float = 0.0
    """Time in training since step 0, over all processes of the run."""
    saving_seconds: float = 0.0
    macs: int | None = None
    """Multiply-accumulates executed so far, of all networks, forward and backward."""
    """Of that, the time for writing checkpoints."""
    student: float | None = None
    """The student's loss: the distance of its logits from the teacher's."""
    agreement_novel: float | None = None
    agreement_procedural: float | None = None
    agreement_replay: float | None = None


class GeneratorEvent(Event):
    """Health of the generator by one batch (`synthesis.health` has the formulas)."""

    kind: ClassVar[str] = "generator"

    coverage: float | None = None
    confidence: float | None = None
    diversity: float | None = None


class AccuracyEvent(Event):
    """A point of the accuracy curve: top-1 on real images, 0 to 1, of the student's raw and averaged (EMA) weights."""

    kind: ClassVar[str] = "accuracy"

    raw: float
    ema: float
