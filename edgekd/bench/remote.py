"""A device at the far end of the system's own ssh and scp: files there, results back, hashes both ways.

The user's configuration, keys, jump hosts and known_hosts hold; nothing is ever asked (BatchMode), no host key is
accepted here. EDGEKD_SSH_CONFIG names another configuration file (`ssh -F`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgekd.agent.device import scratch
from edgekd.agent.device.files import real
from edgekd.agent.protocol import AgentDiedError, AgentProcess
from edgekd.bench import pack, ssh
from edgekd.bench.device_session import DeviceSession, Say
from edgekd.errors import EdgekdError, GateError, InputFileError, MachineError, RunBusyError, UsageError

OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=6")
AGENT = "agent.pyz"
_SSH_FAILED = 255
_COPY_TIMEOUT_S = 3600.0
_PROBE_TIMEOUT_S = 120.0

_PROBE = """d=.cache/edgekd/work-{key}
if command -v {python} >/dev/null 2>&1; then echo "edgekd python yes"; else echo "edgekd python no"; exit 0; fi
{python} -c 'import sys; print("edgekd version %d.%d" % sys.version_info[:2])'
umask 077
mkdir -p "$d" && echo "edgekd folder yes"
df -Pk "$d" | tail -n 1 | awk '{{print "edgekd free " $4}}'
"""
"""What is asked before anything is copied; the login shell may greet first, so answers have a mark."""


_CLEAN = """import fcntl, os, pathlib, shutil, sys
root = pathlib.Path.home() / ".cache" / "edgekd"
if not root.is_dir():
    sys.exit(print("edgekd freed 0"))
lock = os.open(str(root / "lock"), os.O_RDWR | os.O_CREAT, 0o600)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(print("edgekd freed busy"))
print("edgekd freed %d" % sum(path.stat().st_size for path in root.rglob("*") if path.is_file()))
for path in root.iterdir():
    if path.is_dir():
        shutil.rmtree(str(path))
"""
"""Needs no agent there: a full disk has no room for one."""


class _ConnectionCutError(MachineError):
    """The way there broke; what is there already is taken up by the next session."""

    def __init__(self, address: str, said: str) -> None:
        super().__init__(
            f"the connection to {address} was cut ({said.strip() or 'no message'}). What was copied and measured "
            "is kept there; the same command goes on from it."
        )


@dataclass(frozen=True)
class Host:
    """How to reach a device, and what to use there."""

    address: str
    python: str = "python3"
    trtexec: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._%+-]+(@[A-Za-z0-9._:%-]+)?", self.address) or self.address.startswith("-"):
            raise UsageError(f"--on takes user@host or a host of your ssh configuration, not {self.address!r}.")

    def _options(self) -> list[str]:
        config = os.environ.get("EDGEKD_SSH_CONFIG")
        return [*(["-F", config] if config else []), *(part for option in OPTIONS for part in ("-o", option))]

    def ssh(self, command: str) -> list[str]:
        """Return the arguments that run a shell command there."""
        return ["ssh", "-T", *self._options(), "--", self.address, command]

    def scp(self, file: Path, place: str) -> list[str]:
        """Return the arguments that copy a file to a place below the home directory there."""
        user, at, host = self.address.rpartition("@")
        host = f"[{host}]" if ":" in host else host  # an IPv6 address, which scp would cut at its first colon
        return ["scp", "-q", *self._options(), "--", str(real(file)), f"{user}{at}{host}:{place}"]

    def failure(self, messages: str) -> MachineError:
        """Return what ssh or scp said as an error that says how to mend it."""
        host, why = self.address, messages.strip() or "no message"
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in messages:
            return MachineError(
                f"{host} answers with another host key than the one you know: it was set up anew, or somebody else "
                f"answers. If you know why:\n  {ssh.forget(messages, host)}\n  ssh {host}"
            )
        if "Host key verification failed" in messages or "Permission denied (" in messages:
            what = "is not a known host" if "Host key" in messages else "lets nobody in without a password"
            lines = f"  ssh {host}            # once: compare and accept its key\n  ssh-copy-id {host}    # a key"
            return MachineError(
                f"{host} {what}, and edgekd asks for nothing. Give these two lines, then again:\n{lines}"
            )
        return MachineError(f"{host} cannot be reached: {why}")

    @contextmanager
    def session(
        self, key: str, say: Say, *, tensorrt: bool = True, while_waiting: Callable[[], None] = lambda: None
    ) -> Iterator[DeviceSession]:
        """Hold the device for the work of `key`, which any text may be; with `tensorrt` look which one is there.

        `while_waiting` is called twice a second while the device works, and may raise: an engine may take minutes.
        On leaving without an error nothing is removed yet: see `DeviceSession.complete`. What a cut connection or a
        stop leaves behind is taken up by the next session of the same key; an answer, such as that nothing runs, a flag
        does not fit or no student is fast enough, leaves nothing.

        Raises:
            MachineError: it cannot be reached, lacks Python 3.8 or space, or the connection was cut.
            RunBusyError: another bench holds it.
        """
        agent_zip = pack.agent_zip()
        digest = hashlib.sha256(agent_zip).hexdigest()
        key = hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:20]
        folder = f".cache/edgekd/work-{key}"
        self._probe(key, len(agent_zip), while_waiting)
        with scratch.folder() as here:
            file = here / AGENT
            file.write_bytes(agent_zip)
            temporary = f"{folder}/agent-{os.getpid()}.pyz"  # a bench under way may run from the final place
            self.copy(file, temporary, while_waiting)
        start = f"mv -f {temporary} {folder}/{AGENT} && exec {shlex.quote(self.python)} {folder}/{AGENT} serve"
        argv = self.ssh(start)
        with AgentProcess(self.address, argv, 600.0, detached=True, while_waiting=while_waiting) as process:
            session = DeviceSession(self, process, key, folder, say, while_waiting)
            try:
                session.begin(digest, tensorrt=tensorrt)
                yield session
            except AgentDiedError as error:
                raise self._cut(error) from error
            except _ConnectionCutError:
                raise
            except (MachineError, UsageError, InputFileError, GateError):
                with suppress(EdgekdError):  # no connection, no removal: the answer itself is what matters
                    session.complete()
                raise

    def clean(self) -> int:
        """Remove everything edgekd keeps there; return the bytes freed.

        Raises:
            MachineError: it cannot be reached, or has no Python.
            RunBusyError: a bench is under way there.
        """
        ran = ssh.run_program(
            self.ssh(f"{shlex.quote(self.python)} -c {shlex.quote(_CLEAN)}"),
            _PROBE_TIMEOUT_S,
            self.address,
            lambda: None,
        )
        if ran.returncode == _SSH_FAILED:
            raise self.failure(ran.stderr)
        match = re.search(r"^edgekd freed (busy|[0-9]{1,18})$", ran.stdout, re.MULTILINE)
        if match is None:
            raise MachineError(f"nothing was removed on {self.address}: {ran.stderr.strip() or 'no message'}")
        if match.group(1) == "busy":
            raise RunBusyError(f"another bench is under way on {self.address}; wait until it ends.")
        return int(match.group(1))

    def _probe(self, key: str, needed_bytes: int, while_waiting: Callable[[], None]) -> None:
        python = shlex.quote(self.python)
        script = _PROBE.format(key=key, python=python)
        ran = ssh.run_program(self.ssh(f"sh -c {shlex.quote(script)}"), _PROBE_TIMEOUT_S, self.address, while_waiting)
        if ran.returncode == _SSH_FAILED:
            raise self.failure(ran.stderr)
        said = dict(re.findall(r"^edgekd (\w+) (\S+)\s*$", ran.stdout, re.MULTILINE))
        if said.get("python") != "yes":
            raise MachineError(
                f"{self.address} has no {self.python}; install it there (sudo apt-get install python3), or name "
                "another with --python PATH."
            )
        version = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", said.get("version", ""))
        if version is None or (int(version.group(1)), int(version.group(2))) < (3, 8):
            raise MachineError(
                f"{self.python} on {self.address} is Python {said.get('version', 'unknown')[:20]}; 3.8 or newer is "
                "needed. Name another with --python PATH."
            )
        free = said.get("free", "")
        free_kib = int(free) if re.fullmatch("[0-9]{1,18}", free) else 0
        if said.get("folder") != "yes" or free_kib * 1024 < 2 * needed_bytes:
            raise self._full(free_kib, ran.stderr)

    def _full(self, free_kib: int, messages: str) -> MachineError:
        return MachineError(
            f"the disk of {self.address} is full or read-only: {free_kib / 1024:.1f} MiB are free in ~/.cache/edgekd "
            f"({messages.strip() or 'no message'}). Free some space there, or give `edgekd bench --on {self.address} "
            "--clean`; then the same command goes on."
        )

    def copy(self, file: Path, place: str, while_waiting: Callable[[], None]) -> None:
        """Copy a file to a place below the home directory there."""
        ran = ssh.run_program(self.scp(file, place), _COPY_TIMEOUT_S, self.address, while_waiting)
        if ran.returncode != 0:
            if any(word in ran.stderr for word in ("No space left", "Failure", "quota", "File too large")):
                raise self._full(0, ran.stderr)
            if any(word in ran.stderr for word in ("lost connection", "Connection closed", "Broken pipe")):
                raise _ConnectionCutError(self.address, ran.stderr)
            raise self.failure(ran.stderr)

    def _cut(self, error: AgentDiedError) -> MachineError:
        said = "\n".join(error.messages)
        if "No space left" in said:
            return self._full(0, said)
        if error.code not in (_SSH_FAILED, None, 0):  # 0: it heard nothing from here any more
            return error
        return _ConnectionCutError(self.address, said)
