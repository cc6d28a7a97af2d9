"""What every runtime does with an artefact: a context manager that loads it and gives it back at the end."""

from __future__ import annotations

import gc
import math
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.device.machine import memory_use, sha256_with
from edgekd.agent.measurement import MemoryUse
from edgekd.agent.messages import Executed, Loaded, LogitsArray, Sustained
from edgekd.agent.refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from edgekd.agent.messages import Load


SMALLEST_WINDOW = 3  # runs; a window of a slow model is cut short, but a median needs at least these


class Runner(ABC):
    """One artefact in one runtime. A subclass says how it is loaded, timed and asked; the rest has a default.

    Nothing of a runtime is imported before `load`, which sets what is annotated here and runs the artefact once.
    """

    runtime_version: str
    provider: str
    input_shape: tuple[int, ...]
    output_shapes: tuple[tuple[int, ...], ...] = ()
    build_s: float | None = None
    """Of an engine; None where there is none, or it came from the cache."""
    load_ms: float | None = None
    first_inference_ms: float | None = None
    baseline_memory_bytes: int | None = None
    """Before the artefact was loaded."""

    def __init__(self, request: Load) -> None:
        """Take the file that a request names; its content must be the one that is expected."""
        self.request, self.path = request, Path(request.model)
        self.files = [self.path, *map(self.path.with_name, request.weights)]
        self.commands: list[str] = []
        if not self.path.is_file():
            raise RefusedError("file", f"{self.path} is not a file")
        self.sha256 = sha256_with(self.path, request.weights)
        if request.sha256 not in (None, self.sha256):
            message = f"{self.path} has SHA-256 {self.sha256}, not {request.sha256}: changed or copied in part"
            raise RefusedError("file", message)

    def __enter__(self) -> Self:
        try:
            self.load()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def load(self) -> None:
        """Load the artefact and run it once."""

    @abstractmethod
    def settle(self, runs: int) -> None:
        """Run a few times untimed: brings back the caches that the other artefacts' rounds have emptied."""

    @abstractmethod
    def samples(self, runs: int, seconds: float, most_seconds: float) -> list[float]:
        """Return the milliseconds of each run: at least `runs` and `seconds`, cut short after `most_seconds`."""

    @abstractmethod
    def logits(self, images: Path) -> LogitsArray:
        """Return the first output for the images of an .npy file."""

    def close(self) -> None:  # noqa: B027 - most hold nothing that the end of the process would not give back
        """Give back what was loaded, also in part."""

    def sustain(self, seconds: float) -> Sustained:
        """Run for so long without spin wait where the runtime has one."""
        begin = time.perf_counter()
        count = len(self.samples(1, seconds, math.inf))
        return Sustained(count, time.perf_counter() - begin, time.time())

    def memory(self) -> MemoryUse:
        """Return the peak memory of this process, and what it held before."""
        return MemoryUse(memory_use()[1], self.baseline_memory_bytes)

    def executed(self) -> Executed:
        """Return which compute nodes ran; most runtimes do not say."""
        return Executed(None, None, (self.provider,))

    def facts(self) -> Loaded:
        """Return what is known once it is loaded."""
        return Loaded(
            sha256=self.sha256,
            size_bytes=sum(file.stat().st_size for file in self.files),
            runtime_version=self.runtime_version,
            provider=self.provider,
            input_shape=self.input_shape,
            output_shapes=self.output_shapes,
            build_s=self.build_s,
            commands=tuple(self.commands),
            load_ms=self.load_ms,
            first_inference_ms=self.first_inference_ms,
        )


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
