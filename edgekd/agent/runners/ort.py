"""One ONNX file in ONNX Runtime. numpy and the runtime are imported when a model is loaded, not before."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekd.agent.device import scratch
from edgekd.agent.device.machine import memory_use
from edgekd.agent.kernels import FLOAT_OPS, INTEGER_OPS, PROVIDERS
from edgekd.agent.messages import Executed, LogitsArray
from edgekd.agent.refusal import RefusedError, refusal_by_runtime
from edgekd.agent.runners.inputs import input_shape, noise
from edgekd.agent.runners.npy import array_of
from edgekd.agent.runners.runner import Runner, timed_runs


def import_runtime() -> tuple[Any, Any]:
    """Return numpy and onnxruntime, or say which one is missing."""
    # A BLAS pool of numpy would count as memory and threads of the model.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        import numpy
        import onnxruntime
    except Exception as error:  # one that does not fit the other may raise anything
        name = getattr(error, "name", None) or "onnxruntime"
        mend = f"{sys.executable} -m pip install numpy onnxruntime"
        raise RefusedError("machine", f"{name} cannot be imported ({error}); install it: {mend}") from error
    return numpy, onnxruntime


def runtime_errors(ort: Any) -> tuple[type[BaseException], ...]:
    """Return what ONNX Runtime raises: its own classes have no base of their own."""
    state = vars(ort.capi.onnxruntime_pybind11_state).values()
    own = (cls for cls in state if isinstance(cls, type) and issubclass(cls, Exception))
    return (RuntimeError, ValueError, *own)


def create_session(
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
        refused = refusal_by_runtime(f"{path.name} cannot be loaded on {provider}", error)
        raise refused if provider == "CPUExecutionProvider" else RefusedError("machine", str(refused)) from error
    active = session.get_providers()
    if active[0] != provider:
        message = f"{provider} was asked for, but ONNX Runtime fell back to {active}; see its messages"
        raise RefusedError("machine", message)
    return session


class OrtRunner(Runner):
    """An ONNX file in one session."""

    def load(self) -> None:
        """Open the session and run it once."""
        request = self.request
        self.numpy, ort = import_runtime()
        self.ort, self.errors, self.runtime_version = ort, runtime_errors(ort), ort.__version__
        self.provider, self.threads, self.batch = PROVIDERS[request.runtime], request.threads, request.batch
        self.baseline_memory_bytes = memory_use()[0]
        begin = time.perf_counter_ns()
        self.session = create_session(ort, self.path, self.provider, self.threads, spin_wait=request.spin_wait)
        self.load_ms = (time.perf_counter_ns() - begin) / 1e6
        inputs = self.session.get_inputs()
        types = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
        if len(inputs) != 1 or inputs[0].type not in types:
            described = ", ".join(f"{tensor.name} {tensor.type}" for tensor in inputs) or "none"
            message = f"{self.path.name} must have one float or uint8 image input; it has {described}"
            raise RefusedError("file", message)
        answers = [(value.name, value.type) for value in self.session.get_outputs()]
        others = [f"{name} {kind}" for name, kind in answers if "seq(" in kind or "map(" in kind]
        if others:
            message = f"{self.path.name} must answer with tensors to be measured; it has {', '.join(others)}"
            raise RefusedError("file", message)
        self.name, self.dtype, self.declared = inputs[0].name, types[inputs[0].type], inputs[0].shape
        self.images = self._images()
        self.input_shape = tuple(self.images.shape)
        begin = time.perf_counter_ns()
        outputs = self.run(self.images)
        self.first_inference_ms = (time.perf_counter_ns() - begin) / 1e6
        self.output_shapes = tuple(tuple(output.shape) for output in outputs)

    def _images(self) -> Any:
        given = self.request.input
        if given is not None:
            images = self.read_images(Path(given))
            if len(images) < self.batch:
                raise RefusedError("usage", f"{given} holds {len(images)} images, fewer than a batch of {self.batch}")
            return images[: self.batch]
        shape = input_shape(self.path, self.declared, self.batch, self.request.image_shape)
        return noise(self.numpy, shape, self.dtype, self.request.seed)

    def read_images(self, path: Path) -> Any:
        """Return the images of an .npy file, [N, C, H, W], in the model's own input type."""
        try:
            images = self.numpy.load(str(path), allow_pickle=False)
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

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Turn what the runtime raises into a refusal."""
        try:
            yield
        except self.errors as error:
            raise refusal_by_runtime(f"{self.path.name} cannot be run", error) from error

    def run(self, images: Any) -> list[Any]:
        """Return the outputs for one batch."""
        with self._running():
            outputs: list[Any] = self.session.run(None, {self.name: images})
        return outputs

    def settle(self, runs: int) -> None:
        """Run a few times untimed: brings back the caches that the other artefacts' rounds have emptied."""
        for _ in range(runs):
            self.run(self.images)

    def samples(self, runs: int, seconds: float, most_seconds: float) -> list[float]:
        """Return the milliseconds of each run."""
        run = functools.partial(self.session.run, None, {self.name: self.images})
        with self._running():
            return timed_runs(run, runs, seconds, most_seconds)

    def logits(self, images: Path) -> LogitsArray:
        """Return the first output for the images of an .npy file."""
        array = self.read_images(images)
        chunks = (array[first : first + self.batch] for first in range(0, len(array), self.batch))
        with self._running():
            logits = self.numpy.concatenate([self.run(chunk)[0] for chunk in chunks])
        return array_of(logits.dtype.str, logits.shape, logits.tobytes())

    def executed(self) -> Executed:
        """Return which compute nodes one profiled run executed."""
        ran = self._executed_nodes()
        integer = sum(op in INTEGER_OPS for op, _ in ran)
        compute = integer + sum(op in FLOAT_OPS for op, _ in ran)
        return Executed(integer, compute, tuple(sorted({provider for _, provider in ran})))

    def _executed_nodes(self) -> list[tuple[str, str]]:
        """Operator and provider of every node that one profiled run executed."""
        with scratch.folder() as folder:
            prefix = str(folder / "profile")
            session = create_session(self.ort, self.path, self.provider, self.threads, prefix)
            with self._running():
                session.run(None, {self.name: self.images})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        ran = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
        return [(node["op_name"], node["provider"]) for node in ran]
