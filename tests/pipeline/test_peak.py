"""The peak of this machine, and of a mixture of precisions."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch

from edgekd.pipeline import peak

CPU = torch.device("cpu")


def test_the_peak_of_a_mixture_is_that_of_doing_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {torch.float32: 100.0, torch.bfloat16: 400.0}
    monkeypatch.setattr(peak, "matmul_peak", lambda _device, dtype: peaks[dtype])
    mixed = Counter({torch.float32: 1000, torch.bfloat16: 1000})
    assert peak.effective_peak(mixed, CPU) == pytest.approx(2000 / (10 + 2.5))
    assert peak.effective_peak(Counter({torch.bfloat16: 7}), CPU) == pytest.approx(400)


def test_the_measured_peak_is_no_more_than_a_product_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "PEAK_SIDE", {"cpu": 64})
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert peak.matmul_peak(CPU, torch.float32, seconds=5) == 2 * 64**3, "a product that takes one second"
