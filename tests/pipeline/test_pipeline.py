"""Which stage runs and why, what may change under a run, and what pruning leaves behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy
from edgekd import pipeline, recipe
from edgekd.errors import Interrupted, RecipeError, StoppedEarly, UsageError
from edgekd.pipeline import fresh_start
from edgekd.recipe import Recipe
from edgekd.run.cards.record import Record
from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.directory import RunDir
from edgekd.stages.catalog import BENCH, DISTILL, EXPORT, INGEST, SELECT
from edgekd.stopping import Stop

Copy = Callable[[], RunDir]

CHAIN = (INGEST, DISTILL, SELECT, EXPORT)


@pytest.fixture(scope="module")
def wanted(teacher_file: Path) -> Recipe:
    return toy.toy_recipe(teacher_file)


@pytest.fixture(scope="module")
def done(wanted: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return toy.advance(tmp_path_factory.mktemp("pipeline") / "toy", wanted)


@pytest.fixture
def run(done: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(done.path, tmp_path / "toy")))


def reasons(run: RunDir, wanted: Recipe) -> dict[str, str | None]:
    return {name: pipeline.RunStatus(run, wanted).reason_to_run(toy.STAGES[name]) for name in toy.CHAIN}


# Reasons


def test_a_finished_run_has_nothing_to_do(run: RunDir, wanted: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert reasons(run, wanted) == dict.fromkeys(toy.CHAIN)
    before = toy.fingerprint(run)
    assert pipeline.advance(run, wanted, *CHAIN, stop=Stop()) == []
    assert toy.fingerprint(run) == before
    assert capsys.readouterr().err.count("already done") == 4


def test_a_stage_that_never_ran_or_never_finished_says_so(run: RunDir, wanted: Recipe) -> None:
    shutil.rmtree(run.stage("export"))
    (run.stage("select") / "record.json").unlink()
    found = reasons(run, wanted)
    assert (found["ingest"], found["distill"]) == (None, None)
    assert (found["select"], found["export"]) == ("it never finished", "it never ran")


@pytest.mark.parametrize("name", toy.CHAIN)
def test_another_version_of_a_stage_runs_it_again(name: str, run: RunDir, wanted: Recipe) -> None:
    now = toy.STAGES[name].version
    newer = type(toy.STAGES[name].__class__.__name__, (toy.STAGES[name].__class__,), {"version": now + 1})()
    assert pipeline.RunStatus(run, wanted).reason_to_run(newer) == f"its version changed ({now} -> {now + 1})"


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"teacher": {"arch": "resnet8@0.5"}}, "ingest"),
    ({"pixels": {"normalize": "mnist"}}, "ingest"),
    ({"seed": 2}, "distill"),
    ({"precision": "bf16"}, "distill"),
    ({"student": {"name": "resnet8@0.5"}}, "distill"),
    ({"method": {"vae": {"kl": 0.1}}}, "distill"),
    ({"method": {"steps": 13}}, "distill"),
    ({"select": {"samples": 65}}, "select"),
    ({"export": {"holdout_samples": 65}}, "export"),
]


@pytest.mark.parametrize(("changes", "stage"), CHANGES, ids=str)
def test_a_part_of_the_recipe_concerns_its_own_stage_alone(
    changes: dict[str, Any], stage: str, run: RunDir, wanted: Recipe
) -> None:
    found = reasons(run, recipe.with_changes(wanted, changes))
    assert found.pop(stage) == "its part of the recipe changed"
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "x"},
        {"checkpoint_period": 3},
        {"method": {"minutes": 3.0}},
        {"method": {"source": "x"}},
        {"machine": {"threads": 2}},
        {"eval": {"data": "photos"}},
        {"bench": {"rounds": 3}},
        {"teacher": {"trust_pickle": True}},
    ],
    ids=str,
)
def test_what_decides_nothing_is_in_no_key(changes: dict[str, Any], run: RunDir, wanted: Recipe) -> None:
    assert reasons(run, recipe.with_changes(wanted, changes)) == dict.fromkeys(toy.CHAIN)


def test_another_teacher_file_runs_ingest(run: RunDir, wanted: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(Path(wanted.teacher.file).read_bytes() + b"x")
    assert reasons(run, recipe.with_changes(wanted, {"teacher": {"file": str(other)}}))["ingest"] == "file changed"


def test_a_teacher_file_that_moved_away_undoes_nothing(run: RunDir, wanted: Recipe) -> None:
    moved = recipe.with_changes(wanted, {"teacher": {"file": "nowhere.pt"}})
    assert reasons(run, moved) == dict.fromkeys(toy.CHAIN)
    assert pipeline.adopt(run, moved) == moved


OUTPUTS = [
    ("ingest", "teacher.safetensors"),
    ("distill", "checkpoints/step-00000012/state.safetensors"),
    ("select", "selection.json"),
    ("export", "student.fp32.onnx"),
]


@pytest.mark.parametrize(("name", "file"), OUTPUTS)
def test_a_damaged_output_runs_its_stage_again(name: str, file: str, run: RunDir, wanted: Recipe) -> None:
    path = run.stage(toy.STAGES[name].folder) / file
    path.write_bytes(path.read_bytes() + b" ")
    assert reasons(run, wanted)[name] == f"{file} does not hash as recorded"
    assert not pipeline.RunStatus(run, wanted).intact(toy.STAGES[name])
    path.unlink()
    assert reasons(run, wanted)[name] == f"{file} is missing"


def test_new_outputs_upstream_are_named(run: RunDir, wanted: Recipe) -> None:
    folder = run.stage("select")
    record = Record.read(folder)
    assert record is not None
    outputs = {**record.outputs, "student.safetensors": "0" * 64}
    record.model_copy(update={"outputs": outputs}).write(folder)
    assert reasons(run, wanted)["export"] == "select/student.safetensors changed"


def test_new_pixels_run_ingest_and_export_but_never_distillation(run: RunDir, wanted: Recipe) -> None:
    changed = recipe.with_changes(wanted, {"pixels": {"normalize": "mnist"}})
    assert pipeline.advance(run, pipeline.adopt(run, changed), INGEST, DISTILL, SELECT, stop=Stop()) == [INGEST]
    assert reasons(run, changed) == {
        "ingest": None,
        "distill": None,
        "select": None,
        "export": "ingest/pixels.json changed",
    }


def test_a_damaged_selection_is_made_again_as_it_was(run: RunDir, wanted: Recipe) -> None:
    before = toy.fingerprint(run)
    (run.stage("select") / "student.safetensors").write_bytes(b"x")
    assert pipeline.advance(run, wanted, *CHAIN, stop=Stop()) == [SELECT]
    assert toy.fingerprint(run) == before


def test_a_stop_is_heard_between_stages_after_one_that_was_made(run: RunDir, wanted: Recipe) -> None:
    over, signalled = Stop(max_seconds=0), Stop()
    signalled._on_signal(signal.SIGTERM, None)
    assert pipeline.advance(run, wanted, *CHAIN, stop=over) == [], "what is done takes no time"
    for stage in ("teacher", "select"):
        shutil.rmtree(run.stage(stage))
    with pytest.raises(Interrupted, match="the run before ingest"):
        pipeline.advance(run, wanted, *CHAIN, stop=signalled)
    with pytest.raises(StoppedEarly, match="the run before select"):
        pipeline.advance(run, wanted, *CHAIN, stop=over)
    assert reasons(run, wanted)["ingest"] is None, "the same command has come further"


# What other verbs need


def test_what_is_there_and_fresh_is_used_silently(
    run: RunDir, wanted: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.RunStatus(run, wanted).require(SELECT)
    assert capsys.readouterr().err == ""


def test_what_is_stale_is_used_with_a_warning(run: RunDir, wanted: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.RunStatus(run, recipe.with_changes(wanted, {"seed": 2})).require(DISTILL)
    said = capsys.readouterr().err
    assert "warning: distill is stale (its part of the recipe changed); using it as it is" in said
    assert toy.STAGES["distill"].command in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("damage", [True, False])
def test_what_is_missing_or_damaged_is_a_usage_error_naming_the_command(
    damage: bool, run: RunDir, wanted: Recipe
) -> None:
    if damage:
        (run.stage("select") / "student.safetensors").write_bytes(b"x")
    else:
        shutil.rmtree(run.stage("select"))
    with pytest.raises(UsageError, match=r"has no select to work on \(.*\); make it with `edgekd select`") as caught:
        pipeline.RunStatus(run, wanted).require(SELECT)
    assert caught.value.exit_code == 2


def test_a_run_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        pipeline.open_recipe(RunDir(tmp_path / "nowhere"))


def test_the_recipe_of_a_run_is_read_back(run: RunDir, wanted: Recipe) -> None:
    assert pipeline.open_recipe(run) == wanted


# What may change under a run


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": {"steps": 24}}, "method.steps: 12 -> 24"),
        ({"method": {"generator": {"lr": 0.5}}}, "method.generator.lr: 0.002 -> 0.5"),
        ({"student": {"name": "resnet8@0.5"}}, "student.name: 'resnet8@0.25' -> 'resnet8@0.5'"),
        ({"seed": 7}, "seed: 1 -> 7"),
        ({"select": {"samples": 99}}, "samples: 64 -> 99"),
        ({"teacher": {"input": "3x8x8"}}, "teacher.input: '1x8x8' -> '3x8x8'"),
    ],
)
def test_changed_training_is_refused_with_the_difference_and_the_ways_on(
    changes: dict[str, Any], line: str, run: RunDir, wanted: Recipe
) -> None:
    before = run.recipe_file.read_bytes()
    with pytest.raises(RecipeError) as caught:
        pipeline.adopt(run, recipe.with_changes(wanted, changes))
    message = str(caught.value)
    assert line in message
    assert "--fresh" in message
    assert "--run" in message
    assert run.recipe_file.read_bytes() == before


def test_another_teacher_under_a_run_is_refused(run: RunDir, wanted: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"another")
    with pytest.raises(RecipeError, match=r"teacher\.file: .*other\.pt', with another content"):
        pipeline.adopt(run, recipe.with_changes(wanted, {"teacher": {"file": str(other)}}))


def test_all_differences_are_told_at_once(run: RunDir, wanted: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"seed: 1 -> 7; .*samples: 64 -> 99"):
        pipeline.adopt(run, recipe.with_changes(wanted, {"seed": 7, "select": {"samples": 99}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"export": {"int8": True}},
        {"bench": {"batch": [1, 8]}},
        {"pixels": {"normalize": "mnist"}},
        {"machine": {"threads": 4}},
        {"checkpoint_period": 7},
    ],
)
def test_changes_behind_the_training_are_adopted(changes: dict[str, Any], run: RunDir, wanted: Recipe) -> None:
    changed = recipe.with_changes(wanted, changes)
    assert pipeline.adopt(run, changed) == changed
    assert pipeline.open_recipe(run) == changed


def test_a_run_that_has_only_ingested_may_still_change_its_training(wanted: Recipe, tmp_path: Path) -> None:
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    changed = recipe.with_changes(wanted, {"seed": 7, "method": {"steps": 3}})
    assert pipeline.adopt(run, changed) == changed
    (run.stage("distill") / "checkpoints").mkdir(parents=True)
    with pytest.raises(RecipeError, match="seed: 7 -> 1"):
        pipeline.adopt(run, wanted)


def test_how_the_teacher_is_read_may_be_corrected_until_something_was_learned_from_it(
    wanted: Recipe, tmp_path: Path
) -> None:
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    corrected = recipe.with_changes(wanted, {"teacher": {"arch": f"{toy.ARCH},activation=leaky_relu"}})
    toy.advance(run.path, corrected, ("ingest",))
    assert run.read(TeacherCard).arch == corrected.teacher.arch, "it was read anew"
    (run.stage("distill") / "checkpoints").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"teacher\.arch: "):
        pipeline.adopt(run, wanted)


def test_an_unchanged_recipe_is_not_written_again(run: RunDir, wanted: Recipe) -> None:
    os.utime(run.recipe_file, (1, 1))
    pipeline.adopt(run, wanted)
    assert run.recipe_file.stat().st_mtime == 1


# Pruning


def test_pruning_removes_what_is_sensitive_and_undoes_no_stage(run: RunDir, wanted: Recipe) -> None:
    removed = pipeline.prune(run)
    final, before = (f"distill/checkpoints/step-000000{step}" for step in ("12", "08"))
    assert set(removed) == {
        *(f"{folder}/{file}" for folder in (final, before) for file in ("state.json", "state.safetensors")),
        "select/replay.safetensors",
    }
    assert not (run.stage("distill") / "checkpoints").exists()
    assert not (run.stage("select") / "replay.safetensors").exists()
    assert (run.stage("select") / "student.safetensors").is_file()
    for name in ("distill", "select"):
        record = json.loads((run.stage(name) / "record.json").read_text())
        assert {f"{name}/{file}" for file in record["pruned"]} <= set(removed)
    assert reasons(run, wanted) == dict.fromkeys(toy.CHAIN)
    assert pipeline.advance(run, wanted, *CHAIN, stop=Stop()) == []
    assert pipeline.prune(run) == [], "once is enough"


@pytest.mark.parametrize(
    ("name", "changes", "gone"),
    [
        ("export", {"export": {"holdout_samples": 96}}, "select/replay.safetensors"),
        ("select", {"select": {"samples": 96}}, "distill/checkpoints/step-00000012/state.json"),
    ],
)
def test_a_stage_that_needs_what_was_pruned_says_so(
    name: str, changes: dict[str, Any], gone: str, run: RunDir, wanted: Recipe
) -> None:
    pipeline.prune(run)
    with pytest.raises(UsageError, match=f"{name} needs {gone}, which was pruned"):
        pipeline.advance(run, recipe.with_changes(wanted, changes), toy.STAGES[name], stop=Stop())
    assert pipeline.RunStatus(run, wanted).intact(toy.STAGES[name]), "what was published stays"


def test_pruning_a_run_that_never_selected_removes_its_checkpoints(wanted: Recipe, tmp_path: Path) -> None:
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    (run.stage("distill") / "checkpoints" / "step-00000000").mkdir(parents=True)
    assert pipeline.prune(run) == []
    assert not (run.stage("distill") / "checkpoints").exists()


@pytest.mark.parametrize("stage", ["distill", "select"])
def test_pruning_again_removes_what_a_killed_prune_only_marked(stage: str, run: RunDir, wanted: Recipe) -> None:
    folder = run.stage(stage)
    record = Record.read(folder)
    assert record is not None
    sensitive = [name for name in record.outputs if name.startswith(("checkpoints/", "replay."))]
    record.model_copy(update={"pruned": sensitive}).write(folder)
    assert {f"{stage}/{name}" for name in sensitive} <= set(pipeline.prune(run))
    assert [name for name in sensitive if (folder / name).exists()] == []
    assert reasons(run, wanted) == dict.fromkeys(toy.CHAIN)


def test_pruning_does_not_depend_on_a_record(run: RunDir) -> None:
    (run.stage("select") / "record.json").write_text("damaged")
    assert "select/replay.safetensors" in pipeline.prune(run)
    assert not (run.stage("select") / "replay.safetensors").exists()


# The newest run


def test_the_newest_run_that_has_what_is_needed_is_found(tmp_path: Path) -> None:
    for age, (name, stage) in enumerate((("a", "select"), ("b", "select"), ("c", "teacher"), ("d", "bench/local"))):
        folder = tmp_path / name / stage
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")
        RunDir(tmp_path / name).note_command(["edgekd"])
        os.utime(folder / "record.json", (age, age))
    assert pipeline.newest_run(tmp_path, SELECT).name == "b"
    assert pipeline.newest_run(tmp_path, INGEST).name == "c"
    assert pipeline.newest_run(tmp_path, BENCH).path == tmp_path / "d"
    (tmp_path / "d" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="has a finished bench"):
        pipeline.newest_run(tmp_path, BENCH)  # what edgekd did not make is no run
    with pytest.raises(UsageError, match="has a finished export; `edgekd export` makes one"):
        pipeline.newest_run(tmp_path, EXPORT)


def test_the_folder_of_real_images_is_the_same_from_every_working_directory(
    run: RunDir, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adopted = pipeline.adopt(run, toy.toy_recipe(teacher_file, export={"int8": True, "images": "photos"}))
    assert adopted.export.images == str(tmp_path / "photos")
    assert pipeline.open_recipe(run) == adopted


def test_prune_says_what_stays_behind_a_link_or_a_second_name(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = tmp_path / "big"
    big.mkdir()
    checkpoints, replay = run.stage("distill") / "checkpoints", run.stage("select") / "replay.safetensors"
    checkpoints.rename(big / "checkpoints")
    checkpoints.symlink_to(big / "checkpoints")
    (big / "replay.safetensors").hardlink_to(replay)
    assert pipeline.prune(run) == ["select/replay.safetensors"]
    said = " ".join(capsys.readouterr().err.split())
    assert f"was a link to {big / 'checkpoints'}" in said
    assert "has another name on this disk" in said
    assert (big / "replay.safetensors").is_file()
    assert any((big / "checkpoints").iterdir())
    assert not checkpoints.is_symlink()
    assert not replay.exists()


def test_a_run_on_a_disk_that_is_gone_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        run = RunDir(tmp_path / name)
        run.path.mkdir()
        run.note_command(["edgekd"])
        with run.publish("select") as (folder, record):
            (folder / "x").write_text(name)
            record |= {"stage": "select", "version": 1, "key": "k", "recipe_slice": {}, "inputs": {}, "notes": {}}
    recover = fresh_start.recover

    def gone(run: RunDir) -> None:
        if run.name == "b":
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(run.path))
        recover(run)

    monkeypatch.setattr(fresh_start, "recover", gone)
    (tmp_path / "b" / "select").rename(tmp_path / "b" / "away")
    assert pipeline.newest_run(tmp_path, SELECT).name == "a"
    assert "is passed over: [Errno 107] Transport endpoint is not connected" in capsys.readouterr().err
