"""The whole way to one INT8 file: ranges by output loss, then remedies only as long as answers are lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from edgekd.deploy.bias_correction import correct_bias
from edgekd.deploy.int8 import HeldOut, Plan, Quality, Remedy, choose_ranges, layer_sensitivity, leave_worst_in_float
from edgekd.deploy.quantize import Flavour
from edgekd.deploy.ranges import Batches, Ranges


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
) -> Int8Result:
    """Find an INT8 plan whose file agrees with float32 on at least `target` of the clear held-out samples.

    Args:
        source: the float32 model.
        flavour: one of `quantize.FLAVOURS`.
        ranges: of its activations over `calibration`.
        held_out: samples that decide, disjoint from `calibration`.
        calibration: the samples that `ranges` are of, for bias correction.
        target: share of agreement.
    """
    steps = [choose_ranges(source, flavour, ranges, held_out)]

    def missed() -> bool:
        return steps[-1].kept.agreement.share < target

    if missed():
        plan = steps[-1].plan
        sensitivity = layer_sensitivity(plan, held_out)
        steps.append(leave_worst_in_float(plan, held_out, sensitivity, target=target))
    if missed():
        steps.append(correct_bias(steps[-1].plan, held_out, calibration))
    return Int8Result(steps[-1].plan, steps[-1].kept, target, tuple(steps))
