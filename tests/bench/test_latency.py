from __future__ import annotations

import statistics

import numpy as np
import pytest

from edgekd.bench.latency import median_estimate, speedup_estimate, summarize


def lognormal_rounds(
    rounds: int, size: int, median_ms: float, key: int, round_spread: float = 0.0
) -> list[list[float]]:
    rng = np.random.default_rng(key)
    moods = np.exp(round_spread * rng.standard_normal(rounds))
    return [list(median_ms * mood * np.exp(0.1 * rng.standard_normal(size))) for mood in moods]


def test_summary_is_that_of_numpy_and_the_standard_library() -> None:
    rounds = lognormal_rounds(3, 101, 2.0, key=0)
    samples = [sample for one in rounds for sample in one]
    summary = summarize(rounds, batch=8)
    assert summary.n == 303
    assert summary.min_ms == min(samples)
    assert summary.max_ms == max(samples)
    assert summary.mean_ms == pytest.approx(statistics.fmean(samples))
    assert summary.p50_ms == pytest.approx(statistics.median(samples))
    assert summary.std_ms == pytest.approx(statistics.pstdev(samples))
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    assert [summary.p90_ms, summary.p95_ms, summary.p99_ms] == pytest.approx([cuts[89], cuts[94], cuts[98]])
    assert summary.throughput_per_s == pytest.approx(8 * 303 / (sum(samples) / 1000))


def test_rounds_of_different_length_weigh_by_their_samples() -> None:
    assert summarize([[1.0], [3.0, 3.0, 3.0]], batch=1).mean_ms == 2.5
    assert median_estimate([[1.0], [3.0, 3.0, 3.0]], seed=0).value == 3.0


@pytest.mark.slow
def test_interval_holds_the_true_median_about_95_times_in_100() -> None:
    held = 0
    for key in range(60):
        estimate = median_estimate(lognormal_rounds(20, 20, 2.0, key, round_spread=0.05), seed=key)
        assert estimate.low <= estimate.value <= estimate.high
        held += estimate.low <= 2.0 <= estimate.high
    assert 50 <= held < 60


def test_interval_grows_with_the_spread_between_rounds() -> None:
    calm = median_estimate(lognormal_rounds(10, 100, 2.0, key=1), seed=0)
    moody = median_estimate(lognormal_rounds(10, 100, 2.0, key=1, round_spread=0.2), seed=0)
    assert moody.high - moody.low > 3 * (calm.high - calm.low)


def test_disturbances_that_hit_both_cancel_in_the_speedup() -> None:
    rng = np.random.default_rng(0)
    moods = np.exp(0.3 * rng.standard_normal(10))
    slow = [list(4.8 * mood * np.exp(0.01 * rng.standard_normal(50))) for mood in moods]
    fast = [list(2.0 * mood * np.exp(0.01 * rng.standard_normal(50))) for mood in moods]
    paired = speedup_estimate(slow, fast, seed=0)
    assert paired.value == pytest.approx(2.4, rel=0.02)
    assert paired.low == pytest.approx(2.4, rel=0.05)
    assert paired.high == pytest.approx(2.4, rel=0.05)
    unpaired = speedup_estimate(slow, fast[::-1], seed=0)
    assert unpaired.high - unpaired.low > 2 * (paired.high - paired.low)


def test_same_seed_gives_the_same_interval() -> None:
    rounds = lognormal_rounds(10, 50, 2.0, key=3)
    assert median_estimate(rounds, seed=5) == median_estimate(rounds, seed=5)
    assert median_estimate(rounds, seed=5) != median_estimate(rounds, seed=6)


def test_many_samples_give_nearly_the_interval_of_all_of_them() -> None:
    rounds = lognormal_rounds(10, 8000, 2.0, key=4, round_spread=0.05)
    estimate = median_estimate(rounds, seed=0)
    draws = np.random.default_rng(9).integers(10, size=(300, 10))
    exact = np.percentile([np.median(np.concatenate([rounds[i] for i in draw])) for draw in draws], [2.5, 97.5])
    assert estimate.value == np.median(rounds)
    assert [estimate.low, estimate.high] == pytest.approx(list(exact), rel=0.01)


def test_constant_times_have_a_point_for_an_interval() -> None:
    estimate = median_estimate([[2.0] * 5] * 4, seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 2.0, 2.0)


def test_unequal_rounds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="2 rounds cannot be paired with 3"):
        speedup_estimate([[1.0]] * 2, [[1.0]] * 3, seed=0)
