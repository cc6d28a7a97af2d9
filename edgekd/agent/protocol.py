"""The parent's end of an agent: start one, ask it, and never let it live longer than the asker."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edgekd.agent import envelope
from edgekd.agent.messages import PROTOCOL, Hello, Refusal, Request
from edgekd.agent.pipes import FloodError, Pipes, SilentError
from edgekd.errors import EdgekdError, InputFileError, MachineError, RunBusyError, UsageError
from edgekd.schema import SchemaError, parse_untrusted_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from edgekd.agent.device.environment import Environment
    from edgekd.agent.measurement import MeasurementProgress

A = TypeVar("A")
ERRORS: dict[str, type[EdgekdError]] = {
    "file": InputFileError,
    "usage": UsageError,
    "machine": MachineError,
    "busy": RunBusyError,
    "protocol": MachineError,
    "fault": EdgekdError,
}
_FAREWELL_S = 3.0
_WORDS = 1500
PULSE_S = 10.0


class Transport(Protocol):
    """The way to a machine: how an agent is started there, and where a file of here lies there."""

    @property
    def target(self) -> str:
        """The name of the machine in messages and results."""

    def argv(self) -> list[str]:
        """Return the command, as an argument list, that starts an agent on the machine."""

    def place(self, file: Path) -> str:
        """Return the path of a local file over there, bringing it there if need be."""


def entry_point() -> Path:
    """Return what Python starts as the device's side: the zip file this runs from, else this folder."""
    here = Path(__file__).resolve()
    return here.parents[2] if here.parents[2].is_file() else here.parent


def arriving(sha256: str) -> str:
    """Return the name that a file travels under: it needs no quoting, and its own name it gets when it is whole."""
    return f"arriving-{sha256[:20]}"


class AgentDiedError(MachineError):
    """The agent ended by itself; `code` is its exit code and `messages` what it left on stderr."""

    def __init__(self, message: str, code: int | None, messages: Sequence[str]) -> None:
        super().__init__(message)
        self.code, self.messages = code, tuple(messages)


@dataclass(frozen=True)
class Local:
    """This machine; the agent runs under `python`."""

    python: str = sys.executable
    target: str = "local"

    def argv(self) -> list[str]:
        """Return the command that starts an agent as a child."""
        return [self.python, str(entry_point()), "worker"]

    def place(self, file: Path) -> str:
        """Return the absolute path of the file."""
        return str(file.resolve())


class AgentProcess:
    """A running agent; a context manager that ends it.

    Args:
        name: what the process measures, for messages.
        argv: the command that starts it.
        reply_timeout_s: how long any reply may take before the agent counts as hung.
        detached: whether it is out of reach of the terminal's Ctrl-C, which would end an ssh, and behind a network: it
            gets a sign of life every few seconds.
        while_waiting: called twice a second while a reply is awaited; what it raises ends the wait.

    Raises:
        MachineError: the command cannot be started; later, from `ask`: the agent died, hung, flooded its pipes, or
            answered what no agent of this version answers.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        reply_timeout_s: float,
        *,
        detached: bool = False,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.reply_timeout_s, self._while_waiting = name, reply_timeout_s, while_waiting
        self._ids = itertools.count(1)
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(  # noqa: S603
                list(argv), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=detached, bufsize=0
            )
        except OSError as error:
            raise MachineError(f"{name}: the agent cannot be started ({argv[0]}: {error.strerror}).") from error
        self._pipes = Pipes(self._process, while_waiting)
        self._stdin = self._pipes.stdin
        self._heard = False
        self._closed = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        if detached:
            self._pulse.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the child (of ssh, when the agent is elsewhere)."""
        return self._process.pid

    def hello(self) -> Environment:
        """Return the machine of the agent; one of another protocol version is refused."""
        return self.ask(Hello()).machine

    def ask(
        self,
        request: Request[A],
        *,
        on_progress: Callable[[MeasurementProgress], None] | None = None,
        timeout_s: float | None = None,
    ) -> A:
        """Send one request and return its answer; `on_progress` gets what is reported before it.

        `timeout_s`, else `reply_timeout_s`, is the longest silence: only a reply or a report of progress ends it.

        Raises:
            InputFileError, UsageError, MachineError: the agent refused, by the kind it names.
        """
        number, op, timeout_s = next(self._ids), request.op, timeout_s or self.reply_timeout_s
        end_s = time.monotonic() + timeout_s
        farthest: MeasurementProgress | None = None
        try:
            try:
                self._pipes.send(json.dumps(envelope.asking(number, request)).encode() + b"\n", end_s)
            except OSError as error:
                raise self._died(op) from error
            while True:
                line = self._pipes.line(request.most_bytes(), end_s)
                if line is None:
                    raise self._died(op)
                reply = self._understood(line, number)
                if reply is None:
                    continue
                if not envelope.reports_progress(reply):
                    answer = envelope.answer_in(reply, request)
                    break
                if on_progress is None:
                    self._pipes.stray(line)
                else:
                    end_s, progress = time.monotonic() + timeout_s, envelope.progress_in(reply)
                    _require_farther(progress, farthest)
                    farthest = progress
                    on_progress(progress)
        except SilentError as error:
            raise self._stopped(f'no answer to "{op}" within {timeout_s:g} s') from error
        except FloodError as error:
            raise self._stopped(f'it answers "{op}" without end: {error}') from error
        except SchemaError as error:
            raise self.unfit(op, error) from error
        if isinstance(answer, Refusal):
            raise ERRORS.get(answer.kind, MachineError)(f"{self.name}: {answer.error}.")
        return answer

    def unfit(self, op: str, why: Exception) -> MachineError:
        """Return the error for an answer that no agent of this version gives; end the agent, which is not believed."""
        return self._stopped(f'its answer to "{op}" is not what an agent of this edgekd answers ({why})')

    def _understood(self, line: bytes, number: int) -> Any:
        """The object on a line, None for what a login script prints before the agent starts."""
        try:
            reply = parse_untrusted_json(line)
        except ValueError as error:
            if self._heard or line.startswith(b'{"'):
                raise SchemaError(f"a line ({error})", line[:200], "an object of JSON") from error
            reply = None
        if not self._heard and not isinstance(reply, dict):
            self._pipes.stray(line)
            return None
        self._heard = True
        if not isinstance(reply, dict) or reply.get("id") != number:
            raise SchemaError("", reply, f"an object with the id {number}")
        other = envelope.other_protocol(reply)
        if other is not None:
            raise self._stopped(
                f"the agent speaks protocol {other}, this edgekd {PROTOCOL}; "
                "use the agent and the edgekd of one version"
            )
        return reply

    def close(self) -> None:
        """End the agent: its stdin closes, and if that is not enough it is killed."""
        self._closed.set()
        self._pipes.hang_up()
        if not self._pipes.drain(_FAREWELL_S):
            self._process.kill()
        self._process.wait()
        self._pipes.close()
        if self._pulse.is_alive():
            self._pulse.join(timeout=_FAREWELL_S)

    def _beat(self) -> None:
        while not self._closed.wait(PULSE_S):
            try:
                self._pipes.pulse()
            except (OSError, ValueError):  # gone, or closed at this moment; `ask` says so
                return

    def _stopped(self, what: str) -> MachineError:
        self._process.kill()
        return MachineError(f"{self.name}: {what}; the agent was stopped." + _last_words(self._pipes.messages()))

    def _died(self, op: str) -> AgentDiedError:
        self._while_waiting()  # a Ctrl-C may have ended both, and is what there is to say
        said = self._pipes.messages(_FAREWELL_S)
        try:
            code: int | None = self._process.wait(timeout=_FAREWELL_S)
        except subprocess.TimeoutExpired:
            code = None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return AgentDiedError(f'{self.name}: the agent {how} during "{op}".' + _last_words(said), code, said)


def _require_farther(progress: MeasurementProgress, before: MeasurementProgress | None) -> None:
    """Raise `SchemaError` unless a report of progress is one: farther than the one before, and with an end to it."""
    first, total = (0, progress.total) if before is None else (before.done, before.total)
    if not first < progress.done <= total:
        raise SchemaError("progress.done", progress.done, f"above {first} and at most {progress.total}")


def _last_words(messages: Sequence[str]) -> str:
    """What a process left on stderr; of a traceback its end alone, which says what went wrong."""
    frames = [number for number, line in enumerate(messages) if line.startswith('  File "')]
    if frames and os.environ.get("EDGEKD_DEBUG") != "1":
        rest = itertools.dropwhile(lambda line: line[:1].isspace(), messages[frames[-1] :])
        messages = list(rest)
    return " Its last messages: " + " | ".join(messages)[-_WORDS:] if messages else " It left no message."
