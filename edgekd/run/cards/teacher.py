"""The JSON files of teacher/ and init/: the networks that a run was given."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from edgekd.run.cards.base import Card, CardPart, Name, Share


class AssumptionPart(CardPart):
    """What the weights do not tell of the teacher, the value assumed for it, and the flag that changes it."""

    what: str
    value: str
    flag: str


class ProbePart(CardPart):
    """The teacher's size, and how it answers a batch of seeded noise; `models.probe` measures it."""

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
    """Multiply-accumulate operations for one image."""
    batch: int
    """Images of noise."""


class ClaimsPart(CardPart):
    """What the teacher's file says of itself, unchecked."""

    accuracy: Share | None = None
    accuracy_key: str = ""
    """The entry of the file that says so."""
    epoch: int | None = None
    class_names: tuple[Name, ...] = ()
    """In the order of the logits; empty where the file has none, or another number than the network has classes."""


class TeacherCard(Card):
    """The teacher: its architecture, input, output, and what was assumed."""

    folder: ClassVar[str] = "teacher"
    file: ClassVar[str] = "teacher.json"
    hashed_into_stage_keys: ClassVar[bool] = True

    arch: str
    input_shape: tuple[int, int, int]
    classes: int
    head: str
    """Name of the layer that makes the logits."""
    undo: str
    """See `ProbePart.undo`."""
    assumptions: list[AssumptionPart] = Field(default_factory=list)
    mapping: dict[str, str] = Field(default_factory=dict)
    """Tensor names of the zoo by those of the checkpoint, where they differ."""
    probe: ProbePart
    claims: ClaimsPart | None = None
    """None where the file says nothing of itself."""


class PixelsCard(Card):
    """The normalisation of real pixels in [0, 1] to the teacher's input, by channel; unknown where None."""

    folder: ClassVar[str] = "teacher"
    file: ClassVar[str] = "pixels.json"
    hashed_into_stage_keys: ClassVar[bool] = True

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None


class InitCard(Card):
    """The student that was given initial weights, and which of its layers start at random all the same."""

    folder: ClassVar[str] = "init"
    file: ClassVar[str] = "init.json"

    student: str
    left_random: list[str]
