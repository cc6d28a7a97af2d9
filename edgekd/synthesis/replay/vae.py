"""The VAE of PRE-DFKD learns what the generator shows and replays it: a few MB of weights, no stored image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.machine import Precision, precision_for
from edgekd.recipe.method import MethodTable, VaeTable
from edgekd.rng import KeyedDraws, seeded_global_rng
from edgekd.state_dict import (
    StateDict,
    branch,
    number_of,
    optimizer_state,
    restore_optimizer,
    tensor_of,
    tensors_of,
)
from edgekd.synthesis import losses
from edgekd.synthesis.networks.vae import VAE
from edgekd.synthesis.replay.base import Replay, module_bytes
from edgekd.synthesis.teacher import Teacher, TeacherOutputs

if TYPE_CHECKING:
    from edgekd.synthesis.state import State
    from edgekd.synthesis.steps import StepContext

GATE_DECAY = 0.95
"""Decay an update of the running share of reconstructions that keep the teacher's answer."""


class VaeReplay(Replay):
    """The VAE: learns novel images in pixel and teacher-response space, and rehearses its own memory."""

    waits_for = "too few reconstructions of the VAE kept the teacher's answer (method.vae.gate)"

    @classmethod
    def build(cls, context: StepContext, state: State) -> VaeReplay:
        """Build a VAE whose images have the teacher's shape, its weights drawn from the seed."""
        recipe, method, description = context.recipe, context.recipe.method, context.description
        with seeded_global_rng(recipe.seed, "build", "vae"):
            vae = VAE.from_table(
                method.vae,
                description.input_shape,
                batchnorm=description.batchnorm,
                upsamplings=method.generator.upsamplings,
            ).to(context.draws.device)
        precision = precision_for(vae, context.draws.device, recipe.precision)
        return cls(vae, method.vae, context.teacher, precision, fused=True)

    @staticmethod
    def sampler_state(replay: StateDict, method: MethodTable) -> StateDict:
        """Return the decoder and the moments of its codes, once the gate has opened."""
        if not number_of(replay, "open"):
            return {}
        vae = tensors_of(replay, "vae")
        mean, std = tensor_of(vae, "latent_mean"), tensor_of(vae, "latent_variance").sqrt()
        if method.vae.sampling != "posterior":
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        decoder = {name.removeprefix("decoder."): value for name, value in vae.items() if name.startswith("decoder.")}
        return {"decoder": decoder, "latent_mean": mean, "latent_std": std}

    def learns_at(self, place: int) -> bool:
        """Return whether this is one of the first steps of a period, the generator having moved."""
        return place < self.table.updates

    def networks(self) -> dict[str, nn.Module]:
        """Return encoder and decoder."""
        return {"encoder": self.vae.encoder, "decoder": self.vae.decoder}

    def __init__(self, vae: VAE, table: VaeTable, teacher: Teacher, precision: Precision, *, fused: bool) -> None:
        self.vae, self.table, self.teacher, self.precision = vae, table, teacher, precision
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=table.lr, fused=fused)
        self.kept_answers = 0.0
        self.updates = 0
        self.open = table.gate == 0

    @property
    def ready(self) -> bool:  # type: ignore[override]
        """Whether the gate has opened: reconstructions keep the teacher's answer often enough."""
        return self.open

    def assume_ready(self) -> None:
        """Open the gate."""
        self.open = True

    def sample(self, step: int, count: int, draws: KeyedDraws) -> Tensor:
        """Return decoded codes, the decoder in eval mode."""
        self.vae.eval()
        codes = self._codes(draws.normal(step, "replay", count, self.vae.latent))
        return self.decode(codes)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of codes without a graph."""
        with self.precision():
            images: Tensor = self.vae.decoder(codes)
        return images

    def _codes(self, noise: Tensor, *, leak: float = 0.0) -> Tensor:
        """Turn noise into codes as the recipe says; `leak` also accumulates the decoder's gradient."""
        if self.table.sampling == "tuned":
            return self._tuned(noise, leak)
        return self.vae.codes(noise, posterior=self.table.sampling == "posterior")

    def _tuned(self, z: Tensor, leak: float) -> Tensor:
        """Make the codes' images more confident and class-balanced by one Adam step (PRE-DFKD).

        Adam's first step is lr * sign(gradient). The released code leaves the decoder's gradient of this loss
        uncleared, so that it also trains the decoder: `leak` = 1.
        """
        z = z.detach().requires_grad_()
        weights = list(self.vae.decoder.parameters()) if leak else []
        with torch.enable_grad():
            with self.precision():
                images = self.vae.decoder(z)
            logits = self.teacher.observe(images).logits
            match = self.table.one_hot * losses.one_hot_loss(logits) + self.table.balance * losses.balance_loss(logits)
            (match + losses.latent_moments(z)).backward(inputs=[z, *weights])
        if leak != 1:
            for weight in weights:
                assert weight.grad is not None
                weight.grad.mul_(leak)
        assert z.grad is not None
        return (z - self.table.tuning_lr * z.grad / (z.grad.abs() + 1e-8)).detach()

    def learn(self, step: int, novel: Tensor, seen: TeacherOutputs, draws: KeyedDraws) -> dict[str, Tensor]:
        """Make one update on novel images and rehearsed ones."""
        self.vae.train()
        self.optimizer.zero_grad()
        images, observed = novel[: self.table.novel], [seen.first(self.table.novel)]
        if self.table.rehearsed and self.updates:
            noise = draws.normal(step, "rehearse", self.table.rehearsed, self.vae.latent)
            rehearsed = self.decode(self._codes(noise, leak=self.table.decoder_leak))
            images = torch.cat([images, rehearsed])
            with torch.no_grad():
                observed.append(self.teacher.observe(rehearsed))
        logits = torch.cat([part.logits for part in observed])
        with self.precision():
            noise = draws.normal(step, "reparametrise", len(images), self.vae.latent)
            code, mean, log_variance = self.vae.encode(images, noise)
            reconstruction = self.vae.decoder(code)
        outputs = self.teacher.observe(reconstruction)
        parts = {
            "pixel": F.l1_loss(reconstruction, images),
            "response": F.l1_loss(outputs.logits, logits),
            "kl": losses.kl_to_standard_normal(mean, log_variance),
        }
        if self.table.feature:
            parts["feature"] = F.l1_loss(outputs.features, torch.cat([part.features for part in observed]))
        total = torch.stack([getattr(self.table, name) * value for name, value in parts.items()]).sum()
        total.backward()
        self.optimizer.step()
        self.vae.remember_codes(mean.detach(), log_variance.detach())
        self.updates += 1
        self._judge(outputs.logits.detach(), logits)
        return parts

    def _judge(self, reconstructed: Tensor, original: Tensor) -> None:
        """Follow the share of reconstructions that keep the teacher's answer, and open the gate once."""
        if self.open:
            return
        agreement = (reconstructed.argmax(1) == original.argmax(1)).float().mean().item()
        self.kept_answers = GATE_DECAY * self.kept_answers + (1 - GATE_DECAY) * agreement
        self.open = self.kept_answers >= self.table.gate

    def size_bytes(self) -> int:
        """Return the bytes of the VAE's weights."""
        return module_bytes(self.vae)

    def state_dict(self) -> StateDict:
        """Return networks, moments, the gate and the number of updates."""
        return {
            "vae": self.vae.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "kept_answers": self.kept_answers,
            "updates": self.updates,
            "open": self.open,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the VAE, its optimiser and the gate."""
        self.vae.load_state_dict(tensors_of(state, "vae"))
        restore_optimizer(self.optimizer, branch(state, "optimizer"))
        self.kept_answers, self.open = float(number_of(state, "kept_answers")), bool(number_of(state, "open"))
        self.updates = int(number_of(state, "updates"))
