"""The multiply-accumulates that are logged are those that a counter sees in the steps themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekd.models.flops import FlopsByDtype
from edgekd.stages.distill import build_state
from edgekd.synthesis.macs import MacRates
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, generator_step, student_step

Laboratory = Callable[..., tuple[State, StepContext]]
METHODS: dict[str, dict[str, Any]] = {
    "vae": {"vae": {"gate": 0.01}, "generator": {"period": 2, "batch_size": 24}},
    "closed gate": {"vae": {"gate": 1.0}},
    "nothing rehearsed": {"vae": {"gate": 0.01, "rehearsed": 0}},
    "tuned codes": {"vae": {"gate": 0.01, "sampling": "tuned", "decoder_leak": 1.0}},
    "bank": {"replay": {"source": "bank"}},
    "none": {"replay": {"source": "none"}, "generator": {"adversary": 0.0}},
    "procedural": {"procedural": {"share": [1.0, 0.25]}, "replay": {"source": "none"}},
    "reused views": {"student": {"reuse": 2}, "vae": {"gate": 0.01}},
    "hints": {"student": {"hint": 1.0, "hint_adapters": True}},
}


@pytest.mark.parametrize("name", METHODS)
def test_the_macs_of_each_step_are_those_that_were_executed(name: str, laboratory: Laboratory) -> None:
    state, context = laboratory(**METHODS[name])
    rates = MacRates.measure(context, build_state)
    for step in range(9):
        state.step = step
        expected = rates.of_generator_step(context, step) + rates.of_student_step(state, context)
        with FlopsByDtype() as counter:
            generator_step(state, context)
            student_step(state, context)
        assert expected == sum(counter.flops.values()) // 2, f"step {step}"
