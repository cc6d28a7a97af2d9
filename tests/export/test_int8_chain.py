from __future__ import annotations

from typing import Any

import pytest
from small_nets import Student

from edgekd.export.int8_chain import quantize_keeping_answers
from edgekd.export.quantize import FLAVORS
from edgekd.run.cards.exported import ClippingPart


@pytest.mark.parametrize("name", FLAVORS)
def test_good_ranges_need_no_float_layers(name: str, student: Student) -> None:
    result = quantize_keeping_answers(
        student.path, FLAVORS[name], student.ranges, student.held_out, student.calibration, target=0.95
    )
    assert result.passed
    assert [change.name for change in result.changes] == ["ranges", "bias correction"]
    ranges, bias = result.changes
    better = bias.after.loss < ranges.after.loss and bias.after.agreement.share >= ranges.after.agreement.share
    assert (bias.before, bias.applied, bool(result.plan.bias_shifts)) == (ranges.after, better, better)
    assert student.held_out.measure(result.plan.build(), FLAVORS[name]) == result.quality


CLIPPED = ClippingPart(overall=0.0, tensors={})


def test_every_remedy_is_tried_and_recorded_before_giving_up(student: Student) -> None:
    flavor, coarse = FLAVORS["trt"], student.ranges.widened(30, {})
    result = quantize_keeping_answers(student.path, flavor, coarse, student.held_out, student.calibration, target=1.0)
    assert [change.name for change in result.changes] == ["ranges", "worst layers in float", "bias correction"]
    assert not result.passed
    for before, after in zip(result.changes, result.changes[1:], strict=False):
        assert after.before == before.quality
        assert after.quality == (after.after if after.applied else after.before)
    assert result.quality.agreement.share >= result.changes[0].before.agreement.share
    assert student.held_out.measure(result.plan.build(), flavor) == result.quality
    recorded: dict[str, Any] = result.to_card("too low", None, CLIPPED, None).to_json()
    assert recorded["passed"] is False
    assert recorded["left_in_float"] == list(result.plan.float_nodes)
    assert [change["remedy"] for change in recorded["steps"]] == [change.name for change in result.changes]
