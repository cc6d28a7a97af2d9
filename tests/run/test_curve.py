"""The curve's summary over all its points, and which of two curves is the shipped one."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

import toy
from edgekd import recipe
from edgekd.run import curve
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir

VALUES = [0.1, 0.5, 0.9, 0.7]


def test_statistics_are_over_all_points_and_regret_is_maximum_minus_final() -> None:
    found = curve.statistics(VALUES)
    assert found.points == 4
    assert found.mean == pytest.approx(statistics.fmean(VALUES))
    assert found.sd == pytest.approx(statistics.pstdev(VALUES))
    assert found.variance == pytest.approx(statistics.pvariance(VALUES))
    assert (found.max, found.final) == (0.9, 0.7)
    assert found.regret == pytest.approx(0.2)
    assert json.dumps(found.to_json())


def test_one_point_has_no_spread_and_no_regret() -> None:
    found = curve.statistics([0.5])
    assert (found.sd, found.regret, found.final) == (0.0, 0.0, 0.5)


@pytest.mark.parametrize(("decay", "shipped"), [(0.9, "ema"), (0.0, "raw")])
def test_the_shipped_curve_is_that_of_the_average_if_the_recipe_keeps_one(
    decay: float, shipped: str, teacher_file: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    run.recipe_file.write_text(
        recipe.to_toml(toy.toy_recipe(teacher_file, method={"student": {"ship_average": decay > 0}}))
    )
    for step, value in enumerate(VALUES):
        run.append_event({"kind": "accuracy", "step": step, "raw": value, "ema": value / 2})
    found = curve.summary(run)
    raw, ema = curve.statistics(VALUES), curve.statistics([value / 2 for value in VALUES])
    assert found.curve == (ema if shipped == "ema" else raw)
    assert found.curve_other == (raw if shipped == "ema" else ema)
    assert "regret" in found.headline()


def test_without_images_the_curve_is_null_and_health_stands_in(teacher_file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.recipe_file.write_text(recipe.to_toml(toy.toy_recipe(teacher_file)))
    assert curve.summary(run).headline() == "no step was made"
    run.append_event({"kind": "generator", "step": 9, "coverage": 0.9, "confidence": 0.8, "diversity": 0.7})
    run.append_event({"kind": "train", "step": 11, "seconds": 1.0, "agreement_novel": 0.1})
    run.append_event({"kind": "train", "step": 12, "seconds": 3.5, "agreement_novel": 0.25, "agreement_replay": 0.5})
    found = curve.summary(run)
    assert found.curve is None
    assert found.curve_other is None
    assert (found.steps, found.seconds) == (12, 3.5)
    expected = {"agreement_novel": 0.25, "agreement_replay": 0.5, "coverage": 0.9, "confidence": 0.8, "diversity": 0.7}
    assert found.health.to_json() == expected
    assert found.headline() == "25.0% synthetic agreement (not accuracy) on novel samples"
    notes: dict[str, Any] = {
        "steps": 12,
        "reinits": 2,
        "rescues": 1,
        "replay": "vae",
        "replay_bytes": 640,
        "final": "x",
    }
    run.stage("distill").mkdir()
    Record(stage="distill", version=1, key="k", recipe_slice={}, inputs={}, outputs={}, notes=notes).write(
        run.stage("distill")
    )
    assert curve.summary(run).health.to_json() == {
        **expected,
        "reinits": 2,
        "rescues": 1,
        "replay": "vae",
        "replay_bytes": 640,
    }
