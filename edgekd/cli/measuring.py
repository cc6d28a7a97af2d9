"""The verbs that measure: bench here, on a device, or brought back from one; and bundle, which travels without ssh."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgekd import console, pipeline
from edgekd import recipe as recipe_module
from edgekd.bench import comparing, golden
from edgekd.bench import device as devices
from edgekd.bench import measuring as benching
from edgekd.bench.remote import Host
from edgekd.bench.results import Results, read_results
from edgekd.cli.common import Options, approve, at_work, caveat, find_run, typed
from edgekd.cli.flags import Changes, approve_typed
from edgekd.errors import InputFileError, UsageError
from edgekd.export.graph import properties_of_file
from edgekd.models.stems import parse_shape
from edgekd.run.directory import RunDir
from edgekd.schema import written as json_of
from edgekd.stages import report as reporting
from edgekd.stages.catalog import BENCH, EXPORT
from edgekd.stopping import graceful


@dataclass(frozen=True)
class Elsewhere:
    """Where to measure, other than here: a host over ssh, or results that came back from a bundle."""

    on: str = ""
    python: str = "python3"
    trtexec: str = ""
    clean: bool = False
    energy: bool = True
    results: Path | None = None

    def host(self) -> Host | None:
        """Return the device, if one is named."""
        if self.on:
            return Host(self.on, self.python, self.trtexec)
        given = [flag for flag, value in (("--clean", self.clean), ("--trtexec", self.trtexec)) if value]
        if given or self.python != "python3":
            raise UsageError(f"{(given or ['--python'])[0]} belongs to a device: give it with --on user@host.")
        return None


def bench(name: str, flags: Changes, options: Options, elsewhere: Elsewhere, image: str = "") -> None:
    """Measure latency, of a run's files or of one ONNX file; here, there, or as a bundle found it."""
    approve_typed(flags)
    host = elsewhere.host()
    if host is not None and "torch" in flags.get("bench", {}).get("runtime", ()):
        raise UsageError(
            "--runtime torch measures the student of a run on this machine; a device runs ONNX files, in ort-cpu, "
            "ort-cuda or tensorrt."
        )
    if elsewhere.results is not None:
        if host is not None or _is_file(name):
            raise UsageError("--import brings a bundle's results into a run: it goes with a run's name, not with --on.")
        _import(name, elsewhere.results, options)
    elif host is not None and elsewhere.clean:
        freed = host.clean()
        if options.json:
            console.print_json({"target": host.address, "freed_bytes": freed})
        console.closing(
            f"nothing; ~/.cache/edgekd on {host.address} is empty", f"{freed / 1e6:.1f} MB freed", "edgekd bench"
        )
    elif _is_file(name):
        _file(Path(name), flags, options, host, image, elsewhere)
    else:
        if image:
            raise UsageError("--input belongs to an ONNX file; a run knows the size of its images.")
        _run(name, flags, options, host, elsewhere)


def _file(file: Path, flags: Changes, options: Options, host: Host | None, image: str, elsewhere: Elsewhere) -> None:
    if not file.is_file():
        raise InputFileError(f"{file} is not a file; nothing was measured.")
    table = recipe_module.with_changes(recipe_module.parse({}, origin="flags"), flags).bench
    shape = parse_shape(image) if image else None
    asked = flags.get("bench", {})
    batch = golden.signature(file, shape).batch
    if batch is not None and "batch" not in asked:
        table = table.model_copy(update={"batch": (batch,)})
    if batch is not None and set(table.batch) != {batch}:
        raise UsageError(f"{file} was exported with a fixed batch of {batch}; give --batch {batch}.")
    with graceful(options.max_seconds) as stop:
        if host is None:
            results, _ = benching.compare(benching.jobs_of([file], table.runtime, image_shape=shape), table, stop)
        else:
            results = devices.on_device(
                host,
                [file],
                table,
                stop,
                runtimes=asked.get("runtime", ()),
                image_shape=shape,
                energy=elsewhere.energy,
            )
    more = (
        "--batch 1,8" if batch is None and "batch" not in asked else "--threads 1,2" if "threads" not in asked else ""
    )
    following = ["edgekd bench", shlex.quote(str(file)), *_given(asked, image, elsewhere), *([more] if more else [])]
    _show(_origin(file), results, options, "nothing (a file without a run)", " ".join(following))


def _origin(file: Path) -> dict[str, Any]:
    """Return what a file says of its own making, if edgekd made it: `data_free`, None where nobody vouches for it."""
    properties = properties_of_file(file)
    known = {"true": True, "false": False}.get(properties.get("edgekd.data_free", ""))
    return {"run": None} | ({"data_free": known} if "edgekd.run" in properties else {})


def _facts(run: RunDir) -> dict[str, Any]:
    return {"run": run.name, "data_free": run.data_free()}


def _is_file(name: str) -> bool:
    return name.lower().endswith(".onnx")


def _given(asked: Mapping[str, Any], image: str, elsewhere: Elsewhere) -> list[str]:
    """Return the flags of a command again, as they are typed."""
    typed_as = {"runtime": "--runtime", "batch": "--batch", "threads": "--threads", "min_seconds": "--seconds"}
    given = []
    for key, value in asked.items():
        many = isinstance(value, (list, tuple))
        if key in typed_as:
            given += [typed_as[key], ",".join(map(str, value)) if many else str(value)]
        else:
            given += ["--set", f"bench.{key}={value}"]
    for flag, text in (("--input", image), ("--on", elsewhere.on), ("--trtexec", elsewhere.trtexec)):
        given += [flag, text] if text else []
    given += ["--python", elsewhere.python] if elsewhere.python != "python3" else []
    given += [] if elsewhere.energy else ["--no-energy"]
    return [shlex.quote(part) for part in given]


def _run(name: str, flags: Changes, options: Options, host: Host | None, elsewhere: Elsewhere) -> None:
    run = find_run(name, EXPORT)
    with at_work(run, options) as stop:
        changed = recipe_module.with_changes(pipeline.open_recipe(run), flags)
        if host is None:
            recipe = pipeline.adopt(run, changed, reads_teacher=False)
            pipeline.Standing(run, recipe).require(EXPORT)
            approve(run, recipe, teacher=False, student="torch" in recipe.bench.runtime)
            pipeline.advance(run, recipe, BENCH, stop=stop)
            place = run.stage("bench") / "local"
            results = read_results(place / "results.json")
            results = replace(results, verdicts=comparing.verdicts(results.results, run))
        else:  # a device's flags are its own: they make nothing stale here
            pipeline.Standing(run, changed).require(EXPORT)
            runtimes = flags.get("bench", {}).get("runtime", ())
            results = devices.on_device(
                host, _exported(run), changed.bench, stop, runtimes=runtimes, energy=elsewhere.energy, run=run
            )
            place = run.stage(comparing.folder_of(host.address))
    _show(_facts(run), results, options, f"{place}/results.json", f"edgekd report {typed(run)}")


def _import(name: str, file: Path, options: Options) -> None:
    run = find_run(name, EXPORT)
    with at_work(run, options):
        results = devices.import_results(run, file)
    place = run.stage(comparing.folder_of(results.target or ""))
    _show(_facts(run), results, options, f"{place}/results.json", f"edgekd report {typed(run)}")


def _show(facts: dict[str, Any], results: Results, options: Options, written: str, following: str) -> None:
    shown = {**facts, **json_of(results)}
    if options.json:
        console.print_json(shown)
    else:
        reporting.print_latency(shown["results"])
        reporting.print_device(shown)
    for warning in results.warnings:
        console.warn(warning)
    numerics = results.numerics or ()
    checks = [one.passed for one in numerics]
    same = f"{sum(checks)} of {len(checks)} artefacts compute there what they compute here"
    warning = caveat(shown["data_free"]) if "data_free" in shown else ""
    console.closing(written, warning + ("; ".join(results.verdicts.values()) or same), following)
    devices.refuse_wrong_numbers(numerics)


def bundle(name: str, output: Path, options: Options) -> None:
    """Write one file with the models and all that measures them on a device without a network."""
    run = find_run(name, EXPORT)
    with at_work(run, options):
        recipe = pipeline.open_recipe(run)
        pipeline.Standing(run, recipe).require(EXPORT)
        made = devices.write_bundle(run.name, _exported(run), recipe.bench, output)
    if options.json:
        console.print_json({**_facts(run), **asdict(made)})
    size = caveat(run.data_free()) + f"{made.size_bytes / 1e6:.1f} MB, no image and no network of the method in it"
    console.closing(str(output), size, f"on the device: python3 {output.name} bench")


def _exported(run: RunDir) -> list[Path]:
    return sorted(run.stage("export").glob("*.onnx"))
