"""A child that floods, drips or says nothing: it costs seconds and megabytes, and a stop is heard all the while."""

from __future__ import annotations

import sys
import time

import pytest

from edgekd.agent import pipes, protocol
from edgekd.agent.messages import Hello, Logits
from edgekd.agent.protocol import AgentProcess
from edgekd.bench import ssh
from edgekd.errors import InputFileError, Interrupted, MachineError

ENDLESS = {
    "a line without end": "while True: os.write(1, b'x' * 65536)",
    "lines without end": "while True: os.write(1, b'hello\\n' * 8192)",
    "JSON without end": "while True: os.write(1, b'[7]\\n' * 4096)",
    "progress that nobody asked for": 'while True: os.write(1, b\'{"id": 1, "progress": {}}\\n\' * 4096)',
    "messages without end": "while True: os.write(2, b'trouble\\n' * 8192)",
    "a message without end": "while True: os.write(2, b'trouble' * 8192)",
}
QUIET = {
    "nothing": "time.sleep(60)",
    "a drip": "while True: os.write(1, b'x'); time.sleep(0.05)",
    "a drip of lines": "while True: os.write(1, b'x\\n'); time.sleep(0.05)",
}


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", f"import os, time\n{code}"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "STRAY_BYTES", 2**20)
    monkeypatch.setattr(protocol, "_FAREWELL_S", 0.3)


class Press:
    """A Ctrl-C after so many seconds of waiting."""

    def __init__(self, after_s: float) -> None:
        self._at_s = time.monotonic() + after_s

    def __call__(self) -> None:
        if time.monotonic() > self._at_s:
            raise Interrupted("stopped", 2)


@pytest.mark.parametrize("what", ENDLESS)
def test_what_has_no_end_is_ended(what: str) -> None:
    begin = time.monotonic()
    with AgentProcess("device", python(ENDLESS[what]), reply_timeout_s=60) as child:
        with pytest.raises(MachineError, match=r'^device: it answers "hello" without end: .*the agent was stopped'):
            child.hello()
        assert len(child._pipes._buffer) < 2**21
        assert sum(map(len, child._pipes.messages())) < 100_000
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("what", QUIET)
def test_what_never_comes_is_not_waited_for(what: str) -> None:
    with (
        AgentProcess("device", python(QUIET[what]), reply_timeout_s=0.4) as child,
        pytest.raises(MachineError, match=r'^device: no answer to "hello" within 0\.4 s'),
    ):
        child.hello()


@pytest.mark.parametrize("what", [*ENDLESS, *QUIET])
def test_a_stop_is_heard_whatever_the_child_does(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hello, "most_bytes", lambda _: 2**40)
    monkeypatch.setattr(pipes, "STRAY_BYTES", 2**40)
    code = {**ENDLESS, **QUIET}[what].replace("while True: ", "while True: time.sleep(0.001); ")
    with AgentProcess("device", python(code), reply_timeout_s=60, while_waiting=Press(0.3)) as child:
        begin = time.monotonic()
        with pytest.raises(Interrupted):
            child.hello()
        assert time.monotonic() - begin < 2


def test_a_child_that_reads_nothing_is_not_written_to_for_ever() -> None:
    large, deaf = Logits("x" * 2**20), python("time.sleep(60)")
    with (
        AgentProcess("device", deaf, reply_timeout_s=0.4) as child,
        pytest.raises(MachineError, match=r'no answer to "logits" within 0\.4 s'),
    ):
        child.ask(large)
    with AgentProcess("device", deaf, 60, while_waiting=Press(0.3)) as child, pytest.raises(Interrupted):
        child.ask(large)


def test_a_child_that_fills_stderr_first_is_still_written_to() -> None:
    code = "os.write(2, b'warning\\n' * 50000); import sys; n = len(sys.stdin.readline())\n"
    code += """print('{"id": 1, "ok": false, "kind": "file", "error": "read %d"}' % n, flush=True)"""
    with AgentProcess("device", python(code), 30) as child, pytest.raises(InputFileError, match=r"read 104\d{4}"):
        child.ask(Logits("x" * 2**20))


def test_a_stop_that_ended_the_child_too_is_a_stop() -> None:
    with (
        AgentProcess("device", python("time.sleep(0.6)"), 60, while_waiting=Press(0.55)) as child,
        pytest.raises(Interrupted),
    ):
        child.hello()


@pytest.mark.parametrize("what", [*ENDLESS, *QUIET])
def test_a_program_is_run_as_carefully(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {**ENDLESS, **QUIET}[what]
    words = "answers without end" if what in ENDLESS else r"did not answer within 0\.4 s"
    with pytest.raises(MachineError, match=f"^device {words}"):
        ssh.run_program(python(code), 0.4 if what in QUIET else 30, "device")
    monkeypatch.setattr(ssh, "_STDOUT_BYTES", 2**40)
    monkeypatch.setattr(pipes, "STRAY_BYTES", 2**40)
    with pytest.raises(Interrupted):
        ssh.run_program(
            python(code.replace("while True: ", "while True: time.sleep(0.001); ")), 60, "device", Press(0.3)
        )


def test_a_program_that_leaves_another_behind_is_not_waited_for() -> None:
    """A shared connection of ssh stays in the background, and may hold the pipes."""
    code = "os.write(1, b'done'); os.write(2, b'well')\nif os.fork() == 0: time.sleep(30)"
    begin = time.monotonic()
    ran = ssh.run_program(python(code), 20, "device")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done", "well")
    assert time.monotonic() - begin < 3
