"""The losses against the numbers of the authors' code, and what values alone cannot show."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from edgekd.recipe.method import GeneratorTable
from edgekd.synthesis import losses

GOLDEN = json.loads((Path(__file__).parent / "pre_dfkd.json").read_text())
CASES = GOLDEN["cases"]


def tensor(case: dict[str, Any], name: str) -> Tensor:
    return torch.tensor(case[name])


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=["5 classes", "10 classes", "third"])
def test_the_released_code_prints_the_same_numbers(case: dict[str, Any]) -> None:
    teacher, student = tensor(case, "teacher_logits"), tensor(case, "student_logits")
    found = {
        "one_hot": losses.one_hot_loss(teacher),
        "entropy_log10": losses.balance_loss(teacher) / math.log(10),
        "activation": losses.activation_loss(tensor(case, "features")),
        "disagreement": 1 - losses.gap_released(student, teacher),
        "kd_l1": losses.gap_l1(student, teacher),
        "kl_vae": losses.kl_to_standard_normal(tensor(case, "mu"), tensor(case, "log_var")),
        "latent_moments": losses.latent_moments(tensor(case, "z")),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(case["expect"], rel=1e-5)


def test_there_are_three_cases_and_every_expectation_is_compared() -> None:
    assert len(CASES) == 3
    assert all(len(case["expect"]) == 7 for case in CASES)


def test_one_hot_falls_with_confidence_and_has_no_gradient_through_the_answer() -> None:
    logits = draw(6, 5).requires_grad_()
    assert losses.one_hot_loss(3 * logits) < losses.one_hot_loss(logits)
    (gradient,) = torch.autograd.grad(losses.one_hot_loss(logits), logits)
    answer = torch.nn.functional.one_hot(logits.argmax(1), 5)
    assert torch.allclose(gradient, (logits.softmax(1) - answer).detach() / 6, atol=1e-6)


def test_balance_is_least_for_even_classes_and_zero_for_one() -> None:
    even, one = 50 * torch.eye(4), torch.tensor([[50.0, 0, 0, 0]]).repeat(4, 1)
    assert float(losses.balance_loss(even)) == pytest.approx(-math.log(4), rel=1e-6)
    assert float(losses.balance_loss(one)) == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[500.0, 0, 0, 0]]).requires_grad_()
    (gradient,) = torch.autograd.grad(losses.balance_loss(certain), certain)
    assert torch.isfinite(gradient).all(), "a probability of zero must not make the gradient NaN"


def test_every_gap_of_the_recipe_has_a_function() -> None:
    assert set(losses.GAPS) == set(get_args(GeneratorTable.model_fields["gap"].annotation))


@pytest.mark.parametrize("name", losses.GAPS)
def test_a_gap_is_zero_for_equal_logits_and_grows_with_disagreement(name: str) -> None:
    gap, teacher, direction = losses.GAPS[name], draw(16, 6), draw(16, 6, seed=1, scale=1.0)
    values = [float(gap(teacher + t * direction, teacher)) for t in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert all(before < after for before, after in pairwise(values)), values


@pytest.mark.parametrize("name", losses.GAPS)
def test_maximizing_a_gap_moves_the_teachers_answers_away_from_the_students(name: str) -> None:
    student, teacher = draw(16, 6), draw(16, 6, seed=1).requires_grad_()
    before = losses.GAPS[name](student, teacher)
    (gradient,) = torch.autograd.grad(before, teacher)
    after = losses.GAPS[name](student, teacher + 0.1 * gradient / gradient.norm())
    assert after > before


def test_js_is_symmetric_and_at_most_ln_2() -> None:
    student, teacher = draw(16, 6), draw(16, 6, seed=1)
    assert float(losses.gap_js(student, teacher)) == pytest.approx(float(losses.gap_js(teacher, student)), rel=1e-5)
    opposite = 1000 * torch.eye(2)
    largest = float(losses.gap_js(opposite, opposite.flip(0)))
    assert largest == pytest.approx(math.log(2), rel=1e-5)
    assert float(losses.gap_js(student * 100, teacher * 100)) <= math.log(2) + 1e-6


def test_js_and_kl_are_what_their_definitions_say() -> None:
    student, teacher = draw(8, 5).double(), draw(8, 5, seed=1).double()
    p, q = (student / 3).softmax(1), (teacher / 3).softmax(1)
    m = (p + q) / 2

    def kl(a: Tensor, b: Tensor) -> float:
        return float((a * (a / b).log()).sum(1).mean())

    assert float(losses.gap_kl(student, teacher)) == pytest.approx(kl(q, p), rel=1e-9)
    assert float(losses.gap_js(student, teacher)) == pytest.approx((kl(p, m) + kl(q, m)) / 2, rel=1e-9)


def test_the_released_gap_is_clamped_where_the_answers_are_sure() -> None:
    """The quirk that makes its gradient vanish: probabilities outside [0.01, 0.99] do not move."""
    teacher = torch.tensor([[60.0, 0.0], [0.0, 60.0]]).requires_grad_()
    student = torch.tensor([[0.0, 60.0], [60.0, 0.0]])
    (gradient,) = torch.autograd.grad(losses.gap_released(student, teacher), teacher)
    assert not gradient.any()
    assert 0 <= float(losses.gap_released(student, teacher.detach())) <= 1


def test_the_distillation_loss_is_l1_or_kl_times_the_square_of_the_temperature() -> None:
    student, teacher = draw(8, 5), draw(8, 5, seed=1)
    assert torch.equal(losses.logit_distance(student, teacher, "l1", 4.0), (student - teacher).abs().mean())
    p, q = (student / 4).softmax(1), (teacher / 4).softmax(1)
    expected = 16 * (q * (q / p).log()).sum(1).mean()
    assert torch.allclose(losses.logit_distance(student, teacher, "kl", 4.0), expected)
    assert float(losses.logit_distance(teacher, teacher, "kl", 4.0)) == pytest.approx(0, abs=1e-6)


def test_means_over_the_batch_do_not_depend_on_its_size() -> None:
    student, teacher = draw(8, 5), draw(8, 5, seed=1)
    twice = torch.cat([student, student]), torch.cat([teacher, teacher])
    for name, gap in losses.GAPS.items():
        assert torch.allclose(gap(*twice), gap(student, teacher)), name
    assert torch.allclose(losses.one_hot_loss(twice[1]), losses.one_hot_loss(teacher))
    assert torch.allclose(losses.balance_loss(twice[1]), losses.balance_loss(teacher))


def test_the_kl_to_a_standard_normal_is_zero_there_and_agrees_with_torch() -> None:
    assert float(losses.kl_to_standard_normal(torch.zeros(3, 4), torch.zeros(3, 4))) == 0
    mean, log_variance = draw(5, 4), draw(5, 4, seed=1, scale=0.5)
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    assert torch.allclose(losses.kl_to_standard_normal(mean, log_variance), each.sum(1).mean())


def test_latent_moments_measure_mean_and_variance_per_dimension() -> None:
    z = torch.tensor([[0.0, 3.0], [2.0, 3.0], [4.0, 3.0]])
    assert float(losses.latent_moments(z)) == pytest.approx((9 + 1) / 2 + (4 + 9) / 2)
