"""`edgekd bench`: measure latency, of a run's files or of one ONNX file; here, on a device, or as a bundle found it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd import console
from edgekd.agent.device.files import real
from edgekd.agent.kernels import RUNTIMES
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.errors import InputFileError, UsageError
from edgekd.text import path_argument

if TYPE_CHECKING:
    from edgekd.agent.kernels import Runtime
    from edgekd.bench.remote import Host
    from edgekd.bench.results import Results
    from edgekd.cli.changes import Changes
    from edgekd.run.directory import RunDir


@verb(
    "edgekd bench my-run --batch 1,8 --threads 1,2",
    "edgekd bench model.onnx",
    "edgekd bench --on user@jetson",
    "edgekd bench --import results.json",
)
def bench(
    run: Annotated[str, typer.Argument(metavar="[RUN|MODEL.onnx]", help="A run, or any ONNX classifier.")] = "",
    batch: Annotated[str, typer.Option(metavar="N[,N]", help="Batch sizes.")] = "",
    threads: Annotated[str, typer.Option(metavar="N[,N]", help="Threads of the runtime.")] = "",
    runtime: Annotated[
        str,
        typer.Option(metavar="NAME[,NAME]", help=f"{', '.join(RUNTIMES)}; ort-cpu by default."),
    ] = "",
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Seconds of measuring per artefact, at least.")] = None,
    input_shape: Annotated[
        str, typer.Option("--input", metavar="CxHxW", help="Image size, where an ONNX file leaves it open.")
    ] = "",
    on: flags.On = "",
    python: flags.RemotePython = "python3",
    trtexec: flags.Trtexec = "",
    energy: Annotated[bool, typer.Option("--energy/--no-energy", help="Measure energy there, where it can be.")] = True,
    clean: Annotated[bool, typer.Option("--clean", help="Only remove what edgekd keeps on the device.")] = False,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Bring a bundle's results.json into the run.")
    ] = None,
    set_: flags.Set = None,
    trust_code: flags.TrustCode = None,
    json: flags.Json = False,
) -> None:
    """Measure the latency of a run's ONNX files side by side: here, or on a device over ssh."""
    from edgekd.cli import approval, changes, targets

    changed = changes.combine(_changes(runtime, batch, threads, seconds), changes.of_set(set_))
    approval.approve_typed(changed)
    host = targets.device(on, python, trtexec, clean=clean)
    asked = _BenchRequest(changed, input_shape, host, energy, json)
    is_file = run.lower().endswith(".onnx")
    if host is not None and "torch" in asked.runtimes:
        raise UsageError(
            "--runtime torch measures the student of a run on this machine; a device runs ONNX files, in ort-cpu, "
            "ort-cuda or tensorrt."
        )
    if import_ is not None:
        if host is not None or is_file:
            raise UsageError("--import brings a bundle's results into a run: it goes with a run's name, not with --on.")
        _import(run, import_, asked)
    elif host is not None and clean:
        _clean(host, json=json)
    elif is_file:
        _file(Path(run), asked)
    else:
        if input_shape:
            raise UsageError("--input belongs to an ONNX file; a run knows the size of its images.")
        _run(run, asked)


def _changes(runtime: str, batch: str, threads: str, seconds: float | None) -> Changes:
    """Change what is measured."""
    from edgekd.agent.kernels import RUNTIMES
    from edgekd.cli.changes import in_table, only_given, parse_numbers
    from edgekd.errors import did_you_mean

    batches, counts = parse_numbers("--batch", batch, int), parse_numbers("--threads", threads, int)
    runtimes = tuple(name.strip() for name in runtime.split(",")) if runtime else ()
    for name in runtimes:
        if name not in RUNTIMES:
            raise UsageError(
                f"there is no runtime {name!r} (known: {', '.join(RUNTIMES)}).{did_you_mean(name, RUNTIMES)}"
            )
    return in_table("bench", only_given(runtime=runtimes, batch=batches, threads=counts, min_seconds=seconds))


@dataclass(frozen=True)
class _BenchRequest:
    """What the command line asks for, wherever it is measured."""

    changed: Changes
    image: str
    host: Host | None
    energy: bool
    json: bool

    @property
    def table(self) -> Changes:
        """What it changes in the recipe's [bench]."""
        table: Changes = self.changed.get("bench", {})
        return table

    @property
    def runtimes(self) -> Sequence[Runtime]:
        """The runtimes it names."""
        runtimes: Sequence[Runtime] = self.table.get("runtime", ())
        return runtimes

    def again(self) -> list[str]:
        """Return its flags as they are typed."""
        typed_as = {"runtime": "--runtime", "batch": "--batch", "threads": "--threads", "min_seconds": "--seconds"}
        given = []
        for key, value in self.table.items():
            many = isinstance(value, (list, tuple))
            if key in typed_as:
                given += [typed_as[key], ",".join(map(str, value)) if many else str(value)]
            else:
                given += ["--set", f"bench.{key}={value}"]
        given += ["--input", self.image] if self.image else []
        if self.host is not None:
            given += ["--on", self.host.address]
            given += ["--trtexec", self.host.trtexec] if self.host.trtexec else []
            given += ["--python", self.host.python] if self.host.python != "python3" else []
        given += [] if self.energy else ["--no-energy"]
        return [shlex.quote(part) for part in given]


def _clean(host: Host, *, json: bool) -> None:
    """Remove what edgekd keeps on a device."""
    freed = host.clean()
    if json:
        console.print_json({"target": host.address, "freed_bytes": freed})
    console.closing(
        f"nothing; ~/.cache/edgekd on {host.address} is empty", f"{freed / 1e6:.1f} MB freed", "edgekd bench"
    )


def _file(file: Path, asked: _BenchRequest) -> None:
    """Measure one ONNX file, which needs no run."""
    from edgekd.cli import targets

    if not file.is_file():
        raise InputFileError(f"{file} is not a file; nothing was measured.")
    targets.require_utf8(real(file))
    from edgekd.models.stems import parse_shape
    from edgekd.recipe import parse, with_changes
    from edgekd.stopping import graceful

    table = with_changes(parse({}, origin="flags"), asked.changed).bench
    shape = parse_shape(asked.image) if asked.image else None
    from edgekd.bench import device, golden, measuring

    batch = golden.signature(file, shape).batch
    if batch is not None and "batch" not in asked.table:
        table = table.model_copy(update={"batch": (batch,)})
    if batch is not None and set(table.batch) != {batch}:
        raise UsageError(f"{file} was exported with a fixed batch of {batch}; give --batch {batch}.")
    with graceful() as stop:
        if asked.host is None:
            results, _ = measuring.measure_side_by_side(
                measuring.jobs_of([file], table.runtime, image_shape=shape), table, stop
            )
        else:
            results = device.on_device(
                asked.host, [file], table, stop, runtimes=asked.runtimes, image_shape=shape, energy=asked.energy
            )
    more = []
    if batch is None and "batch" not in asked.table:
        more = ["--batch 1,8"]
    elif "threads" not in asked.table:
        more = ["--threads 1,2"]
    following = ["edgekd bench", path_argument(file), *asked.again(), *more]
    _show(_origin(file), results, "nothing (a file without a run)", " ".join(following), json=asked.json)


def _origin(file: Path) -> dict[str, Any]:
    """What a file says of its own making, if edgekd made it: `data_free`, None where nobody vouches for it."""
    from edgekd.export.graph import properties_of_file

    properties = properties_of_file(file)
    data_free = {"true": True, "false": False}.get(properties.get("edgekd.data_free", ""))
    return {"run": None} | ({"data_free": data_free} if "edgekd.run" in properties else {})


def _run(name: str, asked: _BenchRequest) -> None:
    """Measure the files of a run."""
    from edgekd import pipeline
    from edgekd.cli import approval, session, targets
    from edgekd.recipe import with_changes
    from edgekd.stages.catalog import BENCH, EXPORT

    run = targets.find_run(name, EXPORT)
    from edgekd.bench import comparing, device
    from edgekd.bench.results import RESULTS, read_results

    with session.locked_run(run) as stop:
        changed = with_changes(pipeline.open_recipe(run), asked.changed)
        if asked.host is None:
            recipe = pipeline.adopt(run, changed, reads_teacher=False)
            pipeline.RunStatus(run, recipe).require(EXPORT)
            approval.approve(run, recipe, teacher=False, student="torch" in recipe.bench.runtime)
            pipeline.advance(run, recipe, BENCH, stop=stop)
            place = run.stage("bench") / "local"
            results = read_results(place / RESULTS)
            results = replace(results, verdicts=comparing.verdicts(results.results, run))
        else:  # a device's flags are its own: they make nothing stale here
            pipeline.RunStatus(run, changed).require(EXPORT)
            files, runtimes = sorted(run.stage("export").glob("*.onnx")), asked.runtimes
            results = device.on_device(
                asked.host, files, changed.bench, stop, runtimes=runtimes, energy=asked.energy, run=run
            )
            place = run.stage(comparing.folder_of(asked.host.address))
    _show_of_run(run, results, place, json=asked.json)


def _import(name: str, file: Path, asked: _BenchRequest) -> None:
    """Bring what a bundle measured into its run."""
    from edgekd.bench.results import read_bundle
    from edgekd.cli import session, targets
    from edgekd.stages.catalog import EXPORT

    run = targets.find_run(name, EXPORT)
    with session.locked_run(run):
        read_bundle(file)  # a file that is none is told before torch is imported
        from edgekd.bench import comparing, device

        results = device.import_results(run, file)
    _show_of_run(run, results, run.stage(comparing.folder_of(results.target or "")), json=asked.json)


def _show_of_run(run: RunDir, results: Results, place: Path, *, json: bool) -> None:
    from edgekd.cli import targets

    facts = {"run": run.name, "data_free": run.data_free()}
    _show(facts, results, f"{place}/results.json", f"edgekd report {targets.run_argument(run)}", json=json)


def _show(facts: dict[str, Any], results: Results, written: str, following: str, *, json: bool) -> None:
    """Print the rows, or JSON, and the closing lines; fail where a device computes other numbers."""
    from edgekd import schema
    from edgekd.bench import device, tables
    from edgekd.cli import lines

    shown = {**facts, **schema.to_json(results)}
    if json:
        console.print_json(shown)
    else:
        tables.print_latency(results.results)
        tables.print_numerics_and_energy(results)
    for warning in results.warnings:
        console.warn(warning)
    checks = [check.passed for check in results.numerics or ()]
    same = f"{sum(checks)} of {len(checks)} artefacts compute there what they compute here"
    warning = lines.data_free_warning(shown["data_free"]) if "data_free" in shown else ""
    console.closing(written, warning + ("; ".join(results.verdicts.values()) or same), following)
    device.refuse_wrong_numbers(results.numerics or ())
