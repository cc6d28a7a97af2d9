"""Samples are drawn again from weights and keys: half from the averaged generator, half from the VAE's decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.recipe.method import MethodTable, ProceduralTable
from edgekd.rng import KeyedDraws
from edgekd.synthesis.images.generated import GeneratedImages
from edgekd.synthesis.images.pictures import Pictures
from edgekd.synthesis.images.procedural import ProceduralImages
from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.networks.vae import VAE
from edgekd.synthesis.sampler import Sampler

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
DRAWS = KeyedDraws(1, "synthetic", CPU)
TEACHER = Description("resnet8", SHAPE, 4, "linear", "", batchnorm=True)


def recipe(source: str = "vae", sampling: str = "posterior") -> Recipe:
    generator, vae = {"latent": 8, "width": 8}, {"latent": 6, "width": 8, "sampling": sampling}
    return Recipe(method=MethodTable(generator=generator, vae=vae, replay={"source": source}))  # type: ignore[arg-type]


def final(wanted: Recipe, *, opened: bool = True) -> dict[str, Any]:
    """Return a final state as a distillation leaves it, with moments that are neither zero nor one."""
    generator = Generator.from_table(wanted.method.generator, SHAPE, batchnorm=True)
    vae = VAE.from_table(wanted.method.vae, SHAPE, batchnorm=True, upsamplings=0)
    vae.latent_mean.uniform_(1, 2)
    vae.latent_variance.uniform_(2, 3)
    return {"generator_ema": generator.state_dict(), "replay": {"open": opened, "vae": vae.state_dict()}}


def sampler(wanted: Recipe, state: dict[str, Any]) -> Sampler:
    return Sampler.from_state(Sampler.state_of(state, wanted.method), wanted, TEACHER)


def generator_of(drawn: Sampler) -> nn.Module:
    assert isinstance(drawn.novel, GeneratedImages)
    return drawn.novel.generator


def test_without_a_generator_the_novel_samples_are_procedural_ones_or_the_users_pictures() -> None:
    method = recipe("none").method.model_copy(update={"procedural": ProceduralTable(share=(1.0, 1.0))})
    wanted = recipe("none").model_copy(update={"method": method})
    state = Sampler.state_of(final(wanted), method)
    drawn = Sampler.from_state(state, wanted, TEACHER)
    assert torch.equal(drawn.batch(DRAWS, "x", 2, 6), ProceduralImages(SHAPE).batch(DRAWS, "x/novel", 2, 6))
    pictures = Pictures([torch.zeros(1, 8, 8, dtype=torch.uint8)], SHAPE, torch.tensor([0.5]), torch.tensor([0.25]))
    drawn = Sampler.from_state(state, wanted, TEACHER, pictures)
    assert torch.equal(drawn.batch(DRAWS, "x", 2, 6), torch.full((6, *SHAPE), -2.0))


def test_samples_come_again_for_the_same_purpose_and_differ_for_another() -> None:
    wanted = recipe()
    state = final(wanted)
    first, again, other = (torch.cat(list(sampler(wanted, state).batches(DRAWS, p, 70))) for p in ("a", "a", "b"))
    assert (first.shape, first.dtype) == ((70, *SHAPE), torch.float32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [len(x) for x in sampler(wanted, state).batches(DRAWS, "a", 70)] == [64, 6]


def test_half_of_a_batch_is_novel_and_half_decoded_from_the_codes_of_the_posterior() -> None:
    wanted = recipe()
    state = final(wanted)
    drawn = sampler(wanted, state)
    assert drawn.decoder is not None
    codes = DRAWS.normal(3, "x/replay", 4, 6)
    memory = state["replay"]["vae"]
    codes = codes * memory["latent_variance"].sqrt() + memory["latent_mean"]
    generator = generator_of(drawn)
    novel = generator(DRAWS.normal(3, "x/novel", 5, 8))
    assert torch.equal(drawn.batch(DRAWS, "x", 3, 9), torch.cat([novel, drawn.decoder(codes)]))
    assert torch.equal(generator.get_parameter("project.weight"), state["generator_ema"]["project.weight"])
    assert torch.equal(drawn.decoder.get_parameter("project.weight"), memory["decoder.project.weight"])


@pytest.mark.parametrize("sampling", ["posterior", "prior"])
def test_the_moments_of_the_codes_are_those_that_the_recipe_asks_for(sampling: str) -> None:
    wanted = recipe(sampling=sampling)
    state = final(wanted)
    memory = state["replay"]["vae"]
    posterior = memory["latent_mean"], memory["latent_variance"].sqrt()
    mean, std = posterior if sampling == "posterior" else (torch.zeros(6), torch.ones(6))
    drawn = sampler(wanted, state)
    assert drawn.code_mean is not None
    assert drawn.code_std is not None
    assert torch.equal(drawn.code_mean, mean)
    assert torch.equal(drawn.code_std, std)


@pytest.mark.parametrize(("source", "opened"), [("vae", False), ("ema-generator", True), ("none", True)])
def test_what_was_never_replayed_draws_nothing(source: str, opened: bool) -> None:
    wanted = recipe(source)
    drawn = sampler(wanted, final(wanted, opened=opened))
    assert drawn.decoder is None
    assert torch.equal(drawn.batch(DRAWS, "x", 0, 9), generator_of(drawn)(DRAWS.normal(0, "x/novel", 9, 8)))


def test_drawing_leaves_the_global_generator_and_the_networks_alone(tmp_path: Path) -> None:
    wanted = recipe()
    state = final(wanted)
    before = torch.random.get_rng_state()
    drawn = sampler(wanted, state)
    batch = drawn.batch(DRAWS, "x", 0, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not batch.requires_grad
    assert not generator_of(drawn).training
