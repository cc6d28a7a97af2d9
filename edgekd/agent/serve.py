"""The far end of `edgekd bench --on`: one process that holds the device, keeps what was measured, and answers.

Its work folder outlives a cut connection: files that are whole are not copied again, parts that were measured are
not measured again. The end of stdin, or a near end that is not heard of any more, ends it and all that it started.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.agent import session
from edgekd.agent.device import jetson, power
from edgekd.agent.device.machine import RUNTIME_PACKAGES, governor, installed, publish, sha256_of
from edgekd.agent.device.workplace import Workplace, whole
from edgekd.agent.measure import Progress, Tools
from edgekd.agent.measurement import Job, Settings, job_from_json
from edgekd.agent.protocol import ERRORS, arriving, entry_point
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners import tensorrt
from edgekd.agent.worker import Replies, Worker, converse
from edgekd.errors import EdgekdError

KEPT_S = 24 * 3600.0
"""What was measured longer ago is measured again: the board may be another temperature away."""
SILENCE_S = 45.0
"""Shorter than the near end takes to give up (`remote.OPTIONS`), so that the same command finds the device free."""


class Server:
    """Answers the requests of one near end, one method an op."""

    def __init__(self, replies: Replies, workplace: Workplace) -> None:
        self._replies, self._place = replies, workplace
        self._folder: Path | None = None
        self._begin_s = time.time()

    @property
    def folder(self) -> Path:
        """Return the work folder that was opened."""
        if self._folder is None:
            raise RefusedError("protocol", "nothing is open; send open first")
        return self._folder

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say who answers, what the machine is, and which agent this is."""
        entry = entry_point()
        return {**Worker().hello(request), "agent_sha256": sha256_of(entry) if entry.is_file() else None}

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hold the device and open the work folder of `key`; say which of `files` are to be copied."""
        self._place.hold()
        self._folder = self._place.work(request["key"])
        return {"missing": self._place.missing(self._folder, request["files"])}

    def verify(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give each of `files` that arrived whole its name; return those that did not."""
        damaged = []
        for one in request["files"]:
            arrived = self.folder / arriving(one["sha256"])
            if whole(arrived, one["sha256"]):
                publish(arrived, self.folder / one["name"])
            if not whole(self.folder / one["name"], one["sha256"]):
                damaged.append(one["name"])
        return {"damaged": damaged}

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time `jobs` with `settings` as one comparison."""

        def report(progress: Progress) -> None:
            facts = {"done": progress.done, "total": progress.total, "step": progress.step}
            self._replies.send({"id": request["id"], "progress": {**facts, "artefact": progress.artefact}})

        return self._part(request, lambda jobs, settings, tools: session.compare(jobs, settings, tools, report))

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compare the logits of the one job with `expected`, for the images of the file `images`."""
        images = self.folder / request["images"]
        return self._part(
            request, lambda jobs, settings, tools: session.check(jobs[0], settings, tools, images, request["expected"])
        )

    def energy(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure the energy of the one job; without readable rails say why there is none."""
        source = power.find()
        if isinstance(source, str):
            return _sealed(json.dumps({"energy": source}), kept=False)
        try:
            return self._part(request, lambda jobs, settings, tools: session.energy(jobs[0], settings, tools, source))
        finally:
            source.close()

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the device back; with `complete` remove the work folder."""
        if request["complete"]:
            shutil.rmtree(str(self.folder))
        self._folder = None
        self._place.release()
        return {}

    def _parsed(self, request: dict[str, Any]) -> tuple[list[Job], Settings, Tools]:
        jobs = [job_from_json(one, self.folder) for one in request["jobs"]]
        tools = Tools(request.get("trtexec"), str(self._place.engines), self._begin_s)
        return jobs, Settings(**request["settings"]), tools

    def _part(self, request: dict[str, Any], work: Any) -> dict[str, Any]:
        """Return what `work` finds, or what it found before the connection was cut: for equal files, equally set up."""
        jobs, settings, tools = self._parsed(request)
        asked = {name: value for name, value in request.items() if name != "id"}
        about = [asked, [sha256_of(job.model) for job in jobs], state(jobs, tools)]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        part = self.folder / f"part-{digest[:32]}.json"
        kept = _kept(part)
        if kept is not None:
            return _sealed(kept, kept=True)
        try:
            text = json.dumps(work(jobs, settings, tools))
        except EdgekdError as error:
            kind = next((kind for kind, cls in ERRORS.items() if type(error) is cls), "machine")
            raise RefusedError(kind, str(error).rstrip(".")) from error
        temporary = part.with_suffix(".tmp")
        temporary.write_text(f"{_sealed(text, kept=False)['sha256']}\n{text}", encoding="utf-8")
        publish(temporary, part)
        return _sealed(text, kept=False)

    def ops(self) -> dict[str, Any]:
        """Return the methods that answer requests."""
        names = ("hello", "open", "verify", "measure", "check", "energy", "close")
        return {name: getattr(self, name) for name in names}


def state(jobs: Sequence[Job], tools: Tools) -> dict[str, Any]:
    """Return what a time depends on besides files and settings and may have been changed since: versions and clocks."""
    board = jetson.facts() or {"power_mode": None, "clocks": {"locked": None}}
    return {
        "packages": {package: installed(package) for package in RUNTIME_PACKAGES},
        "tensorrt": tensorrt.find(tools.trtexec) if any(job.runtime == "tensorrt" for job in jobs) else None,
        "governor": governor(),
        "power_mode": board["power_mode"],
        "locked": board["clocks"]["locked"],
    }


def _kept(part: Path) -> str | None:
    """Return the text of a part, if it is whole and of today; its first line is its hash."""
    if not part.is_file() or not 0 <= time.time() - part.stat().st_mtime < KEPT_S:
        return None
    sha256, _, text = part.read_text(encoding="utf-8", errors="replace").partition("\n")
    return text if hashlib.sha256(text.encode()).hexdigest() == sha256 else None


def _sealed(text: str, *, kept: bool) -> dict[str, Any]:
    """Return a result with the hash that the near end checks."""
    return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest(), "kept": kept}


def main() -> int:
    """Serve one near end."""
    replies = Replies()
    return converse(replies, Server(replies, Workplace()).ops(), SILENCE_S)
