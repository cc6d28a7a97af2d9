"""Commands in forked children that die, or that show what a death would leave, before each change of a file system.

The fork server has imported everything and started no thread; a child costs a tenth of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgekd.cli import program
from edgekd.errors import EdgekdError
from edgekd.pipeline import cost, peak

STAGES = ("ingest", "init", "distill", "select", "export", "bench", "eval", "report")
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    [
        *("dying", "torch.onnx", "onnxscript"),
        *(f"edgekd.cli.{name}" for name in ("approval", "lines", "session", "settle", "targets")),
        *("edgekd.bench.sized_students", "edgekd.export.clipping"),
        *(f"edgekd.stages.{name}" for name in STAGES),
    ]
)

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def command(*words: object, cwd: Path, dies_before: int = 0, output: Path = Path(os.devnull)) -> int:
    """Run a command in a folder and return its exit code; SIGKILL it before its `dies_before`-th change below `cwd`."""
    return _ended(_dying_command, list(map(str, words)), cwd, dies_before, output)


def states(*words: object, cwd: Path, into: Path) -> tuple[int, list[str]]:
    """Run a command in a folder; return its exit code and what it changed below that folder, one line a change.

    Before the k-th change (from 1) the folder is copied to `into/k`: what the kernel knows at that moment is what a
    SIGKILL leaves.
    """
    into.mkdir()
    code = _ended(_observed_command, list(map(str, words)), cwd, into)
    return code, (into / "changes").read_text().splitlines()


def call(function: Callable[..., object], *arguments: object, dies_before: int, below: Path) -> bool:
    """Call a function in a child that dies before its `dies_before`-th change below a folder; return whether it did."""
    code = _ended(_dying_call, function, arguments, dies_before, below)
    assert code in (0, -signal.SIGKILL)
    return code == -signal.SIGKILL


def _ended(target: Callable[..., None], *arguments: object) -> int:
    child = _FORKSERVER.Process(target=target, args=arguments)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def _dying_command(words: list[str], cwd: Path, dies_before: int, output: Path) -> None:
    _before_each_change(cwd, _killer(dies_before))
    _command(words, cwd, output)


def _observed_command(words: list[str], cwd: Path, into: Path) -> None:
    log = os.open(into / "changes", os.O_WRONLY | os.O_CREAT)
    copying = False

    def copy(number: int, change: str) -> None:
        nonlocal copying
        if not copying:
            copying = True
            shutil.copytree(cwd, into / str(number), symlinks=True)
            os.write(log, f"{change}\n".encode())
            copying = False

    _before_each_change(cwd, copy)
    _command(words, cwd, into / "output")


def _dying_call(function: Callable[..., object], arguments: tuple[object, ...], dies_before: int, below: Path) -> None:
    _before_each_change(below, _killer(dies_before))
    function(*arguments)


def _killer(dies_before: int) -> Callable[[int, str], None]:
    def kill(number: int, _change: str) -> None:
        if number == dies_before:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def _command(words: list[str], cwd: Path, output: Path) -> None:
    """Run a command in this process, which ends with its exit code."""
    torch.set_num_threads(1)
    cost._LONGEST_S = 0.0  # the plan's measurements are made, but not long enough to be right
    assert peak.matmul_peak.__kwdefaults__
    peak.matmul_peak.__kwdefaults__["seconds"] = 1e-3
    os.chdir(cwd)
    printed = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.argv, code = ["edgekd", *words], 0
    try:
        program.app(words, standalone_mode=False)
    except EdgekdError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    sys.exit(code)


def _before_each_change(below: Path, act: Callable[[int, str], None]) -> None:
    """Call `act` with a number and a description before each change that Python makes below a folder."""
    number = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        place = _changed(event, arguments)
        if place is not None and below in place.parents:
            number += 1
            act(number, f"{event} {place.relative_to(below)}")

    sys.addaudithook(hook)


def _changed(event: str, arguments: tuple[Any, ...]) -> Path | None:
    """Return what an event is about to change, None where it changes nothing."""
    if event == "open":
        if isinstance(arguments[0], int) or not arguments[2] & _WRITING:
            return None
    elif event not in _CHANGES:
        return None
    if isinstance(arguments[0], int):
        return Path(f"/proc/self/fd/{arguments[0]}").readlink()
    place = Path(os.fsdecode(arguments[0]))
    folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    return (Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()) / place
