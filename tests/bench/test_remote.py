"""The way to a device, over a real sshd: what is copied, held, measured and removed, and what each trouble says."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sshd import Device, device, lacking, sshd_device  # noqa: F401 - fixtures

from edgekd.agent.device.power import NoEnergy
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison, MeasurementProgress
from edgekd.agent.messages import Sealed
from edgekd.agent.protocol import AgentProcess
from edgekd.bench import golden
from edgekd.bench.remote import Host
from edgekd.errors import EdgekdError, GateError, InputFileError, MachineError, RunBusyError, UsageError
from tiny_onnx import conv_net

QUICK = BenchSettings(rounds=2, min_runs=20, min_seconds=0.05, warm_up_seconds=0.4)
HOST = Host("device")


def quiet(_text: str) -> None:
    pass


def enter(key: str, host: Host = HOST) -> None:
    with host.session(key, quiet):
        pytest.fail("entered")


@pytest.fixture
def job(tmp_path: Path) -> BenchJob:
    return golden.described(BenchJob("net.onnx", conv_net(tmp_path / "net.onnx"), "fp32"))


def test_a_model_is_measured_there_and_nothing_stays(device: Device, job: BenchJob, tmp_path: Path) -> None:  # noqa: F811
    for name in ("sudo", "su", "pkexec", "doas"):
        device.tool(name, f'touch "$HOME/{name}"')
    said: list[str] = []
    seen: list[MeasurementProgress] = []
    ((images, logits),) = golden.write_files([job], tmp_path).values()
    with HOST.session("any key", said.append) as session:
        assert session.environment.python
        session.put([job.model, images])
        session.put([job.model, images])
        found = session.compare([job], QUICK, seen.append)
        checked = session.check(job, QUICK, images.name, logits)
        wrong = session.check(job, QUICK, images.name, [[-v for v in row] for row in logits])
        power = session.energy(job, QUICK)
        assert len(device.work) == 1
        session.complete()
    assert isinstance(found, Comparison)
    assert found.target == "device"
    assert [one.job.artefact for one in found.measurements] == ["net.onnx"]
    assert [one.step for one in seen] == ["load", "warm-up", "round", "round"]
    assert [line.split()[2] for line in said if line.startswith("copy")] == ["net.onnx", images.name], "once each"
    assert checked.passed
    assert (checked.images, checked.precision) == (golden.IMAGES, "fp32")
    assert checked.max_difference is not None
    assert checked.max_difference <= checked.tolerance
    assert not wrong.passed
    assert wrong.wrong_answers > 0
    assert isinstance(power, NoEnergy)
    assert power.energy.startswith("n/a: no INA3221 sensor")
    assert [path.name for path in device.home.iterdir()] == [".cache"], "nobody asked for more rights"
    assert device.work == []


@pytest.mark.slow
def test_what_was_copied_and_measured_survives_a_cut(device: Device, job: BenchJob, tmp_path: Path) -> None:  # noqa: F811
    said: list[str] = []
    whole = conv_net(tmp_path / "whole.onnx", width=5)

    def cut(progress: MeasurementProgress) -> None:
        if progress.step == "round":
            device.proxy.cut()

    with pytest.raises(MachineError, match=r"connection to device was cut.*the same command goes on"):  # noqa: SIM117, PT012
        with HOST.session("key", quiet) as session:
            session.put([job.model, whole])
            first = session.compare([job], QUICK)
            session.compare([job], replace(QUICK, batch=2, min_seconds=20.0), cut)
    assert len(device.work) == 1
    assert device.deserted(), "nothing goes on measuring"
    (device.work[0] / "net.onnx").write_bytes(job.model.read_bytes()[:-7])
    with HOST.session("key", said.append) as session:
        session.put([job.model, whole])
        again = session.compare([job], QUICK)
        session.complete()
    assert again == first, "measured once"
    assert [line.split()[2] for line in said if line.startswith("copy")] == ["net.onnx"], "what was not whole"
    assert any("measured before the connection was cut" in line for line in said)
    assert device.work == []


def test_what_a_required_machine_lacks_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, outcome in (("1", pytest.fail.Exception), ("0", pytest.skip.Exception)):
        monkeypatch.setenv("EDGEKD_REQUIRE_SSHD", value)
        with pytest.raises(outcome, match="no disk"):
            lacking("no disk")


@pytest.mark.parametrize(
    "kind",
    [MachineError, InputFileError, *(pytest.param(k, marks=pytest.mark.slow) for k in (UsageError, GateError))],
)
def test_a_refusal_leaves_nothing_there(kind: type[EdgekdError], device: Device, job: BenchJob) -> None:  # noqa: F811
    def work() -> None:
        with HOST.session("key", quiet) as session:
            session.put([job.model])
            assert len(device.work) == 1
            raise kind("no")

    with pytest.raises(kind, match="no"):
        work()
    assert device.work == []


def test_a_copy_that_is_cut_is_made_again(device: Device, tmp_path: Path) -> None:  # noqa: F811
    said: list[str] = []
    large = golden.described(BenchJob("net", conv_net(tmp_path / "net.onnx", width=400, depth=2), "fp32"))
    with pytest.raises(MachineError, match="the same command goes on"):  # noqa: SIM117, PT012
        with HOST.session("key", quiet) as session:
            device.proxy.cut_after(2_000_000)
            session.put([large.model])
    assert device.deserted()
    assert [path.name for path in device.work[0].glob("*.onnx")] == [], "half a file has no name"
    with HOST.session("key", said.append) as session:
        session.put([large.model])
        assert len(session.compare([large], QUICK).measurements) == 1
        session.complete()
    assert [line.split()[2] for line in said if line.startswith("copy")] == ["net.onnx"]
    assert device.work == []


def test_two_at_once_are_one_too_many(device: Device) -> None:  # noqa: F811
    with HOST.session("one", quiet), pytest.raises(RunBusyError, match="another bench is under way on this device"):
        enter("two")
    with HOST.session("two", quiet) as session:
        session.complete()


def test_clean_removes_all_that_is_kept(device: Device) -> None:  # noqa: F811
    assert HOST.clean() == 0
    (device.cache / "engines").mkdir(parents=True)
    (device.cache / "engines" / "a.engine").write_bytes(b"x" * 5000)
    with HOST.session("held", quiet), pytest.raises(RunBusyError, match="another bench is under way on device"):
        HOST.clean()
    assert HOST.clean() > 5000
    assert [path.name for path in device.cache.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("unknown", ["is not a known host", "\n  ssh device ", "\n  ssh-copy-id device"]),
        ("changed", ["another host key", "ssh-keygen -f ", " -R '[127.0.0.1]:"]),
        ("password", ["lets nobody in without a password", "\n  ssh device ", "\n  ssh-copy-id device"]),
        ("down", ["device cannot be reached", "Connection refused"]),
    ],
)
def test_a_host_that_cannot_be_entered(
    device: Device,  # noqa: F811
    trouble: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if trouble == "unknown":
        device.known_hosts.write_text("")
    elif trouble == "changed":
        device.know("other")
    elif trouble == "password":
        (device.folder / "authorized").write_text((device.folder / "other.pub").read_text())
    else:
        closed = tmp_path / "config"
        closed.write_text(device.config.read_text().replace(f"Port {device.proxy.port}", "Port 1"))
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(closed))
    with pytest.raises(MachineError) as caught:
        enter("key")
    for word in words:
        assert word in str(caught.value)
    if trouble == "changed":
        (forget,) = [line for line in str(caught.value).splitlines() if "ssh-keygen" in line]
        subprocess.run(shlex.split(forget), check=True, capture_output=True)
        with pytest.raises(MachineError, match="is not a known host"):
            enter("key")


def test_no_python_there_and_an_old_one(device: Device) -> None:  # noqa: F811
    device.allow(path=str(device.bare))
    with pytest.raises(MachineError, match=r"device has no python3; install it there \(sudo apt-get install python3\)"):
        enter("key")
    device.tool("python3.old", 'echo "edgekd version 3.7"')
    device.allow()
    with pytest.raises(MachineError, match=r"Python 3\.7; 3\.8 or newer is needed.*--python PATH"):
        enter("key", Host("device", "python3.old"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    home = tmp_path / "small"
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        lacking("a small file system cannot be mounted here (needs root)")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_full_disk_there(device: Device, small_disk: Path, tmp_path: Path) -> None:  # noqa: F811
    device.allow(home=small_disk)
    wide = conv_net(tmp_path / "wide.onnx", width=300, depth=2)
    full = r"(?s)the disk of this device is full: .* are needed; free some.*--clean"
    with HOST.session("key", quiet) as session, pytest.raises(MachineError, match=full):
        session.put([wide])
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"x" * 4096):
            pass
    with pytest.raises(MachineError, match=r"the disk of device is full or read-only.*--clean"):
        enter("another key")
    assert HOST.clean() >= 0, "which works on a full disk"
    assert [path.name for path in (small_disk / ".cache" / "edgekd").iterdir()] == ["lock"]


def test_a_file_that_arrives_in_part_is_noticed(
    device: Device,  # noqa: F811
    job: BenchJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Host.copy

    def cut_short(host: Host, file: Path, place: str, while_waiting: Callable[[], None]) -> None:
        copy(host, file, place, while_waiting)
        if "arriving" in place:
            (device.home / place).write_bytes(file.read_bytes()[:-1])

    monkeypatch.setattr(Host, "copy", cut_short)
    with HOST.session("key", quiet) as session:
        with pytest.raises(MachineError, match=r"net\.onnx did not arrive whole on device"):
            session.put([job.model])
        assert not (device.work[0] / "net.onnx").exists()
        monkeypatch.setattr(Host, "copy", copy)
        session.put([job.model])
        session.complete()


def test_another_agent_is_not_trusted(device: Device) -> None:  # noqa: F811
    device.tool("python3", f'case "$1" in *agent.pyz) echo >> "$1";; esac\nexec {sys.executable} "$@"')
    try:
        with pytest.raises(MachineError, match="the agent on device is not the one that was copied"):
            enter("key")
    finally:
        device.tool("python3", f'exec {sys.executable} "$@"')


def test_a_model_that_was_exchanged_there_is_noticed(device: Device, job: BenchJob, tmp_path: Path) -> None:  # noqa: F811
    with HOST.session("key", quiet) as session:
        session.put([job.model])
        conv_net(device.work[0] / "net.onnx", width=7)
        with pytest.raises(MachineError, match=r"device measured another net\.onnx than this one"):
            session.compare([job], QUICK)
        session.complete()


def test_a_result_that_changes_on_its_way_is_noticed(
    device: Device,  # noqa: F811
    job: BenchJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = AgentProcess.ask

    def changed(process: AgentProcess, request: Any, **options: Any) -> Any:
        answer = ask(process, request, **options)
        return replace(answer, text=answer.text.replace("1", "2", 1)) if isinstance(answer, Sealed) else answer

    with HOST.session("key", quiet) as session:
        session.put([job.model])
        monkeypatch.setattr(AgentProcess, "ask", changed)
        with pytest.raises(MachineError, match="a result of device did not arrive whole"):
            session.compare([job], QUICK)
        monkeypatch.setattr(AgentProcess, "ask", ask)
        session.complete()


NASTY = "a b$(mkdir stolen);'\"*.onnx"


def test_a_file_name_is_no_command(device: Device, tmp_path: Path) -> None:  # noqa: F811
    job = golden.described(BenchJob("net", conv_net(tmp_path / NASTY), "fp32"))
    with HOST.session("key", quiet) as session:
        session.put([job.model])
        assert sorted(path.name for path in device.work[0].iterdir()) == sorted([NASTY, "agent.pyz"])
        assert len(session.compare([job], QUICK).measurements) == 1
        session.complete()
    assert list(device.home.rglob("stolen")) == []


@pytest.mark.parametrize(
    "name", ["my python$(mkdir stolen);x", pytest.param("'; mkdir stolen; '", marks=pytest.mark.slow)]
)
def test_the_name_of_a_program_there_is_no_command(name: str, device: Device) -> None:  # noqa: F811
    device.tool("with space $(mkdir stolen)", f'exec {sys.executable} "$@"')
    with Host("device", "with space $(mkdir stolen)").session("key", quiet) as session:
        session.complete()
    with pytest.raises(MachineError, match="device has no "):
        enter("key", Host("device", name))
    with pytest.raises(MachineError, match=r"there is no program .* \(--trtexec\) on this device"):
        enter("key", Host("device", trtexec=name))
    with pytest.raises(MachineError, match="nothing was removed"):
        Host("device", name).clean()
    assert list(device.home.rglob("stolen")) == []


def test_copies_reach_the_address_that_ssh_reaches() -> None:
    for address, place in (
        ("me@fe80::1%eth0", "me@[fe80::1%eth0]:dir/file"),
        ("me@10.0.0.1", "me@10.0.0.1:dir/file"),
        ("jetson", "jetson:dir/file"),
    ):
        assert Host(address).scp(Path("/x"), "dir/file")[-2:] == ["/x", place]
        assert Host(address).ssh("true")[-2:] == [address, "true"]


@pytest.mark.parametrize("address", ["-oProxyCommand=touch", "a b", "host;ls", "", "user@-x y", "$(ls)"])
def test_an_address_is_no_command(address: str) -> None:
    with pytest.raises(UsageError, match="--on takes user@host"):
        Host(address)
