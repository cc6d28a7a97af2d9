"""Compare logits: of an exported file with those it must reproduce (parity), of two models by answer (agreement).

The answer of a model to a sample is the class with the largest logit.
"""

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
    """How far logits are from the reference logits; differences and margins are shares of the latter's range."""

    samples: int
    tolerance: float
    logit_range: float
    max_difference: float
    wrong_answers: int  # another argmax although the top-2 margin of the reference exceeds twice the tolerance
    near_tie_share: float  # the share of samples whose margin does not exceed it

    @property
    def passed(self) -> bool:
        """Whether all logits are within the tolerance and no answer is wrong."""
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
        """Convert to the form in parity.json, where an infinite difference is None."""
        difference = self.max_difference if math.isfinite(self.max_difference) else None
        numbers = {**asdict(self), "max_difference": difference}
        return ParityCheck.model_validate({**numbers, "passed": self.passed, "reason": self.problem})


def relative_margins(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute the top-2 margin of each sample of logits N×K, shape N, as a share of the range of all logits."""
    top = np.sort(logits.astype(np.float64), axis=1)[:, -2:]
    return (top[:, 1] - top[:, 0]) / logit_range(logits)


def logit_range(logits: NDArray[np.float32]) -> float:
    """Compute the largest minus the smallest of all logits; the smallest positive float if they are constant."""
    return max(float(logits.max()) - float(logits.min()), float(np.finfo(np.float32).tiny))


def compare_logits(reference_logits: NDArray[np.float32], logits: NDArray[np.float32], tolerance: float) -> Parity:
    """Compare logits N×K with the reference logits; logits that are not finite differ by infinity."""
    if reference_logits.shape != logits.shape or reference_logits.ndim != 2 or reference_logits.shape[1] < 2:
        raise ValueError(f"expected two arrays N×K with K ≥ 2, got {reference_logits.shape} and {logits.shape}")
    if not np.isfinite(reference_logits).all():
        raise ValueError("the reference logits are not all finite")
    span = logit_range(reference_logits)
    clear = relative_margins(reference_logits) > 2 * tolerance
    difference = np.abs(reference_logits.astype(np.float64) - logits) / span
    changed = reference_logits.argmax(1) != logits.argmax(1)
    return Parity(
        samples=len(reference_logits),
        tolerance=tolerance,
        logit_range=span,
        max_difference=float(difference.max()) if np.isfinite(logits).all() else float("inf"),
        wrong_answers=int((changed & clear).sum()),
        near_tie_share=float(1 - clear.mean()),
    )


def check_parity(
    source: Path | ModelProto,
    inputs: NDArray[np.generic],
    reference_logits: NDArray[np.float32],
    tolerance: float,
) -> Parity:
    """Run a model on `inputs`, N×C×H×W, in ONNX Runtime on the CPU and compare with the reference logits."""
    batches = (inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH))
    return compare_logits(reference_logits, all_logits(source, batches), tolerance)


@dataclass(frozen=True)
class Agreement:
    """On how many clear samples (top-2 margin of the reference above the tolerance) two models answer the same."""

    samples: int
    clear: int
    same: int  # clear samples with the same answer
    tolerance: float  # a share of the reference's logit range

    @property
    def share(self) -> float:
        """Same over clear, from 0 to 1."""
        return self.same / self.clear

    def to_card(self) -> AgreementPart:
        """Convert to the form in agreement.json."""
        return AgreementPart(**asdict(self), share=self.share)


def compare_answers(reference_logits: NDArray[np.float32], logits: NDArray[np.float32], tolerance: float) -> Agreement:
    """Count the same answers of two models, from logits N×K; `tolerance` is a share of the reference's logit range.

    Raises GateError if no sample is clear.
    """
    if reference_logits.shape != logits.shape:
        raise ValueError(f"expected logits of one shape, got {reference_logits.shape} and {logits.shape}")
    clear = relative_margins(reference_logits) > tolerance
    if not clear.any():
        raise GateError(
            f"none of {len(reference_logits)} samples has a top-2 margin above {tolerance:g} of the logit range, "
            f"so agreement means nothing; the network answers everything alike or the samples are degenerate."
        )
    same = (reference_logits.argmax(1) == logits.argmax(1)) & np.isfinite(logits).all(1)
    return Agreement(len(reference_logits), int(clear.sum()), int((same & clear).sum()), tolerance)
