"""Replay: where the student's old synthetic knowledge comes from.

Four sources share one interface: nothing, a bank of stored images (the memory-bank baseline), a slow copy of the
generator (MAD, arXiv 2209.10359), or the VAE of PRE-DFKD, which stores no image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.checkpoint import optimizer_state, restore_optimizer
from edgekd.machine import Precision
from edgekd.method import ReplayTable, VaeTable
from edgekd.rng import Draws
from edgekd.synthesis import losses
from edgekd.synthesis.teacher import Observation, Teacher
from edgekd.synthesis.vae import VAE

GATE_DECAY = 0.95
"""Decay an update of the running share of reconstructions that keep the teacher's answer."""


class Replay:
    """No replay; also the interface of the other sources."""

    ready = False
    """Whether `sample` has anything worth replaying."""

    def assume_ready(self) -> None:
        """Make `sample` usable at once, for timing a step whose result is thrown away."""

    def sample(self, step: int, count: int, draws: Draws) -> Tensor:
        """Return `count` replayed images without a graph."""
        raise NotImplementedError

    def learn(self, step: int, novel: Tensor, seen: Observation, draws: Draws) -> dict[str, Tensor]:
        """Take in the novel images of this step and what the teacher saw in them; return the losses of doing so."""
        return {}

    def size_bytes(self) -> int:
        """Return what remembering costs in memory."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next step depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class BankReplay(Replay):
    """Stored images, the oldest overwritten first."""

    def __init__(self, table: ReplayTable, shape: tuple[int, int, int], device: torch.device) -> None:
        self.table = table
        self.images = torch.zeros(table.bank_size, *shape, device=device)
        self.stored = 0

    @property
    def ready(self) -> bool:  # type: ignore[override]
        """Whether the bank holds at least one replay batch."""
        return self.stored >= self.table.batch_size

    def assume_ready(self) -> None:
        """Treat the empty bank as full."""
        self.stored = len(self.images)

    def sample(self, step: int, count: int, draws: Draws) -> Tensor:
        """Return stored images drawn with replacement."""
        filled = min(self.stored, len(self.images))
        return self.images[draws.integers(step, "bank", filled, count)]

    def learn(self, step: int, novel: Tensor, seen: Observation, draws: Draws) -> dict[str, Tensor]:
        """Store the first images of the batch when a deposit is due."""
        if step % self.table.bank_period == 0:
            count = min(self.table.batch_size, len(novel))
            places = (torch.arange(count, device=novel.device) + self.stored) % len(self.images)
            self.images[places] = novel[:count]
            self.stored += count
        return {}

    def size_bytes(self) -> int:
        """Return the bytes of the bank."""
        return self.images.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return the images and how many were ever stored."""
        return {"images": self.images, "stored": self.stored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bank."""
        self.images.copy_(state["images"])
        self.stored = int(state["stored"])


class EmaGeneratorReplay(Replay):
    """The slow copy of the generator, which the algorithm keeps anyway."""

    ready = True

    def __init__(self, generator_ema: nn.Module, latent: int, precision: Precision) -> None:
        self.generator_ema, self.latent, self.precision = generator_ema, latent, precision

    @torch.no_grad()
    def sample(self, step: int, count: int, draws: Draws) -> Tensor:
        """Return images of the slow copy."""
        with self.precision():
            images: Tensor = self.generator_ema(draws.normal(step, "replay", count, self.latent))
        return images

    def size_bytes(self) -> int:
        """Return the bytes of the slow copy's weights."""
        return module_bytes(self.generator_ema)


class VaeReplay(Replay):
    """The VAE: learns novel images in pixel and teacher-response space, and rehearses its own memory."""

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

    def sample(self, step: int, count: int, draws: Draws) -> Tensor:
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
            match = self.table.one_hot * losses.one_hot(logits) + self.table.balance * losses.balance(logits)
            (match + losses.latent_moments(z)).backward(inputs=[z, *weights])
        if leak != 1:
            for weight in weights:
                assert weight.grad is not None
                weight.grad.mul_(leak)
        assert z.grad is not None
        return (z - self.table.tuning_lr * z.grad / (z.grad.abs() + 1e-8)).detach()

    def learn(self, step: int, novel: Tensor, seen: Observation, draws: Draws) -> dict[str, Tensor]:
        """Make one update on novel images and rehearsed ones."""
        self.vae.train()
        self.optimizer.zero_grad()
        images, known = novel[: self.table.novel], [seen.first(self.table.novel)]
        if self.table.rehearsed and self.updates:
            noise = draws.normal(step, "rehearse", self.table.rehearsed, self.vae.latent)
            rehearsed = self.decode(self._codes(noise, leak=self.table.decoder_leak))
            images = torch.cat([images, rehearsed])
            with torch.no_grad():
                known.append(self.teacher.observe(rehearsed))
        logits = torch.cat([part.logits for part in known])
        with self.precision():
            noise = draws.normal(step, "reparametrise", len(images), self.vae.latent)
            code, mean, log_variance = self.vae.encode(images, noise)
            reconstruction = self.vae.decoder(code)
        found = self.teacher.observe(reconstruction)
        parts = {
            "pixel": F.l1_loss(reconstruction, images),
            "response": F.l1_loss(found.logits, logits),
            "kl": losses.kl_to_standard_normal(mean, log_variance),
        }
        if self.table.feature:
            parts["feature"] = F.l1_loss(found.features, torch.cat([part.features for part in known]))
        total = torch.stack([getattr(self.table, name) * value for name, value in parts.items()]).sum()
        total.backward()
        self.optimizer.step()
        self.vae.remember_codes(mean.detach(), log_variance.detach())
        self.updates += 1
        self._judge(found.logits.detach(), logits)
        return parts

    def _judge(self, reconstructed: Tensor, original: Tensor) -> None:
        """Follow the share of reconstructions that keep the teacher's answer, and open the gate once."""
        if self.open:
            return
        kept = (reconstructed.argmax(1) == original.argmax(1)).float().mean().item()
        self.kept_answers = GATE_DECAY * self.kept_answers + (1 - GATE_DECAY) * kept
        self.open = self.kept_answers >= self.table.gate

    def size_bytes(self) -> int:
        """Return the bytes of the VAE's weights."""
        return module_bytes(self.vae)

    def state_dict(self) -> dict[str, Any]:
        """Return networks, moments, the gate and the number of updates."""
        return {
            "vae": self.vae.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "kept_answers": self.kept_answers,
            "updates": self.updates,
            "open": self.open,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the VAE, its optimiser and the gate."""
        self.vae.load_state_dict(state["vae"])
        restore_optimizer(self.optimizer, state.get("optimizer", {}))
        self.kept_answers, self.open = float(state["kept_answers"]), bool(state["open"])
        self.updates = int(state["updates"])


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
