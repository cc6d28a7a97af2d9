"""selection.json and the files of eval/: which student was chosen and why, and its accuracy on real images."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

from pydantic import Field

from edgekd.run.cards.base import SEAL, Card, CardPart, Name, Share


class SelectionCandidate(CardPart):
    """One candidate's synthetic agreement (not accuracy) with the teacher, and its standard error."""

    name: Name
    agreement: Share
    standard_error: float = 0.0

    @classmethod
    def of(cls, name: str, agreement: float, samples: int) -> Self:
        """Make a candidate whose `agreement` was measured on so many `samples`, with the binomial standard error."""
        error = math.sqrt(max(agreement * (1 - agreement), 1e-12) / samples)
        return cls(name=name, agreement=agreement, standard_error=error)


class SelectionCard(Card):
    """Which student was chosen, and why."""

    folder: ClassVar[str] = "select"
    file: ClassVar[str] = "selection.json"

    chosen: Name
    reason: Annotated[str, Field(max_length=20_000)]
    samples: int = 0
    what: str = ""
    """What the numbers of the candidates are, in words."""
    candidates: Annotated[list[SelectionCandidate], Field(max_length=1000)]


class ClassPart(CardPart):
    """A class of the teacher, as the class names or the folders call it, and how many images of it were measured."""

    name: Name
    images: int


class EvaluationCard(Card):
    """The accuracy of a run's networks and files on one folder of real images, after which the card's file is named."""

    folder: ClassVar[str] = "eval"
    seal: ClassVar[str] = SEAL

    run: str
    data_free: bool = True
    data: str = ""
    images_folder: str = Field("", alias="folder")
    folder_id: str = ""
    """A hash of the folder's path."""
    images_sha256: str = ""
    images: int = 0
    classes: list[ClassPart] = Field(default_factory=list)
    """All classes in the order of the logits."""
    class_order: str = ""
    """What that order was taken from: `class names`, `number` or `text` of the folders' names."""
    passed_over: str = ""
    """What else lies in the folder, in words."""
    transform: str = ""
    """How the images were resized and cropped, in words."""
    accuracy: dict[Name, Share]
    """Top-1 by artefact, 0 to 1."""
    accuracy_default_mode: dict[Name, Share] = Field(default_factory=dict)
    """Top-1 with ONNX Runtime's default kernels, for INT8 files that saturate in them on this CPU."""
    artefacts_sha256: dict[str, str]
    teacher_claim: Share | None = None
    """The accuracy that the teacher's file says it has, on whatever images."""
    warnings: list[str] = Field(default_factory=list)
    """What speaks against the labels, the images or the accuracies, a sentence each."""
