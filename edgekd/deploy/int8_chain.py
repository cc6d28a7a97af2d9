"""The whole way to one INT8 file: ranges by output loss, float layers while answers are lost, bias correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from edgekd.deploy.bias_correction import correct_bias
from edgekd.deploy.int8 import HeldOut, Plan, Quality, Remedy, choose_ranges, layer_sensitivity, leave_worst_in_float
from edgekd.deploy.quantize import Flavour
from edgekd.deploy.ranges import Batches, Ranges
from edgekd.errors import GateError

FINE_TUNING = "quantisation-aware fine-tuning"


@dataclass(frozen=True)
class FineTuned:
    """A float32 model that was trained to bear quantisation, and its own activation ranges."""

    source: ModelProto
    ranges: Ranges
    details: Mapping[str, Any]


FineTune = Callable[[Plan], FineTuned]
"""Trains the student for a plan that still misses the target; raises GateError where that fails."""


@dataclass(frozen=True)
class Int8Result:
    """The plan that was reached, its quality, and every step that was tried on the way."""

    plan: Plan
    quality: Quality
    target: float
    steps: tuple[Remedy, ...]

    @property
    def passed(self) -> bool:
        """Return whether the file keeps enough of the answers."""
        return self.quality.agreement.share >= self.target

    def to_json(self) -> dict[str, Any]:
        """Return method, quality, target, verdict and all steps with their before and after."""
        return {
            "flavour": self.plan.flavour.name,
            "method": self.plan.method,
            "headroom": self.plan.headroom,
            "left_in_float": list(self.plan.float_nodes),
            "quality": self.quality.to_json(),
            "target": self.target,
            "passed": self.passed,
            "steps": [step.to_json() for step in self.steps],
        }


def quantize_keeping_answers(
    source: Path | ModelProto,
    flavour: Flavour,
    ranges: Ranges,
    held_out: HeldOut,
    calibration: Batches,
    *,
    target: float = 0.97,
    headrooms: Sequence[float] = (1.0,),
    fine_tune: FineTune | None = None,
) -> Int8Result:
    """Find an INT8 plan whose file agrees with float32 on at least `target` of the clear held-out samples.

    Args:
        source: the float32 model.
        flavour: one of `quantize.FLAVOURS`.
        ranges: of its activations over `calibration`.
        held_out: samples that decide, disjoint from `calibration`.
        calibration: the samples that `ranges` are of, for bias correction.
        target: share of agreement.
        headrooms: what the ranges may be widened by, the best first.
        fine_tune: the last remedy, none if not given.
    """

    def untrained(source: Path | ModelProto, ranges: Ranges) -> list[Remedy]:
        chosen = choose_ranges(source, flavour, ranges, held_out, headrooms=headrooms, target=target)
        return _with_remedies(chosen, held_out, calibration, target)

    steps = untrained(source, ranges)
    if _missed(steps, target) and fine_tune is not None:
        steps.append(_fine_tuned(steps[-1], fine_tune, untrained))
    return Int8Result(steps[-1].plan, steps[-1].kept, target, tuple(steps))


def _missed(steps: list[Remedy], target: float) -> bool:
    return steps[-1].kept.agreement.share < target


def _with_remedies(ranges: Remedy, held_out: HeldOut, calibration: Batches, target: float) -> list[Remedy]:
    """Return the choice of ranges, layers left in float as far as they are needed, and the correction of biases."""
    steps = [ranges]
    if _missed(steps, target):
        plan = steps[-1].plan
        sensitivity = layer_sensitivity(plan, held_out)
        steps.append(leave_worst_in_float(plan, held_out, sensitivity, target=target))
    # Not only where answers are missing: it costs neither time nor bytes on the device, and the loss says if it pays.
    steps.append(correct_bias(steps[-1].plan, held_out, calibration))
    return steps


def _fine_tuned(last: Remedy, fine_tune: FineTune, untrained: Callable[[ModelProto, Ranges], list[Remedy]]) -> Remedy:
    """Fine-tune, then go the whole way again with the new network; the answers to keep are still the old one's."""
    plan, before = last.plan, last.kept
    try:
        tuned = fine_tune(plan)
        steps = untrained(tuned.source, tuned.ranges)
    except GateError as error:
        return Remedy(FINE_TUNING, plan, before, before, False, {"failed": str(error)})
    after = steps[-1].kept
    better = (after.agreement.share, -after.loss) > (before.agreement.share, -before.loss)
    details = {**tuned.details, "steps": [step.to_json() for step in steps]}
    return Remedy(FINE_TUNING, steps[-1].plan if better else plan, before, after, better, details)
