"""How many CPUs a process may use: affinity, and quotas in trees of /proc and /sys as containers have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd import cpus

V1 = "31 24 0:28 {root} {place} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "30 24 0:27 {root} {place} rw,nosuid shared:8 - cgroup2 cgroup2 rw,nsdelegate"
OTHER = "36 24 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n24 1 0:22 / / rw - ext4 /dev/sda1 rw"


def tree(root: Path, groups: str | None, mounts: str | None, files: dict[str, str]) -> Path:
    """Write /proc/self/cgroup, /proc/self/mountinfo and files below /sys/fs/cgroup; return the root."""
    everything = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    everything |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in everything.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{text}\n")
    return root


def v1(path: str, quota_us: object, period_us: object = 100000) -> dict[str, str]:
    return {f"{path}/cpu.cfs_quota_us": str(quota_us), f"{path}/cpu.cfs_period_us": str(period_us)}


def mounted(line: str, root: str = "/", place: str = "/sys/fs/cgroup") -> str:
    return "\n".join([line.format(root=root, place=place), OTHER])


CPU = "/sys/fs/cgroup/cpu"
TREES: dict[str, tuple[str | None, str | None, dict[str, str], float | None]] = {
    "v2 in a container": ("0::/", mounted(V2), {"cpu.max": "200000 100000"}, 2.0),
    "v2 of a half": ("0::/", mounted(V2), {"cpu.max": "50000 100000"}, 0.5),
    "v2 beside a foreign group's mount": (
        "0::/mine",
        mounted(V2) + "\n" + V2.format(root="/other", place="/sys/fs/cgroup/elsewhere"),
        {"mine/cpu.max": "max 100000", "elsewhere/cpu.max": "50000 100000"},
        None,
    ),
    "v2 of another period": ("0::/", mounted(V2), {"cpu.max": "30000 20000"}, 1.5),
    "v2 without a limit": ("0::/", mounted(V2), {"cpu.max": "max 100000"}, None),
    "v2 at the root, which has no such file": ("0::/", mounted(V2), {}, None),
    "v2 nested, its own": (
        "0::/user.slice/app",
        mounted(V2),
        {"user.slice/cpu.max": "max 100000", "user.slice/app/cpu.max": "100000 100000"},
        1.0,
    ),
    "v2 nested, one above is tighter": (
        "0::/user.slice/user-0.slice/app",
        mounted(V2),
        {
            "user.slice/cpu.max": "400000 100000",
            "user.slice/user-0.slice/cpu.max": "150000 100000",
            "user.slice/user-0.slice/app/cpu.max": "300000 100000",
        },
        1.5,
    ),
    "v2 nested, a sibling is nobody's business": (
        "0::/one",
        mounted(V2),
        {"one/cpu.max": "max 100000", "other/cpu.max": "1000 100000"},
        None,
    ),
    "v2 of a container that sees its name on the host": (
        "0::/docker/abc",
        mounted(V2, "/docker/abc"),
        {"cpu.max": "300000 100000"},
        3.0,
    ),
    "v2 of another name space": ("0::/../other", mounted(V2), {"cpu.max": "300000 100000"}, 3.0),
    "v2 below the mounted part": (
        "0::/docker/abc/inner",
        mounted(V2, "/docker/abc"),
        {"cpu.max": "300000 100000", "inner/cpu.max": "100000 100000"},
        1.0,
    ),
    "v2 beside the mounted part": ("0::/docker/abcd", mounted(V2, "/docker/abc"), {"cpu.max": "300000 100000"}, 3.0),
    "v2 at a place with a blank": (
        "0::/",
        mounted(V2, place="/sys/fs/cgroup/my\\040groups"),
        {"my groups/cpu.max": "100000 100000"},
        1.0,
    ),
    "v1": ("4:memory:/\n3:cpu,cpuacct:/", mounted(V1, place=CPU), v1("cpu", 250000), 2.5),
    "v1 without a limit": ("3:cpu,cpuacct:/", mounted(V1, place=CPU), v1("cpu", -1), None),
    "v1 nested, one above is tighter": (
        "3:cpuacct,cpu:/docker/abc",
        mounted(V1, place=CPU),
        v1("cpu", -1) | v1("cpu/docker", 100000) | v1("cpu/docker/abc", 800000),
        1.0,
    ),
    "v1 of a container that sees its name on the host": (
        "3:cpu,cpuacct:/kubepods/pod1/abc",
        mounted(V1, "/kubepods/pod1/abc", f"{CPU},cpuacct"),
        v1("cpu,cpuacct", 50000),
        0.5,
    ),
    "hybrid, the limit is of v1": (
        "3:cpu:/app\n0::/app",
        "\n".join([V1.format(root="/", place=CPU), V2.format(root="/", place="/sys/fs/cgroup/unified"), OTHER]),
        v1("cpu/app", 100000) | {"unified/app/cgroup.procs": "1"},
        1.0,
    ),
    "hybrid, both have one": (
        "3:cpu:/app\n0::/app",
        "\n".join([V1.format(root="/", place=CPU), V2.format(root="/", place="/sys/fs/cgroup/unified"), OTHER]),
        v1("cpu/app", 300000) | {"unified/app/cpu.max": "200000 100000"},
        2.0,
    ),
    "v1's hierarchy of other controllers is not one of CPU time": (
        "3:cpuset:/app\n4:cpuacct:/app",
        mounted(V1.replace("cpu,cpuacct", "cpuset"), place=CPU),
        v1("cpu/app", 100000),
        None,
    ),
    "no mountinfo, v2": ("0::/app", None, {"app/cpu.max": "100000 100000"}, 1.0),
    "no mountinfo, v1": ("3:cpu:/app", None, v1("cpu/app", 100000), 1.0),
    "no /proc, v2": (None, None, {"cpu.max": "100000 100000"}, 1.0),
    "no /proc, v1": (None, None, v1("cpu", 100000), 1.0),
    "nothing at all": (None, None, {}, None),
    "v1, a file missing": ("3:cpu:/", mounted(V1, place=CPU), {"cpu/cpu.cfs_quota_us": "100000"}, None),
    "v1, a period of nothing": ("3:cpu:/", mounted(V1, place=CPU), v1("cpu", 100000, 0), None),
    "a quota of nothing": ("0::/", mounted(V2), {"cpu.max": "0 100000"}, None),
    "garbage in cpu.max": ("0::/", mounted(V2), {"cpu.max": "lots of it"}, None),
    "one word in cpu.max": ("0::/", mounted(V2), {"cpu.max": "100000"}, None),
    "nothing in cpu.max": ("0::/", mounted(V2), {"cpu.max": ""}, None),
    "digits of another script": ("0::/", mounted(V2), {"cpu.max": "٣٠٠٠٠٠ 100000"}, None),
    "garbage in /proc": ("::\n\n0:\n:::\nx", "- - -\n - cgroup2\nx y z - cgroup2 a b", {"cpu.max": "1 1"}, 1.0),
}


@pytest.mark.parametrize("name", TREES)
def test_the_least_quota_of_all_groups_counts(name: str, tmp_path: Path) -> None:
    groups, mounts, files, expected = TREES[name]
    assert cpus.quota(tree(tmp_path, groups, mounts, files)) == expected


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
    """A machine of 64 CPUs whose affinity and quota the test sets."""
    facts: dict[str, float | None] = {"affinity": 64, "quota": None}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(int(facts["affinity"] or 0))), raising=False)
    monkeypatch.setattr(cpus, "quota", lambda: facts["quota"])
    return facts


@pytest.mark.parametrize(
    ("affinity", "quota", "usable", "threads"),
    [
        (64, None, 64, 64),
        (64, 2.0, 2, 2),
        (2, 8.0, 2, 2),
        (64, 1.5, 1.5, 2),
        (64, 0.25, 0.25, 1),
        (1, 0.5, 0.5, 1),
        (64, 2.01, 2.01, 3),
    ],
)
def test_threads_are_the_usable_cpus_rounded_up(
    affinity: int, quota: float | None, usable: float, threads: int, limited: dict[str, float | None]
) -> None:
    limited |= {"affinity": affinity, "quota": quota}
    assert (cpus.usable_cpus(), cpus.usable_threads()) == (usable, threads)
    assert cpus.too_many(threads) is None
    doubt = cpus.too_many(threads + 1)
    assert doubt is not None
    assert f"{threads + 1} threads are more than the {usable:g} CPUs" in doubt


def test_a_system_without_affinity_counts_its_cpus(
    limited: dict[str, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cpus.usable_cpus() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpus.usable_cpus() == 1


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of half a CPU with one below it, where this process may make such groups."""
    name = f"edgekd-test-{os.getpid()}"
    for folder, files in (
        (Path("/sys/fs/cgroup"), {"cpu.max": "50000 100000"}),
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
    ):
        made = folder / name
        if not (folder / "cgroup.procs").is_file():
            continue
        try:
            made.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        try:
            (made / "inner").mkdir()
            for file, text in files.items():
                (made / file).write_text(text)
        except OSError as error:
            _removed(made)
            pytest.skip(f"no quota can be set here: {error}")
        yield made / "inner"
        _removed(made)
        return
    pytest.skip("no hierarchy of control groups is mounted here")


def _removed(made: Path) -> None:
    for folder in (made / "inner", made):
        if folder.is_dir():
            folder.rmdir()


@pytest.mark.slow
def test_a_real_quota_is_seen_by_everything_that_counts(group: Path) -> None:
    """The kernel's own files, from a group below the one with the quota."""
    program = """if True:
        import json, os, sys
        from pathlib import Path
        Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
        from edgekd import machine
        from edgekd.agent.device.environment import this_machine
        from edgekd.cli.verbs import doctor
        doctor.bf16_speedup = lambda device: 1.0  # takes a second of half a CPU
        facts = doctor.examine()["facts"]
        print(json.dumps([machine.use_threads(0), this_machine().usable_cpus, facts["threads"], facts]))
    """
    ran = subprocess.run([sys.executable, "-c", program, str(group)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    threads, usable, told, facts = json.loads(ran.stdout)
    assert (threads, usable, told) == (1, 0.5, 1)
    assert facts["usable CPUs"].startswith("0.5 (by affinity")
