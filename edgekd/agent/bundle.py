"""`student.pyz` on a device, offline: `check` compares logits, `bench` measures too; both write results.json."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekd.agent import files, session
from edgekd.agent.device import power, scratch
from edgekd.agent.device.machine import publish
from edgekd.agent.device.workplace import Workplace
from edgekd.agent.kernels import RUNTIMES, Runtime
from edgekd.agent.measure import Progress, Tools, require_some
from edgekd.agent.measurement import Job, Settings, from_json, job_from_json
from edgekd.agent.protocol import entry_point
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners.tensorrt import find
from edgekd.agent.runners.tensorrt_rules import known
from edgekd.errors import EdgekdError, MachineError
from edgekd.text import visible

MANIFEST, FORMAT = "manifest.json", 1
EXIT_CODES = {"file": 4, "usage": 2, "machine": 6, "busy": 7}


def is_one() -> bool:
    """Return whether this code runs from a bundle."""
    entry = entry_point()
    return entry.is_file() and MANIFEST in zipfile.ZipFile(str(entry)).namelist()


def main(arguments: list[str]) -> int:
    """Run `check` or `bench`; the exit code is that of edgekd for the same failure."""
    asked = _parser().parse_args(arguments)
    try:
        results = _recorded(asked)
    except (RefusedError, EdgekdError) as error:
        code = EXIT_CODES[error.kind] if isinstance(error, RefusedError) else error.exit_code
        _say(f"error: {error}")
        return code
    except OSError as error:
        _say(f"error: {error.filename or 'a file'} cannot be written or read ({error.strerror})")
        return 6
    failed = [one for one in results["numerics"] if not one["passed"]]
    _say(f"wrote {asked.output}; on the machine with the run: edgekd bench --import {Path(asked.output).name}")
    return 5 if failed else 0


def _recorded(asked: argparse.Namespace) -> dict[str, Any]:
    """Do what was asked and write the results; that they can be written is known before minutes of measuring."""
    output = Path(asked.output)
    if output.exists() and not _is_results(output):
        raise RefusedError(
            "usage", f"{output} holds no results of edgekd and is not overwritten; choose another --output"
        )
    temporary = output.with_name(f".tmp-{output.name}")  # the name of every run: what a killed one left goes, too
    try:
        if os.path.lexists(str(temporary)):
            temporary.unlink()
        temporary.open("x").close()
        results = _Bundle(asked).run()
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        publish(temporary, output)
    finally:
        if temporary.exists():
            temporary.unlink()
    return results


def _is_results(path: Path) -> bool:
    try:
        found = files.parse_json(files.read_bytes(path))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "manifest_sha256" in found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="student.pyz", description="Check and measure a student on this device.")
    parser.add_argument("action", choices=("check", "bench"), help="compare logits; or that, and measure latency")
    parser.add_argument("--runtime", choices=[one for one in RUNTIMES if one != "torch"], help="[what is there]")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trtexec", metavar="PATH", help="[JetPack's, else that on PATH]")
    parser.add_argument("--no-energy", action="store_true", help="leave out the runs that measure power")
    parser.add_argument("--output", default="results.json", metavar="FILE")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


class _Bundle:
    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.archive = asked, zipfile.ZipFile(str(entry_point()))
        text = self.archive.read(MANIFEST)
        self.manifest: dict[str, Any] = json.loads(text)
        self.manifest_sha256 = hashlib.sha256(text).hexdigest()
        if self.manifest["format"] != FORMAT:
            raise RefusedError("file", f"the manifest has format {self.manifest['format']}, not {FORMAT}")
        self.settings = Settings(**{**self.manifest["settings"], "batch": asked.batch, "threads": asked.threads})

    def run(self) -> dict[str, Any]:
        """Do what was asked; return the results."""
        place = Workplace()
        tools = Tools(self.asked.trtexec, str(place.engines), time.time())
        with scratch.folder() as folder:
            self._unpack(folder)
            runtime: Runtime = self.asked.runtime or ("tensorrt" if known(find(self.asked.trtexec)) else "ort-cpu")
            if self.asked.action == "bench" or runtime == "tensorrt":  # answers alone need no lock and no cache
                place.hold()
            jobs = [replace(job_from_json(one, folder), runtime=runtime) for one in self.manifest["jobs"]]
            results: dict[str, Any] = {
                "format": FORMAT,
                "run": self.manifest["run"],
                "target": platform.node() or "device",
                "manifest_sha256": self.manifest_sha256,
                "files": {one["name"]: one["sha256"] for one in self.manifest["files"]},
                "comparisons": [],
                "energy": [],
            }
            if self.asked.action == "bench":
                results["comparisons"].append(session.compare(jobs, self.settings, tools, _report))
                compared = from_json(results["comparisons"][0]["comparison"])
                require_some(compared.results)
                ready = [replace(one.job, model=folder / one.job.model) for one in compared.measurements]
                for warning in compared.warnings:
                    _say(f"warning: {warning}")
            else:
                ready = session.planned(jobs, self.settings, tools)
            results["numerics"] = self._numerics(ready, tools, folder)
            if self.asked.action == "bench" and not self.asked.no_energy:
                results["energy"] = self._energy(ready, tools)
        return results

    def _unpack(self, folder: Path) -> None:
        """Write the files where a runtime can read them, each with the hash of the manifest."""
        for one in self.manifest["files"]:
            data = self.archive.read(f"files/{one['name']}")
            if hashlib.sha256(data).hexdigest() != one["sha256"]:
                raise RefusedError("file", f"{one['name']} in {entry_point()} is damaged; copy the bundle again")
            (folder / one["name"]).write_bytes(data)

    def _numerics(self, jobs: list[Job], tools: Tools, folder: Path) -> list[dict[str, Any]]:
        """Check what can be built here; what cannot is told, and an error only where nothing else can."""
        found: list[dict[str, Any]] = []
        failures: list[MachineError] = []
        for job in jobs:
            try:
                found.append(self._checked(job, tools, folder))
            except MachineError as error:
                _say(f"check    {job.label}: n/a: {error}")
                failures.append(error)
        if not found:
            raise failures[0]
        return found

    def _checked(self, job: Job, tools: Tools, folder: Path) -> dict[str, Any]:
        golden = self.manifest["golden"]
        expected = golden["logits"][job.model.name]
        found = session.check(job, self.settings, tools, folder / golden["images"], expected)
        word = "as on the host" if found["passed"] else "NOT as on the host"
        difference = "not finite" if found["max_difference"] is None else f"{found['max_difference']:.2g}"
        _say(
            f"check    {job.label}: {word}: largest difference {difference} of the range "
            f"({found['precision']}: {found['tolerance']:g} allowed), {found['wrong_answers']} of {found['clear']} "
            "clear answers differ"
        )
        return found

    def _energy(self, jobs: list[Job], tools: Tools) -> list[dict[str, Any]]:
        source = power.find()
        if isinstance(source, str):
            return [{"energy": source}]
        try:
            return [session.energy(job, self.settings, tools, source) for job in jobs]
        finally:
            source.close()


def _report(progress: Progress) -> None:
    _say(f"bench    {progress.done}/{progress.total} {progress.step} {progress.artefact}")
