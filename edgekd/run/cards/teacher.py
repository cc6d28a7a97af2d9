"""The JSON files of teacher/ and init/: what was found out about networks from outside."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from edgekd.run.cards.base import Card, CardPart


class AssumptionPart(CardPart):
    """Something the weights cannot show, the value taken for it, and the flag that changes it."""

    what: str
    value: str
    flag: str


class ProbePart(CardPart):
    """What a classifier did on seeded noise, and its size; `models.probe` makes it."""

    emits: str
    """`logits`, `probabilities` (a softmax at the end) or `log-probabilities`."""
    undo: str
    """`log` where the output's logarithm serves as logits, else `none` (log-probabilities are logits)."""
    batchnorm_layers: int
    head_alive: bool
    """Whether the output depends on the image at all."""
    noise_confidence: float
    """Mean largest probability on standard normal noise."""
    parameters: int
    macs: int
    batch: int


class TeacherCard(Card):
    """What the teacher is."""

    folder: ClassVar[str] = "teacher"
    file: ClassVar[str] = "teacher.json"
    in_keys: ClassVar[bool] = True

    arch: str
    input_shape: tuple[int, int, int]
    classes: int
    head: str
    """Name of the layer that makes the logits."""
    undo: str
    assumptions: list[AssumptionPart] = Field(default_factory=list)
    mapping: dict[str, str] = Field(default_factory=dict)
    """Names of the zoo by those of the checkpoint, where they differ."""
    probe: ProbePart


class PixelsCard(Card):
    """How real pixels in [0, 1] become the teacher's input; unknown when mean or std is None."""

    folder: ClassVar[str] = "teacher"
    file: ClassVar[str] = "pixels.json"
    in_keys: ClassVar[bool] = True

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None


class InitCard(Card):
    """Which student was given weights, and which of its layers stay random."""

    folder: ClassVar[str] = "init"
    file: ClassVar[str] = "init.json"

    student: str
    left_random: list[str]
