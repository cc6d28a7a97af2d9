"""Draws are pure functions of their key, and the global generators stay as they were."""

from __future__ import annotations

import hashlib

import pytest
import torch

from edgekd import rng
from edgekd.rng import KeyedDraws

CPU = torch.device("cpu")


def test_a_seed_is_the_first_63_bits_of_the_hash_of_its_key() -> None:
    expected = int(hashlib.sha256(b"1/distill/3/novel").hexdigest()[:16], 16) >> 1
    assert rng.keyed_seed(1, "distill", 3, "novel") == expected


def test_seeds_differ_in_every_part_of_the_key_and_fit_a_signed_integer() -> None:
    keys = [(seed, stage, step, what) for seed in (0, 1) for stage in "ab" for step in (1, 11) for what in "xy"]
    seeds = {rng.keyed_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_gives_the_same_numbers_again() -> None:
    first, again, other = (torch.rand(5, generator=rng.generator(*key)) for key in ((1, "a"), (1, "a"), (1, "b")))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_seeded_global_rng_generator_is_keyed_and_restored() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with rng.seeded_global_rng(1, "build", "student"):
        inside = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(4, generator=rng.generator(1, "build", "student")))


def test_the_seeded_global_rng_generator_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()

    def fail() -> None:
        with rng.seeded_global_rng(1):
            torch.rand(4)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_depend_on_seed_stage_step_and_purpose_but_not_on_their_order() -> None:
    def draw(seed: int = 1, stage: str = "distill", step: int = 4, purpose: str = "novel") -> torch.Tensor:
        return KeyedDraws(seed, stage, CPU).normal(step, purpose, 3, 2)

    draws = KeyedDraws(1, "distill", CPU)
    draws.normal(9, "something", 7)
    assert torch.equal(draws.normal(4, "novel", 3, 2), draw())
    others = [draw(seed=2), draw(stage="select"), draw(step=5), draw(purpose="replay")]
    assert not any(torch.equal(draw(), other) for other in others)


def test_draws_are_standard_normal_and_uniform_integers() -> None:
    draws = KeyedDraws(1, "test", CPU)
    normal, integers = draws.normal(0, "n", 20_000), draws.integers(0, "i", 5, 20_000)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    assert (integers.bincount(minlength=5) / 20_000 - 0.2).abs().max() < 0.02
    assert integers.min() >= 0
    assert integers.max() == 4


def test_draws_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    KeyedDraws(1, "test", CPU).normal(0, "n", 10)
    KeyedDraws(1, "test", CPU).integers(0, "i", 5, 10)
    assert torch.equal(torch.get_rng_state(), before)
