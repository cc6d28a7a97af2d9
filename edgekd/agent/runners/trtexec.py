"""TensorRT through its own `trtexec`, which needs no Python package: build once, then one process a round."""

from __future__ import annotations

import json
import math
import os
import re
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from edgekd.agent.device import scratch
from edgekd.agent.device.machine import RamWatch, ram_in_use
from edgekd.agent.measurement import MemoryUse
from edgekd.agent.messages import Executed, Load, LogitsArray, Sustained
from edgekd.agent.pipes import STRAY_BYTES
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners.engines import engine_key, engine_of
from edgekd.agent.runners.inputs import input_shape
from edgekd.agent.runners.npy import ITEM_BYTES, array_of_rows, full_batches, read_npy
from edgekd.agent.runners.runner import Runner
from edgekd.agent.runners.tensorrt_rules import build_flags, timing_flags, version_of_banner

JETPACK = "/usr/src/tensorrt/bin/trtexec"
BUILD_TIMEOUT_S = 3600.0
BANNER_TIMEOUT_S = 60.0


def find_trtexec(given: str | None) -> str | None:
    """Return the trtexec to use: the given one, JetPack's, the one on PATH."""
    if given:
        if shutil.which(given) is None:
            raise RefusedError("machine", f"there is no program {given} (--trtexec) on this device")
        return given
    return shutil.which(JETPACK) or shutil.which("trtexec")


def version(tool: str) -> str:
    """Return the TensorRT version that trtexec's first line names."""
    code, text = _run([tool, "--help"], BANNER_TIMEOUT_S)
    version_found = version_of_banner(text)
    if version_found is None:
        line = text.strip().partition("\n")[0]
        how = f"its first line is {line[:120]!r}" if line else "it prints nothing"
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise RefusedError("machine", f"{tool} does not say its TensorRT version; {how}, and it {ended}")
    return version_found


_running: set[subprocess.Popen[bytes]] = set()


def kill_running() -> None:
    """End the trtexec that is at work: whoever waited for it is gone."""
    for process in list(_running):
        process.kill()


def _run(command: list[str], timeout_s: float) -> tuple[int, str]:
    end_s = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise RefusedError("machine", f"{command[0]} cannot be started ({error.strerror})") from error
    _running.add(process)
    try:
        log = _all_of(process, command[0], end_s)
        code = None if log is None else process.wait(max(0.0, end_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        log = code = None
    finally:
        process.kill()
        process.wait()
        _running.discard(process)
    if log is None or code is None:
        raise RefusedError("machine", f"{command[0]} did not end within {timeout_s:g} s")
    return code, log.decode("utf-8", "replace")


def _all_of(process: subprocess.Popen[bytes], tool: str, end_s: float) -> bytes | None:
    """What a process prints until it ends; None where it has not ended by `end_s` of the monotonic clock."""
    assert process.stdout is not None
    printed = bytearray()
    with process.stdout as out:
        while select.select([out], [], [], max(0.0, end_s - time.monotonic()))[0]:
            piece = os.read(out.fileno(), 65536)
            if not piece:
                return bytes(printed)
            printed += piece
            if len(printed) > STRAY_BYTES:
                raise RefusedError("machine", f"{tool} prints without end, which trtexec does not")
    return None


def run_trtexec(command: list[str], timeout_s: float) -> None:
    """Run trtexec; a failure carries its own error lines."""
    code, log = _run(command, timeout_s)
    if code != 0 or "&&&& FAILED" in log:
        lines = log.splitlines()
        errors = [line for line in lines if "[E]" in line][-5:] or lines[-5:]
        raise RefusedError("machine", f"`{shlex.join(command)}` failed (exit code {code}):\n" + "\n".join(errors))


def first_values(file: Path) -> list[float]:
    """Return the values of the first output of an --exportOutput file, which is no JSON where they are not finite."""
    try:
        text = file.read_text(encoding="utf-8")
        (values,) = re.findall(r'"values"\s*:\s*\[([^\]]+)\]', text)[:1]
        return [float(value) for value in values.split(",")]  # nan, -nan, inf and -inf too
    except (OSError, ValueError) as error:
        raise RefusedError("machine", f"trtexec wrote no readable --exportOutput ({error})") from error


class TrtexecRunner(Runner):
    """One engine; every round is a process of its own, timed by trtexec."""

    provider = "trtexec, GPU compute"

    def __init__(self, request: Load, tool: str, gpu: str) -> None:
        super().__init__(request)
        self.tool, self.gpu = tool, gpu

    def load(self) -> None:
        """Build the engine, or take it from the cache."""
        request, tool = self.request, self.tool
        self.runtime_version = version(tool)
        self.batch, self.name, flags = request.batch, request.input_name, request.flags
        self.input_shape = input_shape(self.path, request.declared, self.batch, request.image_shape)
        shape = "x".join(map(str, self.input_shape))
        shapes = [f"--shapes={self.name}:{shape}"] if None in (request.declared or ()) else []
        key = engine_key("trtexec", self.sha256, self.runtime_version, self.gpu, *flags, *shapes)

        def build(engine: Path) -> None:
            onnx = [f"--onnx={self.path}", f"--saveEngine={engine}"]
            command = [tool, *onnx, *build_flags(self.runtime_version), *flags, *shapes]
            self.commands.append(shlex.join(command))
            run_trtexec(command, BUILD_TIMEOUT_S)

        engine, self.build_s = engine_of(request, key, build)
        self.baseline_memory_bytes = self._peak_bytes = ram_in_use()
        self._base = [tool, f"--loadEngine={engine}", *shapes]
        self.commands.append(shlex.join([*self._base, *timing_flags(self.runtime_version)]))

    def _times(self, runs: int, seconds: float, *, spin_wait: bool) -> tuple[list[dict[str, float]], float]:
        """Trtexec's own times of one process, without its warm-up, and the Unix time at which they ended."""
        with scratch.folder() as folder:
            times = folder / "times.json"
            duration = math.ceil(seconds)
            limits = ["--warmUp=200", f"--duration={duration}", f"--iterations={runs}", f"--exportTimes={times}"]
            flags = timing_flags(self.runtime_version, spin_wait=spin_wait)
            with RamWatch() as watch:
                run_trtexec([*self._base, *flags, *limits], BUILD_TIMEOUT_S)
            self._peak_bytes = max(self._peak_bytes or 0, watch.peak_bytes or 0) or None
            try:
                records = json.loads(times.read_text(encoding="utf-8"))
                ended = times.stat().st_mtime
            except (OSError, ValueError) as error:
                raise RefusedError("machine", f"{self.tool} wrote no readable --exportTimes ({error})") from error
        if not records:
            raise RefusedError("machine", f"{self.tool} timed not one run of {self.path.name}")
        return records, ended

    def settle(self, runs: int) -> None:
        """Do nothing: trtexec warms up by itself at the start of each process."""

    def samples(self, runs: int, seconds: float, most_seconds: float) -> list[float]:
        """Return the milliseconds of GPU compute of each run; a window is never cut short here."""
        records, _ended = self._times(max(1, runs), min(seconds, most_seconds), spin_wait=True)
        return [float(record["computeMs"]) for record in records]

    def sustain(self, seconds: float) -> Sustained:
        """Run without spin wait."""
        records, ended = self._times(1, seconds, spin_wait=False)
        span_ms = max(record["endComputeMs"] for record in records) - min(record["startEnqMs"] for record in records)
        return Sustained(len(records), span_ms / 1000, ended)

    def logits(self, images: Path) -> LogitsArray:
        """Return the first output for the images of an .npy file."""
        dtype, shape, data = read_npy(images)
        if shape[1:] != self.input_shape[1:]:
            takes = f"the engine takes {list(self.input_shape[1:])}"
            raise RefusedError("file", f"{images} holds images of {list(shape[1:])}; {takes}")
        image_bytes = ITEM_BYTES[dtype] * math.prod(shape[1:])
        rows: list[list[float]] = []
        for batch, count in full_batches(data, image_bytes, self.batch):
            rows += self._outputs(batch)[:count]
        return array_of_rows(rows)

    def _outputs(self, images: bytes) -> list[list[float]]:
        with scratch.folder() as folder:
            feed, out = folder / "in.bin", folder / "out.json"
            feed.write_bytes(images)
            once = ["--warmUp=0", "--duration=0", "--iterations=1"]
            run_trtexec([*self._base, *once, f"--loadInputs={self.name}:{feed}", f"--exportOutput={out}"], 600.0)
            values = first_values(out)
        width = len(values) // self.batch
        return [values[start : start + width] for start in range(0, len(values), width)]

    def memory(self) -> MemoryUse:
        """Return the most RAM that the whole device had in use while trtexec ran; a Jetson's GPU shares it."""
        return MemoryUse(self._peak_bytes, self.baseline_memory_bytes)

    def executed(self) -> Executed:
        """Return that trtexec does not say which layers ran as integers."""
        return Executed(None, None, ("TensorRT",))
