"""How many CPUs this process may use: affinity, cut by the quotas of its control groups.

Standard library and Python 3.8: the file travels to devices with the agent (`bench/pack.py`).
"""

from __future__ import annotations

import math
import os
import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Optional

MOST_THREADS = 1024
"""More than any machine can use; OpenMP ends the process where it cannot make as many."""
CONVENTIONAL = (("cgroup2", "/", "/sys/fs/cgroup"), ("cgroup", "/", "/sys/fs/cgroup/cpu"))
"""Where the hierarchies are mounted, if the kernel does not say: file system, root, mount point."""


def usable_cpus() -> float:
    """Return the CPUs this process may use, a fraction where a quota says so."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    limit = quota()
    return count if limit is None else min(count, limit)


def usable_threads() -> int:
    """Return how many threads can work at a time: the usable CPUs, rounded up.

    A quota of 1.5 CPUs is used whole by two threads and to two thirds by one.
    """
    return max(1, math.ceil(usable_cpus()))


def too_many(threads: int) -> str | None:
    """Return one sentence if that many threads cannot work at a time, else None."""
    usable = usable_cpus()
    if threads <= math.ceil(usable):
        return None
    return (
        f"{threads} threads are more than the {usable:g} CPUs that this process may use (by affinity and control "
        "group): they wait for each other."
    )


def quota(root: Path = Path("/")) -> float | None:
    """Return the least CPU quota of this process's control groups and of all above them; None without any.

    `root` is where /proc and /sys are looked for.
    """
    paths = _own_groups(_text(root / "proc/self/cgroup"))
    mounts = _mounts(_text(root / "proc/self/mountinfo")) or CONVENTIONAL
    quotas = []
    for system, read in (("cgroup2", _quota_v2), ("cgroup", _quota_v1)):
        seen = [(place, _below(paths.get(system, "/"), above)) for kind, above, place in mounts if kind == system]
        ours = [(place, group) for place, group in seen if group is not None]
        # A container sees the name of its group on the host, but that group alone is mounted, or of another name space.
        for place, group in ours or [(place, "") for place, _ in seen]:
            top = root / place.lstrip("/")
            folder = top / group
            quotas += [
                read(folder_above)
                for folder_above in (folder, *folder.parents)
                if folder_above == top or top in folder_above.parents
            ]
    limits = [limit for limit in quotas if limit is not None]
    return min(limits) if limits else None


def _own_groups(text: str) -> dict[str, str]:
    """The path of this process's group in version 2 and in version 1's hierarchy of CPU time."""
    groups = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            groups["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            groups["cgroup"] = path
    return groups


def _mounts(text: str) -> list[tuple[str, str, str]]:
    """File system, root and mount point of each mounted hierarchy that may hold quotas (see proc(5))."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, facts = left.split(), right.split()
        if len(fields) < 5 or len(facts) < 3:
            continue
        if facts[0] == "cgroup2" or (facts[0] == "cgroup" and "cpu" in facts[2].split(",")):
            mounts.append((facts[0], _plain(fields[3]), _plain(fields[4])))
    return mounts


def _plain(escaped: str) -> str:
    """A path whose blanks the kernel wrote as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), escaped)


def _below(path: str, above: str) -> Optional[str]:  # noqa: UP045 - a device may have Python 3.8
    """A group's path seen from the mount; None where the group lies elsewhere."""
    above = above.rstrip("/")
    if ".." in path.split("/") or not (path + "/").startswith(above + "/"):
        return None
    return path[len(above) :].strip("/")


def _quota_v2(folder: Path) -> float | None:
    quota_us, _, period_us = _text(folder / "cpu.max").partition(" ")
    return _cpus(quota_us, period_us)


def _quota_v1(folder: Path) -> float | None:
    return _cpus(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _cpus(quota_us: str, period_us: str) -> float | None:
    """The CPUs of a quota; None for no limit (`max`, -1) and for what is no number."""
    if not (re.fullmatch("[0-9]{1,18}", quota_us) and re.fullmatch("[0-9]{1,18}", period_us)):
        return None
    return int(quota_us) / int(period_us) if int(quota_us) and int(period_us) else None


def _text(path: Path) -> str:
    """The stripped text of a small file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip("\0\n ")
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return ""


def model() -> str:
    """Return the CPU's model name."""
    return fields().get("model name") or platform.processor() or platform.machine()


def flags() -> frozenset[str]:
    """Return the CPU's feature flags, none where the system does not tell."""
    return frozenset((fields().get("flags") or fields().get("Features") or "").split())


@lru_cache(maxsize=1)
def fields() -> dict[str, str]:
    """Return what the kernel says of the first CPU, by its own names."""
    first: dict[str, str] = {}
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            first.setdefault(key.strip(), value.strip())
    return first
