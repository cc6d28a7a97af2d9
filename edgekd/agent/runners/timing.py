"""The loop that times runs, the same for every runtime that runs in this process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

SMALLEST_WINDOW = 3  # runs; a window of a slow model is cut short, but a median needs at least these


def timed_runs(run: Callable[[], object], runs: int, seconds: float, most_seconds: float = math.inf) -> list[float]:
    """Return milliseconds of at least `runs` runs and `seconds`, cut short after `most_seconds`."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    gc.disable()
    try:
        begin = end = clock()
        enough, most = begin + int(seconds * 1e9), begin + most_seconds * 1e9
        while (len(samples) < runs or end < enough) and (len(samples) < SMALLEST_WINDOW or end < most):
            start = clock()
            run()
            end = clock()
            samples.append(end - start)
    finally:
        gc.enable()
    return [sample / 1e6 for sample in samples]
