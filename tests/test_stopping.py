"""Signals and deadlines become requests; the second signal means now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from edgekd.errors import Interrupted, StoppedEarly
from edgekd.stopping import Stop, graceful


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_a_request_with_its_exit_code(number: signal.Signals, code: int) -> None:
    with graceful() as stop:
        assert not stop.requested
        stop.raise_if_requested()
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(
            Interrupted, match=rf"distillation was stopped by {number.name}; the same command"
        ) as caught:
            stop.raise_if_requested("distillation")
    assert caught.value.exit_code == code


def test_the_handlers_are_restored_even_after_an_error() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def fail() -> None:
        with graceful():
            assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] != before
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_deadline_is_a_request_with_exit_code_8() -> None:
    stop = Stop(max_seconds=0.05)
    assert not stop.requested
    time.sleep(0.06)
    assert stop.requested
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
