"""The process that measures one artefact, and the conversation with it.

It speaks JSON lines: a request a line on stdin, a reply a line on stdout, and nothing else on stdout, ever.
The end of stdin ends the process at once, even in the middle of a round: whoever asked is gone.

    {"id": 1, "op": "round", "runs": 50, "seconds": 0.5}
    {"id": 1, "ok": true, "samples_ms": [...], ...}
    {"id": 1, "progress": {...}}                                before the reply, from `serve`
    {"id": 1, "ok": false, "kind": "file", "error": "..."}      kind: file, usage, machine, busy or protocol
"""

from __future__ import annotations

import io
import json
import math
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

from edgekd.agent.device import jetson
from edgekd.agent.device.machine import Meter, machine_facts
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners import tensorrt, trtexec

PROTOCOL = 2
WINDOW_S = 0.1


def load_model(request: dict[str, Any]) -> Any:
    """Return the loaded model of a request's `runtime`."""
    if request["runtime"] == "torch":
        from edgekd.agent.runners.torch_model import TorchModel

        return TorchModel(request)
    if request["runtime"] == "tensorrt":
        return tensorrt.load(request)
    from edgekd.agent.runners.ort_model import OrtModel

    return OrtModel(request)


class Worker:
    """Answers requests about one model, one method an op."""

    def __init__(self) -> None:
        self.loaded: Any = None

    def model(self) -> Any:
        """Return the loaded model."""
        if self.loaded is None:
            raise RefusedError("protocol", "no model is loaded; send load first")
        return self.loaded

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say who answers, and with `tensorrt` also which TensorRT is there (trtexec is asked for its version)."""
        found = tensorrt.find(request.get("trtexec")) if request.get("tensorrt") else None
        return {"protocol": PROTOCOL, "machine": {**machine_facts(), "tensorrt": found, "jetson": jetson.facts()}}

    def observe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Watch the machine for `seconds` without doing anything."""
        meter = Meter()
        time.sleep(request["seconds"])
        return meter.read()

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load `model` in `runtime` with `threads` and `batch`; run it once."""
        self.loaded = model = load_model(request)
        return {
            "sha256": model.sha256,
            "size_bytes": model.path.stat().st_size,
            "runtime_version": model.runtime_version,
            "provider": model.provider,
            "input_shape": model.input_shape,
            "output_shapes": model.output_shapes,
            "build_s": model.build_s,
            "commands": getattr(model, "commands", []),
            "load_ms": model.load_ms,
            "first_inference_ms": model.first_inference_ms,
        }

    def warm_up(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run windows of `window` runs until the medians of two in a row agree within `agreement`.

        A window lasts 0.1 s at least, the time a governor takes to raise the clock, and a quarter of
        `most_seconds` at most, so that slow models get their windows too.
        """
        model, most_s = self.model(), request["most_seconds"]
        begin = time.perf_counter()
        medians: list[float] = []
        stable = False
        while not stable and time.perf_counter() - begin < most_s:
            left_s = most_s - (time.perf_counter() - begin)
            medians.append(median(model.samples(request["window"], WINDOW_S, min(left_s, most_s / 4))))
            stable = len(medians) > 1 and abs(medians[-1] - medians[-2]) <= request["agreement"] * medians[-2]
        return {"stable": stable, "medians_ms": medians, "seconds": time.perf_counter() - begin}

    def round(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time at least `runs` runs and `seconds`, after `settle_runs` untimed ones."""
        model = self.model()
        model.settle(request["settle_runs"])
        meter = Meter()
        gpu = jetson.GpuClockWatch()
        with nullcontext() if "CPU" in model.provider else gpu:  # a thread that looks would disturb a CPU
            samples = model.samples(request["runs"], request["seconds"], math.inf)
        return {**meter.read(), "gpu_clock_mhz": gpu.highest_mhz, "samples_ms": samples}

    def sustain(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run for `seconds` without spin wait where the runtime has one; return how often, and how long it took."""
        model = self.model()
        runs: Callable[[float], tuple[int, float, float]] | None = getattr(model, "sustain", None)
        if runs is not None:
            count, seconds, ended = runs(request["seconds"])
            return {"runs": count, "seconds": seconds, "end_unix_s": ended}
        begin = time.perf_counter()
        samples = model.samples(1, request["seconds"], math.inf)
        return {"runs": len(samples), "seconds": time.perf_counter() - begin, "end_unix_s": time.time()}

    def logits(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the first output for the images of the .npy file `input`, as base64 of a C-ordered array."""
        logits: dict[str, Any] = self.model().logits(request["input"])
        return logits

    def memory(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Return the peak memory of this process, and what it held before the model was loaded."""
        model = self.model()
        return {"peak_memory_bytes": model.peak_memory_bytes(), "baseline_memory_bytes": model.baseline}

    def executed(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Return how many compute nodes (Conv, Gemm, MatMul) really ran, how many as integers, and where."""
        ran: dict[str, Any] = self.model().executed()
        return ran

    def ops(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return the methods that answer requests."""
        return {
            "hello": self.hello,
            "observe": self.observe,
            "load": self.load,
            "warm_up": self.warm_up,
            "round": self.round,
            "sustain": self.sustain,
            "logits": self.logits,
            "memory": self.memory,
            "executed": self.executed,
        }


def answer(line: bytes, ops: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> dict[str, Any]:
    """Return the reply to one request line."""
    try:
        request = json.loads(line)
    except ValueError as error:
        return {"id": None, "ok": False, "kind": "protocol", "error": f"not JSON: {error}"}
    if not isinstance(request, dict) or request.get("op") not in (*ops, "quit"):
        message = f"a request is an object with an op of: {', '.join([*ops, 'quit'])}"
        return {"id": None, "ok": False, "kind": "protocol", "error": message}
    reply = {"id": request.get("id"), "ok": True, "op": request["op"]}
    if request["op"] == "quit":
        return reply
    try:
        reply.update(ops[request["op"]](request))
    except RefusedError as refusal:
        reply.update(ok=False, kind=refusal.kind, error=str(refusal))
    except OSError as error:
        reply.update(ok=False, kind="machine", error=f"{error.strerror or error} ({error.filename or 'no file'})")
    return reply


class Replies:
    """The one writer of stdout; whatever a library prints, from Python or C, goes to stderr instead."""

    def __init__(self) -> None:
        self._out = io.FileIO(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, reply: dict[str, Any]) -> None:
        """Write one object as one line."""
        remaining = memoryview((json.dumps(reply) + "\n").encode("ascii"))
        while remaining:
            remaining = remaining[self._out.write(remaining) :]


def _read_requests(lines: queue.Queue[bytes], silence_s: float | None) -> None:
    """Pass on each line of stdin; at its end, or after `silence_s`, end the process whatever it is doing."""
    # Unbuffered: a buffered reader's lock would be held while the interpreter shuts down.
    stdin = io.FileIO(0)
    while silence_s is None or select.select([stdin], [], [], silence_s)[0]:
        line = stdin.readline()
        if not line:
            break
        if line.strip():  # else a sign of life
            lines.put(line)
    trtexec.kill_running()
    os._exit(0)


def converse(
    replies: Replies,
    ops: dict[str, Callable[[dict[str, Any]], dict[str, Any]]],
    silence_s: float | None = None,
) -> int:
    """Serve requests until `quit`, the end of stdin, or `silence_s` without a line: a network ends without a word."""
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_requests, args=(lines, silence_s), daemon=True).start()
    while True:
        reply = answer(lines.get(), ops)
        replies.send(reply)
        if reply.get("op") == "quit":
            return 0


def main() -> int:
    """Be a worker."""
    return converse(Replies(), Worker().ops())
