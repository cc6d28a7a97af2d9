"""One ONNX file in ONNX Runtime. numpy and the runtime are imported when a model is loaded, not before."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from edgekd.agent.device import scratch
from edgekd.agent.device.machine import memory_use, sha256_of
from edgekd.agent.kernels import FLOAT_OPS, INTEGER_OPS, PROVIDERS
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners.inputs import input_shape, noise
from edgekd.agent.runners.npy import array_reply
from edgekd.agent.runners.timing import timed_runs


def import_runtime() -> tuple[Any, Any]:
    """Return numpy and onnxruntime, or say which one is missing."""
    # A BLAS pool of numpy would count as memory and threads of the model.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        import numpy
        import onnxruntime
    except ImportError as error:
        name = error.name or "onnxruntime"
        mend = f"{sys.executable} -m pip install numpy onnxruntime"
        raise RefusedError("machine", f"{name} cannot be imported ({error}); install it: {mend}") from error
    return numpy, onnxruntime


def runtime_errors(ort: Any) -> tuple[type[BaseException], ...]:
    """Return what ONNX Runtime raises: its own classes have no base of their own."""
    state = vars(ort.capi.onnxruntime_pybind11_state).values()
    own = (cls for cls in state if isinstance(cls, type) and issubclass(cls, Exception))
    return (RuntimeError, ValueError, *own)


def open_session(
    ort: Any, path: Path, provider: str, threads: int, profile: str | None = None, *, spin_wait: bool = True
) -> Any:
    """Return a session that runs on `provider` and nowhere else; `profile` starts the name of its log file."""
    if provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise RefusedError("machine", f"this onnxruntime has no {provider}; it has {have}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not spin_wait:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if provider != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
    try:
        session = ort.InferenceSession(str(path), sess_options=options, providers=[provider])
    except runtime_errors(ort) as error:
        kind = "file" if provider == "CPUExecutionProvider" else "machine"
        reason = str(error).strip()
        raise RefusedError(kind, f"{path.name} cannot be loaded on {provider}: {reason}") from error
    active = session.get_providers()
    if active[0] != provider:
        message = f"{provider} was asked for, but ONNX Runtime fell back to {active}; see its messages"
        raise RefusedError("machine", message)
    return session


def model_file(request: dict[str, Any]) -> tuple[Path, str]:
    """Return the file that a load request names and its SHA-256, which must be the one that is expected."""
    path = Path(request["model"])
    if not path.is_file():
        raise RefusedError("file", f"{path} is not a file")
    sha256 = sha256_of(path)
    if request.get("sha256") not in (None, sha256):
        message = f"{path} has SHA-256 {sha256}, not {request['sha256']}: changed or copied in part"
        raise RefusedError("file", message)
    return path, sha256


class OrtModel:
    """One loaded artefact with its input."""

    build_s: float | None = None

    def __init__(self, request: dict[str, Any]) -> None:
        self.path, self.sha256 = model_file(request)
        self.numpy, ort = import_runtime()
        self.ort, self.errors, self.runtime_version = ort, runtime_errors(ort), ort.__version__
        self.provider, self.threads = PROVIDERS[request["runtime"]], request["threads"]
        self.baseline: int | None = memory_use()["resident"]
        begin = time.perf_counter_ns()
        spin_wait = request.get("spin_wait", True)
        self.session = open_session(ort, self.path, self.provider, self.threads, spin_wait=spin_wait)
        self.load_ms = (time.perf_counter_ns() - begin) / 1e6
        inputs = self.session.get_inputs()
        types = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
        if len(inputs) != 1 or inputs[0].type not in types:
            found = ", ".join(f"{one.name} {one.type}" for one in inputs) or "none"
            message = f"{self.path.name} must have one float or uint8 image input; it has {found}"
            raise RefusedError("file", message)
        self.name, self.dtype, self.declared = inputs[0].name, types[inputs[0].type], inputs[0].shape
        self.batch = request["batch"]
        self.feed = {self.name: self._images(request)}
        self.input_shape = list(self.feed[self.name].shape)
        begin = time.perf_counter_ns()
        outputs = self.run(self.feed)
        self.first_inference_ms = (time.perf_counter_ns() - begin) / 1e6
        self.output_shapes = [list(output.shape) for output in outputs]

    def _images(self, request: dict[str, Any]) -> Any:
        if request.get("input") is not None:
            images = self.read_images(request["input"])
            if len(images) < self.batch:
                message = f"{request['input']} holds {len(images)} images, fewer than a batch of {self.batch}"
                raise RefusedError("usage", message)
            return images[: self.batch]
        shape = input_shape(self.path, self.declared, self.batch, request.get("image_shape"))
        return noise(self.numpy, shape, self.dtype, request.get("seed", 0))

    def read_images(self, path: str) -> Any:
        """Return the images of an .npy file, [N, C, H, W], in the model's own input type."""
        try:
            images = self.numpy.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RefusedError("file", f"{path} cannot be read as .npy: {error}") from error
        expected = [size if isinstance(size, int) else None for size in self.declared[1:]]
        fits = images.ndim == len(self.declared) and all(
            want in (None, have)
            for want, have in zip(expected, images.shape[1:])  # noqa: B905
        )
        if not fits or images.dtype != self.numpy.dtype(self.dtype):
            takes = f"{self.path.name} takes {self.dtype} {self.declared}"
            raise RefusedError("file", f"{path} holds {images.dtype} {list(images.shape)}; {takes}")
        return images

    def run(self, feed: dict[str, Any]) -> list[Any]:
        """Return the outputs for one feed."""
        try:
            outputs: list[Any] = self.session.run(None, feed)
        except self.errors as error:
            raise RefusedError("file", f"{self.path.name} cannot be run: {str(error).strip()}") from error
        return outputs

    def settle(self, runs: int) -> None:
        """Run a few times untimed: brings back the caches that the other artefacts' rounds have emptied."""
        for _ in range(runs):
            self.run(self.feed)

    def samples(self, runs: int, seconds: float, most_seconds: float) -> list[float]:
        """Return the milliseconds of each run."""
        return timed_runs(functools.partial(self.session.run, None, self.feed), runs, seconds, most_seconds)

    def logits(self, path: str) -> dict[str, Any]:
        """Return the first output for the images of an .npy file, as base64 of a C-ordered array."""
        images = self.read_images(path)
        chunks = (images[first : first + self.batch] for first in range(0, len(images), self.batch))
        logits = self.numpy.concatenate([self.run({self.name: chunk})[0] for chunk in chunks])
        return array_reply(logits.dtype.str, list(logits.shape), logits.tobytes())

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of this process."""
        return memory_use()["peak"]

    def executed(self) -> dict[str, Any]:
        """Return how many compute nodes (Conv, Gemm, MatMul) really ran, how many as integers, and where."""
        ran = self._executed_ops()
        ops = [node["op_name"] for node in ran]
        integer = sum(op in INTEGER_OPS for op in ops)
        return {
            "integer_nodes": integer,
            "compute_nodes": integer + sum(op in FLOAT_OPS for op in ops),
            "providers": sorted({node["provider"] for node in ran}),
        }

    def _executed_ops(self) -> list[dict[str, str]]:
        """Return `op_name` and `provider` of every node that one profiled run executed."""
        with scratch.folder() as folder:
            prefix = str(folder / "profile")
            session = open_session(self.ort, self.path, self.provider, self.threads, prefix)
            session.run(None, self.feed)
            log = Path(session.end_profiling())
            events = json.loads(log.read_text(encoding="utf-8"))
        return [event["args"] for event in events if event["name"].endswith("_kernel_time")]
