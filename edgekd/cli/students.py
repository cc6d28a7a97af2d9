"""The verb that lists students with what they cost, so that one is chosen before hours of training."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd import console, cpus, machine
from edgekd.bench import device as devices
from edgekd.bench import students as zoo
from edgekd.bench.remote import Host
from edgekd.bench.students import Candidate
from edgekd.cli.common import Options
from edgekd.errors import UsageError
from edgekd.models import registry, trust
from edgekd.models.stems import parse_shape
from edgekd.stopping import graceful

UNKNOWN = "–"


def students(
    names: Sequence[str],
    input_shape: str,
    classes: int,
    options: Options,
    *,
    measure: bool,
    budget_ms: float | None,
    threads: int,
    host: Host | None = None,
) -> None:
    """List the named students, or the zoo's; a budget implies measuring."""
    trust.confirm(names)
    for name in names:
        registry.ArchSpec.parse(name)
    shape, measure = parse_shape(input_shape), measure or budget_ms is not None
    if host is not None and not measure:
        raise UsageError("--on says where to measure: give it with --measure or --budget-ms.")
    machine.use_threads(min(threads, cpus.usable_threads()))  # here; the runtime gets those that were asked for
    found = zoo.size_up(names or registry.student_names(), shape, classes)
    if measure:
        with graceful() as stop, devices.measurer_on(host, stop) as (measurer, runtime):
            found = zoo.time_each(found, shape, classes, stop=stop, threads=threads, measurer=measurer, runtime=runtime)
    if options.json:
        rows = [one.to_json(budget_ms) for one in found]
        facts: dict[str, object] = {"threads": threads, "budget_ms": budget_ms} if measure else {}
        facts |= {"target": host.address} if host is not None else {}
        console.print_json({"input": input_shape, "classes": classes, **facts, "students": rows})
    else:
        title = f"{input_shape}, {classes} classes; file sizes are estimates"
        if measure:
            title += f"; latency is of FP32, untrained, batch 1, threads {threads} (INT8 is not timed here)"
            title += "" if host is None else f"; on {host.address}"
        _print(found, title, measure, budget_ms)
    doubtful = [one for one in found if one.warnings]
    if doubtful:
        console.warn(f"{len(doubtful)} of {len(found)} measurements are in doubt: {doubtful[0].warnings[0]}")
    usable = [one for one in found if one.reason is None]
    if not usable:
        raise UsageError(f"none of these students can be built for {input_shape} and {classes} classes.")
    headline, following = f"{len(usable)} students for {input_shape}", "NAME"
    if budget_ms is not None:
        fitting = [one for one in usable if one.fits(budget_ms)]
        headline = f"{len(fitting)} of {len(usable)} students for {input_shape} fit {budget_ms:g} ms"
        following = f"auto --budget-ms {budget_ms:g}"
    console.closing("nothing", headline, f"edgekd distill TEACHER --student {following}")


def _print(found: Sequence[Candidate], title: str, measured: bool, budget_ms: float | None) -> None:
    columns = ["student", "parameters", "MACs", "FP32 kB", "INT8 kB"]
    columns += ["p50 ms"] if measured else []
    columns += [f"fits {budget_ms:g} ms"] if budget_ms is not None else []
    rows = []
    for one in found:
        cells = [one.name, *_sizes(one)]
        cells += [UNKNOWN if one.latency_ms is None else f"{one.latency_ms:.3f}"] if measured else []
        cells += [{True: "yes", False: "no", None: UNKNOWN}[one.fits(budget_ms)]] if budget_ms is not None else []
        rows.append(cells)
    console.print_table(columns, rows, title=title)
    for one in found:
        if one.reason is not None:
            console.warn(one.reason)


def _sizes(one: Candidate) -> list[str]:
    if one.size is None:
        return [UNKNOWN] * 4
    kilobytes = (f"{n / 1000:.0f}" for n in (one.size.fp32_bytes, one.size.int8_bytes))
    return [f"{one.size.parameters:,}", f"{one.size.macs:,}", *kilobytes]
