"""Schedules at their corners, as functions of the step alone."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from edgekd.recipe.method import GeneratorTable, MethodTable, ProceduralTable, StudentUpdateTable, VaeTable
from edgekd.synthesis import schedules
from edgekd.synthesis.schedules import Objective


def test_the_learning_rate_falls_as_half_a_cosine() -> None:
    table = StudentUpdateTable(lr=0.2, schedule="cosine")
    rates = [schedules.learning_rate(table, step, 100) for step in range(100)]
    assert rates[0] == 0.2
    assert rates[50] == pytest.approx(0.1)
    assert rates[25] == pytest.approx(0.2 * (1 + math.sqrt(0.5)) / 2)
    assert 0 < rates[99] < 1e-4
    assert rates == sorted(rates, reverse=True)


def test_the_generator_may_decay_with_the_student() -> None:
    table = GeneratorTable(lr=0.2, schedule="cosine")
    rates = [schedules.generator_learning_rate(table, step, 100) for step in (0, 25, 50, 100)]
    assert rates == pytest.approx([0.2, 0.2 * (1 + math.sqrt(0.5)) / 2, 0.1, 0.0])
    constant = GeneratorTable(lr=0.2, schedule="constant")
    assert schedules.generator_learning_rate(constant, 99, 100) == 0.2


def test_the_warm_up_rises_linearly_to_the_peak_and_the_cosine_starts_there() -> None:
    table = StudentUpdateTable(lr=0.2, warmup=0.1, schedule="cosine")
    rates = [schedules.learning_rate(table, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (i + 1) for i in range(10)])
    assert rates[10] == 0.2
    assert rates[55] == pytest.approx(0.1)


def test_a_constant_rate_is_constant_after_the_warm_up() -> None:
    table = StudentUpdateTable(lr=0.3, warmup=0.5, schedule="constant")
    assert [schedules.learning_rate(table, step, 4) for step in range(4)] == pytest.approx([0.15, 0.3, 0.3, 0.3])


def test_a_run_without_consolidation_teaches_one_lesson_to_the_end() -> None:
    method = MethodTable.model_validate({"student": {"lr": 0.2, "loss": "kl", "temperature": 3.0}})
    assert schedules.exploration_steps(method, 101) == 101
    assert schedules.objective_at(method, 0, 100) == Objective("kl", 3.0, 0.2)
    halfway = schedules.objective_at(method, 50, 100)
    assert halfway == Objective("kl", 3.0, halfway.lr)
    assert halfway.lr == pytest.approx(0.1)


def test_consolidation_has_a_loss_and_a_learning_rate_of_its_own() -> None:
    last = {"start": 0.4, "loss": "kl", "temperature": 2.0, "lr": 0.1}
    method = MethodTable.model_validate({"student": {"lr": 0.2, "loss": "l1"}, "consolidation": last})
    assert schedules.exploration_steps(method, 100) == 40
    exploring = [schedules.objective_at(method, step, 100) for step in range(40)]
    assert {lesson.loss for lesson in exploring} == {"l1"}
    assert exploring[20].lr == pytest.approx(0.1), "the first cosine ends where consolidation begins"
    assert schedules.objective_at(method, 40, 100) == Objective("kl", 2.0, 0.1)
    assert schedules.objective_at(method, 70, 100).lr == pytest.approx(0.05)
    assert 0 < schedules.objective_at(method, 99, 100).lr < 1e-4


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_either_phase_may_be_missing(start: float) -> None:
    method = MethodTable.model_validate({"consolidation": {"start": start}})
    losses = {schedules.objective_at(method, step, 3).loss for step in range(3)}
    assert losses == {"kl" if start == 0 else "l1"}


def test_a_warm_up_of_all_steps_divides_by_nothing() -> None:
    assert schedules.learning_rate(StudentUpdateTable(lr=1.0, warmup=0.99), 0, 1) == 1.0


def test_the_adversary_ramps_between_its_two_fractions() -> None:
    table = GeneratorTable(adversary=2.0, adversary_ramp=(0.25, 0.75))
    weights = [schedules.adversarial_weight(table, step, 100) for step in (0, 25, 26, 50, 75, 99)]
    assert weights == pytest.approx([0, 0, 0.04, 1.0, 2.0, 2.0])


@pytest.mark.parametrize("ramp", [(0.0, 0.0), (0.5, 0.5)])
def test_a_ramp_of_no_length_is_a_jump(ramp: tuple[float, float]) -> None:
    table = GeneratorTable(adversary=3.0, adversary_ramp=ramp)
    jump = ramp[0] * 100
    assert [schedules.adversarial_weight(table, step, 100) for step in (0, 49, 50, 99)] == [
        3.0 if step >= jump else 0.0 for step in (0, 49, 50, 99)
    ]


def test_a_young_average_follows_faster_and_never_slower_than_asked() -> None:
    decays = [schedules.ema_decay(0.99, updates) for updates in range(2000)]
    assert decays[0] == pytest.approx(0.1)
    assert decays[90] == pytest.approx(0.91)
    assert decays == sorted(decays)
    assert decays[-1] == 0.99
    assert schedules.ema_decay(0.0, 100) == 0.0


@pytest.mark.parametrize(
    ("schedule", "same_maps", "weights"),
    [
        ("constant", True, [4.0, 4.0, 4.0]),
        ("constant", False, [4.0, 4.0, 4.0]),
        ("linear", True, [4.0, 2.0, 0.04]),
        ("linear", False, [4.0, 2.0, 0.04]),
        ("auto", True, [4.0, 2.0, 0.04]),
        ("auto", False, [4.0, 4.0, 4.0]),
    ],
)
def test_hints_keep_their_weight_or_fade_to_nothing(
    schedule: Literal["auto", "constant", "linear"], same_maps: bool, weights: list[float]
) -> None:
    table = StudentUpdateTable(hint=4.0, hint_schedule=schedule)
    found = [schedules.hint_weight(table, step, 100, same_maps=same_maps) for step in (0, 50, 99)]
    assert found == pytest.approx(weights)


def test_the_number_of_procedural_images_goes_from_one_share_to_the_other() -> None:
    method = MethodTable(
        procedural=ProceduralTable(share=(1.0, 0.25)), student=StudentUpdateTable(batch_size=16), vae=VaeTable(novel=16)
    )
    assert [schedules.procedural_count(method, step, 101) for step in (0, 50, 100)] == [16, 10, 4]
