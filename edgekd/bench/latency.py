"""Statistics of latency samples: summaries, and bootstrap intervals over rounds.

Samples of one round share the machine's mood of that moment, so rounds, not samples, are resampled
(the cluster bootstrap: Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekd.schema import NONNEGATIVE_MS, POSITIVE_MS, RUNS, number, required

Rounds = Sequence[Sequence[float]]

CONFIDENCE = 0.95
RESAMPLES = 2000
_THINNED = 4000  # samples of an artefact that enter a bootstrap; the median needs no more


@dataclass(frozen=True)
class LatencySummary:
    """The distribution of one artefact's latency; throughput is in images, the rest in milliseconds a run."""

    n: int = field(metadata=required(RUNS))
    min_ms: float = field(metadata=required(POSITIVE_MS))
    mean_ms: float = field(metadata=required(POSITIVE_MS))
    p50_ms: float = field(metadata=required(POSITIVE_MS))
    p90_ms: float = field(metadata=required(POSITIVE_MS))
    p95_ms: float = field(metadata=required(POSITIVE_MS))
    p99_ms: float = field(metadata=required(POSITIVE_MS))
    max_ms: float = field(metadata=required(POSITIVE_MS))
    std_ms: float = field(metadata=required(NONNEGATIVE_MS))
    throughput_per_s: float = field(metadata=required(number(1e-12, 1e20)))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def summarize(rounds: Rounds, batch: int) -> LatencySummary:
    """Summarise the samples of all rounds, in ms; std is that of the population."""
    samples = np.concatenate([np.asarray(samples_ms, dtype=np.float64) for samples_ms in rounds])
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, [50, 90, 95, 99]))
    mean = float(samples.mean())
    return LatencySummary(
        n=len(samples),
        min_ms=float(samples.min()),
        mean_ms=mean,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(samples.max()),
        std_ms=float(samples.std()),
        throughput_per_s=batch * 1000 / mean,
    )


def median_estimate(rounds: Rounds, seed: int) -> Estimate:
    """Return the median over all rounds with its interval, in ms."""
    return _estimate(_median(rounds), _resampled_medians(rounds, _draws(len(rounds), seed)))


def speedup_estimate(reference: Rounds, candidate: Rounds, seed: int) -> Estimate:
    """Return median(reference) / median(candidate), above 1 where the candidate is faster.

    Round i of both ran one after the other, so both are resampled by the same draws and what disturbed
    both cancels.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"{len(reference)} rounds cannot be paired with {len(candidate)}")
    draws = _draws(len(reference), seed)
    resampled = _resampled_medians(reference, draws) / _resampled_medians(candidate, draws)
    return _estimate(_median(reference) / _median(candidate), resampled)


def _median(rounds: Rounds) -> float:
    return float(np.median(np.concatenate([np.asarray(samples_ms) for samples_ms in rounds])))


def _draws(rounds: int, seed: int) -> NDArray[np.int64]:
    from edgekd.rng import keyed_seed  # which imports torch, and reading results does without

    generator = np.random.default_rng(keyed_seed(seed, "bench", "bootstrap"))
    return generator.integers(rounds, size=(RESAMPLES, rounds))


def _resampled_medians(rounds: Rounds, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """The pooled median of the rounds named by each row of `draws`."""
    # Every k-th of the sorted samples stands for its neighbours, with one k for all rounds to keep their weights.
    step = max(1, sum(map(len, rounds)) // _THINNED)
    thinned = [np.sort(np.asarray(samples_ms, dtype=np.float64))[(step // 2) :: step] for samples_ms in rounds]
    return np.array([np.median(np.concatenate([thinned[i] for i in draw])) for draw in draws])


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    # On nearly constant samples thinning may move the resampled medians past the exact one by a hair.
    return Estimate(value, min(float(low), value), max(float(high), value))
