"""What the far end keeps of a measurement that was cut off, and when that is no longer taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekd.agent import protocol, serve
from edgekd.agent.device import jetson, machine
from edgekd.agent.device.workplace import Workplace
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.agent.messages import Check, Close, Open
from edgekd.agent.protocol import AgentProcess
from edgekd.agent.refusal import RefusedError
from edgekd.agent.serve import Server
from edgekd.bench import golden, remote
from tiny_onnx import conv_net

Ask = Callable[[], bool]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(None, Workplace(tmp_path / "home"))  # type: ignore[arg-type]  # nothing here reports progress
    server.open(Open("key", ()))
    yield server
    server.close(Close(complete=True))


@pytest.fixture
def ask(server: Server) -> Ask:
    """Check a model on the device; return whether the result was kept from before."""
    model = conv_net(server.folder / "net.onnx")
    known = golden.described(BenchJob("net.onnx", model))
    images = golden.images(golden.signature(model))
    (server.folder / "golden.npy").write_bytes(golden.to_npy(images))
    expected = tuple(map(tuple, golden.reference_logits(model, images)))
    request = Check((replace(known, model=Path("net.onnx")),), BenchSettings(), None, "golden.npy", expected)
    return lambda: server.check(request).kept


def part_of(server: Server) -> Path:
    (part,) = server.folder.glob("part-*.json")
    return part


def test_what_was_measured_is_measured_once(ask: Ask) -> None:
    assert [ask(), ask()] == [False, True]


def test_another_file_of_the_same_name_is_another_measurement(server: Server, ask: Ask) -> None:
    ask()
    conv_net(server.folder / "net.onnx", width=7)
    assert not ask()


def test_a_board_that_was_set_otherwise_is_measured_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    ask()
    for mode, locked in (("15W", "no"), ("MAXN", "no"), ("MAXN", "yes")):
        facts = SimpleNamespace(power_mode=mode, locked=locked)
        monkeypatch.setattr(jetson, "facts", lambda facts=facts: facts)
        assert [ask(), ask()] == [False, True]
    monkeypatch.setattr(serve, "installed_runtimes", lambda: {"onnxruntime": "another version"})
    assert not ask()


def test_a_part_of_yesterday_is_measured_again(server: Server, ask: Ask) -> None:
    ask()
    os.utime(part_of(server), (0, time.time() - serve.KEPT_S - 1))
    assert [ask(), ask()] == [False, True]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-3], lambda data: data.replace(b"net", b"\xffet")]
)
def test_a_damaged_part_is_measured_again(damage: Callable[[bytes], bytes], server: Server, ask: Ask) -> None:
    ask()
    part = part_of(server)
    part.write_bytes(damage(part.read_bytes()))
    assert [ask(), ask()] == [False, True]


def far_end(silence_s: float) -> list[str]:
    code = f"import sys; from edgekd.agent import serve; serve.SILENCE_S = {silence_s}; sys.exit(serve.main())"
    return [sys.executable, "-c", code]


def test_a_near_end_that_falls_silent_frees_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that goes away closes nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    pipe = subprocess.PIPE
    with subprocess.Popen(far_end(1.0), stdin=pipe, stdout=pipe) as far:
        assert far.stdin is not None
        assert far.stdout is not None
        far.stdin.write(b'{"id": 1, "op": "open", "key": "key", "files": []}\n')
        far.stdin.flush()
        assert json.loads(far.stdout.readline())["missing"] == []
        other = Workplace(tmp_path)
        with pytest.raises(RefusedError, match="another bench is under way"):
            other.hold()
        assert far.wait(timeout=20) == 0
        other.hold()
        other.release()


def test_a_near_end_that_only_waits_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(protocol, "PULSE_S", 0.2)
    with AgentProcess("device", far_end(2.0), reply_timeout_s=30, detached=True) as far:
        assert far.hello().python
        time.sleep(4)
        assert far.hello().python


def test_the_far_end_gives_up_before_the_near_end() -> None:
    options = dict(option.split("=") for option in remote.OPTIONS)
    near_s = float(options["ServerAliveInterval"]) * float(options["ServerAliveCountMax"])
    assert 3 * protocol.PULSE_S < serve.SILENCE_S < near_s


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append((os.fstat(number).st_size, (tmp_path / "place").exists()))
    )
    (tmp_path / "temporary").write_bytes(b"12345")
    machine.publish(tmp_path / "temporary", tmp_path / "place")
    assert synced == [(5, False)]
    assert (tmp_path / "place").read_bytes() == b"12345"
