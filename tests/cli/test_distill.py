"""Distilling as a user meets it: opening and closing lines, the plan, minutes, consent, --fresh."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Result

import toy
from edgekd import recipe
from edgekd.cli import settle
from edgekd.models import registry
from edgekd.run.directory import RunDir

SMALL = ("--set=method.student.batch_size=16", "--set=method.vae.novel=8", "--set=select.samples=64")
"""Batches and samples of a distillation that takes a second."""
TOY = ("--input", "1x8x8", "--threads", "1", "--student", toy.STUDENT)


def test_distill_opens_with_five_lines_and_closes_with_three(here: Path, teacher_file: Path) -> None:
    arguments = ("distill", teacher_file, *TOY, "--steps", "4", *SMALL)
    result = Result(*arguments)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    words = [line.split()[0] for line in lines if line.strip()]
    opening = words.index("run")
    assert words[opening : opening + 5] == ["run", "teacher", "input", "student", "plan"]
    assert words[-3:] == ["wrote", "result", "next"]
    assert "assumed" in result.stderr
    again = Result(*arguments)
    assert "already done" in again.stderr
    changed = Result(*arguments, "--seed", "5")
    assert changed.exit_code == 3
    assert "seed: 1 -> 5" in changed.stderr
    assert "--fresh" in changed.stderr
    fresh = Result(*arguments, "--seed", "5", "--fresh", "--json")
    assert fresh.exit_code == 0
    assert fresh.json()["steps"] == 4
    assert fresh.json()["curve"] is None


@pytest.mark.slow
def test_the_preset_follows_from_the_teacher_and_is_kept(here: Path, teacher_file: Path) -> None:
    plain = registry.build("lenet5", input_shape=(1, 32, 32), classes=10, seed=0)
    torch.save(plain.state_dict(), here / "plain.pt")
    dry = ("--threads", "1", "--dry-run", "--steps", "4")
    for file, shape, student, preset in (
        (teacher_file, "1x8x8", toy.STUDENT, "edgekd"),
        (here / "plain.pt", "1x32x32", "lenet5-half", "edgekd-replay"),
    ):
        command = ("distill", file, "--run", preset, "--input", shape, "--student", student, *dry)
        for asked in ((*SMALL, "--set=method.student.lr=0.123"), ()):  # the second one finds the answers in the run
            result = Result(*command, *asked)
            assert result.exit_code == 0, result.stderr
            assert f"plan     {preset}, 4 steps" in result.stderr
        kept = recipe.load_resolved(RunDir(here / "runs" / preset).recipe_file).method
        assert (kept.preset, kept.student.lr, kept.student.reuse) == (preset, 0.123, 1)


def test_distill_json_with_data_has_both_curves(here: Path, teacher_file: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    (here / "toy.toml").write_text(recipe.to_toml(wanted))
    toy.images(here / "images")
    flags = ("--input", "1x8x8", "--threads", "1", "--student", toy.STUDENT, "--steps", "4", "--normalize", "none")
    result = Result("distill", teacher_file, *flags, *SMALL, "--data", "images", "--json").json()
    assert set(result) == {"schema", "run", "steps", "seconds", "curve", "curve_other", "health"}
    assert set(result["curve"]) == {"points", "mean", "sd", "variance", "max", "final", "regret"}
    assert result["curve"]["points"] == result["curve_other"]["points"] == 5
    assert result["seconds"] > 0
    assert {"agreement_novel", "replay_bytes", "replay_bytes_as_uint8_images"} <= set(result["health"])


def test_max_seconds_stops_resumably(here: Path, teacher_file: Path) -> None:
    flags = ("distill", teacher_file, *TOY, "--steps", "100000", *SMALL)
    steps = []
    for _ in range(2):
        stopped = Result(*flags, "--max-seconds", "6")
        assert stopped.exit_code == 8
        assert "the same command continues" in stopped.stderr
        run = RunDir(next((here / "runs").iterdir()))
        steps.append(max(p.name for p in run.stage("distill").glob("checkpoints/step-*")))
    assert steps[0] < steps[1]


def test_minutes_are_turned_into_steps_once(here: Path, teacher_file: Path) -> None:
    flags = ("distill", teacher_file, *TOY, "--minutes", "0.01", *SMALL)
    first = Result(*flags, "--json")
    assert first.exit_code == 0
    kept = recipe.load_resolved(next((here / "runs").iterdir()) / "recipe.toml").method
    assert kept.minutes == 0.01
    assert kept.steps == first.json()["steps"] > 0
    assert Result(*flags, "--json").json()["steps"] == kept.steps
    other = Result(*flags, "--minutes", "0.2")
    assert other.exit_code == 3
    assert "method.minutes: 0.01 -> 0.2." in other.stderr, "0 steps is what nobody typed"


def test_steps_end_what_minutes_led_to(here: Path, teacher_file: Path) -> None:
    made = RunDir(here / "toy")
    kept = recipe.with_changes(toy.toy_recipe(teacher_file), {"method": {"minutes": 5.0, "steps": 12}})
    made.recipe_file.parent.mkdir()
    for asked, steps in (({}, 12), ({"minutes": 5.0}, 12), ({"steps": 40}, 40), ({"minutes": 5.0}, 0)):
        kept = settle.wanted_recipe(made, {"method": asked}) if made.recipe_file.exists() else kept
        made.recipe_file.write_text(recipe.to_toml(kept))
        assert kept.method.steps == steps
        assert kept.method.minutes == (0.0 if steps == 40 else 5.0)


def test_what_was_decided_for_a_wrong_size_is_decided_anew_and_what_was_typed_stays(
    here: Path, teacher_file: Path
) -> None:
    assert Result("ingest", teacher_file, "--run", "toy", "--input", "1x64x64").exit_code == 0
    made = RunDir(here / "runs" / "toy")
    first = recipe.load_resolved(made.recipe_file)
    student = {"name": toy.STUDENT, "auto_budget_ms": 5.0}
    answers: dict[str, Any] = {"steps": first.method.steps_for(64 * 64, toy.CLASSES), "student": {"reuse": 1}}
    decided = recipe.with_changes(first, {"student": student, "method": answers})
    typed = recipe.with_changes(first, {"student": {"name": toy.STUDENT}, "method": {**answers, "steps": 777}})
    minutes = recipe.with_changes(decided, {"method": {"minutes": 2.0, "steps": 41}})
    for kept, steps, name in ((decided, 0, recipe.AUTO), (typed, 777, toy.STUDENT), (minutes, 0, recipe.AUTO)):
        made.recipe_file.write_text(recipe.to_toml(kept))
        same = settle.wanted_recipe(made, {"teacher": {"input": "1x64x64"}})
        assert (same.method.steps, same.student.name) == (kept.method.steps, toy.STUDENT)
        anew = settle.wanted_recipe(made, {"teacher": {"input": "1x8x8"}})
        assert (anew.method.steps, anew.student.name, anew.method.student.reuse) == (steps, name, recipe.AUTO)
        asked = recipe.with_changes(first, {"teacher": {"input": "1x8x8"}})
        assert settle.with_kept_answers(made, asked, {}).method.steps == 0
    made.stage("distill").mkdir()
    assert settle.wanted_recipe(made, {"teacher": {"input": "1x8x8"}}).method.steps == 41, "what has begun goes on"


def test_a_recipe_that_was_lost_comes_back_with_the_same_command(here: Path, teacher_file: Path) -> None:
    flags = ("distill", teacher_file, "--run", "toy", "--input", "1x8x8", "--student", toy.STUDENT, "--steps", "4")
    assert Result(*flags, *SMALL).exit_code == 0
    file = here / "runs" / "toy" / "recipe.toml"
    before = file.read_bytes()
    file.write_bytes(b"")
    assert Result(*flags, *SMALL).exit_code == 3
    file.unlink()
    again = Result(*flags, *SMALL)
    assert again.exit_code == 0, again.stderr
    assert "distill  already done" in again.stderr
    assert file.read_bytes() == before


def test_dry_run_prints_a_plan_and_trains_nothing(here: Path, teacher_file: Path) -> None:
    flags = ("distill", teacher_file, "--input", "1x8x8", "--threads", "1", "--student", toy.STUDENT, "--steps", "1000")
    result = Result(*flags, "--dry-run", "--json")
    assert result.exit_code == 0
    plan = result.json()
    assert plan["eta_seconds"] == pytest.approx(1000 * plan["seconds_per_step"])
    assert not RunDir(next((here / "runs").iterdir())).stage("distill").exists()


@pytest.mark.slow
def test_large_images_need_consent(here: Path, teacher_file: Path) -> None:
    sets = [f"--set=method.{table}=4" for table in ("student.batch_size", "replay.batch_size", "generator.width")]
    sets += ["--set=method.vae.novel=2", "--set=method.vae.rehearsed=2", "--set=method.vae.width=4"]
    sets.append("--set=method.replay.source=vae")
    flags = (
        "distill",
        teacher_file,
        "--input",
        "1x128x128",
        "--threads",
        "1",
        "--student",
        toy.STUDENT,
        "--steps",
        "1",
        *sets,
    )
    assert Result(*flags, "--dry-run").exit_code == 2
    agreed = Result(*flags, "--dry-run", "--yes")
    assert agreed.exit_code == 0
    names = {words[0] for words in map(str.split, agreed.stdout.splitlines()) if len(words) == 2}
    assert {"student", "generator", "encoder", "decoder", "all"} <= names, "parameters of networks, GFLOP by part"
    for pattern in (r"utilisation \d+%: of \d+ GFLOP/s", r"\d+ ms a step, about \d+ s( \(.*\))?, [\d.]+ \w+ memory"):
        assert re.search(pattern, agreed.stderr), pattern


def test_seed_zero_is_a_seed(here: Path, teacher_file: Path) -> None:
    flags = ("distill", teacher_file, "--input", "1x8x8", "--student", toy.STUDENT, "--steps", "1000", "--threads", "1")
    assert Result(*flags, "--seed", "0", "--dry-run").exit_code == 0
    assert recipe.load_resolved(next((here / "runs").iterdir()) / "recipe.toml").seed == 0


def test_a_benchmark_of_no_batch_is_refused(here: Path, teacher_file: Path) -> None:
    for key in ("batch", "threads"):
        result = Result("distill", teacher_file, "--set", f"bench.{key}=[]", "--dry-run")
        assert (result.exit_code, f"bench.{key}" in result.stderr) == (3, True)


@pytest.mark.slow
def test_fresh_loses_nothing_when_the_new_beginning_fails(
    finished: tuple[Path, Result], teacher_file: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/kept"], check=True)
    before = toy.fingerprint(RunDir(Path("runs/kept")))
    broken = folder / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    flags = ("--run", "kept", "--fresh", "--student", toy.STUDENT)
    for arguments, code in (
        (("distill", broken, *flags), 4),
        (("distill", "missing.pt", *flags), 4),
        (("distill", teacher_file, *flags, "--set", "method.student.rl=1"), 3),
        (("distill", teacher_file, *flags, "--input", "1x8x8", "--device", "abacus"), 2),
        (("distill", teacher_file, *flags, "--dry-run"), 2),
    ):
        assert Result(*arguments).exit_code == code
        assert toy.fingerprint(RunDir(Path("runs/kept"))) == before
        assert not Path("runs/kept/.replaced").exists()
