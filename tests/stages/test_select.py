"""The choice of the final student: rules for ties, a balanced pool, honest BatchNorm statistics."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toy
from edgekd import state_dict
from edgekd.errors import InputFileError
from edgekd.models import artefacts
from edgekd.rng import KeyedDraws
from edgekd.run import checkpoint
from edgekd.run.cards.evaluation import SelectionCandidate
from edgekd.run.directory import RunDir
from edgekd.stages import select
from edgekd.synthesis.sampler import Sampler

CPU = torch.device("cpu")


def candidate(name: str, agreement: float, error: float = 0.01) -> SelectionCandidate:
    return SelectionCandidate(name=name, agreement=agreement, standard_error=error)


MARGIN = 2 * math.hypot(0.01, 0.01)


@pytest.mark.parametrize(
    ("raw", "raw_norm", "ema", "ema_norm", "chosen", "reason"),
    [
        (0.5, 0.5, 0.9, 0.5, "ema", "highest agreement"),
        (0.5, 0.5, 0.5, 0.5, "raw", "highest agreement"),
        (0.9, 0.5, 0.899, 0.5, "raw", "highest agreement"),
        (0.9, 0.9, 0.5, 0.9, "raw", "highest agreement"),
        (0.9, 0.9 + MARGIN - 0.001, 0.5, 0.5, "raw", "within two standard errors of raw+batchnorm (92.73%)"),
        (0.9, 0.9 + MARGIN + 0.001, 0.5, 0.5, "raw+batchnorm", "more than two standard errors above raw (90.00%)"),
        (0.5, 0.5, 0.89, 0.9, "ema", "within two standard errors of ema+batchnorm (90.00%)"),
        (0.5, 0.5, 0.6, 0.9, "ema+batchnorm", "more than two standard errors above ema (60.00%)"),
        (0.5, 0.9, 0.5, 0.9, "raw+batchnorm", "more than two standard errors above raw (50.00%)"),
        (0.89, 0.5, 0.5, 0.9, "raw", "within two standard errors of ema+batchnorm (90.00%)"),
    ],
)
def test_the_best_wins_but_new_statistics_only_where_they_are_clearly_better(
    raw: float, raw_norm: float, ema: float, ema_norm: float, chosen: str, reason: str
) -> None:
    names = ("raw", "raw+batchnorm", "ema", "ema+batchnorm")
    judged = [candidate(*pair) for pair in zip(names, (raw, raw_norm, ema, ema_norm), strict=True)]
    found, said = select.choose(judged, ships_average=True)
    assert (found.name, said) == (chosen, reason)


def test_a_preset_without_an_average_ships_the_raw_weights() -> None:
    judged = [
        candidate("raw", 0.5),
        candidate("raw+batchnorm", 0.6),
        candidate("ema", 0.9),
        candidate("ema+batchnorm", 0.9),
    ]
    assert select.choose(judged, ships_average=False)[0].name == "raw+batchnorm"
    assert select.choose(judged[:1] + judged[2:3], ships_average=False)[0].name == "raw"


class Answers(nn.Module):
    """A network that answers by the mean pixel: class 0 below zero, class 1 above."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self(x)
        return logits


def test_a_judgement_is_the_share_of_equal_answers_with_its_standard_error() -> None:
    pool = torch.cat([torch.full((150, *toy.SHAPE), -1.0), torch.full((50, *toy.SHAPE), 1.0)])

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)

    found = select.judge("raw", Zero(), pool, Answers())  # type: ignore[arg-type]
    assert (found.name, found.agreement) == ("raw", 0.75)
    assert found.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 200))
    sure = select.judge("raw", Answers(), pool, Answers())  # type: ignore[arg-type]
    assert sure.agreement == 1.0
    assert sure.standard_error < 1e-5


def sampler_of(finished: Any) -> Sampler:
    state = Sampler.state_of(select.final_state(finished.run), finished.recipe.method)
    return Sampler.from_state(state, finished.recipe, artefacts.description_of(finished.run))


def test_the_pool_is_balanced_over_the_teachers_answers(finished: Any) -> None:
    teacher, description = toy.teacher_of(finished.run)
    draws, sampler = KeyedDraws(1, "select", CPU), sampler_of(finished)
    pool = select.balanced_pool(finished.recipe, sampler, teacher, draws, description.classes)
    share = math.ceil(finished.recipe.select.samples / toy.CLASSES)
    drawn = torch.cat([sampler.batch(draws, "judge", i, 128) for i in range(math.ceil(3 * 64 / 128))])
    available = teacher.logits(drawn).argmax(1).bincount(minlength=toy.CLASSES)
    counts = teacher.logits(pool).argmax(1).bincount(minlength=toy.CLASSES)
    assert torch.equal(counts, available.clamp(max=share))
    assert (available > share).any(), "the draw was not balanced by itself"


def test_re_estimated_statistics_are_the_plain_average_over_batches() -> None:
    student = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3))
    with torch.no_grad():
        student.get_buffer("1.running_mean").fill_(7.0)
    batches = [torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(i)) + i for i in range(4)]
    found = select.reestimate_batchnorm(student.eval(), iter(batches))
    with torch.no_grad():
        seen = [student[0](x) for x in batches]
    assert torch.allclose(
        found.get_buffer("1.running_mean"), torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), atol=1e-5
    )
    assert torch.allclose(
        found.get_buffer("1.running_var"), torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0), rtol=1e-4
    )
    assert not found.training
    assert found.get_submodule("1").momentum == 0.3
    assert torch.equal(student.get_buffer("1.running_mean"), torch.full((3,), 7.0)), "the original is left alone"
    assert torch.equal(found.get_parameter("0.weight"), student.get_parameter("0.weight"))


def test_the_selection_is_published_with_its_reasons(finished: Any) -> None:
    folder = finished.run.stage("select")
    selection = json.loads((folder / "selection.json").read_text())
    assert [c["name"] for c in selection["candidates"]] == ["raw", "raw+batchnorm", "ema", "ema+batchnorm"]
    assert "not accuracy" in selection["what"]
    chosen, reason = select.choose([SelectionCandidate(**c) for c in selection["candidates"]], ships_average=True)
    assert (chosen.name, reason) == (selection["chosen"], selection["reason"])
    state = select.final_state(finished.run)
    if "batchnorm" not in chosen.name:
        saved = checkpoint.load_tensors(folder / "student.safetensors")
        weights = state_dict.tensors_of(state, "student" if chosen.name == "raw" else "student_ema")
        assert all(torch.equal(saved[name], value) for name, value in weights.items())


def test_re_estimation_can_be_left_out(teacher_file: Path, finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished.run.path, tmp_path / "toy")
    shutil.rmtree(tmp_path / "toy" / "select")
    wanted = toy.toy_recipe(teacher_file, select={"reestimate_batches": 0}, export={"int8": True})
    run = toy.advance(tmp_path / "toy", wanted, ("select",))
    selection = json.loads((run.stage("select") / "selection.json").read_text())
    assert [c["name"] for c in selection["candidates"]] == ["raw", "ema"]


def test_a_final_checkpoint_that_is_gone_is_named(finished: Any, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(finished.run.path, tmp_path / "toy")))
    shutil.rmtree(run.stage("distill") / "checkpoints")
    with pytest.raises(InputFileError, match="step-00000012 is gone"):
        select.final_state(run)
