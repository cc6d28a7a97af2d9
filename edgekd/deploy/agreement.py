"""Say how often two models give the same answer, leaving out samples that have none."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.deploy.parity import relative_margins
from edgekd.errors import GateError


@dataclass(frozen=True)
class Agreement:
    """How many of the clear samples (top-2 margin of the reference above the tolerance) keep their answer."""

    samples: int
    clear: int
    same: int
    tolerance: float

    @property
    def share(self) -> float:
        """Return the share of clear samples with the same answer."""
        return self.same / self.clear

    def to_json(self) -> dict[str, float | int]:
        """Return all numbers and the share under their own names."""
        return {**asdict(self), "share": self.share}


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
