"""The lines of events.jsonl, by kind; what a line holds besides is for whoever looks at it by hand."""

from __future__ import annotations

from typing import ClassVar

from edgekd.run.cards.base import CardPart


class Event(CardPart):
    """One line that distillation logged."""

    kind: ClassVar[str]
    step: int


class TrainEvent(Event):
    """How the student's step went; `student` is its distance of logits."""

    kind: ClassVar[str] = "train"

    seconds: float = 0.0
    """Of training, over all processes that had a part in it."""
    saving_seconds: float = 0.0
    student: float | None = None
    agreement_novel: float | None = None
    agreement_procedural: float | None = None
    agreement_replay: float | None = None


class GeneratorEvent(Event):
    """How the generator's images are."""

    kind: ClassVar[str] = "generator"

    coverage: float | None = None
    confidence: float | None = None
    diversity: float | None = None


class AccuracyEvent(Event):
    """A point of the accuracy curve: top-1 of raw and averaged weights on real images."""

    kind: ClassVar[str] = "accuracy"

    raw: float
    ema: float
