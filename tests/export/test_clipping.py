"""How far ranges clip is counted on the float32 model, under its own names, whatever a file made of it calls them."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import Student

from edgekd.export.clipping import plan_clipping
from edgekd.export.graph import read_model
from edgekd.export.int8 import QuantizationPlan
from edgekd.export.int8_chain import try_bias_correction
from edgekd.export.quantize import FLAVORS
from edgekd.export.ranges import Range, Ranges


@pytest.mark.parametrize("name", FLAVORS)
def test_every_activation_that_a_file_rounds_is_counted(name: str, student: Student) -> None:
    plan = QuantizationPlan(read_model(student.path), FLAVORS[name], student.ranges, "p99.9")
    found = plan_clipping(plan, student.calibration)
    rounded = [node for node in plan.build().graph.node if node.op_type == "QuantizeLinear"]
    assert len(found.tensors) == len(rounded)
    assert set(found.tensors) <= set(student.ranges.tensors)
    assert 0 < found.tensors["input"] < 0.01


def test_moved_biases_do_not_move_what_is_counted(student: Student) -> None:
    tight = {
        name: {method: Range(r.low, r.high * 0.4, r.magnitude * 0.4) for method, r in methods.items()}
        for name, methods in student.ranges.tensors.items()
    }
    plan = QuantizationPlan(read_model(student.path), FLAVORS["trt"], Ranges(student.ranges.samples, tight), "absmax")
    remedy = try_bias_correction(plan, student.held_out, student.calibration)
    assert remedy.applied
    assert plan_clipping(remedy.plan, student.calibration) == plan_clipping(plan, student.calibration)


@pytest.mark.parametrize("name", FLAVORS)
def test_what_is_less_than_half_a_step_outside_is_not_clipped(name: str, student: Student) -> None:
    """A background that is one value lies a bin outside a percentile's range, which changes nothing."""
    step = 2 / FLAVORS[name].quantization_steps
    methods = {"absmax": Range(-1.0, 1.0, 1.0)}
    ranges = Ranges(1, dict.fromkeys(student.ranges.tensors, methods))
    plan = QuantizationPlan(read_model(student.path), FLAVORS[name], ranges, "absmax")
    shape = (1, *next(iter(student.calibration())).shape[1:])
    for steps_outside, share in ((0.4, 0.0), (0.6, 1.0)):
        batch = np.full(shape, -1 - steps_outside * step, np.float32)
        assert plan_clipping(plan, [batch].copy).tensors["input"] == share
