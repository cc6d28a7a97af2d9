"""The verbs of the command line that measure; `cli` gives them their place among the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.options import Json, On, RemotePython, RunArgument, Set, Trtexec, verb


@verb
def bench(
    run: Annotated[str, typer.Argument(metavar="[RUN|MODEL.onnx]", help="A run, or any ONNX classifier.")] = "",
    batch: Annotated[str, typer.Option(metavar="N[,N]", help="Batch sizes.")] = "",
    threads: Annotated[str, typer.Option(metavar="N[,N]", help="Threads of the runtime.")] = "",
    runtime: Annotated[
        str,
        typer.Option(metavar="NAME[,NAME]", help="ort-cpu, ort-cuda, torch, tensorrt [ort-cpu]."),
    ] = "",
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Seconds of measuring per artefact, at least.")] = None,
    input_shape: Annotated[
        str, typer.Option("--input", metavar="CxHxW", help="Image size, where an ONNX file leaves it open.")
    ] = "",
    on: On = "",
    python: RemotePython = "python3",
    trtexec: Trtexec = "",
    energy: Annotated[bool, typer.Option("--energy/--no-energy", help="Measure energy there, where it can be.")] = True,
    clean: Annotated[bool, typer.Option("--clean", help="Only remove what edgekd keeps on the device.")] = False,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Bring a bundle's results.json into the run.")
    ] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Measure the latency of a run's ONNX files side by side: here, or on a device over ssh."""
    from edgekd.commands import flags as flag_tables
    from edgekd.commands import measuring
    from edgekd.commands.common import Options

    flags = flag_tables.bench_flags(runtime, batch, threads, seconds)
    flags = flag_tables.combine(flags, flag_tables.set_flags(set_))
    elsewhere = measuring.Elsewhere(on, python, trtexec, clean, energy, import_)
    measuring.bench(run, flags, Options(json=json), elsewhere, input_shape)


@verb
def bundle(
    run: RunArgument = "",
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = Path("student.pyz"),
    json: Json = False,
) -> None:
    """Write one file that checks and measures the student on a device without a network."""
    from edgekd.commands import measuring
    from edgekd.commands.common import Options

    measuring.bundle(run, output, Options(json=json))
