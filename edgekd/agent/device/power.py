"""Power of a Jetson's rails while something runs: the INA3221 sensors as files, else the lines of tegrastats."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from edgekd import schema
from edgekd.agent.device.machine import Watch, read_small_file
from edgekd.agent.kernels import RUNTIME, Runtime
from edgekd.schema import either, mapping_of, number, object_of, omitted_if_none, required

if TYPE_CHECKING:
    from edgekd.agent.measurement import BenchJob
    from edgekd.agent.messages import Sustained

PERIOD_S = 0.1
TOTALS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module; a board without one is summed over all its rails."""
IDLE_S, BUSY_S = 10.0, 15.0
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]+) (\d+)mW/\d+mW")


@dataclass(frozen=True)
class PowerReader:
    """A way to read the power of each rail, in watts, now."""

    name: str
    read: Callable[[], dict[str, float]]
    close: Callable[[], None] = lambda: None


_WATTS, _MILLIJOULES = number(-1e6, 1e6), number(-1e15, 1e15)


@dataclass(frozen=True)
class Energy:
    """The energy of one artefact a run, gross and net of idle."""

    artefact: str = field(metadata=required(schema.NAME))
    runtime: Runtime = field(metadata=required(RUNTIME))
    source: str = field(metadata=required(schema.NAME))
    rails: str = field(metadata=required(schema.REASON))  # which make the total
    period_s: float = field(metadata=required(number(1e-3, 1e3)))
    idle_w: float = field(metadata=required(_WATTS))
    gross_w: float = field(metadata=required(_WATTS))
    net_w: float = field(metadata=required(_WATTS))
    gross_mj_per_run: float = field(metadata=required(_MILLIJOULES))
    net_mj_per_run: float = field(metadata=required(_MILLIJOULES))
    batch: int = field(metadata=required(schema.BATCH))
    runs: int = field(metadata=required(schema.RUNS))
    seconds: float = field(metadata=required(schema.POSITIVE_S))
    rails_w: dict[str, float] = field(metadata=required(mapping_of(_WATTS)))


@dataclass(frozen=True)
class NoEnergy:
    """Why there is no energy, of one artefact or of all: "n/a: ..."."""

    energy: str = field(metadata=required(schema.REASON))
    artefact: str | None = field(default=None, metadata=omitted_if_none(schema.NAME))
    runtime: Runtime | None = field(default=None, metadata=omitted_if_none(RUNTIME))


POWER = either("energy", object_of(NoEnergy), object_of(Energy))


def find_power_reader(root: Path = Path("/")) -> PowerReader | str:
    """Return what the rails are read from, or why they cannot be read, as "n/a: ..."."""
    channels = _channels(root)
    if channels and hwmon_watts(channels):
        return PowerReader("hwmon (INA3221)", lambda: hwmon_watts(channels))
    tool = shutil.which("tegrastats")
    if tool is not None:
        return _tegrastats(tool)
    return "n/a: no INA3221 sensor can be read and there is no tegrastats"


def _channels(root: Path) -> list[tuple[str, Path, Path]]:
    """Label, millivolts and milliamperes of each connected channel; channel 7 is a sum of others."""
    channels = []
    for device in sorted((root / "sys/bus/i2c/devices").glob("*")):
        if not read_small_file(device / "name").startswith("ina3221"):
            continue
        for label in sorted(device.glob("hwmon/hwmon*/in*_label")):
            number, name = label.name[2 : -len("_label")], read_small_file(label)
            volts, amperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
            if number != "7" and name not in ("", "NC") and amperes.is_file():
                channels.append((name, volts, amperes))
    return channels


def hwmon_watts(channels: list[tuple[str, Path, Path]]) -> dict[str, float]:
    """Return the power of each channel that answers."""
    readings = ((name, read_small_file(volts), read_small_file(amperes)) for name, volts, amperes in channels)
    return {name: int(v) * int(a) / 1e6 for name, v, a in readings if v.isdigit() and a.isdigit()}


def tegrastats_watts(line: str) -> dict[str, float]:
    """Return the present power of each rail on a line of tegrastats: the first of `NAME 4890mW/4890mW[/4890mW]`."""
    return {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line)}


def _tegrastats(tool: str) -> PowerReader:
    command = [tool, "--interval", str(round(1000 * PERIOD_S))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    latest: dict[str, float] = {}

    def follow() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                latest.update(tegrastats_watts(line))
        latest.clear()  # one that ended reads nothing any more

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()

    def close() -> None:
        process.terminate()
        process.wait()
        follower.join()

    return PowerReader("tegrastats", lambda: dict(latest), close)


class PowerSampler(Watch):
    """Reads a source every 0.1 s while the context is open."""

    def __init__(self, source: PowerReader) -> None:
        super().__init__(PERIOD_S)
        self.source = source
        self.samples: list[tuple[float, dict[str, float]]] = []

    def look(self) -> None:
        """Take a sample, if the source has one."""
        watts = self.source.read()
        if watts:
            self.samples.append((time.time(), watts))

    def mean_watts(self, start_s: float, end_s: float) -> dict[str, float] | None:
        """Return the mean power of each rail between two Unix times, over the samples that have it.

        None where fewer than ten samples fell, or fewer than half of those that the time has room for.
        """
        inside = [watts for at, watts in self.samples if start_s <= at <= end_s]
        if len(inside) < max(10.0, (end_s - start_s) / PERIOD_S / 2):
            return None
        rails = sorted({name for watts in inside for name in watts})
        return {name: fmean(watts[name] for watts in inside if name in watts) for name in rails}


def total(rails: dict[str, float]) -> tuple[str, float]:
    """Return the rails that make the total, and it in watts."""
    whole = next((name for name in TOTALS if name in rails), None)
    return (whole, rails[whole]) if whole else (" + ".join(sorted(rails)), sum(rails.values()))


def energy_per_run(
    job: BenchJob,
    batch: int,
    source: PowerReader,
    run: Callable[[float], Sustained],
    idle_s: float = IDLE_S,
    busy_s: float = BUSY_S,
) -> Energy | NoEnergy:
    """Return energy a run of `batch` images, gross and net of idle, from `idle_s` of rest and `busy_s` of running."""
    with PowerSampler(source) as sampler:
        begin = time.time()
        time.sleep(idle_s)
        idle = sampler.mean_watts(begin, time.time())
        done = run(busy_s)
        busy = sampler.mean_watts(done.end_unix_s - done.seconds, done.end_unix_s)
    if idle is None or busy is None:
        return NoEnergy(f"n/a: {source.name} gave too few readings", job.artefact, job.runtime)
    if idle.keys() != busy.keys():
        one_sided = ", ".join(sorted(idle.keys() ^ busy.keys()))
        return NoEnergy(f"n/a: {source.name} read {one_sided} at rest or at work only", job.artefact, job.runtime)
    rails, idle_w = total(idle)
    _, gross_w = total(busy)
    per_run_s = done.seconds / done.runs
    return Energy(
        artefact=job.artefact,
        runtime=job.runtime,
        source=source.name,
        rails=rails,
        period_s=PERIOD_S,
        idle_w=idle_w,
        gross_w=gross_w,
        net_w=gross_w - idle_w,
        gross_mj_per_run=1000 * gross_w * per_run_s,
        net_mj_per_run=1000 * (gross_w - idle_w) * per_run_s,
        batch=batch,
        runs=done.runs,
        seconds=done.seconds,
        rails_w=busy,
    )
