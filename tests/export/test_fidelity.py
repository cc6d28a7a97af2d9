from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import numpy_helper
from small_nets import Student, torch_logits

from edgekd.export.fidelity import TOLERANCE_FP32, check_parity, compare_logits
from edgekd.export.graph import read_model

# Range 10; margins relative to it: 0.5, 0.4, 0.0005.
REFERENCE = np.array([[10, 5, 0], [1, 5, 0], [3, 3.005, 0]], dtype=np.float32)


def test_difference_is_relative_to_the_range_of_all_logits() -> None:
    found = REFERENCE.copy()
    found[1, 2] += 0.05
    parity = compare_logits(REFERENCE, found, 0.01)
    assert parity.max_difference == pytest.approx(0.005, rel=1e-4)
    assert (parity.samples, parity.logit_range, parity.wrong_answers) == (3, 10.0, 0)
    assert parity.passed
    assert parity.to_card().to_json()["reason"] is None
    assert not compare_logits(REFERENCE, found, 0.004).passed


def test_another_answer_counts_only_where_the_margin_is_clear() -> None:
    tied, clear = REFERENCE.copy(), REFERENCE.copy()
    tied[2] = [3.005, 3, 0]
    parity = compare_logits(REFERENCE, tied, 0.001)
    assert parity.near_tie_share == pytest.approx(1 / 3)
    assert parity.passed
    clear[1] = [5, 1, 0]
    assert compare_logits(REFERENCE, clear, 0.1).wrong_answers == 1
    # A margin of 0.4 is not above twice 0.2: no answer is wrong, but the difference still is.
    loose = compare_logits(REFERENCE, clear, 0.2)
    assert loose.wrong_answers == 0
    assert not loose.passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_never_pass(value: float) -> None:
    found = REFERENCE.copy()
    found[0, 2] = value
    parity = compare_logits(REFERENCE, found, 0.5)
    assert parity.max_difference == np.inf
    assert not parity.passed
    written = json.loads(json.dumps(parity.to_card().to_json(), allow_nan=False))
    assert (written["max_difference"], written["passed"]) == (None, False)
    assert "NaN or infinity" in written["reason"]
    with pytest.raises(ValueError, match="finite"):
        compare_logits(found, REFERENCE, 0.5)


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="K ≥ 2"):
        compare_logits(REFERENCE, REFERENCE[:2], 0.1)


def test_a_changed_weight_fails_parity(student: Student) -> None:
    reference = torch_logits(student.net, student.fresh)
    assert check_parity(student.path, student.fresh, reference, TOLERANCE_FP32).passed
    model = read_model(student.path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    parity = check_parity(model, student.fresh, reference, TOLERANCE_FP32)
    assert not parity.passed
    assert parity.to_card().to_json()["passed"] is False
    assert str(parity.to_card().to_json()["reason"]).startswith("differs from the student by")
