"""The machine a latency was measured on, and what is wrong with its runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgekd.agent.device.machine import machine_facts


@dataclass(frozen=True)
class Environment:
    """What a latency depends on; None where the machine does not say."""

    cpu_model: str
    board: str | None
    architecture: str
    cpu_flags: tuple[str, ...]
    cpus: int
    usable_cpus: float
    governor: str | None
    clock_mhz: float | None
    max_clock_mhz: float | None
    load_average: float | None
    memory_bytes: int | None
    free_memory_bytes: int | None
    gpus: tuple[str, ...]
    system: str
    kernel: str
    python: str
    executable: str
    numpy: str | None
    runtime_packages: dict[str, str]
    tensorrt: dict[str, str] | None = None  # `through` (trtexec's path, or python) and `version`
    jetson: dict[str, Any] | None = None  # what only a Jetson has, see jetson.py

    @property
    def x86(self) -> bool:
        """Return whether the CPU is a 64-bit x86."""
        return self.architecture.lower() in ("x86_64", "amd64")

    @property
    def arm(self) -> bool:
        """Return whether the CPU is a 64-bit ARM."""
        return self.architecture.lower() in ("aarch64", "arm64")

    @property
    def int8_instructions(self) -> bool:
        """Return whether the CPU multiplies int8 into int32 in one instruction (VNNI, AMX, dot product)."""
        return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}.isdisjoint(self.cpu_flags)

    def to_json(self) -> dict[str, Any]:
        """Return all facts under their own names."""
        return asdict(self)


def from_facts(facts: Mapping[str, Any]) -> Environment:
    """Return the environment from what an agent says in its `hello`."""
    known: dict[str, Any] = {field.name: facts.get(field.name) for field in fields(Environment)}
    for name in ("cpu_flags", "gpus"):
        known[name] = tuple(known[name])
    return Environment(**known)


def this_machine() -> Environment:
    """Return the environment of this process."""
    return from_facts(machine_facts())


@dataclass(frozen=True)
class Conflict:
    """Something wrong with the installed runtimes, and the commands that mend it."""

    message: str
    commands: tuple[str, ...]


def runtime_conflict(environment: Environment) -> Conflict | None:
    """Return what is wrong when several builds of onnxruntime are installed over each other.

    All builds unpack into the same folder, so the last one installed has overwritten files of the others, and
    removing one of them breaks the rest: all must go before one comes back.
    """
    packages = environment.runtime_packages
    if len(packages) < 2:
        return None
    names = sorted(packages)
    listed = " and ".join(f"{name} {packages[name]}" for name in names)
    wanted = "onnxruntime-gpu" if environment.gpus else "onnxruntime"
    keep = wanted if wanted in packages else names[0]
    pip = f"{environment.executable} -m pip"
    return Conflict(
        f"{listed} are installed over each other; their files are mixed and a provider may be missing.",
        (f"{pip} uninstall -y {' '.join(names)}", f"{pip} install {keep}=={packages[keep]}"),
    )
