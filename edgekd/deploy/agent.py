"""The process that measures one ONNX file: one file, standard library only, Python 3.8 or newer.

It speaks JSON lines: a request a line on stdin, a reply a line on stdout, and nothing else on stdout, ever.
It imports nothing of edgekd, so the same file runs here as a child and on a device at the far end of ssh.
numpy and ONNX Runtime are imported when a model is loaded; a machine without them still answers `hello`.
The end of stdin ends the process at once, even in the middle of a round: whoever asked is gone.

    {"id": 1, "op": "round", "runs": 50, "seconds": 0.5}
    {"id": 1, "ok": true, "samples_ms": [...], ...}
    {"id": 1, "ok": false, "kind": "file", "error": "..."}      kind: file, usage, machine or protocol
"""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import json
import math
import os
import platform
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

PROTOCOL = 1
CPU_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "hypervisor"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
INTEGER_OPS = {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
FLOAT_OPS = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}
WINDOW_S = 0.1
SMALLEST_WINDOW = 3  # runs; a window of a slow model is cut short, but a median needs at least these


class RefusedError(Exception):
    """A request that cannot be served; `kind` says whether the file, the usage or the machine is at fault."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# ---- the machine ----------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """Return the stripped text of a small file of /proc or /sys; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def fields_of(text: str, separator: str) -> dict[str, str]:
    """Return the first value of every `key<separator>value` line."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if found:
            fields.setdefault(key.strip(), value.strip().strip('"'))
    return fields


def kibibytes(fields: dict[str, str], key: str) -> int | None:
    """Return a `123 kB` field of /proc in bytes."""
    value = fields.get(key, "").split()
    return int(value[0]) * 1024 if value else None


def clock_mhz() -> float | None:
    """Return the clock of the fastest core now: the working one, as the idle ones may be clocked down."""
    kilohertz = [
        read_text(str(path)) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    ]
    values = [int(value) / 1000 for value in kilohertz if value.isdigit()]
    if not values:
        lines = read_text("/proc/cpuinfo").splitlines()
        values = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return max(values) if values else None


def throttle_events() -> int | None:
    """Return how often the CPUs were throttled by heat since boot, where the kernel counts it (x86)."""
    counts = [
        read_text(str(path))
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    ]
    return sum(int(count) for count in counts if count.isdigit()) if counts else None


def cpu_seconds() -> tuple[float, float] | None:
    """Return the seconds all CPUs worked, and those a hypervisor took away, since boot."""
    ticks = [int(value) for value in read_text("/proc/stat").partition("\n")[0].split()[1:]]
    if len(ticks) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    hertz = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / hertz, steal / hertz


class Meter:
    """What the machine did besides this process, from the making of the meter to its reading."""

    def __init__(self) -> None:
        self.start_s = time.perf_counter()
        self.own_s = time.process_time()
        self.cpus = cpu_seconds()
        self.throttles = throttle_events()

    def read(self) -> dict[str, Any]:
        """Return the CPUs used by others and taken by a hypervisor, the clock, and heat throttling."""
        mhz = clock_mhz()
        cpus, throttles = cpu_seconds(), throttle_events()
        own_s, end_s = time.process_time() - self.own_s, time.perf_counter()
        other = stolen = None
        if cpus is not None and self.cpus is not None:
            other = max(0.0, cpus[0] - self.cpus[0] - own_s) / (end_s - self.start_s)
            stolen = (cpus[1] - self.cpus[1]) / (end_s - self.start_s)
        return {
            "start_s": self.start_s,
            "end_s": end_s,
            "other_cpus": other,
            "stolen_cpus": stolen,
            "clock_mhz": mhz,
            "throttle_events": throttles - self.throttles
            if throttles is not None and self.throttles is not None
            else 0,
        }


def usable_cpus() -> float:
    """Return the CPUs this process may use: its affinity, cut by the quota of its control group."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    quota, _, period = read_text("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(count, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else count


def gpu_names() -> list[str]:
    """Return `name, driver version` of each NVIDIA GPU that nvidia-smi lists."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def installed(package: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine_facts() -> dict[str, Any]:
    """Return what a latency depends on: CPU, clocks, memory, system and the installed runtimes."""
    cpu = fields_of(read_text("/proc/cpuinfo"), ":")
    memory = fields_of(read_text("/proc/meminfo"), ":")
    cpufreq = "/sys/devices/system/cpu/cpu0/cpufreq/"
    max_khz = read_text(cpufreq + "cpuinfo_max_freq")
    board = read_text("/proc/device-tree/model")
    present = set((cpu.get("flags") or cpu.get("Features") or "").split())
    versions = {package: installed(package) for package in RUNTIME_PACKAGES}
    return {
        "cpu_model": cpu.get("model name") or cpu.get("Hardware") or board or platform.processor() or "unknown",
        "board": board or None,
        "architecture": platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in present],
        "cpus": os.cpu_count() or 1,
        "usable_cpus": usable_cpus(),
        "governor": read_text(cpufreq + "scaling_governor") or None,
        "clock_mhz": clock_mhz(),
        "max_clock_mhz": int(max_khz) / 1000 if max_khz.isdigit() else None,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory_bytes": kibibytes(memory, "MemTotal"),
        "free_memory_bytes": kibibytes(memory, "MemAvailable"),
        "gpus": gpu_names(),
        "system": fields_of(read_text("/etc/os-release"), "=").get("PRETTY_NAME") or platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "numpy": installed("numpy"),
        "runtime_packages": {package: version for package, version in versions.items() if version},
    }


# ---- the model ------------------------------------------------------------------------------------------


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


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def open_session(ort: Any, path: Path, provider: str, threads: int, profile: str | None = None) -> Any:
    """Return a session that runs on `provider` and nowhere else; `profile` starts the name of its log file."""
    if provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise RefusedError("machine", f"this onnxruntime has no {provider}; it has {have}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
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


def input_shape(path: Path, declared: list[Any], batch: int, image: list[int] | None) -> list[int]:
    """Return the declared shape with its open dimensions filled: the batch first, then those of `image`."""
    if not declared or (isinstance(declared[0], int) and declared[0] != batch):
        fixed = declared[0] if declared else "none"
        message = f"{path.name} was exported with a fixed batch of {fixed}; batch {batch} cannot be measured"
        raise RefusedError("usage", message)
    rest = image if image is not None and len(image) == len(declared) - 1 else declared[1:]
    clash = any(isinstance(want, int) and want != have for want, have in zip(declared[1:], rest))  # noqa: B905
    if clash or (image is not None and rest is not image):
        raise RefusedError("usage", f"the input of {path.name} is {declared}; {image} does not fit it")
    if not all(isinstance(size, int) for size in rest):
        message = f"the input of {path.name} is {declared}; give the size of an image, for example 3x224x224"
        raise RefusedError("usage", message)
    return [batch, *rest]


def noise(numpy: Any, shape: list[int], dtype: str, seed: int) -> Any:
    """Return noise that is the same on every machine: bytes, or for floats sums of four, mean 0, variance 1."""
    count = math.prod(shape)
    summands = 1 if dtype == "uint8" else 4
    length = count * summands
    drawn = random.Random(seed).getrandbits(8 * length).to_bytes(length, "little")
    values = numpy.frombuffer(drawn, dtype=numpy.uint8).reshape(summands, *shape)
    if dtype == "uint8":
        return values[0].copy()
    spread = math.sqrt(4 * (256**2 - 1) / 12)
    return ((values.sum(axis=0, dtype=numpy.float32) - 510) / spread).astype(dtype)


class Model:
    """One loaded artefact with its input."""

    def __init__(self, request: dict[str, Any]) -> None:
        path = Path(request["model"])
        if not path.is_file():
            raise RefusedError("file", f"{path} is not a file")
        self.path, self.sha256 = path, sha256_of(path)
        if request.get("sha256") not in (None, self.sha256):
            message = f"{path} has SHA-256 {self.sha256}, not {request['sha256']}: changed or copied in part"
            raise RefusedError("file", message)
        self.numpy, ort = import_runtime()
        self.ort, self.errors = ort, runtime_errors(ort)
        self.provider, self.threads = request["provider"], request["threads"]
        self.baseline = memory_use()["resident"]
        begin = time.perf_counter_ns()
        self.session = open_session(ort, path, self.provider, self.threads)
        self.load_ms = (time.perf_counter_ns() - begin) / 1e6
        inputs = self.session.get_inputs()
        types = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
        if len(inputs) != 1 or inputs[0].type not in types:
            found = ", ".join(f"{one.name} {one.type}" for one in inputs) or "none"
            message = f"{path.name} must have one float or uint8 image input; it has {found}"
            raise RefusedError("file", message)
        self.name, self.dtype, self.declared = inputs[0].name, types[inputs[0].type], inputs[0].shape
        self.batch = request["batch"]
        self.feed = {self.name: self._images(request)}
        begin = time.perf_counter_ns()
        self.outputs = self.run(self.feed)
        self.first_inference_ms = (time.perf_counter_ns() - begin) / 1e6

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

    def samples(self, runs: int, seconds: float, most_seconds: float = math.inf) -> list[int]:
        """Return nanoseconds of at least `runs` runs and `seconds`, cut short after `most_seconds`."""
        run, feed, clock = self.session.run, self.feed, time.perf_counter_ns
        samples: list[int] = []
        begin = clock()
        enough, most = begin + int(seconds * 1e9), begin + most_seconds * 1e9
        gc.disable()
        try:
            end = begin
            while (len(samples) < runs or end < enough) and (len(samples) < SMALLEST_WINDOW or end < most):
                start = clock()
                run(None, feed)
                end = clock()
                samples.append(end - start)
        finally:
            gc.enable()
        return samples


def executed_ops(model: Model) -> list[dict[str, str]]:
    """Return `op_name` and `provider` of every node that one profiled run of the model executed."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        session = open_session(model.ort, model.path, model.provider, model.threads, prefix)
        session.run(None, model.feed)
        log = Path(session.end_profiling())
        events = json.loads(log.read_text(encoding="utf-8"))
    return [event["args"] for event in events if event["name"].endswith("_kernel_time")]


def memory_use() -> dict[str, int]:
    """Return the resident and the peak memory of this process in bytes.

    VmHWM belongs to this program alone; ru_maxrss, the way out elsewhere, keeps the peak of the parent.
    """
    status = fields_of(read_text("/proc/self/status"), ":")
    resident, peak = kibibytes(status, "VmRSS"), kibibytes(status, "VmHWM")
    if resident is None or peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        resident = peak
    return {"resident": resident, "peak": peak}


# ---- the conversation -----------------------------------------------------------------------------------


class Agent:
    """Answers requests, one method an op."""

    def __init__(self) -> None:
        self.loaded: Model | None = None

    def model(self) -> Model:
        """Return the loaded model."""
        if self.loaded is None:
            raise RefusedError("protocol", "no model is loaded; send load first")
        return self.loaded

    def hello(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Say who answers."""
        return {"protocol": PROTOCOL, "machine": machine_facts()}

    def observe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Watch the machine for `seconds` without doing anything."""
        meter = Meter()
        time.sleep(request["seconds"])
        return meter.read()

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load `model` on `provider` with `threads` and `batch`; run it once."""
        self.loaded = model = Model(request)
        return {
            "sha256": model.sha256,
            "size_bytes": model.path.stat().st_size,
            "runtime_version": model.ort.__version__,
            "providers": model.session.get_providers(),
            "input_shape": list(model.feed[model.name].shape),
            "output_shapes": [list(output.shape) for output in model.outputs],
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
            window = model.samples(request["window"], WINDOW_S, min(left_s, most_s / 4))
            medians.append(median(window) / 1e6)
            stable = len(medians) > 1 and abs(medians[-1] - medians[-2]) <= request["agreement"] * medians[-2]
        return {"stable": stable, "medians_ms": medians, "seconds": time.perf_counter() - begin}

    def round(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time at least `runs` runs and `seconds`, after `settle_runs` untimed ones.

        The untimed runs bring back the caches that the other artefacts' rounds have emptied.
        """
        model = self.model()
        for _ in range(request["settle_runs"]):
            model.run(model.feed)
        meter = Meter()
        samples = model.samples(request["runs"], request["seconds"])
        return {**meter.read(), "samples_ms": [sample / 1e6 for sample in samples]}

    def logits(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the first output for the images of the .npy file `input`, as base64 of a C-ordered array."""
        model = self.model()
        images = model.read_images(request["input"])
        chunks = (images[first : first + model.batch] for first in range(0, len(images), model.batch))
        logits = model.numpy.concatenate([model.run({model.name: chunk})[0] for chunk in chunks])
        data = base64.b64encode(logits.tobytes()).decode("ascii")
        return {"dtype": logits.dtype.str, "shape": list(logits.shape), "base64": data}

    def memory(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Return the peak memory of this process, and what it held before the model was loaded."""
        return {"peak_memory_bytes": memory_use()["peak"], "baseline_memory_bytes": self.model().baseline}

    def executed(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Return how many compute nodes (Conv, Gemm, MatMul) really ran, how many as integers, and where."""
        ran = executed_ops(self.model())
        ops = [node["op_name"] for node in ran]
        integer = sum(op in INTEGER_OPS for op in ops)
        return {
            "integer_nodes": integer,
            "compute_nodes": integer + sum(op in FLOAT_OPS for op in ops),
            "providers": sorted({node["provider"] for node in ran}),
        }

    def answer(self, line: bytes) -> dict[str, Any]:
        """Return the reply to one request line."""
        ops: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "hello": self.hello,
            "observe": self.observe,
            "load": self.load,
            "warm_up": self.warm_up,
            "round": self.round,
            "logits": self.logits,
            "memory": self.memory,
            "executed": self.executed,
            "quit": lambda _request: {},
        }
        try:
            request = json.loads(line)
        except ValueError as error:
            return {"id": None, "ok": False, "kind": "protocol", "error": f"not JSON: {error}"}
        if not isinstance(request, dict) or request.get("op") not in ops:
            message = f"a request is an object with an op of: {', '.join(ops)}"
            return {"id": None, "ok": False, "kind": "protocol", "error": message}
        reply = {"id": request.get("id"), "ok": True, "op": request["op"]}
        try:
            reply.update(ops[request["op"]](request))
        except RefusedError as refusal:
            reply.update(ok=False, kind=refusal.kind, error=str(refusal))
        return reply


def read_requests(lines: queue.Queue[bytes]) -> None:
    """Pass on each line of stdin; at its end, end the process whatever it is doing."""
    # Unbuffered: a buffered reader's lock would be held while the interpreter shuts down.
    for line in io.FileIO(0):
        lines.put(line)
    os._exit(0)


def main() -> int:
    """Serve requests until `quit` or the end of stdin."""
    replies = io.FileIO(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints, from Python or C, goes to stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=read_requests, args=(lines,), daemon=True).start()
    agent = Agent()
    while True:
        reply = agent.answer(lines.get())
        remaining = memoryview((json.dumps(reply) + "\n").encode("ascii"))
        while remaining:
            remaining = remaining[replies.write(remaining) :]
        if reply.get("op") == "quit":
            return 0


if __name__ == "__main__":
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]  # this file's neighbours are not its libraries
    sys.exit(main())
