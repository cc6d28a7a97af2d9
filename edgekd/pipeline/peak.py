"""The arithmetic that this machine can do, which a step's utilisation is measured by."""

from __future__ import annotations

import time
from collections import Counter

import torch

PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product measures the peak; smaller ones do not fill a GPU."""


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Return the FLOP/s of square matrix products in `dtype`, the best of as many as fit into `seconds`."""
    side = PEAK_SIDE[device.type]
    # Not ones: a GPU that toggles few bits draws less power and clocks higher.
    a = torch.randn(side, side, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return float(2 * side**3 / best)


def effective_peak(flops: Counter[torch.dtype], device: torch.device) -> float:
    """Return the FLOP/s of doing `flops` at the measured peak of each precision in turn."""
    ideal_seconds = sum(count / matmul_peak(device, dtype) for dtype, count in flops.items())
    return sum(flops.values()) / ideal_seconds
