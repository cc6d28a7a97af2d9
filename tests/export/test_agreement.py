from __future__ import annotations

import numpy as np
import pytest

from edgekd.errors import GateError
from edgekd.export.fidelity import compare_answers

REFERENCE = np.array([[10, 5, 0], [1, 5, 0], [3, 3.005, 0], [0, 0, 8]], dtype=np.float32)


def test_only_clear_samples_count() -> None:
    found = REFERENCE[:, [1, 0, 2]]
    result = compare_answers(REFERENCE, found, 0.001)
    assert (result.samples, result.clear, result.same) == (4, 3, 1)
    assert result.share == pytest.approx(1 / 3)
    assert result.to_card().to_json()["share"] == result.share
    assert compare_answers(REFERENCE, REFERENCE, 0.001).share == 1


def test_a_logit_that_is_not_finite_is_no_agreement() -> None:
    found = REFERENCE.copy()
    found[0, 2] = np.nan
    assert compare_answers(REFERENCE, found, 0.001).same == 2


def test_a_network_without_clear_answers_is_an_error() -> None:
    with pytest.raises(GateError, match="none of 4 samples"):
        compare_answers(np.zeros((4, 3), dtype=np.float32), REFERENCE, 0.001)
