"""`edgekd students`: what each student costs, so that one is chosen before hours of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.cpus import MOST_THREADS
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.bench.sized_students import SizedStudent

UNKNOWN = "–"


@verb(
    "edgekd students --input 1x28x28",
    "edgekd students --measure --budget-ms 5",
    "edgekd students --measure --on user@jetson",
)
def students(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDENT]...", help="Students; the zoo by default.")
    ] = None,
    input_shape: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Input shape.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 10,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the latency of each, untrained.")] = False,
    budget_ms: flags.BudgetMs = None,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, metavar="N", help="Threads of the runtime.")] = 1,
    on: flags.On = "",
    python: flags.RemotePython = "python3",
    trtexec: flags.Trtexec = "",
    json: flags.Json = False,
) -> None:
    """List student networks with parameters, multiply-accumulates, file sizes and latency."""
    from edgekd import cpus
    from edgekd.cli import targets
    from edgekd.models import registry, trust
    from edgekd.models.stems import parse_shape
    from edgekd.stopping import graceful

    host = targets.device(on, python, trtexec)
    trust.approve_code(names or [])
    for name in names or []:
        registry.ArchSpec.parse(name)
    shape, measure = parse_shape(input_shape), measure or budget_ms is not None
    if host is not None and not measure:
        raise UsageError("--on says where to measure: give it with --measure or --budget-ms.")
    from edgekd import machine
    from edgekd.bench import device
    from edgekd.bench.sized_students import size_up, time_each

    machine.use_threads(min(threads, cpus.usable_threads()))  # here; the runtime gets those that were asked for
    listed = size_up(names or registry.student_names(), shape, classes)
    if measure:
        with graceful() as stop, device.measurer_on(host, stop) as (measurer, runtime):
            listed = time_each(listed, shape, classes, stop=stop, threads=threads, measurer=measurer, runtime=runtime)
    if json:
        rows = [student.to_json(budget_ms) for student in listed]
        facts: dict[str, object] = {"threads": threads, "budget_ms": budget_ms} if measure else {}
        facts |= {"target": host.address} if host is not None else {}
        console.print_json({"input": input_shape, "classes": classes, **facts, "students": rows})
    else:
        title = f"{input_shape}, {classes} classes; file sizes are estimates"
        if measure:
            title += f"; latency is of FP32, untrained, batch 1, threads {threads} (INT8 is not timed here)"
            title += "" if host is None else f"; on {host.address}"
        _print(listed, title, measure, budget_ms)
    doubtful = [student for student in listed if student.warnings]
    if doubtful:
        console.warn(f"{len(doubtful)} of {len(listed)} measurements are in doubt: {doubtful[0].warnings[0]}")
    usable = [student for student in listed if student.reason is None]
    if not usable:
        raise UsageError(f"none of these students can be built for {input_shape} and {classes} classes.")
    headline, following = f"{len(usable)} students for {input_shape}", "NAME"
    if budget_ms is not None:
        fitting = [student for student in usable if student.fits(budget_ms)]
        headline = f"{len(fitting)} of {len(usable)} students for {input_shape} fit {budget_ms:g} ms"
        following = f"auto --budget-ms {budget_ms:g}"
    console.closing("nothing", headline, f"edgekd distill TEACHER --student {following}")


def _print(listed: Sequence[SizedStudent], title: str, measured: bool, budget_ms: float | None) -> None:
    columns = ["student", "parameters", "MACs", "FP32 kB", "INT8 kB"]
    columns += ["p50 ms"] if measured else []
    columns += [f"fits {budget_ms:g} ms"] if budget_ms is not None else []
    rows = []
    for student in listed:
        cells = [student.name, *_sizes(student)]
        cells += [UNKNOWN if student.latency_ms is None else f"{student.latency_ms:.3f}"] if measured else []
        cells += [{True: "yes", False: "no", None: UNKNOWN}[student.fits(budget_ms)]] if budget_ms is not None else []
        rows.append(cells)
    console.print_table(columns, rows, title=title)
    for student in listed:
        if student.reason is not None:
            console.warn(student.reason)


def _sizes(student: SizedStudent) -> list[str]:
    if student.size is None:
        return [UNKNOWN] * 4
    kilobytes = (f"{n / 1000:.0f}" for n in (student.size.fp32_bytes, student.size.int8_bytes))
    return [f"{student.size.parameters:,}", f"{student.size.macs:,}", *kilobytes]
