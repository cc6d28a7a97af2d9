"""The log book: what is due is a function of the step, and a resumed run writes what an untouched one writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from edgekd.errors import GateError
from edgekd.run import checkpoint
from edgekd.run.cards.events import TrainEvent
from edgekd.run.cards.ledger import EnvironmentDifference
from edgekd.run.directory import RunDir
from edgekd.run.run_logger import Accuracy, RunLogger
from edgekd.synthesis.state import State

Laboratory = Callable[..., tuple[State, Any]]
LOSSES = {"student": torch.tensor(0.5), "agreement_novel": torch.tensor(0.25)}


@pytest.fixture
def state(laboratory: Laboratory) -> State:
    return laboratory()[0]


def book(
    run: RunDir,
    steps: int = 12,
    generator_period: int = 1,
    checkpoint_period: int = 4,
    accuracy: Accuracy | None = None,
    threads: int = 1,
) -> RunLogger:
    changes = {"checkpoint_period": checkpoint_period, "method": {"generator": {"period": generator_period}}}
    wanted = toy.toy_recipe(Path("teacher.pt"), **changes)
    return RunLogger(run, wanted, key="k", steps=steps, environment={"threads": threads}, accuracy=accuracy)


def kinds(run: RunDir) -> list[tuple[str, int]]:
    events: list[dict[str, Any]] = run.events()
    return [(event["kind"], event["step"]) for event in events]


@pytest.mark.parametrize(("steps", "logged"), [(100, 100), (400, 200), (1000, 200), (1010, 202)])
def test_metrics_are_logged_about_two_hundred_times_and_at_the_end(
    steps: int, logged: int, state: State, tmp_path: Path
) -> None:
    log = book(RunDir(tmp_path), steps)
    facts = []
    for state.step in range(1, steps + 1):
        facts.append(log.student(state, LOSSES))
    events = RunDir(tmp_path).events("train")
    assert len(events) == len([f for f in facts if f]) == logged
    assert events[-1]["step"] == steps
    assert events[-1]["student"] == 0.5
    assert facts[-1] == "loss 0.500 · agreement 25.0% novel"


def test_replay_agreement_is_shown_when_there_is_any(state: State, tmp_path: Path) -> None:
    facts = book(RunDir(tmp_path)).student(state, {**LOSSES, "agreement_replay": torch.tensor(0.75)})
    assert facts == "loss 0.500 · agreement 25.0% novel, 75.0% replay"


def test_accuracy_points_fall_every_hundredth_with_step_0_and_the_last(state: State, tmp_path: Path) -> None:
    asked = []

    def accuracy(network: torch.nn.Module) -> float:
        asked.append(network)
        return 0.25 if network is state.student else 0.5

    log = book(RunDir(tmp_path), 350, accuracy=accuracy)
    for state.step in range(351):
        log.accuracy(state)
    points = RunDir(tmp_path).events("accuracy")
    assert [p["step"] for p in points] == [*range(0, 349, 3), 350]
    assert all((p["raw"], p["ema"]) == (0.25, 0.5) for p in points)
    assert len(asked) == 2 * len(points)


def test_without_images_there_is_no_curve(state: State, tmp_path: Path) -> None:
    book(RunDir(tmp_path)).accuracy(state)
    assert kinds(RunDir(tmp_path)) == []


@pytest.mark.parametrize(("period", "steps", "saved"), [(4, 10, [8, 10]), (1, 5, [4, 5]), (100, 7, [7])])
def test_checkpoints_fall_every_period_and_at_the_end(
    period: int, steps: int, saved: list[int], state: State, tmp_path: Path
) -> None:
    log = book(RunDir(tmp_path), steps, checkpoint_period=period)
    for state.step in range(1, steps + 1):
        log.checkpoint(state)
    folders = sorted((tmp_path / "distill" / "checkpoints").glob("step-*"))
    assert [int(p.name.removeprefix("step-")) for p in folders] == saved


def test_the_first_restore_writes_step_0_and_a_later_one_forgets_what_came_after(state: State, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_event({"kind": "train", "step": 99})
    log = book(run)
    log.restore(state)
    assert kinds(run) == []
    assert (tmp_path / "distill/checkpoints/step-00000000/record.json").is_file()
    state.step = 4
    log.student(state, LOSSES)
    log.save(state)
    state.step = 5
    log.student(state, LOSSES)
    log.reinit(state, "schedule")
    state.step = 0
    book(run).restore(state)
    assert state.step == 4
    assert kinds(run) == [("train", 4)]
    assert run.ledger().not_bit_identical == []


@pytest.mark.parametrize(("period", "expected"), [(1, [0, 20, 40, 60]), (15, [0, 30, 45, 60]), (30, [0, 30, 60])])
def test_the_generator_is_logged_at_its_first_update_from_each_due_step_on(
    period: int, expected: list[int], state: State, tmp_path: Path
) -> None:
    log = book(RunDir(tmp_path), steps=4000, generator_period=period)
    state.health = [{"coverage": 1.0}]
    for state.step in range(0, 61, period):
        log.generator(state, {"one_hot": torch.tensor(0.5)})
    assert [event["step"] for event in log.run.events("generator")] == expected


def test_the_clock_goes_on_after_a_restore(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = RunDir(tmp_path), [50.0]
    monkeypatch.setattr("edgekd.run.run_logger.time.monotonic", lambda: clock[0])
    log = book(run)
    log.restore(state)
    clock[0], state.step = 60.0, 4
    log.student(state, LOSSES)
    log.save(state)
    clock[0] = 1000.0
    log = book(run)
    log.restore(state)
    clock[0], state.step = 1003.0, 5
    monkeypatch.setattr(checkpoint, "write_checkpoint", lambda *_args, **_facts: clock.__setitem__(0, clock[0] + 2))
    log.save(state)
    log.student(state, LOSSES)
    assert [(event["seconds"], event["saving_seconds"]) for event in run.events("train")] == [(10.0, 0.0), (15.0, 2.0)]


def test_another_environment_is_told_and_recorded(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path)
    book(run).restore(state)
    book(run, threads=8).restore(state)
    said = " ".join(capsys.readouterr().err.split())
    assert "resumed under another threads: not bit-identical" in said
    assert "--threads 1 is what it began with" in said
    assert run.ledger().not_bit_identical == [EnvironmentDifference(step=0, changed={"threads": [1, 8]})]


@pytest.mark.parametrize(
    ("seconds_a_step", "saving_seconds", "expected"),
    [
        (1.0, 0.04, list(range(5, 101, 5))),  # a twentieth of the steps
        (1.0, 0.28, [30, 60, 90, 100]),  # 1 % of the time: one in 28 s
        (1.0, 5.0, [100]),
        (120.0, 0.04, sorted({*range(5, 101, 5), *range(3, 100, 5)})),  # 3 steps are over five minutes
    ],
)
def test_automatic_checkpoints_are_frequent_and_cheap(
    seconds_a_step: float,
    saving_seconds: float,
    expected: list[int],
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, written = [0.0], []

    def write(_run: RunDir, step: int, *_args: Any, **_named: Any) -> None:
        written.append(step)
        now[0] += saving_seconds

    monkeypatch.setattr("edgekd.run.run_logger.time.monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    log = book(RunDir(tmp_path), 100, checkpoint_period=0)
    log.save(state)
    written.clear()
    for state.step in range(1, 101):
        now[0] += seconds_a_step
        log.checkpoint(state)
    assert written == expected


def test_a_damaged_checkpoint_is_told(state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    log = book(run)
    log.restore(state)
    state.step = 4
    log.save(state)
    (tmp_path / "distill/checkpoints/step-00000004/state.json").write_text("{}")
    book(run).restore(state)
    assert state.step == 0
    assert "step-00000004 is unusable" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["student", "agreement_novel"])
def test_a_loss_that_is_not_finite_stops_the_run(name: str, state: State, tmp_path: Path) -> None:
    log = book(RunDir(tmp_path))
    with pytest.raises(GateError, match=f"at step 0: the loss {name} is not finite. No checkpoint was written yet"):
        log.student(state, {**LOSSES, name: torch.tensor(float("nan"))})
    log.restore(state)
    with pytest.raises(GateError, match=r"one_hot is not finite. The last good checkpoint is .*step-00000000"):
        log.generator(state, {"one_hot": torch.tensor(float("inf"))})


def test_the_final_checkpoint_and_its_files_are_named(state: State, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    log = book(run)
    for state.step in (8, 10, 12):
        checkpoint.write_checkpoint(run, state.step, state.state_dict(), key=log.key, environment={})
    final, outputs = log.close(state)
    assert final == "checkpoints/step-00000012"
    assert set(outputs) == {f"{final}/state.json", f"{final}/state.safetensors"}
    assert sorted(path.name for path in (tmp_path / "distill/checkpoints").iterdir()) == [
        "step-00000010",
        "step-00000012",
    ]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"half", bytes(9000), b"[]\n" * 4000, None, b'{"kind": "train", "step": NaN}\n' * 900],
    ids=["empty", "short", "zeros", "lists", "gone", "numbers"],
)
def test_a_log_that_is_damaged_when_training_goes_on_is_set_aside_with_a_warning(
    damaged: bytes | None, teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = toy.toy_recipe(teacher_file)
    assert toy.killed(tmp_path / "toy", wanted, ("ingest", "distill"), "distill.step@9")
    run = RunDir(tmp_path / "toy")
    run.events_file.unlink() if damaged is None else run.events_file.write_bytes(damaged)
    toy.advance(run.path, wanted, ("ingest", "distill"))
    said = capsys.readouterr().err
    assert said.count("Training goes on, and the run's curves begin here") == 1
    assert str(run.events_file) in said
    kept = run.path / "events.jsonl.damaged"
    assert kept.read_bytes() == damaged if damaged is not None else not kept.exists()
    run.require_events()
    assert [event.step for event in run.logged(TrainEvent)][-1] == 12
