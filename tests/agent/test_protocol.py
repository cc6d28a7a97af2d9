from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.agent import protocol
from edgekd.agent.messages import Load, LogitsArray, Memory, TimeRound
from edgekd.agent.protocol import AgentProcess, Local
from edgekd.bench.golden import array_in
from edgekd.errors import EdgekdError, InputFileError, MachineError, UsageError
from tiny_onnx import conv_net


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(pid: int) -> bool:
    """Return whether no process of this id computes any more (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return gone(pid)


def test_crash_names_the_signal(tmp_path: Path) -> None:
    with AgentProcess("net.onnx", Local().argv(), reply_timeout_s=30) as child:
        child.ask(Load(str(conv_net(tmp_path / "net.onnx")), "ort-cpu", 1, 1))
        killer = threading.Timer(0.3, os.kill, (child.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(MachineError, match=r'net\.onnx: the agent was killed by signal 9 during "round"'):
            child.ask(TimeRound(1, 60, 0))
        killer.join()
        with pytest.raises(MachineError, match="killed by signal 9"):
            child.ask(Memory())


def test_crash_carries_the_last_messages() -> None:
    code = "import sys; sys.stdin.readline(); print('out of luck', file=sys.stderr); sys.exit(3)"
    with (
        AgentProcess("net.onnx", python(code), reply_timeout_s=30) as child,
        pytest.raises(MachineError, match=r'ended with exit code 3 during "hello"(.|\n)*out of luck'),
    ):
        child.hello()


def test_a_traceback_is_told_by_its_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKD_DEBUG", raising=False)
    code = "input(); deep = lambda n: deep(n - 1) if n else int('seven'); deep(30)"
    with AgentProcess("net.onnx", python(code), reply_timeout_s=30) as child:
        with pytest.raises(MachineError) as caught:
            child.hello()
        last = "ValueError: invalid literal for int() with base 10: 'seven'"
        assert (
            str(caught.value) == f'net.onnx: the agent ended with exit code 1 during "hello". Its last messages: {last}'
        )


def test_silence_is_a_machine_error_and_ends_the_child() -> None:
    code = "import sys, time; print('busy with nothing', file=sys.stderr, flush=True); time.sleep(60)"
    with AgentProcess("net.onnx", python(code), reply_timeout_s=0.5) as child:
        with pytest.raises(MachineError, match=r'no answer to "hello" within 0\.5 s(.|\n)*busy with nothing'):
            child.hello()
        assert wait_until_gone(child.pid)


def test_greetings_of_a_login_script_are_passed_over() -> None:
    start = f"print('Welcome!'); print('[1, 2]'); os.execv(sys.executable, {Local().argv()!r})"
    code = f"import os, sys; sys.stdout.reconfigure(line_buffering=True); {start}"
    with AgentProcess("net.onnx", python(code), reply_timeout_s=30) as child:
        assert child.hello().python


def test_unknown_program_is_a_machine_error() -> None:
    with pytest.raises(MachineError, match="cannot be started"):
        AgentProcess("net.onnx", ["/nowhere/python3"], reply_timeout_s=1)


def test_another_protocol_version_is_refused() -> None:
    code = 'print(\'{"id": 1, "ok": true, "protocol": 99}\', flush=True); input()'
    with (
        AgentProcess("net.onnx", python(code), reply_timeout_s=30) as child,
        pytest.raises(MachineError, match="speaks protocol 99"),
    ):
        child.hello()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("file", InputFileError),
        ("usage", UsageError),
        ("machine", MachineError),
        ("protocol", MachineError),
        ("fault", EdgekdError),
    ],
)
def test_refusals_become_errors_by_kind(kind: str, error: type[EdgekdError]) -> None:
    code = f"""input(); print('{{"id": 1, "ok": false, "kind": "{kind}", "error": "why"}}', flush=True); input()"""
    with AgentProcess("net.onnx", python(code), reply_timeout_s=30) as child:
        with pytest.raises(EdgekdError, match=r"^net\.onnx: why\.$") as caught:
            child.hello()
        assert type(caught.value) is error


def test_leaving_the_block_ends_the_child_in_the_middle_of_a_round(tmp_path: Path) -> None:
    with AgentProcess("net.onnx", Local().argv(), reply_timeout_s=30) as child:
        child.ask(Load(str(conv_net(tmp_path / "net.onnx")), "ort-cpu", 1, 1))
        child._stdin.write(b'{"id": 0, "op": "round", "runs": 1, "seconds": 600, "settle_runs": 0}\n')
        child._stdin.flush()
        time.sleep(0.2)
        assert not gone(child.pid)
    assert gone(child.pid)


def test_deaf_child_is_killed_on_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_FAREWELL_S", 0.3)
    with AgentProcess("net.onnx", python("import time; time.sleep(600)"), reply_timeout_s=1) as child:
        pid = child.pid
    assert gone(pid)


def test_child_does_not_survive_a_killed_parent(tmp_path: Path) -> None:
    model = conv_net(tmp_path / "net.onnx")
    code = f"""
from edgekd.agent import protocol
from edgekd.agent.messages import Load, TimeRound
from edgekd.agent.protocol import AgentProcess, Local
with AgentProcess("net", Local().argv(), 60) as child:
    child.ask(Load({str(model)!r}, "ort-cpu", 1, 1))
    print(child.pid, flush=True)
    child.ask(TimeRound(1, 600, 0))
"""
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        assert not gone(pid)
        parent.kill()
    assert wait_until_gone(pid)


def test_arrays_arrive_bit_for_bit() -> None:
    array = array_in(LogitsArray("<f4", (1, 3), "AACAPwAAAMAAAMB/"))
    assert array.shape == (1, 3)
    assert array[0, :2].tolist() == [1.0, -2.0]
    assert np.isnan(array[0, 2])
