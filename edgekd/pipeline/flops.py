"""Arithmetic at work and the arithmetic this machine can do: what a step's utilisation is made of."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product measures the peak; smaller ones do not fill a GPU."""


class FlopsByDtype(TorchDispatchMode):
    """Count the FLOPs of matrix products and convolutions, forward and backward, by the precision they run in.

    A multiply-accumulate counts as two. The formulas are those of `torch.utils.flop_counter`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and add its FLOPs."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            dtype = next(a.dtype for a in args if isinstance(a, torch.Tensor))
            self.flops[dtype] += formula(*args, **(kwargs or {}), out_val=out)
        return out


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
