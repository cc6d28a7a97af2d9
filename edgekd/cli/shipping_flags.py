"""The verbs of the command line that ship and measure; `cli` gives them their place among the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    CalibData,
    CalibrateOnReal,
    Int8,
    Json,
    On,
    Out,
    Qat,
    RemotePython,
    RunArgument,
    Set,
    StudentArch,
    StudentWeights,
    Target,
    Trtexec,
    TrustCode,
    Uint8Input,
    verb,
)


@verb
def export(
    run: RunArgument = "",
    int8: Int8 = None,
    target: Target = "",
    uint8_input: Uint8Input = None,
    qat: Qat = None,
    calib_data: CalibData = None,
    calibrate_on_real: CalibrateOnReal = "",
    student_weights: StudentWeights = None,
    arch: StudentArch = "",
    out: Out = None,
    set_: Set = None,
    trust_code: TrustCode = None,
    json: Json = False,
) -> None:
    """Write the student as ONNX files, INT8 calibrated on replayed samples, each held by a gate."""
    from edgekd.cli import flags as flag_tables
    from edgekd.cli import shipping
    from edgekd.cli.common import Options

    changes = flag_tables.export_flags(int8, target, uint8_input, qat, calibrate_on_real)
    flags, options = flag_tables.combine(changes, flag_tables.set_flags(set_)), Options(json=json)
    other = shipping.elsewhere(student_weights, arch, out, calib_data)
    if other is None:
        shipping.export(run, flags, options, clipping_of=calib_data)
    else:
        shipping.export_elsewhere(run, other, flags, options)


@verb
def bench(
    run: Annotated[str, typer.Argument(metavar="[RUN|MODEL.onnx]", help="A run, or any ONNX classifier.")] = "",
    batch: Annotated[str, typer.Option(metavar="N[,N]", help="Batch sizes.")] = "",
    threads: Annotated[str, typer.Option(metavar="N[,N]", help="Threads of the runtime.")] = "",
    runtime: Annotated[
        str,
        typer.Option(metavar="NAME[,NAME]", help="ort-cpu, ort-cuda, torch, tensorrt; ort-cpu by default."),
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
    trust_code: TrustCode = None,
    json: Json = False,
) -> None:
    """Measure the latency of a run's ONNX files side by side: here, or on a device over ssh."""
    from edgekd.cli import flags as flag_tables
    from edgekd.cli import measuring
    from edgekd.cli.common import Options

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
    from edgekd.cli import measuring
    from edgekd.cli.common import Options

    measuring.bundle(run, output, Options(json=json))
