"""Alarms of an evaluation: each is heard in its case, and none where all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from edgekd.models import doubts
from edgekd.run.cards.teacher import AssumptionPart, ClaimsPart, ProbePart, TeacherCard
from edgekd.run.image_folder import open_folder
from edgekd.run.realdata import NO_ANSWER, RealImages

PROBE = ProbePart(
    emits="logits",
    undo="none",
    batchnorm_layers=0,
    head_alive=True,
    noise_confidence=0.5,
    parameters=1,
    macs=1,
    batch=1,
)
ASSUMED = [AssumptionPart(what="image size", value="32x32", flag="--input 1x32x32")]


def card(classes: int, **fields: Any) -> TeacherCard:
    return TeacherCard(
        arch="x", input_shape=(1, 32, 32), classes=classes, head="fc", undo="none", probe=PROBE, **fields
    )


def images(root: Path, counts: dict[str, int], side: int = 32) -> RealImages:
    shades = iter(range(256))  # no image is there twice
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (side, side), next(shades)).save(root / name / f"{index}.png")
    folder = open_folder(root, classes=len(counts), names=None)
    return RealImages(folder, (1, 32, 32), mean=(0.0,), std=(1.0,))


def trained_in_order(found: RealImages, order: list[str]) -> Tensor:
    """The answers of a perfect teacher whose logits are in some order of the folders."""
    return torch.tensor([order.index(found.folder.classes[label]) for label in found.folder.labels.tolist()])


TWELVE = {str(number): 5 for number in range(12)}


@pytest.mark.parametrize(
    ("counts", "order", "said"),
    [
        (TWELVE, sorted(TWELVE), "ordered by text the teacher would reach 100.00% instead of 16.67%"),
        ({"a": 20, "B": 20, "c": 20}, ["a", "B", "c"], "text without regard to capitals"),
        ({f"c{n}": 5 for n in range(1, 12)}, [f"c{n}" for n in range(1, 12)], "text with its numbers by value"),
    ],
)
def test_a_perfect_teacher_in_another_usual_order_is_recognised(
    counts: dict[str, int], order: list[str], said: str, tmp_path: Path
) -> None:
    found = images(tmp_path, counts)
    assert any(said in doubt for doubt in doubts.about(found, trained_in_order(found, order), card(len(counts))))
    assert doubts.about(found, found.folder.labels, card(len(counts))) == []


@pytest.mark.parametrize("names", ["TPDCB", "TPDBC"])
def test_a_teacher_that_tells_classes_apart_in_an_order_of_its_own_is_recognised(names: str, tmp_path: Path) -> None:
    found = images(tmp_path, dict.fromkeys(sorted(names), 10))
    answers = trained_in_order(found, list(names))
    answers[::10] = 0  # it errs at times
    said = doubts.about(found, answers, card(5))
    assert any(f"classes in the order {', '.join(names)} the teacher would reach 9" in doubt for doubt in said)
    answers[found.folder.labels == 1] = answers[-1]
    assert not any("would reach" in doubt for doubt in doubts.about(found, answers, card(5))), "two classes are one"


def test_images_in_more_than_one_class_are_recognised(tmp_path: Path) -> None:
    images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "c").symlink_to("b")
    (tmp_path / "a" / "again.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    folder = open_folder(tmp_path, classes=3, names=None)
    found = RealImages(folder, (1, 32, 32), mean=(0.0,), std=(1.0,))
    said = "3 images lie in more than one class, byte for byte (such as b/0.png, c/0.png)"
    assert said in doubts.about(found, folder.labels, card(3))[0]


def test_a_swap_of_two_classes_by_a_better_teacher_is_no_alarm(tmp_path: Path) -> None:
    found = images(tmp_path, {"a": 20, "B": 20})
    answers = torch.tensor([0] * 20 + [1] * 15 + [0] * 5)
    assert doubts.about(found, answers, card(2)) == []


@pytest.mark.parametrize(
    ("counts", "answers", "said"),
    [
        ([10, 10, 10, 10], [0] * 40, "within 2 standard errors of chance (25.00% here)"),
        ([90, 10], [0] * 100, "within 2 standard errors of chance (90.00% here)"),
        ([10, 10], [1] * 10 + [0] * 10, "reaches 0.00%, below chance (50.00% here)"),
        ([10, 10], [NO_ANSWER] * 20, "chance (0.00% here)"),
        ([2, 2, 2], [0] * 6, "reaches 33.33%, within 2 standard errors of chance (33.33% here)"),
        ([10, 10], [0] * 9 + [1] * 11, ""),
        ([20, 0, 0], [0] * 19 + [1], ""),
        ([20, 0, 0], [0] * 6 + [1] * 14, "chance (33.33% here)"),
    ],
)
def test_answers_that_know_nothing_of_the_images_are_recognised(
    counts: list[int], answers: list[int], said: str, tmp_path: Path
) -> None:
    found = images(tmp_path, {f"c{index}": count for index, count in enumerate(counts)}, side=1)
    doubt = doubts.about_chance(found.folder, torch.tensor(answers))
    assert (said in doubt) if said else not doubt


@pytest.mark.parametrize(("side", "heard"), [(16, True), (32, False)])
def test_images_of_another_size_than_was_assumed_are_recognised(side: int, heard: bool, tmp_path: Path) -> None:
    found = images(tmp_path, {"a": 20, "b": 20}, side)
    said = doubts.about(found, found.folder.labels, card(2, assumptions=ASSUMED))
    assert len(said) == heard
    if heard:
        assert "the images are 16x16, and 32x32 was assumed" in said[0]
        assert "--input (1x16x16 takes" in said[0]
    assert doubts.about(found, found.folder.labels, card(2)) == [], "the user gave the size"
    Image.new("L", (17, 16)).save(tmp_path / "a" / "0.png")
    assert doubts.about(found, found.folder.labels, card(2, assumptions=ASSUMED)) == []


@pytest.mark.parametrize(("claimed", "heard"), [(0.98, True), (0.76, False), (0.3, False), (None, False)])
def test_what_the_file_claims_is_compared(claimed: float | None, heard: bool, tmp_path: Path) -> None:
    found = images(tmp_path, {"a": 20, "b": 20})
    answers = torch.tensor([0] * 15 + [1] * 5 + [1] * 15 + [0] * 5)
    claims = ClaimsPart(accuracy=claimed, accuracy_key="best_acc1")
    said = doubts.about(found, answers, card(2, claims=claims))
    assert [("reaches 75.00% here, and its file says 98.00% (best_acc1)" in doubt) for doubt in said] == [True] * heard


def test_images_without_an_answer_are_counted() -> None:
    assert doubts.about_answers("student", torch.tensor([0, 1])) == []
    said = doubts.about_answers("student", torch.tensor([0, NO_ANSWER]))
    assert said == ["student answers NaN or infinity to 1 of 2 images; they count as wrong."]
