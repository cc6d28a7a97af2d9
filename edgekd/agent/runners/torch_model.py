"""One exported PyTorch program (.pt2) on the CPU: what the network costs before any ONNX runtime."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

from edgekd.agent.device.machine import memory_use
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners.inputs import noise
from edgekd.agent.runners.npy import array_reply
from edgekd.agent.runners.ort_model import model_file
from edgekd.agent.runners.timing import timed_runs


class TorchModel:
    """One loaded program with its input, float32."""

    build_s: float | None = None

    def __init__(self, request: dict[str, Any]) -> None:
        self.path, self.sha256 = model_file(request)
        try:
            import numpy
            import torch
        except ImportError as error:
            mend = f"{sys.executable} -m pip install torch numpy"
            raise RefusedError("machine", f"{error.name} cannot be imported ({error}); install it: {mend}") from error
        self.numpy, self.torch, self.runtime_version = numpy, torch, str(torch.__version__)
        self.provider, self.batch = "torch on the CPU", request["batch"]
        torch.set_num_threads(request["threads"])
        self.baseline: int | None = memory_use()["resident"]
        begin = time.perf_counter_ns()
        self.program = torch.export.load(str(self.path)).module()
        self.load_ms = (time.perf_counter_ns() - begin) / 1e6
        self.input_shape = [self.batch, *request["image_shape"]]
        self.images = torch.from_numpy(noise(numpy, self.input_shape, "float32", request.get("seed", 0)))
        begin = time.perf_counter_ns()
        output = self._run(self.images)
        self.first_inference_ms = (time.perf_counter_ns() - begin) / 1e6
        self.output_shapes = [list(output.shape)]

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

    def logits(self, path: str) -> dict[str, Any]:
        """Return the logits for the images of an .npy file, as base64 of a C-ordered array."""
        images = self.torch.from_numpy(self.numpy.load(path, allow_pickle=False))
        pieces = [self._run(images[first : first + self.batch]) for first in range(0, len(images), self.batch)]
        logits = self.torch.cat(pieces).numpy()
        return array_reply(logits.dtype.str, list(logits.shape), logits.tobytes())

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of this process."""
        return memory_use()["peak"]

    def executed(self) -> dict[str, Any]:
        """Return that PyTorch does not say which kernels ran."""
        return {"integer_nodes": None, "compute_nodes": None, "providers": ["CPU"]}
