"""Seconds and FLOPs of some work, and how they are measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch

from edgekd.models.flops import FlopsByDtype
from edgekd.stopping import Stop

_LONGEST_S = 20.0
"""No update of one kind is timed again after so many seconds: where one takes long, the first says enough."""
_TELLING_S = 1.0
"""The same where the number of steps is given, and only what is told of the run depends on it."""
_LEAST_S = 0.3
"""Short updates are timed again until so many seconds have passed."""


@dataclass(frozen=True)
class Cost:
    """Seconds and FLOPs of some work, the FLOPs by the precision they run in."""

    seconds: float
    flops: Mapping[torch.dtype, float]

    def plus(self, other: Cost) -> Cost:
        """Return the cost of both."""
        dtypes = {*self.flops, *other.flops}
        flops = {dtype: self.flops.get(dtype, 0.0) + other.flops.get(dtype, 0.0) for dtype in dtypes}
        return Cost(self.seconds + other.seconds, flops)

    def minus(self, other: Cost) -> Cost:
        """Return the cost of what this does beside the other."""
        return self.plus(other.times(-1))

    def times(self, factor: float) -> Cost:
        """Return the cost of so many of it."""
        return Cost(factor * self.seconds, {dtype: factor * count for dtype, count in self.flops.items()})


NOTHING = Cost(0.0, {})


def total(costs: Iterable[Cost]) -> Cost:
    """Return the cost of all of them."""
    return reduce(Cost.plus, costs, NOTHING)


class Clock:
    """Measures the cost of work that is done again and again, unless it is known from before."""

    def __init__(self, stop: Stop, device: torch.device, least_rounds: int, known: dict[str, Cost]) -> None:
        self._stop, self._device, self._least_rounds, self._known = stop, device, least_rounds, known
        self._before = len(known)
        self._telling_s = _TELLING_S if least_rounds == 1 else _LONGEST_S

    def once(self, name: str, work: Callable[[], object]) -> bool:
        """Do some work once, unless an earlier planning did; return whether it was done now."""
        to_do = self._is_to_do(name)
        if to_do:
            self._known[name] = Cost(self._seconds(work), {})
        return to_do

    def cost(self, name: str, work: Callable[[], object], *, cold: bool = False) -> Cost:
        """Return the FLOPs of the work, and the median of its seconds, since other work only ever slows.

        The first call of each kernel is slow, so the work is done once before, and counted then; where it took long,
        that is no matter. Where it is `cold` its first call is another than all that follow, and counts for nothing.
        """
        if self._is_to_do(name):
            if cold:
                work()
            with FlopsByDtype() as counter:
                first_s = self._seconds(work)
            rounds = [first_s] if first_s >= self._telling_s else []
            while self._wants_another(rounds) and not (rounds and self._stop.requested):
                rounds.append(self._seconds(work))
            self._known[name] = Cost(statistics.median(rounds), dict(counter.flops))
        return self._known[name]

    def _is_to_do(self, name: str) -> bool:
        """Whether it is not known; a stop is heard here, one by the deadline once this call has measured something."""
        if name in self._known:
            return False
        if self._stop.interrupted or len(self._known) > self._before:
            self._stop.raise_if_requested("planning")
        return True

    def _seconds(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def _wants_another(self, rounds: list[float]) -> bool:
        total = sum(rounds)
        enough = len(rounds) >= max(3, self._least_rounds) and total >= _LEAST_S
        return not rounds or (not enough and total < _LONGEST_S and rounds[0] < self._telling_s)
