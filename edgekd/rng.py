"""Keyed randomness: every draw is a pure function of (seed, stage, step, purpose).

Nothing in edgekd consumes the global generators, so a resumed run draws what an untouched one draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def keyed_seed(seed: int, *key: str | int) -> int:
    """Return a 63-bit seed derived from the run's seed and a key such as (stage, step, purpose)."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh torch generator on `device`, seeded by `keyed_seed(seed, *key)`."""
    return torch.Generator(device=device).manual_seed(keyed_seed(seed, *key))


@contextmanager
def seeded_global_rng(seed: int, *key: str | int) -> Iterator[None]:
    """Seed the global CPU generator for code that knows no other, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(keyed_seed(seed, *key))
        yield


class KeyedDraws:
    """The random draws of one stage on one device.

    A draw is made for the whole global batch, so that later several processes may each take their slice of it.
    """

    def __init__(self, seed: int, stage: str, device: torch.device) -> None:
        self.seed, self.stage, self.device = seed, stage, device

    def source(self, step: int, purpose: str) -> torch.Generator:
        """Return a fresh torch generator for draws that take one."""
        return generator(self.seed, self.stage, step, purpose, device=self.device)

    def normal(self, step: int, purpose: str, *shape: int) -> torch.Tensor:
        """Return a standard normal tensor of `shape`."""
        return torch.randn(*shape, generator=self.source(step, purpose), device=self.device)

    def uniform(self, step: int, purpose: str, *shape: int) -> torch.Tensor:
        """Return a tensor of `shape`, uniform over [0, 1)."""
        return torch.rand(*shape, generator=self.source(step, purpose), device=self.device)

    def integers(self, step: int, purpose: str, high: int, count: int) -> torch.Tensor:
        """Return `count` integers of [0, high)."""
        return torch.randint(high, (count,), generator=self.source(step, purpose), device=self.device)

    def permutation(self, step: int, purpose: str, count: int) -> torch.Tensor:
        """Return the integers of [0, count) in random order."""
        return torch.randperm(count, generator=self.source(step, purpose), device=self.device)
