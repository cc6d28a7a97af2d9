"""Health: what a collapsed generator looks like, and that a healthy one is left alone."""

from __future__ import annotations

import pytest
import torch

from edgekd.recipe.method import HealthTable
from edgekd.synthesis import health

TABLE = HealthTable(window=3, min_coverage=0.2, min_diversity=0.02)


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sure(*labels: int, classes: int = 4) -> torch.Tensor:
    return 50 * torch.nn.functional.one_hot(torch.tensor(labels), classes).float()


def test_even_sure_answers_on_different_images_are_healthy() -> None:
    found = health.image_health(images(), sure(*[0, 1, 2, 3] * 16))
    assert found["coverage"] == pytest.approx(1.0)
    assert found["confidence"] == pytest.approx(1.0)
    assert found["diversity"] == pytest.approx(1.0, abs=0.05)
    assert health.collapse([found] * 3, TABLE) is None


@pytest.mark.parametrize(("labels", "coverage"), [([0] * 64, 0.0), ([0, 1] * 32, 1 / 3), ([0] * 63 + [1], 0.03)])
def test_class_imbalance_is_low_coverage(labels: list[int], coverage: float) -> None:
    assert health.image_health(images(), sure(*labels))["coverage"] == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_one_class_is_no_coverage_however_many_there_are(classes: int) -> None:
    assert health.image_health(images(), sure(*[1] * 64, classes=classes))["coverage"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_as_even_as_a_batch_can_be_is_healthy_for_any_number_of_classes(classes: int) -> None:
    labels = torch.randint(classes, (128,), generator=torch.Generator().manual_seed(1)).tolist()
    found = health.image_health(images(128), sure(*labels, classes=classes))
    assert found["coverage"] > 0.5
    assert health.collapse([found] * 3, TABLE) is None


def test_confidence_is_the_mean_top_probability() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 50.0]])
    assert health.image_health(images(2), logits)["confidence"] == pytest.approx(0.75)


def test_one_class_for_all_images_is_a_collapse() -> None:
    found = health.image_health(images(), sure(*[2] * 64))
    assert health.collapse([found] * 3, TABLE) == "the generator's images cover 0% of the classes (needed: 20%)"


def test_identical_images_are_a_collapse() -> None:
    found = health.image_health(images(1).repeat(64, 1, 1, 1), sure(*[0, 1, 2, 3] * 16))
    assert found["diversity"] == pytest.approx(0, abs=1e-6)
    assert "images are alike" in str(health.collapse([found] * 3, TABLE))


def test_constant_images_do_not_divide_by_zero() -> None:
    assert health.image_health(torch.zeros(4, 1, 2, 2), sure(0, 1, 2, 3))["diversity"] == 0


def test_only_a_full_window_is_judged_and_by_its_mean() -> None:
    bad = {"coverage": 0.1, "confidence": 1.0, "diversity": 1.0}
    good = {"coverage": 0.9, "confidence": 1.0, "diversity": 1.0}
    assert health.collapse([bad] * 2, TABLE) is None
    assert health.collapse([bad, bad, good], TABLE) is None
    assert health.collapse([bad] * 3, TABLE) is not None
    assert health.collapse([], TABLE) is None


def test_measuring_keeps_no_graph() -> None:
    logits = sure(0, 1).requires_grad_()
    assert all(isinstance(value, float) for value in health.image_health(images(2), logits).values())
