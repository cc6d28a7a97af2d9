"""A run killed at any instant and continued ends with the same bytes as one never touched."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toy
from edgekd import pipeline, recipe
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.stages.catalog import BENCH

PUBLISHING = ("before_fsync", "before_rename", "after_rename")
FAST_POINTS = (
    "teacher.before_rename",
    *("checkpoint.before_rename@2", "checkpoint.after_rename@4", "checkpoint.after_delete@3"),
    *("distill.step@5", "distill.before_record", "write.record.json@1", "select.after_rename"),
)
SLOW_POINTS = (
    *("teacher.before_fsync", "teacher.after_rename", "select.before_fsync", "select.before_rename"),
    *(f"checkpoint.before_fsync@{passing}" for passing in (1, 2, 4)),
    *("checkpoint.before_rename@1", "checkpoint.before_rename@4"),
    *("checkpoint.after_rename@1", "checkpoint.after_rename@2"),
    *("distill.step@1", "distill.step@12", "write.recipe.toml@1"),
)
EXPORT_POINTS = tuple(f"export.{point}" for point in (*PUBLISHING, "between_renames"))
BENCH_POINTS = tuple(f"bench/local.{point}" for point in PUBLISHING)


@pytest.fixture(scope="module")
def untouched(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = toy.advance(tmp_path_factory.mktemp("untouched") / "toy", toy.toy_recipe(teacher_file))
    reinits = run.events("reinit")
    assert [event["reason"] for event in reinits] == ["schedule"], "the toy run must re-initialise once"
    return toy.fingerprint(run)


@pytest.mark.parametrize("failpoint", [*FAST_POINTS, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW_POINTS)])
def test_a_kill_before_the_export_changes_nothing(
    failpoint: str, untouched: dict[str, str], teacher_file: Path, tmp_path: Path
) -> None:
    wanted, stages = toy.toy_recipe(teacher_file), ("ingest", "distill", "select")
    assert toy.killed(tmp_path / "toy", wanted, stages, failpoint), f"{failpoint} was never passed"
    found = toy.fingerprint(toy.advance(tmp_path / "toy", wanted, stages))
    assert found == {name: value for name, value in untouched.items() if not name.startswith("export/")}
    leftovers = [p.name for p in (tmp_path / "toy").rglob(".*") if p.name.startswith((".tmp", ".old"))]
    assert leftovers == []


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", EXPORT_POINTS)
def test_a_kill_in_the_export_changes_nothing(
    failpoint: str, untouched: dict[str, str], teacher_file: Path, tmp_path: Path
) -> None:
    wanted = toy.toy_recipe(teacher_file)
    if failpoint == "export.between_renames":  # the second publishing replaces the first
        toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, export={"holdout_samples": 96}))
    assert toy.killed(tmp_path / "toy", wanted, toy.CHAIN, failpoint), f"{failpoint} was never passed"
    assert toy.fingerprint(toy.advance(tmp_path / "toy", wanted)) == untouched


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", BENCH_POINTS)
def test_a_kill_in_the_bench_leaves_the_rest_and_is_made_good(
    failpoint: str, untouched: dict[str, str], teacher_file: Path, tmp_path: Path
) -> None:
    wanted, stages = toy.toy_recipe(teacher_file), (*toy.CHAIN, "bench")
    assert toy.killed(tmp_path / "toy", wanted, stages, failpoint), f"{failpoint} was never passed"
    run = toy.advance(tmp_path / "toy", wanted, stages)
    assert toy.fingerprint(run) == untouched
    assert pipeline.RunStatus(run, wanted).reason_to_run(BENCH) is None


def test_a_kill_between_the_two_renames_keeps_the_old_folder(teacher_file: Path, tmp_path: Path) -> None:
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), ("ingest",))
    before = Record.read(run.stage("teacher"))
    other = toy.toy_recipe(teacher_file, pixels={"normalize": "none"})
    assert toy.killed(tmp_path / "toy", other, ("ingest",), "teacher.between_renames")
    with RunDir(tmp_path / "toy").lock():
        assert Record.read(run.stage("teacher")) == before


@pytest.mark.slow
def test_the_same_run_in_another_directory_and_hash_seed_is_identical(
    untouched: dict[str, str], teacher_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(toy.toy_recipe(teacher_file)))
    script = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1); import toy; "
        "from edgekd import recipe; wanted = recipe.load_resolved(Path(sys.argv[1])); "
        "toy.advance(Path(sys.argv[2]) / 'toy', wanted)"
    )
    for seed in ("1", "2"):
        folder = tmp_path / f"seed{seed}" / "deeper"
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(toy.__file__).parent)}
        command = [sys.executable, "-c", script, str(tmp_path / "recipe.toml"), str(folder)]
        subprocess.run(command, env=env, check=True, capture_output=True)
        assert toy.fingerprint(RunDir(folder / "toy")) == untouched


@pytest.mark.slow
def test_kills_at_random_moments_over_all_stages_change_nothing(
    untouched: dict[str, str], teacher_file: Path, tmp_path: Path
) -> None:
    """Twenty kills at random moments of real command lines, each continued, over ingest to bench."""
    wanted = toy.toy_recipe(teacher_file)
    file = tmp_path / "toy.toml"
    file.write_text(recipe.to_toml(wanted))
    command = [sys.executable, "-m", "edgekd", "run", str(file), "--threads", "1"]
    start = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    whole = time.monotonic() - start
    moments = random.Random(7)
    kills = 0
    while kills < 20:
        subprocess.run(["rm", "-rf", str(tmp_path / "runs")], check=True)
        while True:
            process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
            try:
                process.wait(moments.uniform(0.3 * whole, whole))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        assert process.returncode == 0
        assert toy.fingerprint(RunDir(tmp_path / "runs" / "toy")) == untouched
