"""A real sshd on the loopback with keys of its own, a home of its own, and a proxy that can cut the connection."""

from __future__ import annotations

import contextlib
import math
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

FORCE = """#!/bin/sh
HOME={home}; export HOME
PATH={path}; export PATH
unset PYTHONPATH
OMP_NUM_THREADS=1; export OMP_NUM_THREADS
cd "$HOME" || exit 1
{extra}
exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""
TOOLS = ("sh", "mkdir", "df", "awk", "tail", "mv", "rm", "cat")
SFTP = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def lacking(reason: str) -> NoReturn:
    """Skip for what this machine lacks, or fail where EDGEKD_REQUIRE_SSHD=1 says that it must be there."""
    if os.environ.get("EDGEKD_REQUIRE_SSHD") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def required() -> tuple[str, str]:
    """Return sshd and sftp-server; without them skip, or fail where EDGEKD_REQUIRE_SSHD=1 says they must be there."""
    sshd, sftp = program("sshd"), next(filter(os.path.exists, SFTP), None)
    if sshd is None or sftp is None or program("ssh") is None:
        lacking("no sshd on this machine (Debian: apt-get install openssh-server)")
    return sshd, sftp


class Proxy:
    """Passes a port on to another, until it is told to cut every connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[socket.socket] = []
        self._left: float = math.inf
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._left -= len(data)
                if self._left < 0:
                    self.cut()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def cut_after(self, count: int) -> None:
        """Cut every connection once so many more bytes were to pass."""
        self._left = count

    def cut(self) -> None:
        self._left = math.inf
        for one in self._pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._pairs.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


class Device:
    """The far end: its home, what it may use, and the client's configuration that leads there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.bin, self.bare = folder / "bin", folder / "bare"
        self.config, self.known_hosts = folder / "ssh_config", folder / "known_hosts"
        for place in (self.home, self.bin, self.bare):
            place.mkdir()
        for tool in TOOLS:
            (self.bare / tool).symlink_to(str(program(tool)))
        self.tool("python3", f'exec {sys.executable} "$@"')
        for name in ("host", "user", "other"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        self.allow()
        self._start()
        self.proxy = Proxy(self._port)
        self.know("host")
        user = pwd.getpwuid(os.getuid()).pw_name
        lines = ["Host device", "HostName 127.0.0.1", f"Port {self.proxy.port}", f"User {user}", "IdentitiesOnly yes"]
        lines += [f"IdentityFile {folder}/user", f"UserKnownHostsFile {self.known_hosts}"]
        self.config.write_text("\n".join([*lines, "GlobalKnownHostsFile /dev/null", "HashKnownHosts no"]) + "\n")

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "edgekd"

    @property
    def work(self) -> list[Path]:
        return sorted(self.cache.glob("work-*"))

    def deserted(self) -> bool:
        """Return whether, within a few seconds, no process runs from the device's home any more."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            marks = (str(self.home).encode(), b".cache/edgekd/work-")
            if not any(mark in line for line in command_lines() for mark in marks):
                return True
            time.sleep(0.1)
        return False

    def tool(self, name: str, script: str) -> None:
        """Put a program on the device's PATH."""
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def allow(self, path: str = "", extra: str = "", home: Path | None = None) -> None:
        """Say what a login finds there."""
        force = self.folder / "force.sh"
        text = FORCE.format(home=home or self.home, path=path or f"{self.bin}:{self.bare}", extra=extra)
        force.write_text(text)
        force.chmod(0o755)

    def know(self, key: str) -> None:
        """Let the client know this key as the device's."""
        public = " ".join((self.folder / f"{key}.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.proxy.port} {public}\n" if key != "none" else "")

    def _start(self) -> None:
        sshd, sftp = required()
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        lines = [f"Port {self._port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder}/host", "PidFile none"]
        lines += [f"AuthorizedKeysFile {self.folder}/authorized", "StrictModes no", "UsePAM no", "LogLevel ERROR"]
        lines += ["KbdInteractiveAuthentication no", "PermitRootLogin yes", f"Subsystem sftp {sftp}"]
        config = self.folder / "sshd_config"
        config.write_text("\n".join([*lines, f"ForceCommand {self.folder}/force.sh"]) + "\n")
        self._log = (self.folder / "sshd.log").open("w")
        self._process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=self._log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.05)
        pytest.fail(f"sshd did not start: {(self.folder / 'sshd.log').read_text()}")

    def close(self) -> None:
        self.proxy.close()
        self._process.terminate()
        self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def sshd_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    required()
    device = Device(tmp_path_factory.mktemp("sshd"))
    yield device
    device.close()


@pytest.fixture
def device(sshd_device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device as it was set up, empty, and the way to it."""
    sshd_device.allow()
    sshd_device.know("host")
    shutil.rmtree(sshd_device.home)
    sshd_device.home.mkdir()
    (sshd_device.folder / "authorized").write_text((sshd_device.folder / "user.pub").read_text())
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(sshd_device.config))
    return sshd_device
