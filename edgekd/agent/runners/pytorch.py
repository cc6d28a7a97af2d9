"""One exported PyTorch program (.pt2) on the CPU: what the network costs before any ONNX runtime."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

from edgekd.agent.device.machine import memory_use
from edgekd.agent.kernels import PROVIDERS
from edgekd.agent.messages import Executed, LogitsArray
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners.inputs import noise
from edgekd.agent.runners.npy import array_of
from edgekd.agent.runners.runner import Runner, timed_runs


class TorchRunner(Runner):
    """A program with float32 input."""

    provider = PROVIDERS["torch"]

    def load(self) -> None:
        """Load the program and run it once."""
        request = self.request
        try:
            import numpy
            import torch
        except Exception as error:  # one that does not fit the other may raise anything
            mend, name = f"{sys.executable} -m pip install torch numpy", getattr(error, "name", None) or "torch"
            raise RefusedError("machine", f"{name} cannot be imported ({error}); install it: {mend}") from error
        self.numpy, self.torch, self.runtime_version = numpy, torch, str(torch.__version__)
        if request.image_shape is None:
            raise RefusedError("usage", f"{self.path.name} does not say the size of an image; give image_shape")
        torch.set_num_threads(request.threads)
        self.baseline_memory_bytes = memory_use()[0]
        begin = time.perf_counter_ns()
        self.program = torch.export.load(str(self.path)).module()
        self.load_ms = (time.perf_counter_ns() - begin) / 1e6
        self.batch, self.input_shape = request.batch, (request.batch, *request.image_shape)
        self.images = torch.from_numpy(noise(numpy, self.input_shape, "float32", request.seed))
        begin = time.perf_counter_ns()
        output = self._run(self.images)
        self.first_inference_ms = (time.perf_counter_ns() - begin) / 1e6
        self.output_shapes = (tuple(output.shape),)

    def _run(self, images: Any) -> Any:
        with self.torch.inference_mode():
            return self.program(images)

    def settle(self, runs: int) -> None:
        """Run a few times untimed."""
        for _ in range(runs):
            self._run(self.images)

    def samples(self, runs: int, seconds: float, most_seconds: float) -> list[float]:
        """Return the milliseconds of each run."""
        with self.torch.inference_mode():
            return timed_runs(functools.partial(self.program, self.images), runs, seconds, most_seconds)

    def logits(self, images: Path) -> LogitsArray:
        """Return the logits for the images of an .npy file."""
        array = self.torch.from_numpy(self.numpy.load(str(images), allow_pickle=False))
        pieces = [self._run(array[first : first + self.batch]) for first in range(0, len(array), self.batch)]
        logits = self.torch.cat(pieces).numpy()
        return array_of(logits.dtype.str, logits.shape, logits.tobytes())

    def executed(self) -> Executed:
        """Return that PyTorch does not say which kernels ran."""
        return Executed(None, None, ("CPU",))
