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
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from edgekd.agent import messages
from edgekd.agent.device import jetson
from edgekd.agent.device.environment import this_machine
from edgekd.agent.device.machine import Activity, Meter
from edgekd.agent.envelope import ReceivedLine, answering, asked_in
from edgekd.agent.kernels import runner_for
from edgekd.agent.measurement import MemoryUse
from edgekd.agent.messages import PROTOCOL, Done, Refusal, Request
from edgekd.agent.refusal import RefusedError, refusal_of
from edgekd.agent.runners import tensorrt, trtexec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from edgekd.agent.runners.runner import Runner

    Ops = Mapping[type[Request[Any]], Callable[[Any], Any]]
    """How each kind of request is answered."""

WINDOW_S = 0.1


class Worker:
    """Answers requests about one model, one method an op; a context manager that gives the model back."""

    def __init__(self) -> None:
        self._loaded: Runner | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def runner(self) -> Runner:
        """The loaded model."""
        if self._loaded is None:
            raise RefusedError("protocol", "no model is loaded; send load first")
        return self._loaded

    def hello(self, request: messages.Hello) -> messages.Greeting:
        """Say who answers, and with `tensorrt` also which TensorRT is there (trtexec is asked for its version)."""
        tensorrt_facts = tensorrt.find_tensorrt(request.trtexec) if request.tensorrt else None
        return messages.Greeting(PROTOCOL, this_machine(tensorrt_facts, jetson.facts()))

    def observe(self, request: messages.Observe) -> Activity:
        """Watch the machine for `seconds` without doing anything."""
        meter = Meter()
        time.sleep(request.seconds)
        return meter.read()

    def load(self, request: messages.Load) -> messages.Loaded:
        """Load `model` in `runtime` with `threads` and `batch`; run it once."""
        self._loaded = None
        self._held.close()
        self._loaded = self._held.enter_context(runner_for(request))
        return self._loaded.facts()

    def warm_up(self, request: messages.WarmUp) -> messages.WarmedUp:
        """Run windows of `window` runs until the medians of two in a row agree within `agreement`.

        A window lasts 0.1 s at least, the time a governor takes to raise the clock, and a quarter of
        `most_seconds` at most, so that slow models get their windows too.
        """
        runner, most_s = self.runner, request.most_seconds
        begin = time.perf_counter()
        medians: list[float] = []
        stable = False
        while not stable and time.perf_counter() - begin < most_s:
            left_s = most_s - (time.perf_counter() - begin)
            medians.append(median(runner.samples(request.window, WINDOW_S, min(left_s, most_s / 4))))
            stable = len(medians) > 1 and abs(medians[-1] - medians[-2]) <= request.agreement * medians[-2]
        return messages.WarmedUp(stable, tuple(medians), time.perf_counter() - begin)

    def round(self, request: messages.TimeRound) -> messages.Timed:
        """Time at least `runs` runs and `seconds`, after `settle_runs` untimed ones."""
        runner = self.runner
        runner.settle(request.settle_runs)
        meter = Meter()
        gpu = jetson.GpuClockWatch()
        with nullcontext() if "CPU" in runner.provider else gpu:  # a thread that looks would disturb a CPU
            samples = runner.samples(request.runs, request.seconds, math.inf)
        seen = replace(meter.read(), gpu_clock_mhz=gpu.highest_mhz)
        return messages.Timed(**vars(seen), samples_ms=tuple(samples))

    def sustain(self, request: messages.Sustain) -> messages.Sustained:
        """Run for `seconds` without spin wait where the runtime has one; return how often, and how long it took."""
        return self.runner.sustain(request.seconds)

    def logits(self, request: messages.Logits) -> messages.LogitsArray:
        """Return the first output for the images of the .npy file `input`, as base64 of a C-ordered array."""
        return self.runner.logits(Path(request.input))

    def memory(self, _request: messages.Memory) -> MemoryUse:
        """Return the peak memory of this process, and what it held before the model was loaded."""
        return self.runner.memory()

    def executed(self, _request: messages.CountNodes) -> messages.Executed:
        """Return how many compute nodes (Conv, Gemm, MatMul) really ran, how many as integers, and where."""
        return self.runner.executed()

    def ops(self) -> Ops:
        """Return the methods that answer requests."""
        return {
            messages.Hello: self.hello,
            messages.Observe: self.observe,
            messages.Load: self.load,
            messages.WarmUp: self.warm_up,
            messages.TimeRound: self.round,
            messages.Sustain: self.sustain,
            messages.Logits: self.logits,
            messages.Memory: self.memory,
            messages.CountNodes: self.executed,
        }


class Replies:
    """The one writer of stdout; whatever a library prints, from Python or C, goes to stderr instead."""

    def __init__(self) -> None:
        self._out = io.FileIO(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, reply: Any) -> None:
        """Write one object as one line."""
        remaining = memoryview((json.dumps(reply) + "\n").encode("ascii"))
        while remaining:
            remaining = remaining[self._out.write(remaining) :]


def serve_request(line: bytes, ops: Ops, on_asked: Callable[[ReceivedLine], None] = lambda _: None) -> Any:
    """Return the reply to one request line, as a JSON object; `on_asked` is told before the work begins."""
    try:
        asked = asked_in(json.loads(line), list(ops))
    except ValueError as error:
        return answering(None, Refusal("protocol", str(error)))
    if not isinstance(asked.request, Request):
        return answering(asked, asked.request or Done())
    on_asked(asked)
    try:
        reply = ops[type(asked.request)](asked.request)
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything
        refusal = refusal_of(error)
        reply = Refusal(refusal.kind, str(refusal))
    return answering(asked, reply)


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
    ops: Ops,
    silence_s: float | None = None,
    on_asked: Callable[[ReceivedLine], None] = lambda _: None,
) -> int:
    """Serve requests until `quit`, the end of stdin, or `silence_s` without a line: a network ends without a word."""
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_requests, args=(lines, silence_s), daemon=True).start()
    while True:
        reply = serve_request(lines.get(), ops, on_asked)
        replies.send(reply)
        if reply.get("op") == "quit":
            return 0


def main() -> int:
    """Be a worker."""
    with Worker() as worker:
        return converse(Replies(), worker.ops())
