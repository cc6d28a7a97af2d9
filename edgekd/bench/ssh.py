"""The system's ssh and scp as programs: run one, hear a stop meanwhile, and keep little of what it says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgekd.agent.pipes import FloodError, Pipes, SilentError
from edgekd.errors import MachineError

_STDOUT_BYTES = 2**20
"""A login shell's greeting, and a few lines."""


@dataclass(frozen=True)
class CompletedProgram:
    """What a program ended with: stdout, and the last lines of stderr."""

    returncode: int
    stdout: str
    stderr: str


def run_program(
    command: list[str], timeout_s: float, name: str, while_waiting: Callable[[], None] = lambda: None
) -> CompletedProgram:
    """Run a program to its end; `while_waiting` is called twice a second, and may raise.

    Raises:
        MachineError: it is not installed, does not end within `timeout_s`, or prints without end.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, bufsize=0
        )
    except FileNotFoundError as error:
        raise MachineError(f"there is no {command[0]} on this machine; install OpenSSH's client.") from error
    pipes = Pipes(process, while_waiting)
    try:
        pipes.hang_up()
        out = pipes.rest(_STDOUT_BYTES, time.monotonic() + timeout_s)
        return CompletedProgram(process.wait(), out.decode(errors="replace"), "\n".join(pipes.messages()))
    except SilentError as error:
        raise MachineError(f"{name} did not answer within {timeout_s:g} s ({command[0]}).") from error
    except FloodError as error:
        raise MachineError(f"{name} answers without end ({command[0]}: {error}).") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # scp has an ssh of its own
        process.wait()
        pipes.close()


def forget(messages: str, host: str) -> str:
    """Return the command that removes a known key: ssh names it by address and port, whatever alias leads there."""
    name = re.search(r"[Hh]ost key for (\S+) has changed", messages)
    file = re.search(r"Offending \S+ key in (.+?):\d+", messages)
    where = f"-f {shlex.quote(file.group(1))} " if file else ""
    return f"ssh-keygen {where}-R {shlex.quote(name.group(1) if name else host.rpartition('@')[2])}"
