"""Plan an INT8 file that keeps the student's answers: try ranges and float layers, measure each on held-out samples.

A plan says how a file is made. `try_ranges` makes the first one, every other `try_…` function takes a plan; each
returns a `PlanChange`: the better plan, with the quality before and after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgekd.export.fidelity import TOLERANCE_FP32, Agreement, compare_answers
from edgekd.export.graph import clip_bounds, read_model, with_moved_biases
from edgekd.export.ort_session import all_logits
from edgekd.export.quantize import Flavor, compute_nodes, depthwise_stem, quantize
from edgekd.export.ranges import RANGE_METHODS, Batches, Ranges
from edgekd.run.cards.exported import QualityPart, RemedyDetailsPart, RemedyPart

HEADROOMS = (1.3, 1.15, 1.0)
"""Tried in this order on ranges of synthetic samples, which reach less far than real images (docs/export.md)."""


@dataclass(frozen=True)
class Quality:
    """How close an INT8 file's logits are to float32 on held-out samples.

    `loss` is the mean squared error of the logits, each sample's mean error removed (it changes no answer), over the
    variance of the float32 logits: the inverse of the signal-to-noise ratio. It is infinite if a logit is not finite.
    """

    loss: float
    agreement: Agreement

    def to_card(self) -> QualityPart:
        """Convert to the form in agreement.json, where an infinite loss is None."""
        return QualityPart(loss=_finite_or_none(self.loss), agreement=self.agreement.to_card())


@dataclass(frozen=True)
class HeldOutSet:
    """Samples that calibration does not use, with the float32 logits, N×K, that INT8 must reproduce."""

    batches: Batches
    float_logits: NDArray[np.float32]
    # A sample whose top-2 margin exceeds it is clear; a share of the range of the float32 model's logits.
    tolerance: float = TOLERANCE_FP32

    @classmethod
    def of(cls, source: Path | ModelProto, batches: Batches) -> HeldOutSet:
        """Run the float32 model on the samples for their logits."""
        return cls(batches, all_logits(source, batches()))

    def measure(self, model: Path | ModelProto, flavor: Flavor, *, default_kernels: bool = False) -> Quality:
        """Run an INT8 model of a flavour in ONNX Runtime on the CPU and compare its logits with float32.

        The session has the options that stand for the flavour's target (int8-cpu-arm: int8 activations stay int8;
        int8-trt: no operators are fused across Q/DQ pairs).
        The kernels are those whose sums of products do not saturate on this CPU; `default_kernels` are what ONNX
        Runtime would take unasked (see `ort_session.saturates`).
        """
        logits = all_logits(model, self.batches(), target=flavor.target, default_kernels=default_kernels)
        agreement = compare_answers(self.float_logits, logits, self.tolerance)
        if not np.isfinite(logits).all():
            return Quality(math.inf, agreement)
        error = (logits - self.float_logits).astype(np.float64)
        error -= error.mean(axis=1, keepdims=True)
        signal = self.float_logits - self.float_logits.mean(axis=1, keepdims=True, dtype=np.float64)
        loss = float(np.mean(error**2) / max(float(np.mean(signal**2)), np.finfo(np.float64).tiny))
        return Quality(loss, agreement)


@dataclass(frozen=True)
class QuantizationPlan:
    """How one INT8 file is made of a float32 model."""

    source: ModelProto
    flavor: Flavor
    ranges: Ranges
    """Candidate ranges of the activations of `source`."""
    range_method: str
    """Which candidate is used, one of RANGE_METHODS."""
    headroom: float = 1.0
    """The factor by which ranges are widened, up to the bounds of a Clip."""
    float_nodes: tuple[str, ...] = ()
    """Names of the nodes left in float."""
    bias_shifts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By node, what is added to its bias per output channel to cancel the mean quantisation error."""

    @property
    def widened_ranges(self) -> Ranges:
        """The ranges with headroom, as the file uses them."""
        return self.ranges.widened(self.headroom, clip_bounds(self.source))

    def build(self) -> ModelProto:
        """Make the INT8 model."""
        source = with_moved_biases(self.source, self.bias_shifts) if self.bias_shifts else self.source
        return quantize(source, self.flavor, self.widened_ranges, self.range_method, float_nodes=self.float_nodes)


@dataclass(frozen=True)
class PlanChange:
    """A change of plan that was tried: a choice of ranges or a remedy, with the quality before and after it."""

    name: str
    plan: QuantizationPlan  # the changed plan, or the one before if the change was not applied
    before: Quality
    after: Quality
    applied: bool  # a change that does not help is not applied
    details: RemedyDetailsPart  # further numbers for agreement.json

    @property
    def quality(self) -> Quality:
        """The quality of `plan`."""
        return self.after if self.applied else self.before

    def to_card(self) -> RemedyPart:
        """Convert to the form in agreement.json, which calls every change a remedy."""
        return RemedyPart(
            remedy=self.name,
            before=self.before.to_card(),
            after=self.after.to_card(),
            applied=self.applied,
            **self.details.set_fields(),
        )


def try_ranges(
    source: Path | ModelProto,
    flavor: Flavor,
    ranges: Ranges,
    held_out: HeldOutSet,
    *,
    headrooms: Sequence[float] = (1.0,),
    target: float = 0.0,
) -> PlanChange:
    """Try each headroom with each method of RANGE_METHODS; return the plan of the chosen pair.

    Chosen is the first headroom at which a method reaches the target agreement, else the last; at it, of the methods
    that reach the target (else of all) the one with the least output loss. `before` is of absmax without headroom.
    Where `flavor.float_stem` says so, a first Conv with a depthwise one behind it stays in float: that is faster there.
    """
    model = read_model(source)
    stem = depthwise_stem(model) if flavor.float_stem else ()
    absmax_plan = QuantizationPlan(model, flavor, ranges, "absmax", float_nodes=stem)
    for headroom in headrooms:
        qualities = {
            method: held_out.measure(replace(absmax_plan, range_method=method, headroom=headroom).build(), flavor)
            for method in RANGE_METHODS
        }
        passing = [method for method in RANGE_METHODS if qualities[method].agreement.share >= target]
        if passing:
            break
    best_method = min(passing or RANGE_METHODS, key=lambda method: qualities[method].loss)
    before = qualities["absmax"] if headroom == absmax_plan.headroom else held_out.measure(absmax_plan.build(), flavor)
    losses = {method: _finite_or_none(quality.loss) for method, quality in qualities.items()}
    details = RemedyDetailsPart(method=best_method, headroom=headroom, losses=losses)
    plan = replace(absmax_plan, range_method=best_method, headroom=headroom)
    return PlanChange("ranges", plan, before, qualities[best_method], True, details)


def layer_sensitivity(plan: QuantizationPlan, held_out: HeldOutSet) -> dict[str, float]:
    """Measure the output loss of quantising each compute node alone; the largest loss comes first.

    Compute nodes are those of convolution and matrix product with constant weights (`quantize.compute_nodes`).
    """
    losses, ranges = {}, plan.widened_ranges
    for node in compute_nodes(plan.source):
        if node in plan.float_nodes:
            continue
        model = quantize(plan.source, plan.flavor, ranges, plan.range_method, only_nodes=(node,))
        losses[node] = held_out.measure(model, plan.flavor).loss
    return dict(sorted(losses.items(), key=lambda item: -item[1]))


def try_float_layers(
    plan: QuantizationPlan,
    held_out: HeldOutSet,
    sensitivity: Mapping[str, float],
    *,
    target: float,
    max_share: float = 0.1,
) -> PlanChange:
    """Leave the most sensitive nodes in float, more and more of them until the target is reached.

    Args:
        plan: the plan to improve.
        held_out: the samples on which plans are compared.
        sensitivity: loss by node, the largest first, from `layer_sensitivity`.
        target: share of agreement to reach.
        max_share: at most this share of the compute nodes stays in float, but at least one may; with more than a
            tenth the file is hardly INT8.
    """
    model = plan.build()
    before = after = held_out.measure(model, plan.flavor)
    best, size = plan, model.ByteSize()
    for count in _node_counts(max(1, int(len(sensitivity) * max_share))):
        if after.agreement.share >= target:
            break
        candidate = replace(plan, float_nodes=(*plan.float_nodes, *list(sensitivity)[:count]))
        quality = held_out.measure(candidate.build(), plan.flavor)
        if (quality.agreement.share, -quality.loss) > (after.agreement.share, -after.loss):
            best, after = candidate, quality
    left_in_float = {node: _finite_or_none(sensitivity[node]) for node in best.float_nodes if node in sensitivity}
    extra_bytes = best.build().ByteSize() - size if left_in_float else 0
    details = RemedyDetailsPart(
        sensitivity={node: _finite_or_none(loss) for node, loss in sensitivity.items()},
        left_in_float=left_in_float,
        extra_bytes=extra_bytes,
    )
    return PlanChange("worst layers in float", best, before, after, best is not plan, details)


def _finite_or_none(loss: float) -> float | None:
    """JSON has no infinity."""
    return loss if math.isfinite(loss) else None


def _node_counts(limit: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, … up to the limit, and the limit."""
    counts = [1, *(count for power in range(1, 12) for count in (2**power, 3 * 2 ** (power - 1)))]
    return sorted({count for count in counts if count < limit} | {limit})
