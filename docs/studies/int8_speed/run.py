"""Time INT8 against FP32 on this CPU, batch 1, as `edgekd bench` does: run.py OUT.json [--toy] [STUDENT...].

Each student (mobilenetv2 and resnet18 if none is named) is measured at 3x224x224 and 3x96x96, with one thread and with
two, on an idle x86-64 machine. Networks are untrained, with the BatchNorm statistics of noise: what a multiplication
takes does not depend on the weights. The quantiser is that of `edgekd export`, which leaves the start of some networks
in float (docs/export.md); the same file with the other start, in integers or else its first Conv in float, is timed
beside it. A student that needs more layers left in float gains less. A CPU without VNNI adds INT8 in another and slower
way, of which the script warns; its rows say so. `--toy` times one small size for a moment, to see that it works; its
numbers mean nothing and say so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from docs.studies.common.provenance import provenance
from edgekd.agent.device.environment import this_machine
from edgekd.agent.kernels import Kind
from edgekd.agent.measure import measure_jobs
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.bench.latency import speedup_estimate, summarize
from edgekd.bench.sized_students import build_settled
from edgekd.export.int8 import HeldOutSet, try_ranges
from edgekd.export.onnx_export import export_fp32
from edgekd.export.quantize import FLAVORS, compute_nodes
from edgekd.export.ranges import collect_ranges
from edgekd.schema import to_json

KINDS: dict[str, Kind] = {"fp32": "fp32", "int8-cpu-x86": "int8-cpu-x86", "other-start": "int8-cpu-x86"}
SIDES, TOY_SIDES, THREADS = (224, 96), (32,), (1, 2)
THOROUGH = {"min_runs": 500, "min_seconds": 5.0}
TOY = {"rounds": 2, "min_runs": 5, "min_seconds": 0.01, "warm_up_seconds": 0.2}
NO_VNNI = "this CPU has no VNNI or its like: the speedup is not that of a CPU with it, and the answers saturate"


def export(student: str, side: int, folder: Path) -> dict[str, Path]:
    """Write a student's FP32 file and both of INT8."""
    shape = (3, side, side)
    files = {label: folder / f"{student}-{side}.{label}.onnx" for label in KINDS}
    export_fp32(build_settled(student, shape, 1000), shape, files["fp32"])

    def noise() -> Iterator[NDArray[Any]]:
        rng = np.random.default_rng(0)
        for _ in range(4):
            yield rng.standard_normal((8, *shape), dtype=np.float32)

    ranges = collect_ranges(files["fp32"], noise)
    plan = try_ranges(files["fp32"], FLAVORS["cpu-x86"], ranges, HeldOutSet.of(files["fp32"], noise)).plan
    onnx.save(plan.build(), files["int8-cpu-x86"])
    other = () if plan.float_nodes else tuple(compute_nodes(files["fp32"])[:1])
    onnx.save(replace(plan, float_nodes=other).build(), files["other-start"])
    return files


def timed(files: dict[str, Path], settings: BenchSettings) -> dict[str, Any]:
    """Measure all files side by side."""
    comparison = measure_jobs([BenchJob(label, files[label], kind) for label, kind in KINDS.items()], settings)
    rounds = {one.job.artefact: [piece.samples_ms for piece in one.rounds] for one in comparison.measurements}
    machine = comparison.environment
    return {
        "int8_instructions": machine.int8_instructions,
        "latency_ms": {kind: asdict(summarize(samples, settings.batch)) for kind, samples in rounds.items()},
        "integer_nodes": {one.job.artefact: [one.integer_nodes, one.compute_nodes] for one in comparison.measurements},
        "speedup": {
            label: asdict(speedup_estimate(rounds["fp32"], rounds[label], settings.seed))
            for label in KINDS
            if label != "fp32"
        },
        "warnings": [*comparison.warnings, *([] if machine.int8_instructions else [NO_VNNI])],
        "environment": {name: fact for name, fact in to_json(machine).items() if name != "executable"},
    }


def main(out: Path, students: list[str], toy: bool) -> None:
    """Measure all students and write the results after each."""
    if not this_machine().int8_instructions:
        sys.stderr.write(f"warning: {NO_VNNI}\n")
    rows: list[dict[str, Any]] = []
    for student in students:
        for side in TOY_SIDES if toy else SIDES:
            with TemporaryDirectory() as folder:
                files = export(student, side, Path(folder))
                for threads in THREADS:
                    rows.append({"student": student, "input": f"3x{side}x{side}", "threads": threads, "toy": toy})
                    rows[-1] |= timed(files, BenchSettings(threads=threads, **(TOY if toy else THOROUGH)))  # type: ignore[arg-type]
                    sys.stderr.write(
                        f"{student} {side} {threads}: {rows[-1]['speedup']['int8-cpu-x86']['value']:.2f}\n"
                    )
            out.write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--toy"]
    if not words:
        sys.exit(__doc__)
    main(Path(words[0]), words[1:] or ["mobilenetv2", "resnet18"], "--toy" in sys.argv)
