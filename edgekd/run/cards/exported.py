"""The JSON files of export/: the numbers of the gates, and what INT8 ranges were set from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field

from edgekd.run.cards.base import Card, CardPart, Share


class ParityCheck(CardPart):
    """How far a file's logits are from the student's; numbers are None of a file that could not be made."""

    passed: bool
    reason: str | None = None
    samples: int | None = None
    tolerance: float | None = None
    logit_range: float | None = None
    max_difference: float | None = None
    """None, too, where there is no limit to it."""
    wrong_answers: int | None = None
    near_tie_share: float | None = None


class ParityCard(Card):
    """The check of each file with float weights, under the file's name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ParityCheck]
    folder: ClassVar[str] = "export"
    file: ClassVar[str] = "parity.json"
    in_keys: ClassVar[bool] = True

    @classmethod
    def of(cls, checks: Mapping[str, ParityCheck]) -> Self:
        """Return the card of these checks."""
        return cls.model_validate(dict(checks))


class AgreementPart(CardPart):
    """How often one model of a chain gives the answer of the one before it, of the samples that are clear."""

    samples: int = 0
    clear: int = 0
    same: int = 0
    tolerance: float = 0.0
    share: Share | None
    """None where no sample is clear."""
    reason: str | None = None


class QualityPart(CardPart):
    """Loss and agreement of an INT8 file; a loss without limit is None."""

    loss: float | None
    agreement: AgreementPart


class RemedyFactsPart(CardPart):
    """What there is to say of one remedy; each kind has facts of its own."""

    method: str | None = None
    headroom: float | None = None
    losses: dict[str, float | None] | None = None
    """Of the choice of ranges: the output loss by method."""
    sensitivity: dict[str, float | None] | None = None
    left_in_float: dict[str, float | None] | None = None
    extra_bytes: int | None = None
    largest_shift: dict[str, float] | None = None
    failed: str | None = None
    lr: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    steps: list[RemedyPart] | None = None
    """Of fine-tuning: the way that was gone again with the new network."""

    def given(self) -> dict[str, Any]:
        """Return those that there are, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class RemedyPart(RemedyFactsPart):
    """A change of plan, with the quality before and after it."""

    remedy: str
    before: QualityPart
    after: QualityPart
    applied: bool


class IntegerNodesPart(CardPart):
    """How many of a file's compute nodes ONNX Runtime runs as integers."""

    integer: int
    total: int
    share: float


class ClippingPart(CardPart):
    """The share of values outside their range by over half a step, in all quantised activations and in each."""

    overall: float
    tensors: dict[str, float]


class ClippedPart(CardPart):
    """How far an INT8 file clips held-out synthetic samples, and real images where that can be measured."""

    method: str
    held_out: ClippingPart
    images: ClippingPart | None


class Int8Part(CardPart):
    """How an INT8 file came about; of one that could not be made there is only the reason."""

    passed: bool
    reason: str | None
    flavour: str | None = None
    method: str | None = None
    headroom: float | None = None
    left_in_float: list[str] | None = None
    quality: QualityPart | None = None
    target: float | None = None
    steps: list[RemedyPart] | None = None
    integer_nodes: IntegerNodesPart | None = None
    clipping: ClippingPart | None = None
    default_mode: AgreementPart | None = None


class AgreementCard(Card):
    """How often each artefact gives the answer of the one before it, and how the INT8 files came about."""

    folder: ClassVar[str] = "export"
    file: ClassVar[str] = "agreement.json"
    in_keys: ClassVar[bool] = True

    data_free: bool | None = None
    """Whether no real image had a part in the files; None where nobody vouches for the student."""
    int8_instructions: bool | None = None
    synthetic_samples: int = 0
    chain: dict[Annotated[str, Field(max_length=300)], AgreementPart]
    int8: dict[str, Int8Part] = Field(default_factory=dict)


class RangesPart(CardPart):
    """Candidate ranges [low, high, magnitude] of each activation, by method."""

    samples: int
    tensors: dict[str, dict[str, tuple[float, float, float]]]


class CalibrationCard(Card):
    """Where the samples of INT8 ranges come from, and every candidate range."""

    folder: ClassVar[str] = "export"
    file: ClassVar[str] = "calibration.json"
    in_keys: ClassVar[bool] = True

    data_free: bool | None = None
    seed: int
    samples: int
    sources: list[str]
    ranges: RangesPart
    fine_tuned: dict[str, RangesPart]
    """Ranges of files that were fine-tuned, which have their own."""
