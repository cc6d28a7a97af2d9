"""What only a Jetson has: L4T and JetPack, power mode, clocks, temperatures, throttling. Read without sudo.

Every fact that cannot be read is a sentence that begins with "n/a: ".
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from edgekd.agent.device.machine import Watch, read_small_file
from edgekd.schema import COUNT, MHZ, boolean, mapping_of, number, object_of, required, text, value_or_reason

JETPACKS = {
    "35.1": "5.0.2",
    "35.2": "5.1",
    "35.3": "5.1.1",
    "35.4": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4 to 5.1.6",
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.0": "7.2 EA",
    "39.2": "7.2",
}
"""JetPack by L4T, the longest prefix that fits."""


@dataclass(frozen=True)
class Clock:
    """The range that a clock may move in, and where it stood."""

    min_mhz: float = field(metadata=required(MHZ))
    max_mhz: float = field(metadata=required(MHZ))
    now_mhz: float = field(metadata=required(MHZ))
    locked: bool = field(metadata=required(boolean))


@dataclass(frozen=True)
class Jetson:
    """What is known of a Jetson; a sentence stands for what is not."""

    board: str = field(metadata=required(text()))
    l4t: str = field(metadata=required(text()))
    jetpack: str = field(metadata=required(text()))
    power_mode: str = field(metadata=required(text()))
    clocks: dict[str, Clock | str] = field(metadata=required(mapping_of(value_or_reason(object_of(Clock)))))
    """By the name of what they drive; `locked` says whether all are."""
    temperatures_c: dict[str, float] | str = field(metadata=required(value_or_reason(mapping_of(number(-1e4, 1e4)))))
    throttle_events: dict[str, int] | str = field(metadata=required(value_or_reason(mapping_of(COUNT))))
    cooling: dict[str, int] | str = field(metadata=required(value_or_reason(mapping_of(COUNT))))

    @property
    def locked(self) -> str:
        """Whether the clocks are locked: yes, or what else is to be said of them."""
        return str(self.clocks.get("locked", "unknown"))


def facts(root: Path = Path("/")) -> Jetson | None:
    """Return what is known of this Jetson; None where /etc/nv_tegra_release does not exist."""
    release = root / "etc" / "nv_tegra_release"
    if not release.is_file():
        return None
    l4t = l4t_of(read_small_file(release))
    return Jetson(
        board=read_small_file(root / "proc/device-tree/model") or "n/a: no /proc/device-tree/model",
        l4t=l4t or "n/a: /etc/nv_tegra_release has another form",
        jetpack=jetpack_of(l4t),
        power_mode=power_mode(),
        clocks=clocks(root),
        temperatures_c=temperatures(root),
        throttle_events=throttle_events(root),
        cooling=cooling(root),
    )


def l4t_of(text: str) -> str | None:
    """Return `36.4.3` of `# R36 (release), REVISION: 4.3, GCID: ...`."""
    match = re.search(r"R(\d+)\s.*?REVISION:\s*([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def jetpack_of(l4t: str | None) -> str:
    """Return the JetPack an L4T belongs to."""
    parts = (l4t or "").split(".")
    for length in range(len(parts), 0, -1):
        name = JETPACKS.get(".".join(parts[:length]))
        if name is not None:
            return name
    return f"n/a: L4T {l4t} is in no table of this edgekd"


def power_mode(tool: str | None = None) -> str:
    """Return the name of the power mode that `nvpmodel -q` prints; setting it would need sudo."""
    tool = tool or shutil.which("nvpmodel") or shutil.which("/usr/sbin/nvpmodel")
    if tool is None:
        return "n/a: no nvpmodel on this device"
    try:
        ran = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"n/a: nvpmodel -q failed ({error})"
    match = re.search(r"NV Power Mode:\s*(\S+)", ran.stdout)
    return match.group(1) if match else f"n/a: nvpmodel -q said {(ran.stdout + ran.stderr).strip()[:120]!r}"


def clocks(root: Path) -> dict[str, Clock | str]:
    """Return the range the GPU's and the CPUs' clocks may move in; locked where it is a point."""
    ranges: dict[str, Clock] = {}
    for folder in _gpus(root):
        low, high, now = (read_small_file(folder / name) for name in ("min_freq", "max_freq", "cur_freq"))
        if low.isdigit():
            ranges[folder.name] = _clock(int(low) / 1e6, int(high) / 1e6, int(now or 0) / 1e6)
    for folder in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        low, high, now = (read_small_file(folder / f"scaling_{name}_freq") for name in ("min", "max", "cur"))
        if low.isdigit():
            ranges[f"cpu {folder.name}"] = _clock(int(low) / 1e3, int(high) / 1e3, int(now or 0) / 1e3)
    if not ranges:
        return {"locked": "n/a: no clock can be read without sudo"}
    hint = (
        "yes"
        if all(clock.locked for clock in ranges.values())
        else "no: `sudo jetson_clocks` locks them until the next boot"
    )
    return {"locked": hint, **ranges}


def _gpus(root: Path) -> list[Path]:
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return [folder for folder in folders if "gpu" in folder.name or "gv11b" in folder.name or "ga10b" in folder.name]


class GpuClockWatch(Watch):
    """The highest clock of the GPU while the context was open; None where it cannot be read.

    Highest, because it rests between runs and while trtexec starts: one that is capped under load has no high one.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        super().__init__(0.2)
        self._files = [folder / "cur_freq" for folder in _gpus(root)]
        self.highest_mhz: float | None = None

    def look(self) -> None:
        """Raise the highest clock if it is higher now."""
        for hertz in map(read_small_file, self._files):
            if hertz.isdigit():
                self.highest_mhz = max(self.highest_mhz or 0.0, int(hertz) / 1e6)


def _clock(low_mhz: float, high_mhz: float, now_mhz: float) -> Clock:
    return Clock(low_mhz, high_mhz, now_mhz, locked=low_mhz == high_mhz)


def temperatures(root: Path) -> dict[str, float] | str:
    """Return the temperature of each thermal zone that answers."""
    by_zone = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = read_small_file(zone / "temp")
        if value.lstrip("-").isdigit():
            by_zone[read_small_file(zone / "type") or zone.name] = int(value) / 1000
    return by_zone or "n/a: no thermal zone can be read"


def throttle_events(root: Path) -> dict[str, int] | str:
    """Return the over-current events that the board has counted since boot."""
    by_kind = {}
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        value = read_small_file(path)
        if value.isdigit():
            by_kind[path.name.rpartition("_event_cnt")[0]] = int(value)
    return by_kind or "n/a: no oc*_event_cnt under /sys/class/hwmon"


def cooling(root: Path) -> dict[str, int] | str:
    """Return the state of each cooling device that is at work (0 is at rest); a clock capped by heat is one."""
    states = {}
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        value = read_small_file(device / "cur_state")
        if value.isdigit():
            states[read_small_file(device / "type") or device.name] = int(value)
    return states or "n/a: no cooling device can be read"


def changes(before: Jetson | None, after: Jetson | None) -> list[str]:
    """Return one sentence for each reason that a Jetson's state gives not to trust what was measured meanwhile."""
    if before is None or after is None:
        return []
    sentences = []
    if after.locked != "yes":
        sentences.append(f"The clocks were not locked ({after.locked}).")
    events = "The board counted over-current events ({}) during the measurement."
    cooled = "The board cooled itself harder ({}) during the measurement: a clock may have been capped."
    for old, new, sentence in (
        (before.throttle_events, after.throttle_events, events),
        (before.cooling, after.cooling, cooled),
    ):
        if isinstance(old, dict) and isinstance(new, dict):
            risen = [name for name, value in new.items() if value > old.get(name, 0)]
            sentences += [sentence.format(", ".join(risen))] if risen else []
    return sentences
