"""Build an INT8 file that keeps the student's answers: choose ranges by output loss, then apply remedies.

A plan says how a file is made; every choice and remedy maps a plan to a plan and states the quality before
and after on held-out samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgekd.export.fidelity import TOLERANCE_FP32, Agreement, agreement
from edgekd.export.graph import clip_bounds, read_model, with_moved_biases
from edgekd.export.ort_session import all_logits
from edgekd.export.quantize import Flavor, compute_nodes, float_stem, quantize
from edgekd.export.ranges import METHODS, Batches, Ranges
from edgekd.run.cards.exported import QualityPart, RemedyDetailsPart, RemedyPart

HEADROOMS = (1.3, 1.15, 1.0)
"""Tried in this order on ranges of synthetic samples, which reach less far than real images (docs/export.md)."""


@dataclass(frozen=True)
class Quality:
    """How an INT8 file answers on held-out samples.

    `loss` is the mean squared error of the logits, each sample's mean shift removed (it changes no answer),
    over their variance in float32: the inverse of the signal-to-noise ratio. Logits that are not finite lose infinity.
    """

    loss: float
    agreement: Agreement

    def to_card(self) -> QualityPart:
        """Return the loss and the agreement as they are written."""
        return QualityPart(loss=_option_value(self.loss), agreement=self.agreement.to_card())


@dataclass(frozen=True)
class HeldOut:
    """Samples that calibration has not seen, with the float32 logits, N×K, that INT8 must reproduce."""

    batches: Batches
    reference: NDArray[np.float32]
    tolerance: float = TOLERANCE_FP32  # margin above which an answer counts, as a share of the logit range

    @classmethod
    def of(cls, source: Path | ModelProto, batches: Batches) -> HeldOut:
        """Take the reference from the float32 model itself."""
        return cls(batches, all_logits(source, batches()))

    def measure(self, model: Path | ModelProto, flavor: Flavor, *, default_kernels: bool = False) -> Quality:
        """Run an INT8 model of a flavour in ONNX Runtime on the CPU and compare it with the reference.

        Its products are exact on every CPU, unless ONNX Runtime's `default_kernels` are asked for.
        """
        answers = all_logits(model, self.batches(), kind=flavor.kind, default_kernels=default_kernels)
        agreed = agreement(self.reference, answers, self.tolerance)
        if not np.isfinite(answers).all():
            return Quality(math.inf, agreed)
        error = (answers - self.reference).astype(np.float64)
        error -= error.mean(axis=1, keepdims=True)
        signal = self.reference - self.reference.mean(axis=1, keepdims=True, dtype=np.float64)
        loss = float(np.mean(error**2) / max(float(np.mean(signal**2)), np.finfo(np.float64).tiny))
        return Quality(loss, agreed)


@dataclass(frozen=True)
class QuantizationPlan:
    """How one INT8 file is made of a float32 model, whose activations `ranges` are of."""

    source: ModelProto
    flavor: Flavor
    ranges: Ranges
    method: str
    headroom: float = 1.0
    """What its ranges are multiplied by, as far as a Clip lets values come."""
    float_nodes: tuple[str, ...] = ()
    bias_shifts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """What is added to the biases of nodes, per output channel: it cancels the mean error of quantisation."""

    @property
    def used_ranges(self) -> Ranges:
        """The ranges with their headroom."""
        return self.ranges.widened(self.headroom, clip_bounds(self.source))

    def build(self) -> ModelProto:
        """Return the INT8 model."""
        source = with_moved_biases(self.source, self.bias_shifts) if self.bias_shifts else self.source
        return quantize(source, self.flavor, self.used_ranges, self.method, float_nodes=self.float_nodes)


@dataclass(frozen=True)
class Remedy:
    """A change of plan, with the quality before and after it."""

    name: str
    plan: QuantizationPlan
    before: Quality
    after: Quality
    applied: bool  # otherwise it did not help, and `plan` is the one before
    details: RemedyDetailsPart

    @property
    def kept(self) -> Quality:
        """The quality of `plan`."""
        return self.after if self.applied else self.before

    def to_card(self) -> RemedyPart:
        """Return name, both qualities and the details as they are written."""
        return RemedyPart(
            remedy=self.name,
            before=self.before.to_card(),
            after=self.after.to_card(),
            applied=self.applied,
            **self.details.set_fields(),
        )


def choose_ranges(
    source: Path | ModelProto,
    flavor: Flavor,
    ranges: Ranges,
    held_out: HeldOut,
    *,
    headrooms: Sequence[float] = (1.0,),
    target: float = 0.0,
) -> Remedy:
    """Choose the first headroom that leaves a file with the target's agreement, and there the least output loss.

    Where none does, the last headroom and the least loss are taken; `before` is plain absmax.
    """
    model = read_model(source)
    plain = QuantizationPlan(
        model, flavor, ranges, "absmax", float_nodes=float_stem(model) if flavor.float_stem else ()
    )
    for headroom in headrooms:
        qualities = {
            method: held_out.measure(replace(plain, method=method, headroom=headroom).build(), flavor)
            for method in METHODS
        }
        good = [method for method in METHODS if qualities[method].agreement.share >= target]
        if good:
            break
    best = min(good or METHODS, key=lambda method: qualities[method].loss)
    before = qualities["absmax"] if headroom == plain.headroom else held_out.measure(plain.build(), flavor)
    losses = {method: _option_value(quality.loss) for method, quality in qualities.items()}
    details = RemedyDetailsPart(method=best, headroom=headroom, losses=losses)
    return Remedy("ranges", replace(plain, method=best, headroom=headroom), before, qualities[best], True, details)


def layer_sensitivity(plan: QuantizationPlan, held_out: HeldOut) -> dict[str, float]:
    """Return the output loss of quantising each compute node alone, the most harmful first."""
    losses, ranges = {}, plan.used_ranges
    for node in compute_nodes(plan.source):
        if node in plan.float_nodes:
            continue
        alone = quantize(plan.source, plan.flavor, ranges, plan.method, only_nodes=(node,))
        losses[node] = held_out.measure(alone, plan.flavor).loss
    return dict(sorted(losses.items(), key=lambda pair: -pair[1]))


def leave_worst_in_float(
    plan: QuantizationPlan,
    held_out: HeldOut,
    sensitivity: Mapping[str, float],
    *,
    target: float,
    max_share: float = 0.1,
) -> Remedy:
    """Leave the most harmful nodes in float, more and more of them until the target is reached.

    Args:
        plan: what to improve.
        held_out: decides.
        sensitivity: loss by node, the most harmful first, from `layer_sensitivity`.
        target: share of agreement to reach.
        max_share: at most this share of the compute nodes becomes float, but one in any case; more than a
            tenth makes a file that is not really INT8.
    """
    built = plan.build()
    before = after = held_out.measure(built, plan.flavor)
    best, size = plan, built.ByteSize()
    for count in _growing(max(1, int(len(sensitivity) * max_share))):
        if after.agreement.share >= target:
            break
        candidate = replace(plan, float_nodes=(*plan.float_nodes, *list(sensitivity)[:count]))
        quality = held_out.measure(candidate.build(), plan.flavor)
        if (quality.agreement.share, -quality.loss) > (after.agreement.share, -after.loss):
            best, after = candidate, quality
    left = {node: _option_value(sensitivity[node]) for node in best.float_nodes if node in sensitivity}
    growth = best.build().ByteSize() - size if left else 0
    details = RemedyDetailsPart(
        sensitivity={node: _option_value(loss) for node, loss in sensitivity.items()},
        left_in_float=left,
        extra_bytes=growth,
    )
    return Remedy("worst layers in float", best, before, after, best is not plan, details)


def _option_value(loss: float) -> float | None:
    """A loss as JSON can hold it: infinity is None."""
    return loss if math.isfinite(loss) else None


def _growing(limit: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, … up to the limit, and the limit."""
    steps = [1, *(step for power in range(1, 12) for step in (2**power, 3 * 2 ** (power - 1)))]
    return sorted({step for step in steps if step < limit} | {limit})
