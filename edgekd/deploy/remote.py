"""A device at the far end of the system's own ssh and scp: files there, results back, hashes both ways.

The user's configuration, keys, jump hosts and known_hosts hold; nothing is ever asked (BatchMode), no host key is
accepted here. EDGEKD_SSH_CONFIG names another configuration file (`ssh -F`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.deploy import pack
from edgekd.deploy.agent import scratch
from edgekd.deploy.agent.environment import Environment, from_facts
from edgekd.deploy.agent.machine import sha256_of
from edgekd.deploy.agent.measure import LOAD_TIMEOUT_S, Progress
from edgekd.deploy.agent.measurement import Comparison, Job, Settings, from_json, job_to_json
from edgekd.deploy.agent.protocol import AgentDiedError, AgentProcess, arriving
from edgekd.errors import EdgekdError, GateError, InputFileError, MachineError, RunBusyError, UsageError

if TYPE_CHECKING:
    from edgekd.deploy.agent.measure import OnProgress

OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=6")
AGENT = "agent.pyz"
_SSH_FAILED = 255
_COPY_TIMEOUT_S = 3600.0
_PROBE_TIMEOUT_S = 120.0
Say = Callable[[str], None]

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
        return ["scp", "-q", *self._options(), "--", str(file.resolve()), f"{user}{at}{host}:{place}"]

    def failure(self, messages: str) -> MachineError:
        """Return what ssh or scp said as an error that says how to mend it."""
        host, why = self.address, messages.strip() or "no message"
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in messages:
            return MachineError(
                f"{host} answers with another host key than the one you know: it was set up anew, or somebody else "
                f"answers. If you know why:\n  {_forget(messages, host)}\n  ssh {host}"
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
    ) -> Iterator[Session]:
        """Hold the device for the work of `key`, which any text may be; with `tensorrt` look which one is there.

        `while_waiting` is called twice a second while the device works, and may raise: an engine may take minutes.
        On leaving without an error nothing is removed yet: see `Session.complete`. What a cut connection or a stop
        leaves behind is taken up by the next session of the same key; an answer, such as that nothing runs, a flag
        does not fit or no student is fast enough, leaves nothing.

        Raises:
            MachineError: it cannot be reached, lacks Python 3.8 or space, or the connection was cut.
            RunBusyError: another bench holds it.
        """
        agent_zip = pack.agent_zip()
        digest = hashlib.sha256(agent_zip).hexdigest()
        key = hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:20]
        folder = f".cache/edgekd/work-{key}"
        self._probe(key, len(agent_zip))
        with scratch.folder() as here:
            file = here / AGENT
            file.write_bytes(agent_zip)
            temporary = f"{folder}/agent-{os.getpid()}.pyz"  # a bench under way may run from the final place
            self._copy(file, temporary)
        start = f"mv -f {temporary} {folder}/{AGENT} && exec {shlex.quote(self.python)} {folder}/{AGENT} serve"
        argv = self.ssh(start)
        with AgentProcess(self.address, argv, 600.0, detached=True, while_waiting=while_waiting) as process:
            session = Session(self, process, key, folder, say)
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
        ran = _run(self.ssh(f"{shlex.quote(self.python)} -c {shlex.quote(_CLEAN)}"), _PROBE_TIMEOUT_S, self.address)
        if ran.returncode == _SSH_FAILED:
            raise self.failure(ran.stderr)
        found = re.search(r"^edgekd freed (\w+)$", ran.stdout, re.MULTILINE)
        if found is None:
            raise MachineError(f"nothing was removed on {self.address}: {ran.stderr.strip() or 'no message'}")
        if found.group(1) == "busy":
            raise RunBusyError(f"another bench is under way on {self.address}; wait until it ends.")
        return int(found.group(1))

    def _probe(self, key: str, needed_bytes: int) -> None:
        python = shlex.quote(self.python)
        script = _PROBE.format(key=key, python=python)
        ran = _run(self.ssh(f"sh -c {shlex.quote(script)}"), _PROBE_TIMEOUT_S, self.address)
        if ran.returncode == _SSH_FAILED:
            raise self.failure(ran.stderr)
        said = dict(re.findall(r"^edgekd (\w+) (\S+)$", ran.stdout, re.MULTILINE))
        if said.get("python") != "yes":
            raise MachineError(
                f"{self.address} has no {self.python}; install it there (sudo apt-get install python3), or name "
                "another with --python PATH."
            )
        version = tuple(int(part) for part in said.get("version", "0.0").split("."))
        if version < (3, 8):
            raise MachineError(
                f"{self.python} on {self.address} is Python {said.get('version', 'unknown')}; 3.8 or newer is needed. "
                "Name another with --python PATH."
            )
        free_kib = int(said.get("free", "0")) if said.get("free", "0").isdigit() else 0
        if said.get("folder") != "yes" or free_kib * 1024 < 2 * needed_bytes:
            raise self._full(free_kib, ran.stderr)

    def _full(self, free_kib: int, messages: str) -> MachineError:
        return MachineError(
            f"the disk of {self.address} is full or read-only: {free_kib / 1024:.1f} MiB are free in ~/.cache/edgekd "
            f"({messages.strip() or 'no message'}). Free some space there, or give `edgekd bench --on {self.address} "
            "--clean`; then the same command goes on."
        )

    def _copy(self, file: Path, place: str) -> None:
        ran = _run(self.scp(file, place), _COPY_TIMEOUT_S, self.address)
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
        if error.code not in (_SSH_FAILED, None) and "Traceback" in said:
            return MachineError(f"{error} This is a fault of the agent; report it with these lines.")
        return _ConnectionCutError(self.address, said)


def _forget(messages: str, host: str) -> str:
    """Return the command that removes a known key: ssh names it by address and port, whatever alias leads there."""
    name = re.search(r"[Hh]ost key for (\S+) has changed", messages)
    file = re.search(r"Offending \S+ key in (.+?):\d+", messages)
    where = f"-f {shlex.quote(file.group(1))} " if file else ""
    return f"ssh-keygen {where}-R {shlex.quote(name.group(1) if name else host.rpartition('@')[2])}"


def _run(command: list[str], timeout_s: float, name: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise MachineError(f"there is no {command[0]} on this machine; install OpenSSH's client.") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{name} did not answer within {timeout_s:g} s ({command[0]}).") from error


class Session:
    """A device that is held, and its work folder."""

    def __init__(self, host: Host, process: AgentProcess, key: str, folder: str, say: Say) -> None:
        self._host, self._process, self._key, self._folder, self._say = host, process, key, folder, say
        self.environment: Environment

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one request to the far end and return its reply."""
        return self._process.ask(op, **arguments)

    def begin(self, agent_sha256: str, *, tensorrt: bool) -> None:
        """Make sure that the agent there is ours, learn what the machine is, and hold it."""
        hello = self.ask("hello", tensorrt=tensorrt, **self._tools())
        if hello.get("agent_sha256") != agent_sha256:
            raise MachineError(f"the agent on {self._host.address} is not the one that was copied; try again.")
        self.environment = from_facts(hello["machine"])
        self.ask("open", key=self._key, files=[])

    def _tools(self) -> dict[str, str]:
        return {"trtexec": self._host.trtexec} if self._host.trtexec else {}

    def put(self, files: Sequence[Path]) -> None:
        """Bring files there whose content is not there yet; each is hashed at both ends."""
        known = {file.name: file for file in files}
        wanted = [
            {"name": name, "sha256": sha256_of(file), "size_bytes": file.stat().st_size} for name, file in known.items()
        ]
        hashes = {str(one["name"]): str(one["sha256"]) for one in wanted}
        missing = self.ask("open", key=self._key, files=wanted)["missing"]
        for number, name in enumerate(missing, 1):
            size = known[name].stat().st_size
            self._say(f"copy     {number}/{len(missing)} {name} ({size / 1000:.0f} kB) to {self._host.address}")
            self._host._copy(known[name], f"{self._folder}/{arriving(hashes[name])}")
        damaged = self.ask("verify", files=wanted)["damaged"]
        if damaged:
            raise MachineError(
                f"{damaged[0]} did not arrive whole on {self._host.address}; give the same command again."
            )

    def measure(self, jobs: Sequence[Job], settings: Settings, on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Return one comparison as it was made there: `comparison`, and a Jetson's state before and after."""

        def show(facts: dict[str, Any]) -> None:
            if on_progress is not None:
                on_progress(Progress(facts["step"], facts["artefact"], facts["done"], facts["total"]))

        found = self._part("measure", jobs, settings, on_progress=show)
        comparison = found["comparison"]
        comparison["target"] = self._host.address
        hashes = {job.model.name: sha256_of(job.model) for job in jobs}
        for result in comparison["results"]:
            if result.get("sha256", hashes[result["job"]["model"]]) != hashes[result["job"]["model"]]:
                raise MachineError(f"{self._host.address} measured another {result['job']['model']} than this one.")
        return found

    def compare(self, jobs: Sequence[Job], settings: Settings, on_progress: OnProgress | None = None) -> Comparison:
        """Return one comparison, as `measure` does here."""
        return from_json(self.measure(jobs, settings, on_progress)["comparison"])

    def check(self, job: Job, settings: Settings, images: str, expected: list[list[float]]) -> dict[str, Any]:
        """Return how the logits there differ from those of here."""
        return self._part("check", [job], settings, images=images, expected=expected)

    def energy(self, job: Job, settings: Settings) -> dict[str, Any]:
        """Return the energy of one artefact there, or why there is none."""
        return self._part("energy", [job], settings)

    def complete(self) -> None:
        """Remove the work folder there; engines stay."""
        self.ask("close", complete=True)

    def _part(self, op: str, jobs: Sequence[Job], settings: Settings, **arguments: Any) -> dict[str, Any]:
        request = {"jobs": [job_to_json(job) for job in jobs], "settings": asdict(settings), **self._tools()}
        reply = self.ask(op, timeout_s=LOAD_TIMEOUT_S, **request, **arguments)
        if hashlib.sha256(reply["text"].encode()).hexdigest() != reply["sha256"]:
            raise MachineError(f"a result of {self._host.address} did not arrive whole; give the same command again.")
        if reply["kept"]:
            self._say(
                f"kept     {op} of {', '.join(job.label for job in jobs)}: measured before the connection was cut"
            )
        found: dict[str, Any] = json.loads(reply["text"])
        return found
