"""A device that is held: files there, answers back; nothing of an answer is taken before it fits what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent import answers
from edgekd.agent.device.environment import Environment, from_facts
from edgekd.agent.device.machine import sha256_of
from edgekd.agent.measure import LOAD_TIMEOUT_S, Progress
from edgekd.agent.measurement import Comparison, Job, Settings, from_json, job_to_json
from edgekd.agent.numerics import TOLERANCES, precision_of
from edgekd.agent.protocol import AgentProcess, arriving
from edgekd.agent.schema import SchemaError
from edgekd.errors import MachineError

if TYPE_CHECKING:
    from edgekd.agent.measure import OnProgress
    from edgekd.agent.schema import Check
    from edgekd.bench.remote import Host

_HELLO_TIMEOUT_S = 180.0
_FAREWELL_TIMEOUT_S = 60.0
Say = Callable[[str], None]


class Session:
    """A device that is held, and its work folder."""

    def __init__(
        self, host: Host, process: AgentProcess, key: str, folder: str, say: Say, while_waiting: Callable[[], None]
    ) -> None:
        self._host, self._process, self._key, self._folder, self._say = host, process, key, folder, say
        self._while_waiting = while_waiting
        self.environment: Environment

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one request to the far end and return its reply."""
        return self._process.ask(op, **arguments)

    def begin(self, agent_sha256: str, *, tensorrt: bool) -> None:
        """Make sure that the agent there is ours, learn what the machine is, and hold it."""
        hello = self.ask("hello", tensorrt=tensorrt, timeout_s=_HELLO_TIMEOUT_S, **self._tools())
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
        missing = self._names("open", "missing", wanted)
        for number, name in enumerate(missing, 1):
            size = known[name].stat().st_size
            self._say(f"copy     {number}/{len(missing)} {name} ({size / 1000:.0f} kB) to {self._host.address}")
            self._host.copy(known[name], f"{self._folder}/{arriving(hashes[name])}", self._while_waiting)
        damaged = self._names("verify", "damaged", wanted)
        if damaged:
            raise MachineError(
                f"{damaged[0]} did not arrive whole on {self._host.address}; give the same command again."
            )

    def _names(self, op: str, key: str, wanted: list[dict[str, Any]]) -> list[str]:
        """Return which of the wanted files an answer names."""
        names: list[str] = self.ask(op, key=self._key, files=wanted)[key]
        strange = set(names) - {one["name"] for one in wanted}
        if strange:
            raise self._process.unfit(op, SchemaError(key, strange.pop(), "a file that was asked for"))
        return names

    def measure(self, jobs: Sequence[Job], settings: Settings, on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Return one comparison as it was made there: `comparison`, and a Jetson's state before and after."""

        def show(facts: dict[str, Any]) -> None:
            if on_progress is not None:
                on_progress(Progress(facts["step"], facts["artefact"], facts["done"], facts["total"]))

        def fits(found: Any, place: str) -> None:
            answers.PART(found, place)
            _require_asked(found["comparison"], jobs, settings)

        found = self._part("measure", fits, jobs, settings, on_progress=show)
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

        def fits(found: Any, place: str) -> None:
            answers.checked(found, place)
            precision = precision_of(job)
            _require_equal(found, artefact=job.artefact, runtime=job.runtime, images=len(expected), precision=precision)
            _require_equal(found, tolerance=TOLERANCES[precision])

        return self._part("check", fits, [job], settings, images=images, expected=expected)

    def energy(self, job: Job, settings: Settings) -> dict[str, Any]:
        """Return the energy of one artefact there, or why there is none."""

        def fits(found: Any, place: str) -> None:
            answers.POWER(found, place)
            known = {"artefact": job.artefact, "runtime": job.runtime}
            _require_equal(found, **{name: value for name, value in known.items() if name in found})

        return self._part("energy", fits, [job], settings)

    def complete(self) -> None:
        """Remove the work folder there; engines stay."""
        self.ask("close", complete=True, timeout_s=_FAREWELL_TIMEOUT_S)

    def _part(self, op: str, fits: Check, jobs: Sequence[Job], settings: Settings, **arguments: Any) -> dict[str, Any]:
        request = {"jobs": [job_to_json(job) for job in jobs], "settings": asdict(settings), **self._tools()}
        reply = self.ask(op, timeout_s=LOAD_TIMEOUT_S, **request, **arguments)
        if hashlib.sha256(reply["text"].encode()).hexdigest() != reply["sha256"]:
            raise MachineError(f"a result of {self._host.address} did not arrive whole; give the same command again.")
        try:
            found: dict[str, Any] = answers.parsed(reply["text"].encode())
            fits(found, "")
        except ValueError as error:
            raise self._process.unfit(op, error) from error
        if reply["kept"]:
            self._say(
                f"kept     {op} of {', '.join(job.label for job in jobs)}: measured before the connection was cut"
            )
        return found


def _require_equal(found: dict[str, Any], **wanted: Any) -> None:
    for name, value in wanted.items():
        if found[name] != value:
            raise SchemaError(name, found[name], f"{value}, as it was asked for")


def _require_asked(comparison: dict[str, Any], jobs: Sequence[Job], settings: Settings) -> None:
    """Raise `SchemaError` unless a comparison is of these jobs, each once or, in TensorRT, once an engine."""
    _require_equal(comparison, settings=asdict(settings))
    asked = [json.loads(json.dumps(job_to_json(job))) for job in jobs]
    for result in comparison["results"]:
        job = result["job"]
        of_engine = {name: job[name] for name in ("artefact", "kind", "flags")} if job["runtime"] == "tensorrt" else {}
        own = [one for one in asked if {**one, **of_engine} == job and job["artefact"].startswith(one["artefact"])]
        if not own:
            raise SchemaError("a job", job["artefact"], "one of those that were asked for")
    absent = [one for one in jobs if not any(one.model.name == r["job"]["model"] for r in comparison["results"])]
    if absent:
        raise SchemaError(f"the result of {absent[0].label}")
