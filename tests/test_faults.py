"""What goes wrong around a run ends with one message and the right exit code, and nothing is lost."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import toy
from edgekd import pipeline, recipe
from edgekd.errors import GateError, InputFileError, MachineError, RecipeError, RunBusyError, UsageError
from edgekd.run import checkpoint
from edgekd.run.directory import RunDir
from edgekd.stages import distill
from edgekd.stages.catalog import DISTILL, EXPORT
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, student_step

TRAINING = ("ingest", "distill", "select")


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow past a size: a full disk as the kernel reports it, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_nan_stops_with_the_last_good_checkpoint_named(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = student_step

    def poisoned(state: State, context: StepContext) -> dict[str, torch.Tensor]:
        if state.step == 9:
            next(state.student.parameters()).data.fill_(float("nan"))
        return real(state, context)

    monkeypatch.setattr(distill, "student_step", poisoned)
    wanted = toy.toy_recipe(teacher_file)
    with pytest.raises(GateError, match="step-00000008") as caught:
        toy.advance(tmp_path / "toy", wanted, TRAINING)
    assert caught.value.exit_code == 5
    run = RunDir(tmp_path / "toy")
    for file in run.stage("distill").rglob("*.safetensors"):
        for name, tensor in checkpoint.load_tensors(file).items():
            assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), f"{file}: {name}"
    assert not run.stage("select").exists()
    monkeypatch.undo()
    untouched = toy.advance(tmp_path / "other" / "toy", wanted, TRAINING)
    assert toy.fingerprint(toy.advance(tmp_path / "toy", wanted, TRAINING)) == toy.fingerprint(untouched)


def test_a_full_disk_loses_nothing(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    with file_size_limit(20_000), pytest.raises(MachineError, match="limit on the size of files") as caught:
        toy.advance(tmp_path / "toy", wanted, TRAINING)
    assert caught.value.exit_code == 6
    assert list(run.path.rglob(".tmp-*")) == []
    untouched = toy.advance(tmp_path / "other" / "toy", wanted, TRAINING)
    assert toy.fingerprint(toy.advance(tmp_path / "toy", wanted, TRAINING)) == toy.fingerprint(untouched)


def test_a_full_disk_in_the_export_keeps_what_was_published(teacher_file: Path, tmp_path: Path) -> None:
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file))
    before = toy.fingerprint(run)
    with file_size_limit(5_000), pytest.raises(MachineError, match="limit on the size of files"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, export={"holdout_samples": 96}))
    after = toy.fingerprint(run)
    assert {k: v for k, v in after.items() if "onnx" in k} == {k: v for k, v in before.items() if "onnx" in k}


def half_trained(folder: Path, wanted: recipe.Recipe) -> RunDir:
    """Return a toy run killed in the middle of training."""
    assert toy.killed(folder, wanted, TRAINING, "distill.step@9")
    return RunDir(folder)


@pytest.mark.parametrize("damage", ["flip", *(pytest.param(d, marks=pytest.mark.slow) for d in ("truncate", "record"))])
def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(
    damage: str, teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = toy.toy_recipe(teacher_file)
    run = half_trained(tmp_path / "toy", wanted)
    newest = run.stage("distill") / "checkpoints" / "step-00000008"
    if damage == "record":
        (newest / "record.json").write_text("{")
    else:
        data = bytearray((newest / "state.safetensors").read_bytes())
        data[len(data) // 2] ^= 1
        (newest / "state.safetensors").write_bytes(data if damage == "flip" else data[: len(data) // 2])
    toy.advance(tmp_path / "toy", wanted, TRAINING)
    said = capsys.readouterr().err
    assert "set aside" in said
    assert "continuing at step 4" in said
    untouched = toy.advance(tmp_path / "other" / "toy", wanted, TRAINING)
    assert toy.fingerprint(run) == toy.fingerprint(untouched)


def test_no_intact_checkpoint_is_an_error_and_never_a_silent_restart(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    run = half_trained(tmp_path / "toy", wanted)
    for file in run.stage("distill").glob("checkpoints/step-*/state.safetensors"):
        file.write_bytes(b"damaged")
    for _ in range(2):  # the second time there are only the damaged ones set aside
        with pytest.raises(InputFileError, match="--fresh") as caught:
            toy.advance(tmp_path / "toy", wanted, TRAINING)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("stage", ["select", *(pytest.param(s, marks=pytest.mark.slow) for s in ("teacher", "export"))])
def test_a_damaged_artefact_is_made_again(stage: str, teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    run = toy.advance(tmp_path / "toy", wanted)
    before = toy.fingerprint(run)
    victim = next(p for p in sorted(run.stage(stage).iterdir()) if p.suffix in (".safetensors", ".onnx"))
    victim.write_bytes(victim.read_bytes()[:-1])
    name = "ingest" if stage == "teacher" else stage
    assert "hash" in (pipeline.RunStatus(run, wanted).reason_to_run(toy.STAGES[name]) or "")
    assert toy.fingerprint(toy.advance(tmp_path / "toy", wanted)) == before


def test_a_second_process_is_told_who_holds_the_run(teacher_file: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from edgekd.run.directory import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock():\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "toy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunBusyError, match=str(holder.pid)) as caught:
                toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), ("ingest",))
            assert caught.value.exit_code == 7
        finally:
            holder.kill()
    toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), ("ingest",))


def test_a_changed_recipe_is_refused_with_the_difference(teacher_file: Path, tmp_path: Path) -> None:
    toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), TRAINING)
    other = toy.toy_recipe(teacher_file, method={"student": {"lr": 0.5}})
    with pytest.raises(RecipeError, match=r"method\.student\.lr: .* -> 0\.5") as caught:
        toy.advance(tmp_path / "toy", other, TRAINING)
    assert caught.value.exit_code == 3
    teacher = toy.write_teacher(tmp_path / "teacher.pt")
    torch.save({k: v + 0.01 for k, v in torch.load(teacher).items() if v.is_floating_point()}, teacher)
    with pytest.raises(RecipeError, match="with another content"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(teacher), TRAINING)


def test_a_moved_teacher_undoes_nothing(teacher_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "teacher.pt"
    moved.write_bytes(teacher_file.read_bytes())
    wanted = toy.toy_recipe(moved)
    run = toy.advance(tmp_path / "toy", wanted, TRAINING)
    moved.unlink()
    for name in TRAINING:
        assert pipeline.RunStatus(run, wanted).reason_to_run(toy.STAGES[name]) is None


def test_unknown_keys_students_and_stages_are_refused(teacher_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown key method\.studnt"):
        toy.toy_recipe(teacher_file, method={"studnt": {}})
    with pytest.raises(UsageError, match="mobilenetv2"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, student={"name": "mobilenetv3x"}), TRAINING)
    with pytest.raises(UsageError, match="no export"):
        pipeline.RunStatus(RunDir(tmp_path / "toy"), toy.toy_recipe(teacher_file)).require(EXPORT)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_resumably(
    number: signal.Signals, code: int, teacher_file: Path, tmp_path: Path
) -> None:
    wanted = toy.toy_recipe(teacher_file, method={"steps": 3000})
    (tmp_path / "toy.toml").write_text(recipe.to_toml(wanted))
    command = [sys.executable, "-m", "edgekd", "run", "toy.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        events = tmp_path / "runs" / "toy" / "events.jsonl"
        deadline = time.monotonic() + 60
        while not (events.is_file() and b'"train"' in events.read_bytes()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command continues" in said
    assert "Traceback" not in said
    with RunDir(tmp_path / "runs" / "toy").lock():
        found, warnings = checkpoint.newest(
            RunDir(tmp_path / "runs" / "toy"),
            key=_distill_key(RunDir(tmp_path / "runs" / "toy"), wanted),
        )
    assert found is not None
    assert found.step > 0
    assert warnings == []


def _distill_key(run: RunDir, wanted: recipe.Recipe) -> str:
    return DISTILL.key(wanted, pipeline.RunStatus(run, wanted).inputs(DISTILL))


def test_data_at_distillation_changes_no_artefact(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    without = toy.advance(tmp_path / "without" / "toy", wanted)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, *toy.SHAPE, generator=generator), torch.arange(20) % toy.CLASSES

    def accuracy(network: torch.nn.Module) -> float:
        was = network.training
        network.eval()
        with torch.no_grad():
            hits: float = (network(images).argmax(1) == labels).float().mean().item()
        network.train(was)
        return hits

    watched = toy.advance(tmp_path / "watched" / "toy", wanted, accuracy=accuracy)
    points = watched.events("accuracy")
    assert [p["step"] for p in points] == list(range(13))
    assert all({"raw", "ema"} <= set(p) for p in points)
    before, after = toy.fingerprint(without), toy.fingerprint(watched)
    before.pop("events")
    after.pop("events")
    assert before == after


def test_nothing_is_written_for_an_unusable_teacher(tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").write_bytes(b"no checkpoint")
    wanted = toy.toy_recipe(tmp_path / "teacher.pt")
    with pytest.raises(InputFileError):
        toy.advance(tmp_path / "toy", wanted, TRAINING)
    assert not (tmp_path / "toy" / "teacher").exists()
