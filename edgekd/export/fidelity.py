"""Hold an exported file to the logits it must reproduce, and say how often two models give the same answer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgekd.errors import GateError
from edgekd.export.ort_session import all_logits
from edgekd.run.cards.exported import AgreementPart, ParityCheck

TOLERANCE_FP32 = 1e-4
TOLERANCE_FP16 = 5e-3
_BATCH = 32


@dataclass(frozen=True)
class Parity:
    """Distance of two sets of logits; differences and margins are relative to the reference's logit range."""

    samples: int
    tolerance: float
    logit_range: float
    max_difference: float
    wrong_answers: int  # another argmax although the top-2 margin exceeds twice the tolerance
    near_tie_share: float  # samples whose margin does not

    @property
    def passed(self) -> bool:
        """Whether all logits are within the tolerance and every clear answer is the same."""
        return self.max_difference <= self.tolerance and self.wrong_answers == 0

    @property
    def problem(self) -> str | None:
        """What keeps the file from passing, if anything does."""
        if self.passed:
            return None
        if not math.isfinite(self.max_difference):
            return "answers NaN or infinity, as half precision does where its range is exceeded"
        return (
            f"differs from the student by {self.max_difference:.2g} of the logit range (allowed {self.tolerance:g}) "
            f"and in {self.wrong_answers} clear answers"
        )

    def to_card(self) -> ParityCheck:
        """Return all numbers and the verdict as they are written; a difference without limit is None."""
        difference = self.max_difference if math.isfinite(self.max_difference) else None
        numbers = {**asdict(self), "max_difference": difference}
        return ParityCheck.model_validate({**numbers, "passed": self.passed, "reason": self.problem})


def relative_margins(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return first minus second largest logit of each sample, N, as a share of the range of all logits."""
    top = np.sort(logits.astype(np.float64), axis=1)[:, -2:]
    return (top[:, 1] - top[:, 0]) / logit_range(logits)


def logit_range(logits: NDArray[np.float32]) -> float:
    """Return largest minus smallest logit, and the smallest positive float for constant logits."""
    return max(float(logits.max()) - float(logits.min()), float(np.finfo(np.float32).tiny))


def compare_logits(reference: NDArray[np.float32], logits: NDArray[np.float32], tolerance: float) -> Parity:
    """Compare logits N×K with their reference; logits that are not finite differ by infinity."""
    if reference.shape != logits.shape or reference.ndim != 2 or reference.shape[1] < 2:
        raise ValueError(f"expected two arrays N×K with K ≥ 2, got {reference.shape} and {logits.shape}")
    if not np.isfinite(reference).all():
        raise ValueError("the reference logits are not all finite")
    span = logit_range(reference)
    clear = relative_margins(reference) > 2 * tolerance
    difference = np.abs(reference.astype(np.float64) - logits) / span
    other = reference.argmax(1) != logits.argmax(1)
    return Parity(
        samples=len(reference),
        tolerance=tolerance,
        logit_range=span,
        max_difference=float(difference.max()) if np.isfinite(logits).all() else float("inf"),
        wrong_answers=int((other & clear).sum()),
        near_tie_share=float(1 - clear.mean()),
    )


def check_parity(
    source: Path | ModelProto,
    inputs: NDArray[np.generic],
    reference: NDArray[np.float32],
    tolerance: float,
) -> Parity:
    """Run a model on `inputs`, N×C×H×W, in ONNX Runtime on the CPU and compare with the reference logits."""
    batches = (inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH))
    return compare_logits(reference, all_logits(source, batches), tolerance)


@dataclass(frozen=True)
class Agreement:
    """How many of the clear samples (top-2 margin of the reference above the tolerance) keep their answer."""

    samples: int
    clear: int
    same: int
    tolerance: float

    @property
    def share(self) -> float:
        """The share of clear samples with the same answer."""
        return self.same / self.clear

    def to_card(self) -> AgreementPart:
        """Return all numbers and the share as they are written."""
        return AgreementPart(**asdict(self), share=self.share)


def agreement(reference: NDArray[np.float32], logits: NDArray[np.float32], tolerance: float) -> Agreement:
    """Compare the answers of two models from logits N×K; `tolerance` is a share of the reference's logit range.

    Raises GateError if the reference is at a tie on every sample.
    """
    if reference.shape != logits.shape:
        raise ValueError(f"expected logits of one shape, got {reference.shape} and {logits.shape}")
    clear = relative_margins(reference) > tolerance
    if not clear.any():
        raise GateError(
            f"none of {len(reference)} samples has a top-2 margin above {tolerance:g} of the logit range, "
            f"so agreement means nothing; the network answers everything alike or the samples are degenerate."
        )
    same = (reference.argmax(1) == logits.argmax(1)) & np.isfinite(logits).all(1)
    return Agreement(len(reference), int(clear.sum()), int((same & clear).sum()), tolerance)
