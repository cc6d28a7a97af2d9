"""Signals and deadlines become requests; the second signal means now."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from edgekd.errors import Interrupted, StoppedEarly
from edgekd.stopping import SIGNALS, Stop, at_once, graceful


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_a_request_with_its_exit_code(number: signal.Signals, code: int) -> None:
    with graceful() as stop:
        before = stop.requested
        stop.raise_if_requested()
        os.kill(os.getpid(), number)
        assert (before, stop.requested) == (False, True)
        with pytest.raises(
            Interrupted, match=rf"distillation was stopped by {number.name}; the same command"
        ) as caught:
            stop.raise_if_requested("distillation")
    assert caught.value.exit_code == code


def test_the_handlers_are_restored_even_after_an_error() -> None:
    before = [signal.getsignal(n) for n in SIGNALS]

    def fail() -> None:
        with graceful():
            assert [signal.getsignal(n) for n in SIGNALS] != before
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_deadline_is_a_request_with_exit_code_8() -> None:
    stop = Stop(max_seconds=0.05)
    before = stop.requested
    time.sleep(0.06)
    assert (before, stop.requested) == (False, True)
    with pytest.raises(StoppedEarly, match="reached --max-seconds") as caught:
        stop.raise_if_requested()
    assert caught.value.exit_code == 8


def test_without_a_deadline_nothing_is_ever_requested() -> None:
    assert not Stop().requested
    Stop().raise_if_requested()


def test_a_signal_outranks_the_deadline() -> None:
    with graceful(0.0) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.raise_if_requested()


def test_the_second_signal_ends_the_process_at_once() -> None:
    script = (
        "import os, signal\nfrom edgekd.stopping import graceful\n"
        "with graceful() as stop:\n"
        "  os.kill(os.getpid(), signal.SIGTERM)\n  print(stop.requested, flush=True)\n"
        "  os.kill(os.getpid(), signal.SIGTERM)\n  print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n"
    assert done.returncode == -signal.SIGTERM


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful() as stop, at_once():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", SIGNALS)
def test_a_terminal_that_ends_twice_is_no_second_thought(first: signal.Signals) -> None:
    with graceful() as stop:
        for number in (first, signal.SIGHUP, signal.SIGHUP):  # from the shell that ends and from its terminal
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_requested()
    assert caught.value.exit_code == 128 + first


def test_a_run_whose_terminal_goes_saves_although_it_can_print_no_more() -> None:
    script = (
        "import sys, time\nfrom edgekd import console\nfrom edgekd.errors import Interrupted\n"
        "from edgekd.stopping import graceful\n"
        "try:\n"
        "  with graceful() as stop, console.progress('work', 10**6) as bar:\n"
        "    console.say('begun')\n"
        "    while True:\n"
        "      time.sleep(0.001)\n      bar.update(1)\n      console.say('a line')\n      print('and another')\n"
        "      stop.raise_if_requested()\n"
        "except Interrupted as error:\n"
        "  console.error(str(error))\n  sys.exit(error.exit_code)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever nohup has made of it
        os.execv(sys.executable, [sys.executable, "-c", script])  # noqa: S606
    seen = b""
    while b"begun" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
