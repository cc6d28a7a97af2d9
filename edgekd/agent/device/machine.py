"""What a latency depends on, read from the machine: CPU, clocks, memory, system, installed runtimes, other work."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.device.files import open_regular
from edgekd.schema import COUNT, CPUS, MHZ, NONNEGATIVE_S, optional, required, with_default

if TYPE_CHECKING:
    from typing import Self

CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "hypervisor",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq/"
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


def read_small_file(path: str | Path) -> str:
    """Return the stripped text of a small file of /proc or /sys; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def fields_of(text: str, separator: str) -> dict[str, str]:
    """Return the first value of every `key<separator>value` line."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, mark, value = line.partition(separator)
        if mark:
            fields.setdefault(key.strip(), value.strip().strip('"'))
    return fields


def kibibytes(fields: dict[str, str], key: str) -> int | None:
    """Return a `123 kB` field of /proc in bytes."""
    value = fields.get(key, "").split()
    return int(value[0]) * 1024 if value else None


def clock_mhz() -> float | None:
    """Return the clock of the fastest core now: the working one, as the idle ones may be clocked down."""
    kilohertz = [
        read_small_file(str(path))
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    ]
    values = [int(value) / 1000 for value in kilohertz if value.isdigit()]
    if not values:
        lines = read_small_file("/proc/cpuinfo").splitlines()
        values = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return max(values) if values else None


def cpu_throttle_events() -> int | None:
    """Return how often the CPUs were throttled by heat since boot, where the kernel counts it (x86)."""
    counts = [
        read_small_file(str(path))
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    ]
    return sum(int(count) for count in counts if count.isdigit()) if counts else None


def cpu_seconds() -> tuple[float, float] | None:
    """Return the seconds all CPUs worked, and those a hypervisor took away, since boot."""
    ticks = [int(value) for value in read_small_file("/proc/stat").partition("\n")[0].split()[1:]]
    if len(ticks) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    hertz = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / hertz, steal / hertz


def own_cpu_seconds() -> float:
    """Return the seconds that this process and the children it has waited for (trtexec) kept a CPU busy."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


@dataclass(frozen=True)
class Activity:
    """What the machine did besides the measured process, between two readings of its monotonic clock."""

    start_s: float = field(metadata=required(NONNEGATIVE_S))
    end_s: float = field(metadata=required(NONNEGATIVE_S))
    other_cpus: float | None = field(metadata=required(optional(CPUS)))
    """CPUs kept busy by other processes; None where the system does not say."""
    stolen_cpus: float | None = field(metadata=required(optional(CPUS)))  # CPUs that a hypervisor gave to others
    clock_mhz: float | None = field(metadata=required(optional(MHZ)))  # of the fastest core, at the end
    throttle_events: int = field(metadata=required(COUNT))
    gpu_clock_mhz: float | None = field(
        default=None, metadata=with_default(optional(MHZ))
    )  # A Jetson's, the highest meanwhile


class Meter:
    """What the machine did besides this process and its children, from the making of the meter to its reading."""

    def __init__(self) -> None:
        self.start_s = time.perf_counter()
        self.own_s = own_cpu_seconds()
        self.cpus = cpu_seconds()
        self.throttles = cpu_throttle_events()

    def read(self) -> Activity:
        """Return the CPUs used by others and taken by a hypervisor, the clock, and heat throttling."""
        mhz = clock_mhz()
        cpus, throttles = cpu_seconds(), cpu_throttle_events()
        own_s, end_s = own_cpu_seconds() - self.own_s, time.perf_counter()
        other = stolen = None
        if cpus is not None and self.cpus is not None:
            other = max(0.0, cpus[0] - self.cpus[0] - own_s) / (end_s - self.start_s)
            stolen = max(0.0, cpus[1] - self.cpus[1]) / (end_s - self.start_s)
        heated = 0
        if throttles is not None and self.throttles is not None:
            heated = max(0, throttles - self.throttles)  # fewer where a core went offline
        return Activity(
            start_s=self.start_s,
            end_s=end_s,
            other_cpus=other,
            stolen_cpus=stolen,
            clock_mhz=mhz,
            throttle_events=heated,
        )


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


def installed_runtimes() -> dict[str, str | None]:
    """Return the version of each build of ONNX Runtime, None where it is not installed."""
    return {package: installed(package) for package in RUNTIME_PACKAGES}


def governor() -> str | None:
    """Return what sets the clock of the first CPU, where the kernel says so."""
    return read_small_file(CPUFREQ + "scaling_governor") or None


def memory_use() -> tuple[int, int]:
    """Return the resident and the peak memory of this process in bytes.

    VmHWM belongs to this program alone; ru_maxrss, the way out elsewhere, keeps the peak of the parent.
    """
    status = fields_of(read_small_file("/proc/self/status"), ":")
    resident, peak = kibibytes(status, "VmRSS"), kibibytes(status, "VmHWM")
    if resident is None or peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        resident = peak
    return resident, peak


class Watch:
    """Looks every `period_s` seconds, in a thread of its own, while the context is open."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._period_s):
            self.look()

    def look(self) -> None:
        """Note what is to be seen now."""
        raise NotImplementedError


class RamWatch(Watch):
    """The most RAM that the whole machine had in use while the context was open; a Jetson's GPU uses the same."""

    def __init__(self) -> None:
        super().__init__(0.05)
        self.peak_bytes = ram_in_use()

    def look(self) -> None:
        """Raise the peak if more is in use now."""
        now = ram_in_use()
        if now is not None:
            self.peak_bytes = max(self.peak_bytes or 0, now)


def ram() -> tuple[int | None, int | None]:
    """Return the RAM of the whole machine, and what of it is available to new programs, in bytes."""
    memory = fields_of(read_small_file("/proc/meminfo"), ":")
    return kibibytes(memory, "MemTotal"), kibibytes(memory, "MemAvailable")


def ram_in_use() -> int | None:
    """Return the RAM of the whole machine that is not available to new programs, in bytes."""
    total, free = ram()
    return None if total is None or free is None else total - free


def publish(temporary: Path, place: Path) -> None:
    """Give a finished file its place, once its content is on the disk: the power may fail at any time."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(place)


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_with(path: Path, others: Sequence[str]) -> str:
    """Return the hex SHA-256 of a file and of others beside it, by their names; of one alone it is the file's own."""
    if not others:
        return sha256_of(path)
    lines = [sha256_of(path), *(f"{sha256_of(path.with_name(name))} {name}" for name in others)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
