"""The far end of `edgekd bench --on`: one process that holds the device, keeps what was measured, and answers.

Its work folder outlives a cut connection: files that are whole are not copied again, parts that were measured are
not measured again. The end of stdin, or a near end that is not heard of any more, ends it and all that it started.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent import messages, session
from edgekd.agent.device import jetson, power
from edgekd.agent.device.machine import governor, installed_runtimes, publish, sha256_of, sha256_with
from edgekd.agent.device.workplace import Workplace, arrived_whole
from edgekd.agent.envelope import ReceivedLine, reporting
from edgekd.agent.measure import Tools
from edgekd.agent.measurement import BenchJob, MeasurementProgress
from edgekd.agent.messages import ResumableRequest, Sealed
from edgekd.agent.protocol import ERRORS, arriving, entry_point
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners import tensorrt
from edgekd.agent.worker import Replies, Worker, converse
from edgekd.errors import EdgekdError
from edgekd.schema import to_json

if TYPE_CHECKING:
    from edgekd.agent.worker import Ops

KEPT_S = 24 * 3600.0
"""What was measured longer ago is measured again: the board may be another temperature away."""
SILENCE_S = 45.0
"""Shorter than the near end takes to give up (`remote.OPTIONS`), so that the same command finds the device free."""


class Server:
    """Answers the requests of one near end, one method an op."""

    def __init__(self, replies: Replies, workplace: Workplace) -> None:
        self._replies, self._place = replies, workplace
        self._folder: Path | None = None
        self._number: int | None = None
        self._begin_s = time.time()

    @property
    def folder(self) -> Path:
        """The work folder that was opened."""
        if self._folder is None:
            raise RefusedError("protocol", "nothing is open; send open first")
        return self._folder

    def hello(self, request: messages.Hello) -> messages.Greeting:
        """Say who answers, what the machine is, and which agent this is."""
        entry = entry_point()
        return replace(Worker().hello(request), agent_sha256=sha256_of(entry) if entry.is_file() else None)

    def open(self, request: messages.Open) -> messages.Missing:
        """Hold the device and open the work folder of `key`; say which of `files` are to be copied."""
        self._place.hold()
        self._folder = self._place.work(request.key)
        return messages.Missing(self._place.missing(self._folder, request.files))

    def verify(self, request: messages.Verify) -> messages.Damaged:
        """Give each of `files` that arrived whole its name; return those that did not."""
        damaged = []
        for file in request.files:
            arrived = self.folder / arriving(file.sha256)
            if arrived_whole(arrived, file.sha256):
                publish(arrived, self.folder / file.name)
            if not arrived_whole(self.folder / file.name, file.sha256):
                damaged.append(file.name)
        return messages.Damaged(tuple(damaged))

    def measure(self, request: messages.Measure) -> Sealed:
        """Time `jobs` with `settings` as one comparison."""
        return self._part(
            request, lambda jobs, tools: session.compare_on_device(jobs, request.settings, tools, self._report)
        )

    def check(self, request: messages.Check) -> Sealed:
        """Compare the logits of the one job with `expected`, for the images of the file `images`."""
        images = self.folder / request.images
        return self._part(
            request,
            lambda jobs, tools: session.check_on_device(jobs[0], request.settings, tools, images, request.expected),
        )

    def energy(self, request: messages.MeasureEnergy) -> Sealed:
        """Measure the energy of the one job; without readable rails say why there is none."""
        source = power.find_power_reader()
        if isinstance(source, str):
            return _sealed(json.dumps(to_json(power.NoEnergy(source))), kept=False)
        try:
            return self._part(
                request, lambda jobs, tools: session.energy_on_device(jobs[0], request.settings, tools, source)
            )
        finally:
            source.close()

    def close(self, request: messages.Close) -> messages.Done:
        """Give the device back; with `complete` remove the work folder."""
        if request.complete:
            shutil.rmtree(str(self.folder))
        self._folder = None
        self._place.release()
        return messages.Done()

    def note(self, asked: ReceivedLine) -> None:
        """Note which request is being answered, for what is reported before its answer."""
        self._number = asked.number

    def _report(self, progress: MeasurementProgress) -> None:
        self._replies.send(reporting(self._number, progress))

    def _part(self, request: ResumableRequest, work: Callable[[Sequence[BenchJob], Tools], object]) -> Sealed:
        """What `work` finds, or what it found before the connection was cut: for equal files, equally set up."""
        jobs = [replace(job, model=self.folder / job.model) for job in request.jobs]
        tools = Tools(request.trtexec, str(self._place.engines), self._begin_s)
        about = [
            request.op,
            to_json(request),
            [sha256_with(job.model, job.weights) for job in jobs],
            state(jobs, tools),
        ]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        part = self.folder / f"part-{digest[:32]}.json"
        result_file = _kept(part)
        if result_file is not None:
            return _sealed(result_file, kept=True)
        try:
            text = json.dumps(to_json(work(jobs, tools)))
        except EdgekdError as error:
            kind = next((kind for kind, cls in ERRORS.items() if type(error) is cls), "machine")
            raise RefusedError(kind, str(error).rstrip(".")) from error
        sealed = _sealed(text, kept=False)
        temporary = part.with_suffix(".tmp")
        temporary.write_text(f"{sealed.sha256}\n{text}", encoding="utf-8")
        publish(temporary, part)
        return sealed

    def ops(self) -> Ops:
        """Return the methods that answer requests."""
        return {
            messages.Hello: self.hello,
            messages.Open: self.open,
            messages.Verify: self.verify,
            messages.Measure: self.measure,
            messages.Check: self.check,
            messages.MeasureEnergy: self.energy,
            messages.Close: self.close,
        }


def state(jobs: Sequence[BenchJob], tools: Tools) -> list[object]:
    """Return what a time depends on besides files and settings and may have been changed since: versions and clocks."""
    board = jetson.facts()
    return [
        installed_runtimes(),
        to_json(tensorrt.find_tensorrt(tools.trtexec)) if any(job.runtime == "tensorrt" for job in jobs) else None,
        governor(),
        None if board is None else [board.power_mode, board.locked],
    ]


def _kept(part: Path) -> str | None:
    """The text of a part, if it is whole and of today; its first line is its hash."""
    if not part.is_file() or not 0 <= time.time() - part.stat().st_mtime < KEPT_S:
        return None
    sha256, _, text = part.read_text(encoding="utf-8", errors="replace").partition("\n")
    return text if hashlib.sha256(text.encode()).hexdigest() == sha256 else None


def _sealed(text: str, *, kept: bool) -> Sealed:
    """A result with the hash that the near end checks."""
    return Sealed(text, hashlib.sha256(text.encode()).hexdigest(), kept)


def main() -> int:
    """Serve one near end."""
    replies = Replies()
    server = Server(replies, Workplace())
    return converse(replies, server.ops(), SILENCE_S, server.note)
