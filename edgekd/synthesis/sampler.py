"""The samples that a distillation leaves behind: half novel images, of a generator mostly, half replayed ones D(z')."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.recipe.method import MethodTable
from edgekd.rng import KeyedDraws, seeded_global_rng
from edgekd.state_dict import StateDict, branch, tensor_of, tensors_of
from edgekd.synthesis import replay
from edgekd.synthesis.images import ImageSource
from edgekd.synthesis.images.generated import GeneratedImages
from edgekd.synthesis.images.procedural import ProceduralImages
from edgekd.synthesis.networks.generator import Generator
from edgekd.synthesis.networks.vae import VAE


@dataclass(frozen=True)
class Sampler:
    """Draws samples from the averaged generator and, where replay came from a VAE, from its decoder.

    Codes of the decoder are normal with the mean and standard deviation that the recipe's `vae.sampling` asks for. A
    method without a generator has its procedural images in that place, and a run on pictures has these.
    """

    novel: ImageSource
    decoder: nn.Module | None = None
    code_mean: Tensor | None = None
    code_std: Tensor | None = None

    @staticmethod
    def state_of(final: StateDict, method: MethodTable) -> StateDict:
        """Return what of a distillation's final state a sampler needs, as replay.safetensors holds it.

        The generator is part of it also where nothing was learned by one, so that the file is never empty.
        """
        source = replay.SOURCES[method.replay.source]
        return {"generator": branch(final, "generator_ema"), **source.sampler_state(branch(final, "replay"), method)}

    @classmethod
    def from_state(
        cls, state: StateDict, recipe: Recipe, description: Description, pictures: ImageSource | None = None
    ) -> Sampler:
        """Rebuild a sampler, in eval mode and without gradients, from what `state_of` returned.

        `pictures` are those that the run was distilled on, if any.
        """
        method, shape, batchnorm = recipe.method, description.input_shape, description.batchnorm
        with seeded_global_rng(recipe.seed, "build", "replay"):  # drawn only to be replaced by what was trained
            generator = Generator.from_table(method.generator, shape, batchnorm=batchnorm)
            doublings = method.generator.upsamplings
            decoder = VAE.from_table(method.vae, shape, batchnorm=batchnorm, upsamplings=doublings).decoder
        generator.load_state_dict(tensors_of(state, "generator"))
        generator.eval().requires_grad_(False)
        novel: ImageSource = GeneratedImages(generator, method.generator.latent)
        if pictures is not None:
            novel = pictures
        elif not method.procedural.leaves_generator:
            novel = ProceduralImages(shape)
        if "decoder" not in state:
            return cls(novel)
        decoder.load_state_dict(tensors_of(state, "decoder"))
        decoder.eval().requires_grad_(False)
        codes = tensor_of(state, "latent_mean"), tensor_of(state, "latent_std")
        return cls(novel, decoder, *codes)

    @torch.no_grad()
    def batch(self, draws: KeyedDraws, purpose: str, index: int, size: int) -> Tensor:
        """Return batch number `index` of a purpose, (size, C, H, W) in float32; without a decoder all are novel."""
        replayed = 0 if self.decoder is None else size // 2
        novel = self.novel.batch(draws, f"{purpose}/novel", index, size - replayed)
        if self.decoder is None or self.code_mean is None or self.code_std is None:
            return novel
        noise = draws.normal(index, f"{purpose}/replay", replayed, len(self.code_mean))
        return torch.cat([novel, self.decoder(noise * self.code_std + self.code_mean)])

    def batches(self, draws: KeyedDraws, purpose: str, count: int, batch_size: int = 64) -> Iterator[Tensor]:
        """Yield `count` samples in batches; the same draws and purpose give the same samples again."""
        for index, start in enumerate(range(0, count, batch_size)):
            yield self.batch(draws, purpose, index, min(batch_size, count - start))
