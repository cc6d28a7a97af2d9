"""The algorithm: each update against a short autograd reference, collapse and NaN, and resuming from the middle."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toy
from edgekd import pipeline, recipe, state_dict
from edgekd.errors import GateError, MachineError, StoppedEarly
from edgekd.export import samples
from edgekd.models import artefacts, registry
from edgekd.run import checkpoint
from edgekd.run.cards.record import DistillNotes, Record
from edgekd.run.directory import RunDir
from edgekd.run.files import read_json
from edgekd.stages import distill
from edgekd.stages.catalog import ADDED_METHOD_KEYS, DISTILL
from edgekd.stopping import Stop
from edgekd.synthesis import health, losses, steps
from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, student_step

Laboratory = Callable[..., tuple[State, StepContext]]
ENDED = ("ingest", "distill")
GIVEN = ("ingest", "init", "distill")
WEIGHTS = {"one_hot": 0.7, "balance": 3.0, "activation": 0.2, "batchnorm": 0.05, "adversary": 1.5}


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether gradients agree up to rounding; a bias before a BatchNorm has nothing but rounding in its gradient."""
    noise = 1e-5 * max(float(value.abs().max()) for value in expected)
    return all(torch.allclose(a, b, rtol=1e-3, atol=noise) for a, b in zip(found, expected, strict=True))


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


# The generator step


def reference(
    state: State, context: StepContext, gap: str, mode: str, detach: bool
) -> tuple[dict[str, Any], list[Tensor]]:
    """Write the generator's loss down once more; return its terms and gradients."""
    generator, student = copy.deepcopy(state.generator).train(), copy.deepcopy(state.student).train(mode == "train")
    seen: list[Tensor] = []
    distances: list[Tensor] = []
    net = context.teacher.network

    def distance(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        x = inputs[0]
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        distances.append((mean - norm.running_mean).norm() + (variance - norm.running_var).norm())

    handles = [m.register_forward_hook(distance) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    handles.append(net.get_submodule("linear").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0])))
    batch, latent = context.recipe.method.student.batch_size, context.recipe.method.generator.latent
    x = generator(context.draws.normal(state.step, "generator", batch, latent))
    logits = net(x)
    for handle in handles:
        handle.remove()
    p = logits.softmax(1).mean(0)
    target = logits.detach() if detach else logits
    terms = {
        "one_hot": 0.7 * nn.functional.cross_entropy(logits, logits.argmax(1)),
        "balance": 3.0 * (p * p.log()).sum(),
        "activation": -0.2 * seen[0].abs().mean(),
        "batchnorm": 0.05 * sum(distances),
        "adversary": -1.5 * losses.GAPS[gap](student(x), target),
    }
    generator.zero_grad()
    sum(terms.values()).backward()
    return terms, gradients(generator)


@pytest.mark.parametrize("gap", losses.GAPS)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("detach", [False, True])
def test_the_generator_follows_the_gradient_of_its_five_terms(
    gap: str, mode: str, detach: bool, laboratory: Laboratory
) -> None:
    table = {**WEIGHTS, "gap": gap, "student_mode": mode, "detach_teacher": detach}
    state, context = laboratory(generator=table)
    terms, expected = reference(state, context, gap, mode, detach)
    parts = steps.generator_step(state, context)
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(
        {name: float(value.detach()) for name, value in terms.items()}, rel=1e-4, abs=1e-6
    )
    assert close(gradients(state.generator), expected)


@pytest.mark.parametrize("name", ["kl", "l1"])
def test_detaching_the_teacher_changes_the_generators_gradient(name: str, laboratory: Laboratory) -> None:
    found = []
    for detach in (False, True):
        state, context = laboratory(generator={**WEIGHTS, "gap": name, "detach_teacher": detach})
        steps.generator_step(state, context)
        found.append(gradients(state.generator))
    assert not close(*found)


def test_fused_adam_pairs_the_generators_gradients_with_the_right_weights(laboratory: Laboratory) -> None:
    """Images are channels-last, so autograd's gradients may lie in memory differently than the weights do."""
    fused, context = laboratory()
    plain, _ = laboratory()
    table = context.recipe.method.generator
    plain.generator_optimizer = torch.optim.Adam(
        plain.generator.parameters(), lr=table.lr, betas=table.betas, fused=False
    )
    for state in (fused, plain):
        steps.generator_step(state, context)
    for mine, theirs in zip(fused.generator.parameters(), plain.generator.parameters(), strict=True):
        assert mine.grad is not None
        assert mine.grad.stride() == mine.stride()
        assert torch.allclose(mine, theirs, atol=0.01 * table.lr)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_generator_step_moves_the_students_statistics_in_train_mode_alone(
    mode: str, laboratory: Laboratory
) -> None:
    state, context = laboratory(generator={"student_mode": mode})
    before = snapshot(state.student)
    steps.generator_step(state, context)
    moved = changed(before, state.student)
    if mode == "eval":
        assert moved == set()
    else:
        assert {name.rsplit(".", 1)[1] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}
    assert gradients(state.student) == [], "the student gets no gradient"


def test_without_an_adversary_the_student_is_not_asked(laboratory: Laboratory) -> None:
    state, context = laboratory(generator={"student_mode": "train"})
    before = snapshot(state.student)
    parts = steps.generator_step(state, context, adversarial_weight=0.0)
    assert set(parts) == {"one_hot", "balance", "activation", "batchnorm"}
    assert changed(before, state.student) == set()


def test_the_adversary_follows_its_ramp(laboratory: Laboratory) -> None:
    weights = []
    for step in (0, 6, 11):
        state, context = laboratory(generator={"adversary": 2.0, "adversary_ramp": [0.25, 0.75]})
        state.step = step
        parts = steps.generator_step(state, context)
        if "adversary" in parts:
            _, again = laboratory(generator={"adversary": 1.0})
            twin, _ = laboratory()
            twin.step = step
            weights.append(float(parts["adversary"] / steps.generator_step(twin, again)["adversary"]))
    assert weights == pytest.approx([1.0, 2.0])


def test_the_generator_step_counts_averages_and_measures_health(laboratory: Laboratory) -> None:
    state, context = laboratory(health={"window": 2})
    old = snapshot(state.generator_ema)
    steps.generator_step(state, context)
    name = "project.weight"
    decay = 0.1  # a young average: (1 + 0) / (10 + 0)
    expected = decay * old[name] + (1 - decay) * state.generator.state_dict()[name]
    assert torch.allclose(state.generator_ema.state_dict()[name], expected)
    for _ in range(3):
        steps.generator_step(state, context)
    assert (state.generator_updates, state.updates_since_init, len(state.health)) == (4, 4, 2)
    assert state.step == 0


# The student step


@pytest.mark.parametrize(("loss", "optimizer"), [("l1", "adam"), ("kl", "sgd")])
@pytest.mark.parametrize("source", ["none", "ema-generator"])
def test_the_student_follows_the_teacher_on_novel_and_replayed_images(
    source: str, loss: str, optimizer: str, laboratory: Laboratory
) -> None:
    changes = {"loss": loss, "optimizer": optimizer, "weight_decay": 0.01, "schedule": "constant", "lr": 0.05}
    state, context = laboratory(student=changes, replay={"source": source})
    draws, student, generator = (
        context.draws,
        copy.deepcopy(state.student).train(),
        copy.deepcopy(state.generator).train(),
    )
    with torch.no_grad():
        x = generator(draws.normal(0, "novel", 16, 8))
        if source != "none":
            x = torch.cat([x, state.generator_ema(draws.normal(0, "replay", 8, 8))])
        target = context.teacher.network(x)
    answers = student(x)
    table = context.recipe.method.student
    values = {"l1": (answers - target).abs().mean(), "kl": losses.gap_kl(answers, target, 4.0) * 16}
    make: Callable[..., torch.optim.Optimizer] = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    momentum = {} if optimizer == "adam" else {"momentum": table.momentum}
    twin = make(student.parameters(), lr=0.05, weight_decay=0.01, fused=True, **momentum)
    values[loss].backward()
    twin.step()
    logged = steps.student_step(state, context)
    assert float(logged["student"]) == pytest.approx(float(values[loss].detach()), rel=1e-5)
    agree = (answers.argmax(1) == target.argmax(1)).float()
    assert float(logged["agreement_novel"]) == float(agree[:16].mean())
    assert ("agreement_replay" in logged) is (source != "none")
    for name, value in state.student.state_dict().items():
        assert torch.allclose(value.float(), student.state_dict()[name].float(), atol=1e-5), name


def test_the_student_step_leaves_generator_weights_alone_and_moves_its_statistics(laboratory: Laboratory) -> None:
    state, context = laboratory()
    before = snapshot(state.generator)
    steps.student_step(state, context)
    assert gradients(state.generator) == []
    assert {n.rsplit(".", 1)[1] for n in changed(before, state.generator)} <= {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_no_step_leaves_a_trace_in_the_teacher(laboratory: Laboratory) -> None:
    state, context = laboratory(vae={"sampling": "tuned", "decoder_leak": 1.0, "feature": 1.0})
    before = snapshot(context.teacher.network)
    for step in range(3):
        state.step = step
        steps.generator_step(state, context)
        steps.student_step(state, context)
    assert changed(before, context.teacher.network) == set()
    assert gradients(context.teacher.network) == []
    assert not context.teacher.network.training


def test_the_learning_rate_of_a_step_is_that_of_the_schedule(laboratory: Laboratory) -> None:
    state, context = laboratory(student={"lr": 0.1, "warmup": 0.5})
    rates = []
    for step in (0, 3, 6, 9):
        state.step = step
        steps.student_step(state, context)
        rates.append(state.student_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1 / 6, 0.4 / 6, 0.1, 0.05])


def test_the_average_of_the_student_follows_it_also_where_it_is_not_shipped(laboratory: Laboratory) -> None:
    state, context = laboratory(student={"ema_decay": 0.9, "ship_average": False})
    before = snapshot(state.student_ema)
    steps.student_step(state, context)
    assert changed(before, state.student_ema)


def test_replay_begins_at_its_start_and_updates_of_the_vae_fall_in_the_first_steps_of_a_period(
    laboratory: Laboratory,
) -> None:
    state, context = laboratory(replay={"start": 0.5}, vae={"updates": 2}, generator={"period": 3})
    replayed, learned = [], []
    for step in range(12):
        state.step = step
        logged = steps.student_step(state, context)
        replayed.append("agreement_replay" in logged)
        learned.append("replay_pixel" in logged)
    assert replayed == [False] * 6 + [True] * 6
    assert learned == [True, True, False] * 4


def test_a_closed_gate_holds_replay_back(laboratory: Laboratory) -> None:
    state, context = laboratory(vae={"gate": 1.0})
    assert "agreement_replay" not in steps.student_step(state, context)


# Dead channels


def killed_channel(state: State) -> nn.BatchNorm2d:
    """Make the first ReLU channel of the student answer 0 to everything and return the layer before it."""
    norm = next(module for module in state.student.modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0.0, -1.0
    return norm


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_dead_channels_are_revived_where_asked_for(weight: float, laboratory: Laboratory) -> None:
    state, context = laboratory(student={"revive": weight, "lr": 0.1, "schedule": "constant"})
    norm = killed_channel(state)
    logged = []
    for step in range(12):
        state.step = step
        logged.append(steps.student_step(state, context))
    if weight:
        shares = [float(parts["dead_relus"]) for parts in logged]
        assert shares[0] > 0 == min(shares)
        assert norm.bias[0].item() > -1.0
    else:
        assert "dead_relus" not in logged[0]
        assert norm.bias[0].item() == -1.0, "it gets no gradient"


# Consolidation


def test_in_consolidation_the_student_alone_learns_by_a_loss_of_its_own(laboratory: Laboratory) -> None:
    changes = {"start": 0.5, "loss": "kl", "temperature": 2.0, "lr": 0.05}
    state, context = laboratory(consolidation=changes, vae={"gate": 0.0, "updates": 1}, generator={"period": 1})
    assert [context.explores(step) for step in (0, 5, 6, 11)] == [True, True, False, False]
    state.step = 5
    assert "replay_pixel" in steps.student_step(state, context)
    state.step = 6
    student, vae = copy.deepcopy(state.student).train(), snapshot(state.replay.vae)  # type: ignore[attr-defined]
    with torch.no_grad():
        novel = copy.deepcopy(state.generator).train()(context.draws.normal(6, "novel", 16, 8))
        x = torch.cat([novel, state.replay.sample(6, 8, context.draws)])
    expected = losses.gap_kl(student(x), context.teacher.network(x), 2.0) * 4
    logged = steps.student_step(state, context)
    assert float(logged["student"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert {"agreement_novel", "agreement_replay"} < set(logged)
    assert "replay_pixel" not in logged
    assert changed(vae, state.replay.vae) == set()  # type: ignore[attr-defined]
    assert state.student_optimizer.param_groups[0]["lr"] == 0.05


def test_the_generator_rests_in_consolidation(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file, method={"consolidation": {"start": 0.5}, "generator": {"period": 3}})
    run = toy.advance(tmp_path / "toy", wanted, ENDED)
    found, _ = checkpoint.newest(run, key=read_json(run.stage("distill") / "record.json")["key"])
    assert found is not None
    counters = state_dict.branch(found.state, "counters")
    assert (counters["step"], counters["generator_updates"]) == (12, 3), "one in the warm-up and two in six steps"


# Whole runs


def interrupted(folder: Path, wanted: recipe.Recipe, asked: int, **extras: Any) -> RunDir:
    """Distil until the loop has asked `asked` times whether to stop."""
    run = toy.advance(folder, wanted, ("ingest",))
    with run.lock(), pytest.raises(StoppedEarly, match="distillation at step"):
        pipeline.advance(run, pipeline.adopt(run, wanted), DISTILL, stop=toy.StopAt(asked), **extras)
    return run


def test_a_deadline_that_is_over_at_the_start_lets_a_step_be_made(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    for step in (1, 2, 3):
        with run.lock(), pytest.raises(StoppedEarly, match=f"distillation at step {step} of 12"):
            pipeline.advance(run, pipeline.adopt(run, wanted), DISTILL, stop=Stop(0.0))


SOURCES: dict[str, dict[str, Any]] = {
    "none": {"replay": {"source": "none"}},
    "bank": {"replay": {"source": "bank", "bank_size": 20, "bank_period": 1}},
    "ema-generator": {"replay": {"source": "ema-generator"}},
    "vae": {"vae": {"gate": 0.01, "sampling": "posterior"}},
    "released": {
        "preset": "pre-dfkd-released",
        "vae": {"sampling": "tuned", "decoder_leak": 1.0, "released_encoder": True, "updates": 2},
    },
    "paper": {"preset": "pre-dfkd", "vae": {"updates": 2}},
    "sgd": {"student": {"optimizer": "sgd", "lr": 0.01}},
    "revival": {"student": {"revive": 1.0}},
    "consolidation": {"consolidation": {"start": 0.3}, "vae": {"gate": 0.01}},
    "views": {"student": {"flip": True, "shift": 1, "mixup": 0.5, "cutmix": 0.5}},
    "procedural": {"procedural": {"share": [1.0, 0.5]}},
    "procedural alone": {"procedural": {"share": [1.0, 1.0]}},
    "reused views": {"student": {"reuse": 2, "hint": 1.0, "hint_adapters": True}},
    "eager generator": {"generator": {"every_step_until": 0.5, "period": 4}},
    "hint adapters": {"student": {"hint": 5.0, "hint_adapters": True, "optimizer": "adamw", "weight_decay": 0.01}},
}


RARE = SOURCES.keys() - {"vae", "views", "procedural", "hint adapters"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in SOURCES])
def test_every_replay_resumes_bit_for_bit_from_the_middle(name: str, teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file, method=SOURCES[name])
    untouched = toy.advance(tmp_path / "untouched" / "toy", wanted, ENDED)
    replayed = [event for event in untouched.events("train") if "agreement_replay" in event]
    assert bool(replayed) is (name != "none")
    # Where steps share their views, it is asked only between two such spans.
    run = interrupted(tmp_path / "toy", wanted, 6 if wanted.method.student.span == 1 else 1)
    assert [p.name for p in run.stage("distill").glob("checkpoints/*")] != []
    toy.advance(run.path, wanted, ENDED)
    assert toy.fingerprint(run) == toy.fingerprint(untouched)


def test_procedural_images_alone_leave_the_generator_as_it_was_drawn(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file, method=SOURCES["procedural alone"])
    run = toy.advance(tmp_path / "toy", wanted, toy.CHAIN)
    assert run.events("generator") == []
    assert all("agreement_procedural" in event for event in run.events("train"))
    assert (run.stage("export") / "student.fp32.onnx").is_file()


def test_learned_hint_adapters_pair_other_networks_and_stay_behind(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file, method=SOURCES["hint adapters"], checkpoint_period=12)
    run = toy.advance(tmp_path / "toy", wanted, ("ingest", "distill", "select"))
    record = Record.read(run.stage("distill"))
    assert record is not None
    assert record.notes["hinted_stages"] == ["layer1", "layer2", "layer3"]
    state = checkpoint.read_state(run.stage("distill") / record.notes_as(DistillNotes).final)
    learned = state_dict.tensors_of(state, "hint_adapters")
    channels = [tuple(weight.shape[:2]) for weight in learned.values() if weight.ndim == 4]
    assert channels == [(8, 4), (16, 8), (32, 16)], "from the student's channels to the teacher's"
    student = checkpoint.load_tensors(run.stage("select") / "student.safetensors")
    assert set(student) == set(state_dict.tensors_of(state, "student"))
    assert all("hint" in event for event in run.events("train"))


def started(run: RunDir) -> dict[str, torch.Tensor]:
    """Return the student's weights at step 0."""
    first = run.stage("distill") / "checkpoints" / "step-00000000" / "state.safetensors"
    return state_dict.tensors_of(state_dict.unflatten(checkpoint.load_tensors(first), {}), "student")


def test_a_student_of_the_teachers_family_starts_as_it_and_learns_its_feature_maps(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = toy.toy_recipe(teacher_file, student={"name": toy.ARCH}, checkpoint_period=12)
    untouched = toy.advance(tmp_path / "untouched" / "toy", wanted, ENDED)
    teacher = checkpoint.load_tensors(untouched.stage("teacher") / "teacher.safetensors")
    first, ended = started(untouched), Record.read(untouched.stage("distill"))
    assert all(torch.equal(first[name], value) for name, value in teacher.items())
    assert ended is not None
    assert ended.notes["inherited_tensors"] == len(teacher)
    assert ended.notes["hinted_stages"] == ["layer1", "layer2", "layer3"]
    assert f"of the teacher's kind: starts from {len(teacher)} of its tensors" in capsys.readouterr().err
    hints: list[Any] = [event["hint"] for event in untouched.events("train")]
    assert len(hints) > 1
    assert all(hint > 0 for hint in hints), "batch statistics in the student, the running ones in the teacher"

    run = interrupted(tmp_path / "toy", wanted, 6)
    capsys.readouterr()
    toy.advance(run.path, wanted, ENDED)
    assert "of the teacher's kind" not in capsys.readouterr().err, "no longer true of a run that goes on"
    resumed = Record.read(run.stage("distill"))
    assert resumed is not None
    assert resumed.outputs == ended.outputs, "the hashes of the last checkpoint"

    plain = recipe.with_changes(wanted, {"method": {"student": {"hint": 0.0}}})
    unhinted = toy.advance(tmp_path / "unhinted", plain, ENDED)
    other = Record.read(unhinted.stage("distill"))
    assert other is not None
    assert other.outputs != ended.outputs, "a hint changes what is learnt"
    assert not any("hint" in event for event in unhinted.events("train"))


@pytest.mark.parametrize(
    ("student", "inherit", "slices"),
    [(toy.STUDENT, True, False), (toy.ARCH, False, True)],
    ids=["other widths", "not to inherit"],
)
def test_any_other_student_starts_at_random(
    student: str, inherit: bool, slices: bool, teacher_file: Path, tmp_path: Path
) -> None:
    method = {"student": {"inherit": inherit, "inherit_slices": slices}}
    wanted = toy.toy_recipe(teacher_file, student={"name": student}, checkpoint_period=12, method=method)
    run = toy.advance(tmp_path / "toy", wanted, ENDED)
    drawn = artefacts.build_student(wanted, artefacts.description_of(run)).state_dict()
    assert all(torch.equal(started(run)[name], value) for name, value in drawn.items())
    assert any("hint" in event for event in run.events("train")) is (student == toy.ARCH), "of one family, hints remain"


def test_a_narrower_student_starts_with_slices_where_asked(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"student": {"inherit": True, "inherit_slices": True}}
    run = toy.advance(
        tmp_path / "toy", toy.toy_recipe(teacher_file, checkpoint_period=12, method=method), ("ingest", "distill")
    )
    teacher = checkpoint.load_tensors(run.stage("teacher") / "teacher.safetensors")
    assert torch.equal(started(run)["conv1.weight"], teacher["conv1.weight"][::2])
    assert f"of the teacher's kind: starts from {len(started(run))} of its tensors" in capsys.readouterr().err


def test_given_weights_come_before_the_teachers(teacher_file: Path, tmp_path: Path) -> None:
    given = registry.build(toy.ARCH, input_shape=toy.SHAPE, classes=toy.CLASSES, seed=9).state_dict()
    torch.save(given, tmp_path / "given.pt")
    student = {"name": toy.ARCH, "weights": str(tmp_path / "given.pt")}
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, student=student, checkpoint_period=12), GIVEN)
    assert all(torch.equal(started(run)[name], value) for name, value in given.items())
    ended = Record.read(run.stage("distill"))
    assert ended is not None
    assert ended.notes["inherited_tensors"] == 0


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_before_or_right_after_the_first_step_changes_nothing(
    asked: int, teacher_file: Path, tmp_path: Path
) -> None:
    """The warm-up of the generator lies between the checkpoint of step 0 and the first step."""
    wanted = toy.toy_recipe(teacher_file)
    curve = {"accuracy": lambda network: 0.5}
    untouched = toy.advance(tmp_path / "untouched" / "toy", wanted, ENDED, **curve)
    run = interrupted(tmp_path / "toy", wanted, asked, **curve)
    toy.advance(run.path, wanted, ENDED, **curve)
    assert toy.fingerprint(run) == toy.fingerprint(untouched)


def test_the_record_says_what_replay_cost(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file, method={"replay": {"source": "bank", "bank_size": 20}})
    record = Record.read(toy.advance(tmp_path / "toy", wanted, ENDED).stage("distill"))
    assert record is not None
    assert record.notes["replay"] == "bank"
    assert record.notes["replay_bytes"] == 20 * 64 * 4
    assert record.notes["replay_bytes_as_uint8_images"] == 80
    assert record.notes["steps"] == 12
    assert record.notes["reinits"] == 1
    assert record.notes["rescues"] == 0
    assert set(record.outputs) == {f"checkpoints/step-00000012/state.{kind}" for kind in ("json", "safetensors")}


def test_re_initializations_on_schedule_end_in_time(teacher_file: Path, tmp_path: Path) -> None:
    method = {"generator": {"period": 1, "reinit_period": 3, "reinit_until": 0.6, "warmup": 0}, "vae": {"updates": 1}}
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, method=method), ENDED)
    assert [(e["step"], e["generation"], e["reason"]) for e in run.events("reinit")] == [
        (2, 1, "schedule"),
        (5, 2, "schedule"),
    ]


def test_generations_are_different_and_reproducible(laboratory: Laboratory) -> None:
    _, context = laboratory()
    build = distill.build_generator
    first, again, second = (build(context, n).project.weight for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


COLLAPSE: dict[str, dict[str, Any]] = {
    "health": {"min_coverage": 1.0, "grace": 0, "window": 1, "max_reinits": 2},
    "generator": {"reinit_period": 0},
}


def test_a_collapse_re_initializes_and_stops_when_that_does_not_help(teacher_file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "toy")
    last = "checkpoints/step-00000004"
    with pytest.raises(
        GateError, match=rf"stopped at step 6: the generator's images cover .* also after 2 re-init.*{last}"
    ):
        toy.advance(run.path, toy.toy_recipe(teacher_file, method=COLLAPSE), ENDED)
    assert [(e["step"], e["generation"]) for e in run.events("reinit")] == [(0, 1), (3, 2)]
    assert all("of the classes" in str(event["reason"]) for event in run.events("reinit"))
    counters = json.loads((run.stage("distill") / last / "state.json").read_text())
    assert (counters["counters/reinits"], counters["counters/rescues"], counters["counters/updates_since_init"]) == (
        2,
        2,
        0,
    )
    assert Record.read(run.stage("distill")) is None


@pytest.mark.parametrize(
    ("illness", "verdict"),
    [
        ("one image", r"the generator's images are alike \(diversity 0\.0\d\d < 0\.02\)"),
        ("one class", r"the generator's images cover \d% of the classes \(needed: 20%\)"),
    ],
)
def test_a_generator_that_is_ill_is_rescued_and_then_given_up(
    illness: str, verdict: str, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image for every code, or one class in every image, by the thresholds that everybody has."""
    healthy, measured = Generator.forward, health.image_health

    def one_image(generator: Generator, z: torch.Tensor) -> torch.Tensor:
        images = healthy(generator, z)
        return images[:1] + 1e-3 * images

    def one_class(images: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
        return measured(images, logits.index_fill(1, torch.tensor([2]), 50.0))

    if illness == "one image":
        monkeypatch.setattr(Generator, "forward", one_image)
    else:
        monkeypatch.setattr(health, "image_health", one_class)
    run = RunDir(tmp_path / "toy")
    method = {"health": {"grace": 1, "window": 1, "max_reinits": 1}, "generator": {"reinit_period": 0, "period": 1}}
    wanted = toy.toy_recipe(teacher_file, method={**method, "vae": {"updates": 1}})
    with pytest.raises(GateError, match=rf"{verdict}, also after 1 re-init.*checkpoint"):
        toy.advance(run.path, wanted, ENDED)
    (rescue,) = run.events("reinit")
    assert re.search(verdict, str(rescue["reason"]))
    assert Record.read(run.stage("distill")) is None


@pytest.mark.parametrize(("balance", "collapses"), [(0.0, True), (5.0, False)])
def test_a_generator_without_the_balance_loss_comes_to_show_one_class_and_is_rescued(
    balance: float, collapses: bool, teacher_file: Path, tmp_path: Path
) -> None:
    """Nothing is patched: confidence alone is highest where every image is of the class that is easiest to show."""
    only_confident = {"one_hot": 1.0, "balance": balance, "activation": 0.0, "batchnorm": 0.0, "adversary": 0.0}
    method = {
        "steps": 60,
        "generator": {**only_confident, "lr": 0.02, "period": 1, "reinit_period": 0},
        "vae": {"updates": 1},
        "health": {"grace": 20, "window": 5, "min_coverage": 0.5, "max_reinits": 9},  # on any CPU, with any seed
    }
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, method=method, seed=2), ENDED)
    record = Record.read(run.stage("distill"))
    assert record is not None
    rescues: Any = record.notes["rescues"]
    assert (rescues > 0) == collapses
    assert all(
        re.match(r"the generator's images cover \d+% of the classes", str(e["reason"])) for e in run.events("reinit")
    )


def test_a_collapse_too_late_for_another_generator_stops_the_run(teacher_file: Path, tmp_path: Path) -> None:
    """Otherwise consolidation would teach what a generator shows that has hardly begun."""
    late = {
        "health": {**COLLAPSE["health"], "grace": 3, "max_reinits": 9},
        "generator": {"reinit_period": 0, "period": 1, "warmup": 0},
        "vae": {"updates": 1},
        "consolidation": {"start": 0.5},
    }
    run = RunDir(tmp_path / "toy")
    with pytest.raises(GateError, match=r"stopped at step 5: .*too late for another to learn before consolidation"):
        toy.advance(run.path, toy.toy_recipe(teacher_file, method=late), ENDED)
    assert [event["step"] for event in run.events("reinit")] == [2], "then three updates were left"


def test_no_scheduled_re_initialization_comes_right_before_consolidation(teacher_file: Path, tmp_path: Path) -> None:
    method = {
        "generator": {"period": 1, "reinit_period": 2, "reinit_until": 0.8, "warmup": 0},
        "vae": {"updates": 1},
        "consolidation": {"start": 0.5},
    }
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, method=method), ENDED)
    assert [event["step"] for event in run.events("reinit")] == [1, 3], "0.8 of the 6 steps of exploration"


def test_a_run_may_consolidate_from_its_first_step(teacher_file: Path, tmp_path: Path) -> None:
    method = {"consolidation": {"start": 0.0}, "generator": {"warmup": 2, "schedule": "cosine"}}
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, method=method), ENDED)
    assert run.events("generator") == []
    assert len(run.events("train")) > 0


def test_memory_that_runs_out_says_how_to_go_on(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = student_step

    def full(state: State, context: StepContext) -> dict[str, Tensor]:
        if state.step == 6:
            raise torch.OutOfMemoryError("allocation")
        return real(state, context)

    monkeypatch.setattr(distill, "student_step", full)
    with pytest.raises(MachineError, match=r"ran out of memory at step 6 of 12; .*newest checkpoint"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), ENDED)
    monkeypatch.undo()
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), ENDED)
    assert Record.read(run.stage("distill")) is not None


def test_an_empty_bank_says_why_nothing_was_replayed(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"replay": {"source": "bank", "batch_size": 8, "bank_period": 50}, "student": {"batch_size": 4}}
    method |= {"vae": {"novel": 4}}
    toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, method=method), ENDED)
    assert "the bank holds less than one batch" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 2), (True, 2)])
def test_teacher_and_replay_see_the_images_that_the_student_sees(
    flip: bool, shift: int, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, context = laboratory(student={"flip": flip, "shift": shift})
    shown: dict[str, Tensor] = {}
    handles = [
        state.student.register_forward_pre_hook(lambda _, inputs: shown.update(student=inputs[0].clone())),
        context.teacher.network.register_forward_pre_hook(lambda _, inputs: shown.update(teacher=inputs[0].clone())),
    ]
    monkeypatch.setattr(state.replay, "learn", lambda _step, novel, seen, _draws: shown.update(vae=novel) or {})
    steps.student_step(state, context)
    for handle in handles:
        handle.remove()
    assert torch.equal(shown["student"], shown["teacher"])
    assert torch.equal(shown["student"][: len(shown["vae"])], shown["vae"])


def test_a_memory_that_was_never_replayed_is_not_drawn_from(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = toy.toy_recipe(teacher_file, method={"vae": {"gate": 1.0}})
    run = toy.advance(tmp_path / "toy", closed, (*ENDED, "select"))
    record = Record.read(run.stage("distill"))
    assert record is not None
    assert record.notes["replay_ready"] is False
    assert "nothing was replayed" in " ".join(capsys.readouterr().err.split())
    kept = checkpoint.load_tensors(run.stage("select") / "replay.safetensors")
    assert {name.split("/")[0] for name in kept} == {"generator"}
    assert samples.read_sampler(run).decoder is None


def test_grace_and_window_delay_the_verdict(teacher_file: Path, tmp_path: Path) -> None:
    patient = {**COLLAPSE, "health": {**COLLAPSE["health"], "grace": 3, "max_reinits": 9}}
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, method=patient), ENDED)
    assert [event["step"] for event in run.events("reinit")] == [3], "the warm-up, step 0 and step 3 are three updates"


def finite(run: RunDir) -> bool:
    files = list(run.stage("distill").glob("checkpoints/step-*/state.safetensors"))
    assert files
    return all(bool(torch.isfinite(t).all()) for f in files for t in checkpoint.load_tensors(f).values())


def test_a_learning_rate_that_explodes_stops_the_run_with_finite_checkpoints(
    teacher_file: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "toy")
    wanted = toy.toy_recipe(teacher_file, method={"student": {"optimizer": "sgd", "lr": 1e30}})
    with pytest.raises(
        GateError, match=r"not finite.*The last good checkpoint is .*step-0000000\d.*Lower method.student.lr"
    ):
        toy.advance(run.path, wanted, ENDED)
    assert finite(run)


POISON: dict[str, Callable[[State], nn.Module]] = {
    "student": lambda state: state.student,
    "generator average": lambda state: state.generator_ema,
    "VAE": lambda state: state.replay.vae,  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("where", POISON)
def test_a_nan_in_a_weight_is_never_saved(
    where: str, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = student_step

    def poisoned(state: State, context: StepContext) -> dict[str, Tensor]:
        logged = real(state, context)
        if state.step == 7:
            with torch.no_grad():
                next(POISON[where](state).parameters()).view(-1)[0] = math.nan
        return logged

    monkeypatch.setattr(distill, "student_step", poisoned)
    run = RunDir(tmp_path / "toy")
    with pytest.raises(GateError, match=r"stopped at step 8: weights are not finite.*step-00000004"):
        toy.advance(run.path, toy.toy_recipe(teacher_file), ENDED)
    assert finite(run)
    assert Record.read(run.stage("distill")) is None


def test_a_teacher_without_batchnorm_is_distilled_and_says_what_it_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = registry.build("lenet5", input_shape=(1, 32, 32), classes=4, seed=3)
    torch.save(network.state_dict(), tmp_path / "lenet.pt")
    wanted = toy.toy_recipe(
        tmp_path / "lenet.pt", method={"steps": 3, "student": {"batch_size": 8}, "vae": {"novel": 8}}
    )
    wanted = recipe.with_changes(wanted, {"teacher": {"input": ""}})
    run = toy.advance(tmp_path / "toy", wanted, (*ENDED, "select"))
    assert [event["batchnorm"] for event in run.events("generator")] == [0.0]
    assert len(run.events("train")) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "the teacher has no BatchNorm: no statistics of its training images guide the generator" in said


def test_bf16_arithmetic_keeps_float32_state(teacher_file: Path, tmp_path: Path) -> None:
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, precision="bf16", method={"steps": 4}), ENDED)
    tensors = checkpoint.load_tensors(run.stage("distill") / "checkpoints/step-00000004/state.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}


def test_recipe_keys_that_came_later_are_hashed_only_where_they_change_something(teacher_file: Path) -> None:
    added = {f"{table}.{key}" for table, keys in ADDED_METHOD_KEYS.items() for key in keys}
    before = DISTILL.slice(toy.toy_recipe(teacher_file))["method"]
    assert isinstance(before, dict)
    names = {f"{table}.{key}" for table, keys in before.items() if isinstance(keys, dict) for key in keys}
    assert not added & names
    assert "procedural" not in before
    mixed = DISTILL.slice(toy.toy_recipe(teacher_file, method={"student": {"mixup": 0.5}}))["method"]
    assert isinstance(mixed, dict)
    assert isinstance(mixed["student"], dict)
    assert mixed["student"]["mixup"] == 0.5
    assert len(mixed["student"]) == len(before["student"]) + 1  # type: ignore[arg-type]
