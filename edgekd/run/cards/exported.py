"""The JSON files of export/: what each gate measured, and what the INT8 ranges were set from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field

from edgekd.run.cards.base import Card, CardPart, Share


class ParityCheck(CardPart):
    """How far a float file's logits are from the student's; numbers are None where the file could not be made."""

    passed: bool
    reason: str | None = None
    samples: int | None = None
    tolerance: float | None = None
    """The largest `max_difference` allowed."""
    logit_range: float | None = None
    """The student's largest logit minus its smallest."""
    max_difference: float | None = None
    """Largest absolute difference of a logit, as a share of `logit_range`; None also where it is infinite."""
    wrong_answers: int | None = None
    """Samples with another answer although the two best logits differ by more than twice the tolerance."""
    near_tie_share: float | None = None
    """The share of samples whose two best logits do not differ by as much."""


class ParityCard(Card):
    """The parity check of each FP32 and FP16 file; its keys are the file names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ParityCheck]
    folder: ClassVar[str] = "export"
    file: ClassVar[str] = "parity.json"
    hashed_into_stage_keys: ClassVar[bool] = True

    @classmethod
    def of(cls, checks: Mapping[str, ParityCheck]) -> Self:
        """Make the card from checks by file name, which are no fields of the class."""
        return cls.model_validate(dict(checks))


class AgreementPart(CardPart):
    """The agreement of two models on clear samples."""

    samples: int = 0
    clear: int = 0
    """Samples that are clear."""
    same: int = 0
    """Clear samples with the same answer."""
    tolerance: float = 0.0
    """Margin above which a sample is clear, as a share of the logits' range."""
    share: Share | None
    """`same / clear`; None where no sample is clear."""
    reason: str | None = None
    """Why there is no share."""


class QualityPart(CardPart):
    """Output loss and agreement of an INT8 file; an infinite loss is None."""

    loss: float | None
    agreement: AgreementPart


class RemedyDetailsPart(CardPart):
    """The details of one remedy; each kind of remedy sets fields of its own, and the others stay None."""

    method: str | None = None
    """Of choosing ranges: the method that was chosen."""
    headroom: float | None = None
    losses: dict[str, float | None] | None = None
    """The output loss by method."""
    sensitivity: dict[str, float | None] | None = None
    """Of leaving nodes in float: the output loss of quantising each node alone."""
    left_in_float: dict[str, float | None] | None = None
    """The nodes that stay in float, with the same loss."""
    extra_bytes: int | None = None
    """By how much the file grows."""
    largest_shift: dict[str, float] | None = None
    """Of bias correction: the largest shift of a bias by node."""
    failed: str | None = None
    """Of fine-tuning: why it failed, if it did."""
    lr: float | None = None
    """The learning rate; the losses are those of the first and last step."""
    first_loss: float | None = None
    last_loss: float | None = None
    steps: list[RemedyPart] | None = None
    """The remedies that were tried on the fine-tuned network."""

    def set_fields(self) -> dict[str, Any]:
        """Collect the fields that were set, by name, to build a `RemedyPart` of them."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class RemedyPart(RemedyDetailsPart):
    """A remedy that was tried, with the quality before and after it."""

    remedy: str
    before: QualityPart
    after: QualityPart
    applied: bool
    """Whether it was kept, because it helped."""


class IntegerNodesPart(CardPart):
    """How many of a file's compute nodes ONNX Runtime runs as integers."""

    integer: int
    total: int
    share: float


class ClippingPart(CardPart):
    """The share of values that lie outside their INT8 range by over half a step: overall and by tensor."""

    overall: float
    tensors: dict[str, float]


class ClippedPart(CardPart):
    """How far an INT8 file clips held-out synthetic samples, and real images where that can be measured."""

    method: str
    held_out: ClippingPart
    images: ClippingPart | None


class Int8Part(CardPart):
    """How an INT8 file was made; one that could not be made has only `passed` and `reason`."""

    passed: bool
    reason: str | None
    flavour: str | None = None
    """The flavor (the key keeps its older spelling)."""
    method: str | None = None
    headroom: float | None = None
    left_in_float: list[str] | None = None
    quality: QualityPart | None = None
    target: float | None = None
    """The share of agreement that the gate asks for."""
    steps: list[RemedyPart] | None = None
    """The remedies that were tried, in order."""
    integer_nodes: IntegerNodesPart | None = None
    clipping: ClippingPart | None = None
    default_mode: AgreementPart | None = None
    """Agreement with ONNX Runtime's default kernels, which saturate on some CPUs; None where they do not here."""


class AgreementCard(Card):
    """The agreement along the chain from the teacher to each file, and how the INT8 files were made."""

    folder: ClassVar[str] = "export"
    file: ClassVar[str] = "agreement.json"
    hashed_into_stage_keys: ClassVar[bool] = True

    data_free: bool | None = None
    """Whether no real image had a part in the files; None for a student from elsewhere, of which it is not known."""
    int8_instructions: bool | None = None
    """Whether this CPU has instructions for INT8 products."""
    synthetic_samples: int = 0
    chain: dict[Annotated[str, Field(max_length=300)], AgreementPart]
    """By link, such as `student -> student.fp32.onnx`."""
    int8: dict[str, Int8Part] = Field(default_factory=dict)
    """By file name."""


class RangesPart(CardPart):
    """Candidate ranges of each activation."""

    samples: int
    tensors: dict[str, dict[str, tuple[float, float, float]]]
    """By tensor and method: [low, high, magnitude]."""


class CalibrationCard(Card):
    """Where the samples of INT8 ranges come from, and every candidate range."""

    folder: ClassVar[str] = "export"
    file: ClassVar[str] = "calibration.json"
    hashed_into_stage_keys: ClassVar[bool] = True

    data_free: bool | None = None
    seed: int
    samples: int
    sources: list[str]
    ranges: RangesPart
    fine_tuned: dict[str, RangesPart]
    """The ranges of each fine-tuned INT8 file, by file name."""
