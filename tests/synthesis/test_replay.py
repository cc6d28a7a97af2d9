"""Replay from nothing, a bank, a slow generator and the VAE; the VAE's update against a short autograd reference."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd import state_dict
from edgekd.machine import Precision
from edgekd.models import registry
from edgekd.recipe.method import ReplayTable, VaeTable
from edgekd.rng import KeyedDraws
from edgekd.run import checkpoint
from edgekd.synthesis import losses
from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.networks.vae import VAE
from edgekd.synthesis.replay import GATE_DECAY, BankReplay, EmaGeneratorReplay, Replay, VaeReplay
from edgekd.synthesis.teacher import Teacher, TeacherOutputs

CPU = torch.device("cpu")
FP32 = Precision(CPU, False)
SHAPE = (1, 8, 8)
DRAWS = KeyedDraws(1, "test", CPU)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank(**values: Any) -> BankReplay:
    return BankReplay(
        ReplayTable(source="bank", **{"batch_size": 4, "bank_size": 6, "bank_period": 2, **values}), SHAPE, CPU
    )


UNSEEN = TeacherOutputs(torch.zeros(0), torch.zeros(0), torch.zeros(()))
"""What the teacher saw, where nobody asks."""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    net = registry.build("resnet8@0.5", input_shape=SHAPE, classes=4, seed=3).train()
    with torch.no_grad():
        for seed in range(5):
            net(draw(16, *SHAPE, seed=seed))
        net.get_parameter("linear.weight").mul_(4.0)
    return Teacher(net, head="linear", output_transform="none", precision=FP32)


# Nothing, bank, slow generator


def test_no_replay_is_never_ready_and_costs_nothing() -> None:
    replay = Replay()
    replay.assume_ready()
    assert not replay.ready
    assert replay.learn(0, draw(4, *SHAPE), UNSEEN, DRAWS) == {}
    assert replay.size_bytes() == 0
    assert replay.state_dict() == {}
    with pytest.raises(NotImplementedError):
        replay.sample(0, 4, DRAWS)


def test_a_bank_deposits_when_due_and_overwrites_the_oldest() -> None:
    replay = bank()
    first, second = draw(8, *SHAPE, seed=1), draw(8, *SHAPE, seed=2)
    replay.learn(1, first, UNSEEN, DRAWS)
    early = replay.ready
    replay.learn(2, first, UNSEEN, DRAWS)
    assert (early, replay.ready) == (False, True), "nothing is due at step 1"
    assert torch.equal(replay.images[:4], first[:4])
    assert not replay.images[4:].any()
    replay.learn(4, second, UNSEEN, DRAWS)
    assert torch.equal(replay.images, torch.cat([second[2:4], first[2:4], second[:2]]))


def test_a_bank_draws_only_what_it_holds() -> None:
    replay = bank(bank_size=50, bank_period=1)
    images = draw(4, *SHAPE)
    replay.learn(0, images, UNSEEN, DRAWS)
    sampled = replay.sample(3, 100, DRAWS)
    assert torch.equal(sampled, images[DRAWS.integers(3, "bank", 4, 100)])
    assert len({tuple(image.flatten().tolist()) for image in sampled}) == 4


def test_a_batch_smaller_than_a_deposit_is_stored_whole() -> None:
    replay = bank(bank_period=1)
    images = draw(3, *SHAPE)
    replay.learn(0, images, UNSEEN, DRAWS)
    assert replay.stored == 3
    assert torch.equal(replay.images[:3], images)
    assert not replay.ready


def test_the_bytes_of_a_bank_are_those_of_its_images() -> None:
    assert bank(bank_size=100).size_bytes() == 100 * 1 * 8 * 8 * 4


def test_an_assumed_bank_can_be_sampled() -> None:
    replay = bank()
    replay.assume_ready()
    assert replay.ready
    assert replay.sample(0, 9, DRAWS).shape == (9, *SHAPE)


def test_a_restored_bank_draws_and_stores_the_same() -> None:
    replay, images = bank(bank_period=1), draw(8, *SHAPE)
    replay.learn(0, images, UNSEEN, DRAWS)
    other = bank(bank_period=1)
    other.load_state_dict(replay.state_dict())
    for one in (replay, other):
        one.learn(1, images.flip(0), UNSEEN, DRAWS)
    assert torch.equal(replay.sample(2, 20, DRAWS), other.sample(2, 20, DRAWS))
    assert replay.stored == other.stored == 8


def test_the_slow_generator_replays_its_own_images() -> None:
    generator = Generator(5, SHAPE, width=8).eval()
    replay = EmaGeneratorReplay(generator, 5, FP32)
    assert replay.ready
    with torch.no_grad():
        expected = generator(DRAWS.normal(7, "replay", 6, 5))
    found = replay.sample(7, 6, DRAWS)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_the_bytes_of_the_slow_generator_are_weights_and_statistics() -> None:
    # project 5 -> 8*4*4, BatchNorm(8), convolution 8 -> 8, BatchNorm(8), convolution 8 -> 1, BatchNorm(1)
    weights = (5 + 1) * 128 + 2 * 8 + (8 * 8 * 9 + 8) + 2 * 8 + (8 * 1 * 9 + 1) + 2
    statistics = 2 * 8 + 2 * 8 + 2
    expected = 4 * (weights + statistics) + 8 * 3
    assert EmaGeneratorReplay(Generator(5, SHAPE, width=8), 5, FP32).size_bytes() == expected


# The VAE


def vae_replay(teacher: Teacher, **values: Any) -> VaeReplay:
    table = {
        "latent": 6,
        "width": 8,
        "novel": 8,
        "rehearsed": 5,
        "gate": 0.5,
        "pixel": 0.7,
        "response": 1.3,
        "kl": 0.01,
    }
    found = VaeTable(**{**table, **values})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        vae = VAE(found.latent, SHAPE, width=found.width)
    return VaeReplay(vae, found, teacher, FP32, fused=True)


def look(teacher: Teacher, images: Tensor) -> TeacherOutputs:
    with torch.no_grad():
        return teacher.observe(images)


def learn(replay: VaeReplay, step: int, seed: int = 0) -> dict[str, Tensor]:
    novel = draw(12, *SHAPE, seed=seed)
    return replay.learn(step, novel, look(replay.teacher, novel), DRAWS)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class Reference:
    """The update of the VAE written down once more, plainly, on a copy of it."""

    def __init__(self, replay: VaeReplay, step: int, novel: Tensor) -> None:
        table, teacher = replay.table, replay.teacher
        vae = copy.deepcopy(replay.vae).train()
        images = novel[: table.novel]
        self.tuning: dict[str, Tensor] = {}
        if replay.updates:
            z = DRAWS.normal(step, "rehearse", table.rehearsed, table.latent)
            self.codes = self.tune(vae, table, teacher, z) if table.sampling == "tuned" else z
            images = torch.cat([images, vae.decoder(self.codes).detach()])
        self.images = images
        noise = DRAWS.normal(step, "reparametrise", len(images), table.latent)
        mean, log_variance = vae.encoder(images)
        reconstruction = vae.decoder(mean + (log_variance / 2).exp() * noise)
        logits = teacher.network(reconstruction)
        self.parts = {
            "pixel": (reconstruction - images).abs().mean(),
            "response": (logits - teacher.network(images)).abs().mean(),
            "kl": 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1).mean(),
        }
        if table.feature:
            mine, theirs = (self.features(teacher.network, x) for x in (reconstruction, images))
            self.parts["feature"] = F.l1_loss(mine, theirs)
        vae.zero_grad()
        sum(getattr(table, name) * value for name, value in self.parts.items()).backward()
        self.learning = gradients(vae)

    def tune(self, vae: VAE, table: VaeTable, teacher: Teacher, z: Tensor) -> Tensor:
        z = nn.Parameter(z)
        optimizer = torch.optim.Adam([z], lr=table.tuning_lr)
        logits = teacher.network(vae.decoder(z))
        p = logits.softmax(1).mean(0)
        confidence = F.cross_entropy(logits, logits.argmax(1))
        moments = (z.var(0) - 1).square().mean() + z.mean(0).square().mean()
        vae.zero_grad()
        (table.one_hot * confidence + table.balance * (p * p.log()).sum() + moments).backward()
        self.tuning = gradients(vae)
        optimizer.step()
        return z.detach()

    @staticmethod
    def features(network: nn.Module, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = network.get_submodule("linear").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        network(x)
        handle.remove()
        return seen[0]


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether gradients agree up to rounding; a bias before a BatchNorm has nothing but rounding in its gradient."""
    assert found.keys() == expected.keys()
    noise = 1e-5 * max(float(value.abs().max()) for value in expected.values())
    return all(torch.allclose(found[name], value, rtol=1e-3, atol=noise) for name, value in expected.items())


@pytest.mark.parametrize("feature", [0.0, 0.4])
@pytest.mark.parametrize("sampling", ["prior", "tuned"])
@pytest.mark.parametrize("updates", [0, 1])
def test_the_update_follows_the_gradient_of_pixels_responses_features_and_kl(
    updates: int, sampling: str, feature: float, teacher: Teacher
) -> None:
    replay = vae_replay(teacher, feature=feature, sampling=sampling)
    for step in range(updates):
        learn(replay, step)
    reference = Reference(replay, 9, draw(12, *SHAPE, seed=5))
    parts = learn(replay, 9, seed=5)
    assert set(parts) == {"pixel", "response", "kl"} | ({"feature"} if feature else set())
    assert len(reference.images) == (13 if updates else 8)
    for name, value in parts.items():
        assert float(value.detach()) == pytest.approx(float(reference.parts[name].detach()), rel=1e-4), name
    assert close(gradients(replay.vae), reference.learning)


def test_the_teachers_response_matters_for_the_decoder(teacher: Teacher) -> None:
    with_response, without = vae_replay(teacher, response=1.0), vae_replay(teacher, response=0.0)
    learn(with_response, 0)
    learn(without, 0)
    assert not close(gradients(with_response.vae), gradients(without.vae))


@pytest.mark.parametrize("leak", [0.0, 0.5, 1.0])
def test_the_leak_adds_the_gradient_of_the_tuning_loss_to_the_decoder(leak: float, teacher: Teacher) -> None:
    replay = vae_replay(teacher, sampling="tuned", decoder_leak=leak)
    learn(replay, 0)
    reference = Reference(replay, 9, draw(12, *SHAPE, seed=5))
    assert set(reference.tuning) == {name for name in reference.learning if name.startswith("decoder")}
    learn(replay, 9, seed=5)
    expected = {
        n: v + leak * reference.tuning[n] if n in reference.tuning else v for n, v in reference.learning.items()
    }
    assert close(gradients(replay.vae), expected)
    if leak:
        assert not close(gradients(replay.vae), reference.learning), "the leak makes a difference"


def test_sampling_with_a_leak_leaves_no_gradient_behind(teacher: Teacher) -> None:
    replay = vae_replay(teacher, sampling="tuned", decoder_leak=1.0)
    replay.sample(3, 5, DRAWS)
    assert gradients(replay.vae) == {}


def test_tuned_codes_are_one_step_of_adam(teacher: Teacher) -> None:
    replay = vae_replay(teacher, sampling="tuned", tuning_lr=0.02, one_hot=0.9, balance=2.0)
    replay.vae.eval()
    noise = DRAWS.normal(4, "replay", 7, 6)
    z = nn.Parameter(noise.clone())
    optimizer = torch.optim.Adam([z], lr=0.02)
    logits = teacher.network(replay.vae.decoder(z))
    (0.9 * losses.one_hot_loss(logits) + 2.0 * losses.balance_loss(logits) + losses.latent_moments(z)).backward()
    optimizer.step()
    assert torch.allclose(replay._codes(noise), z, atol=1e-6)
    assert torch.allclose((replay._codes(noise) - noise).abs(), torch.full((7, 6), 0.02), atol=1e-4)
    with torch.no_grad():
        expected = replay.vae.decoder(z)
    assert torch.allclose(replay.sample(4, 7, DRAWS), expected, atol=1e-4)


@pytest.mark.parametrize("sampling", ["prior", "posterior"])
def test_untuned_replay_is_the_decoder_in_eval_mode(sampling: str, teacher: Teacher) -> None:
    replay = vae_replay(teacher, sampling=sampling)
    for step in range(3):
        learn(replay, step, seed=step)
    noise = DRAWS.normal(4, "replay", 7, 6)
    codes = replay.vae.codes(noise, posterior=sampling == "posterior")
    assert torch.equal(codes, noise) is (sampling == "prior")
    found = replay.sample(4, 7, DRAWS)
    with torch.no_grad():
        assert torch.equal(found, replay.vae.decoder.eval()(codes))
    assert not found.requires_grad


def test_sampling_changes_no_weight_and_no_statistics(teacher: Teacher) -> None:
    for sampling in ("prior", "tuned", "posterior"):
        replay = vae_replay(teacher, sampling=sampling)
        learn(replay, 0)
        before = {name: value.clone() for name, value in replay.vae.state_dict().items()}
        replay.sample(4, 7, DRAWS)
        assert all(torch.equal(before[name], value) for name, value in replay.vae.state_dict().items()), sampling


def test_learning_leaves_the_teacher_without_a_trace(teacher: Teacher) -> None:
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    replay = vae_replay(teacher, sampling="tuned", decoder_leak=1.0, feature=1.0)
    for step in range(3):
        learn(replay, step)
    assert all(p.grad is None for p in teacher.network.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.network.state_dict().items())


def test_rehearsal_begins_with_the_second_update_and_can_be_left_out(teacher: Teacher) -> None:
    rehearsing, forgetful = vae_replay(teacher), vae_replay(teacher, rehearsed=0)
    for replay in (rehearsing, forgetful):
        learn(replay, 0)
    assert close(gradients(rehearsing.vae), gradients(forgetful.vae))
    for replay in (rehearsing, forgetful):
        learn(replay, 1)
    assert not close(gradients(rehearsing.vae), gradients(forgetful.vae))


def test_the_vae_learns(teacher: Teacher) -> None:
    replay = vae_replay(teacher, lr=0.01)
    first = learn(replay, 0)
    for step in range(1, 60):
        last = learn(replay, step)
    assert float(last["pixel"].detach()) < 0.8 * float(first["pixel"].detach())
    assert float(last["response"].detach()) < 0.8 * float(first["response"].detach())


def test_the_gate_opens_once_enough_answers_are_kept(teacher: Teacher) -> None:
    replay = vae_replay(teacher, gate=0.09)
    same, other = torch.eye(4)[[0, 1]], torch.eye(4)[[0, 2]]
    replay._judge(same, other)
    assert replay.kept_answers == pytest.approx((1 - GATE_DECAY) * 0.5)
    early = replay.ready
    replay._judge(same, same)
    assert replay.kept_answers == pytest.approx(GATE_DECAY * (1 - GATE_DECAY) * 0.5 + 1 - GATE_DECAY)
    almost = replay.ready
    replay._judge(same, same)
    assert (early, almost, replay.ready) == (False, False, True)
    for _ in range(100):
        replay._judge(same, 1 - same)
    assert replay.ready, "an open gate stays open"


def test_the_gate_can_be_open_from_the_start(teacher: Teacher) -> None:
    assert vae_replay(teacher, gate=0.0).ready
    closed = vae_replay(teacher, gate=0.5)
    assert not closed.ready
    closed.assume_ready()
    assert closed.ready


def test_the_bytes_of_the_vae_are_weights_statistics_and_moments(teacher: Teacher) -> None:
    replay = vae_replay(teacher)
    decoder = 4 * ((6 + 1) * 128 + 2 * 8 + 584 + 2 * 8 + 73 + 2 + 2 * 8 + 2 * 8 + 2) + 8 * 3
    encoder = 4 * ((1 * 8 * 9 + 8) + 2 * 8 + 2 * (8 * 16 + 1) * 6 + 2 * 8) + 8
    moments = 4 * 2 * 6
    assert replay.size_bytes() == decoder + encoder + moments


@pytest.mark.parametrize("sampling", ["prior", "tuned", "posterior"])
def test_a_restored_vae_goes_on_bit_for_bit(sampling: str, teacher: Teacher, tmp_path: Path) -> None:
    replay = vae_replay(teacher, sampling=sampling, gate=0.9)
    for step in range(3):
        learn(replay, step, seed=step)
    tensors, plain = state_dict.flatten(replay.state_dict())
    checkpoint.save_tensors(tensors, tmp_path / "r")
    other = vae_replay(teacher, sampling=sampling, gate=0.9)
    other.load_state_dict(state_dict.unflatten(checkpoint.load_tensors(tmp_path / "r"), json.loads(json.dumps(plain))))
    for step in range(3, 6):
        learn(replay, step, seed=step)
        learn(other, step, seed=step)
    assert (other.kept_answers, other.updates, other.open) == (replay.kept_answers, 6, replay.open)
    assert torch.equal(replay.sample(6, 9, DRAWS), other.sample(6, 9, DRAWS))
    mine, theirs = (state_dict.flatten(one.state_dict())[0] for one in (replay, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_gradients_lie_in_memory_as_their_weights_so_that_fused_adam_pairs_them_rightly(teacher: Teacher) -> None:
    """The decoder runs channels-last, so autograd hands out gradients in another layout than its weights have."""
    fused, plain = (vae_replay(teacher, sampling="tuned", decoder_leak=1.0) for _ in range(2))
    plain.optimizer = torch.optim.Adam(plain.vae.parameters(), lr=plain.table.lr, fused=False)
    for step in range(2):
        learn(fused, step)
        learn(plain, step)
    for weight in fused.vae.parameters():
        assert weight.grad is not None
        strides = zip(weight.shape, weight.grad.stride(), weight.stride(), strict=True)
        assert all(mine == theirs for size, mine, theirs in strides if size > 1)
    mine, theirs = (replay.vae.decoder.get_parameter("convolutions.0.weight") for replay in (fused, plain))
    assert float((mine - theirs).detach().abs().mean()) < 0.01 * fused.table.lr
