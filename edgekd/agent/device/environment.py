"""The machine a latency was measured on, and what is wrong with its runtimes."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field

from edgekd import cpus, schema
from edgekd.agent.device import machine
from edgekd.agent.device.jetson import Jetson
from edgekd.schema import integer, list_of, mapping_of, number, object_of, optional, required, text

_VERSION = text(60, r"[0-9]{1,4}\.[0-9]{1,4}(\.[0-9A-Za-z.+-]+)?")


@dataclass(frozen=True)
class TensorRT:
    """The TensorRT that a device would use: `through` is trtexec's path, or python."""

    through: str = field(metadata=required(text(5000)))
    version: str = field(metadata=required(_VERSION))


@dataclass(frozen=True)
class Environment:
    """What a latency depends on; None where the machine does not say."""

    cpu_model: str = field(metadata=required(text()))
    board: str | None = field(metadata=required(optional(text())))
    architecture: str = field(metadata=required(text()))
    cpu_flags: tuple[str, ...] = field(metadata=required(list_of(schema.NAME, 100)))
    cpus: int = field(metadata=required(integer(1, 10**6)))
    usable_cpus: float = field(metadata=required(number(1e-3, 1e6)))
    governor: str | None = field(metadata=required(optional(text())))
    clock_mhz: float | None = field(metadata=required(optional(schema.MHZ)))
    max_clock_mhz: float | None = field(metadata=required(optional(schema.MHZ)))
    load_average: float | None = field(metadata=required(optional(number(0, 1e6))))
    memory_bytes: int | None = field(metadata=required(optional(schema.SIZE_BYTES)))
    free_memory_bytes: int | None = field(metadata=required(optional(schema.SIZE_BYTES)))
    gpus: tuple[str, ...] = field(metadata=required(list_of(text(), 100)))
    system: str = field(metadata=required(text()))
    kernel: str = field(metadata=required(text()))
    python: str = field(metadata=required(text()))
    executable: str = field(metadata=required(text(5000)))
    numpy: str | None = field(metadata=required(optional(text())))
    runtime_packages: dict[str, str] = field(metadata=required(mapping_of(text(), 20)))
    tensorrt: TensorRT | None = field(default=None, metadata=required(optional(object_of(TensorRT))))
    jetson: Jetson | None = field(default=None, metadata=required(optional(object_of(Jetson))))

    @property
    def x86(self) -> bool:
        """Whether the CPU is a 64-bit x86."""
        return self.architecture.lower() in ("x86_64", "amd64")

    @property
    def arm(self) -> bool:
        """Whether the CPU is a 64-bit ARM."""
        return self.architecture.lower() in ("aarch64", "arm64")

    @property
    def int8_instructions(self) -> bool:
        """Whether the CPU multiplies int8 into int32 in one instruction (VNNI, AMX, dot product)."""
        return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}.isdisjoint(self.cpu_flags)


def this_machine(tensorrt: TensorRT | None = None, jetson: Jetson | None = None) -> Environment:
    """Return what a latency of this process depends on: CPU, clocks, memory, system and the installed runtimes."""
    cpu = cpus.fields()
    memory_bytes, free_memory_bytes = machine.ram()
    max_khz = machine.read_small_file(machine.CPUFREQ + "cpuinfo_max_freq")
    board = machine.read_small_file("/proc/device-tree/model")
    return Environment(
        cpu_model=cpu.get("model name") or cpu.get("Hardware") or board or platform.processor() or "unknown",
        board=board or None,
        architecture=platform.machine(),
        cpu_flags=tuple(flag for flag in machine.CPU_FLAGS if flag in cpus.flags()),
        cpus=os.cpu_count() or 1,
        usable_cpus=cpus.usable_cpus(),
        governor=machine.governor(),
        clock_mhz=machine.clock_mhz(),
        max_clock_mhz=int(max_khz) / 1000 if max_khz.isdigit() else None,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        memory_bytes=memory_bytes,
        free_memory_bytes=free_memory_bytes,
        gpus=tuple(machine.gpu_names()),
        system=machine.fields_of(machine.read_small_file("/etc/os-release"), "=").get("PRETTY_NAME")
        or platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        executable=sys.executable,
        numpy=machine.installed("numpy"),
        runtime_packages={name: version for name, version in machine.installed_runtimes().items() if version},
        tensorrt=tensorrt,
        jetson=jetson,
    )
