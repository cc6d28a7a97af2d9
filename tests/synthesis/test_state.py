"""One state dict holds all the next step depends on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from edgekd import state_dict
from edgekd.machine import Precision
from edgekd.models import registry
from edgekd.recipe.method import GeneratorTable, ReplayTable, StudentUpdateTable
from edgekd.run import checkpoint
from edgekd.state_dict import branch
from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.replay import BankReplay
from edgekd.synthesis.state import State, frozen_copy, generator_optimizer, student_optimizer, update_ema

CPU = torch.device("cpu")
FP32 = Precision(CPU, False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(seed: int = 1, optimizer: Literal["adam", "sgd"] = "adam") -> State:
    student = registry.build("resnet8@0.25", input_shape=(1, 8, 8), classes=4, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(5, (1, 8, 8), width=8, spectral=True)
    return State(
        student=student.to(memory_format=torch.channels_last),
        generator=generator,
        replay=BankReplay(ReplayTable(source="bank", batch_size=4, bank_size=8), (1, 8, 8), CPU),
        student_optimizer=student_optimizer(student, StudentUpdateTable(optimizer=optimizer), fused=True),
        generator_optimizer=generator_optimizer(generator, GeneratorTable(), fused=True),
        student_autocast=FP32,
        generator_autocast=FP32,
    )


def work(state: State, seed: int) -> None:
    """Change everything a step changes."""
    images = state.generator.train()(draw(8, 5, seed=seed))
    loss = state.student.train()(images).square().mean() + images.square().mean()
    for optimizer in (state.student_optimizer, state.generator_optimizer):
        optimizer.zero_grad()
    loss.backward()
    for optimizer in (state.student_optimizer, state.generator_optimizer):
        optimizer.step()
    update_ema(state.student_ema, state.student, 0.9)
    update_ema(state.generator_ema, state.generator, 0.9)
    state.replay.learn(0, images.detach(), images.detach(), None)  # type: ignore[arg-type]
    state.step += 1
    state.generator_updates += 2
    state.updates_since_init += 3
    state.reinits += 4
    state.rescues += 5
    state.health.append({"coverage": 0.1 * seed})


def flat(state: State) -> dict[str, object]:
    tensors, plain = state_dict.flatten(state.state_dict())
    return {**{name: tensor.tolist() for name, tensor in tensors.items()}, **plain}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_restored_state_continues_as_the_one_that_was_saved(
    optimizer: Literal["adam", "sgd"], tmp_path: Path
) -> None:
    state = make(optimizer=optimizer)
    work(state, 1)
    tensors, plain = state_dict.flatten(state.state_dict())
    checkpoint.save_tensors(tensors, tmp_path / "s")
    other = make(seed=9, optimizer=optimizer)
    assert flat(other) != flat(state)
    other.load_state_dict(state_dict.unflatten(checkpoint.load_tensors(tmp_path / "s"), json.loads(json.dumps(plain))))
    assert flat(other) == flat(state)
    work(state, 2)
    work(other, 2)
    assert flat(other) == flat(state)


def test_every_counter_is_in_the_state() -> None:
    state = make()
    numbers = {name for name, value in vars(state).items() if isinstance(value, int)}
    assert branch(state.state_dict(), "counters").keys() == numbers


def test_averages_start_as_frozen_copies() -> None:
    state = make()
    for average, network in ((state.student_ema, state.student), (state.generator_ema, state.generator)):
        assert not average.training
        assert not any(p.requires_grad for p in average.parameters())
        for mine, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)
            assert mine.data_ptr() != theirs.data_ptr()


def test_averaging_moves_floats_and_copies_counters() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = frozen_copy(network)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    network.train()(draw(4, 1, 5, 5) + 3)
    update_ema(average, network, 0.75)
    now, target = average.state_dict(), network.state_dict()
    for name, old in before.items():
        expected = 0.75 * old + 0.25 * target[name] if old.is_floating_point() else target[name]
        assert torch.allclose(now[name], expected), name
    assert int(now["1.num_batches_tracked"]) == 1


def test_a_restart_takes_new_weights_and_forgets_moments_and_health() -> None:
    state = make()
    work(state, 1)
    slow = {name: value.clone() for name, value in state.generator_ema.state_dict().items()}
    fresh = make(seed=9).generator
    state.restart_generator(fresh)
    for mine, theirs in zip(state.generator.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert state_dict.optimizer_state(state.generator_optimizer) == {}
    assert state_dict.optimizer_state(state.student_optimizer) != {}
    assert (state.reinits, state.updates_since_init, state.health) == (5, 0, [])
    assert state.generator_updates == 2
    assert all(torch.equal(slow[name], value) for name, value in state.generator_ema.state_dict().items())


DAMAGE: dict[str, Callable[[State], Tensor]] = {
    "student": lambda s: s.student.get_parameter("conv1.weight"),
    "student statistics": lambda s: s.student.get_buffer("bn1.running_var"),
    "student average": lambda s: s.student_ema.get_parameter("linear.bias"),
    "generator": lambda s: s.generator.project.weight,
    "generator average": lambda s: s.generator_ema.get_buffer("image_norm.running_mean"),
    "replay": lambda s: s.replay.images,  # type: ignore[attr-defined]
    "moments": lambda s: next(iter(s.student_optimizer.state.values()))["exp_avg"],
}


@pytest.mark.parametrize("where", DAMAGE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sick_tensor_anywhere_is_noticed(where: str, value: float) -> None:
    state = make()
    work(state, 1)
    assert state.all_finite()
    with torch.no_grad():
        DAMAGE[where](state).view(-1)[-1] = value
    assert not state.all_finite()


def test_optimizers_take_their_values_from_the_tables() -> None:
    network = nn.Linear(2, 2)
    sgd = student_optimizer(
        network, StudentUpdateTable(optimizer="sgd", lr=0.3, momentum=0.5, weight_decay=0.1), fused=True
    )
    adam = student_optimizer(network, StudentUpdateTable(optimizer="adam", lr=0.2, weight_decay=0.2), fused=False)
    generator = generator_optimizer(network, GeneratorTable(lr=0.1, betas=(0.4, 0.8)), fused=True)
    assert [type(o).__name__ for o in (sgd, adam, generator)] == ["SGD", "Adam", "Adam"]
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.3, 0.5, 0.1)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.2, 0.2)
    assert (generator.defaults["lr"], generator.defaults["betas"]) == (0.1, (0.4, 0.8))
    assert (sgd.defaults["fused"], adam.defaults["fused"], generator.defaults["fused"]) == (True, False, True)
