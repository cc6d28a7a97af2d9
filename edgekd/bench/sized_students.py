"""What students cost before one is trained: their size, and the FP32 latency of the untrained network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd import console, rng
from edgekd.agent.device import scratch
from edgekd.agent.kernels import Runtime
from edgekd.agent.measure import measure_jobs
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison, MeasurementProgress, Skipped
from edgekd.bench.latency import summarize
from edgekd.errors import EdgekdError, InputFileError, MachineError, UsageError
from edgekd.export.onnx_export import export_fp32
from edgekd.models import footprint, registry
from edgekd.models.footprint import Footprint
from edgekd.models.stems import Shape
from edgekd.stopping import Stop
from edgekd.text import first_line, listed

Measurer = Callable[[Sequence[BenchJob], BenchSettings, Callable[[MeasurementProgress], None] | None], Comparison]
"""A way to measure jobs: `measure_jobs` here, or a device that is held."""
SETTINGS = BenchSettings(rounds=3, min_runs=30, min_seconds=0.6, warm_up_seconds=3.0)
"""At least two seconds of timing a student: enough to tell 2 ms from 3 ms, not 2.0 ms from 2.1 ms."""


@dataclass(frozen=True)
class SizedStudent:
    """A student by name, with what is known of it so far."""

    name: str
    size: Footprint | None = None
    latency_ms: float | None = None
    """Median latency of one image, FP32."""
    reason: str | None = None
    """Why the student is not to be had for this input, or not to be measured."""
    warnings: tuple[str, ...] = ()
    """What speaks against the measurement."""

    def fits(self, budget_ms: float) -> bool | None:
        """Return whether its latency is within the budget; None where it is unknown."""
        return None if self.latency_ms is None else self.latency_ms <= budget_ms

    def to_json(self, budget_ms: float | None) -> dict[str, Any]:
        """Return a flat row; what is unknown is None."""
        size = {member.name: None for member in fields(Footprint)} if self.size is None else asdict(self.size)
        fits = None if budget_ms is None else self.fits(budget_ms)
        row = {"student": self.name, **size, "latency_ms": self.latency_ms, "fits": fits, "reason": self.reason}
        return {**row, "warnings": list(self.warnings)}


def size_up(names: Iterable[str], shape: Shape, classes: int) -> list[SizedStudent]:
    """Return each student with its size, or with the reason why it cannot be built for this input."""
    students = []
    for name in names:
        try:
            students.append(
                SizedStudent(name, footprint.build_with_footprint(name, input_shape=shape, classes=classes, seed=0)[1])
            )
        except (UsageError, InputFileError, MachineError) as error:
            students.append(SizedStudent(name, reason=str(error)))
    return students


def time_each(
    candidates: Sequence[SizedStudent],
    shape: Shape,
    classes: int,
    *,
    stop: Stop,
    threads: int = 1,
    measurer: Measurer = measure_jobs,
    runtime: Runtime = "ort-cpu",
    enough: Callable[[SizedStudent], bool | None] = lambda _: False,
) -> list[SizedStudent]:
    """Measure untrained students one after the other, in FP32 and batch 1, until one is `enough`.

    Each is exported into a temporary folder and measured by the protocol of docs/benchmarking.md, by `measurer` in
    `runtime` on its machine. Returns all candidates, in order; what cannot be exported or run
    carries the reason.

    Raises:
        MachineError: the machine lacks a runtime, or its agent died.
    """
    settings = replace(SETTINGS, threads=threads)
    timed: list[SizedStudent] = []
    with console.progress("students", len(candidates)) as bar, scratch.folder() as folder:
        for student in candidates:
            stop.raise_if_interrupted("measuring students")  # what is cut off here would be measured from the start
            if student.reason is None:
                file = folder / "student.onnx"  # one name: on a device each replaces the one before
                try:
                    student = _timed(student, shape, classes, file, settings, measurer, runtime, stop)
                except (UsageError, InputFileError) as error:
                    student = replace(student, reason=str(error))
                file.unlink(missing_ok=True)
            timed.append(student)
            bar.update(
                len(timed),
                student.name if student.latency_ms is None else f"{student.name} {student.latency_ms:.2f} ms",
            )
            if enough(student):
                break
    return [*timed, *candidates[len(timed) :]]


def largest_within(
    budget_ms: float,
    shape: Shape,
    classes: int,
    *,
    below_macs: int,
    stop: Stop,
    threads: int = 1,
    measurer: Measurer = measure_jobs,
    runtime: Runtime = "ort-cpu",
    where: str = "here",
) -> tuple[SizedStudent, list[SizedStudent]]:
    """Return the student of the zoo with the most MACs that keeps the budget, and the larger ones that do not.

    MACs stand for accuracy: parameters of a wide last layer cost a budget nothing. Students with as many as the
    teacher, `below_macs`, or more are left out.

    Raises:
        UsageError: no student has fewer MACs than the teacher.
        MachineError: none keeps the budget.
    """
    with_macs = [
        (student.size.macs, student)
        for student in size_up(registry.student_names(), shape, classes)
        if student.size is not None
    ]
    smaller = [student for macs, student in sorted(with_macs, key=lambda pair: -pair[0]) if macs < below_macs]
    if not smaller:
        raise UsageError(f"no student of the zoo has fewer MACs than the teacher's {below_macs:,}; name a --student.")
    if len(smaller) < len(with_macs):
        left_out = [student.name for macs, student in with_macs if macs >= below_macs]
        console.say(f"auto     left out, having no fewer MACs than the teacher: {listed(left_out)}")
    timed = time_each(
        smaller,
        shape,
        classes,
        stop=stop,
        threads=threads,
        measurer=measurer,
        runtime=runtime,
        enough=lambda student: student.fits(budget_ms),
    )
    place = next((i for i, student in enumerate(timed) if student.fits(budget_ms)), None)
    if place is None:
        raise MachineError(_nothing_fits(timed, budget_ms, where))
    return timed[place], timed[:place]


def _nothing_fits(timed: list[SizedStudent], budget_ms: float, where: str) -> str:
    measured = [(student.latency_ms, student.name) for student in timed if student.latency_ms is not None]
    if not measured:
        return f"no student could be measured {where}: {timed[0].name}: {timed[0].reason}"
    latency_ms, name = min(measured)
    return (
        f"no student keeps {budget_ms:g} ms {where} in FP32; the fastest, {name}, takes {latency_ms:.2f} ms. "
        f"Give a larger --budget-ms, or a narrower network such as --student mobilenetv2@0.35."
    )


def _timed(
    student: SizedStudent,
    shape: Shape,
    classes: int,
    file: Path,
    settings: BenchSettings,
    measurer: Measurer,
    runtime: Runtime,
    stop: Stop,
) -> SizedStudent:
    try:
        export_fp32(build_settled(student.name, shape, classes), shape, file)
    except EdgekdError:
        raise
    except Exception as error:  # foreign networks may raise anything
        raise UsageError(f"{student.name} cannot be exported: {type(error).__name__}: {first_line(error)}") from error
    comparison = measurer(
        [BenchJob(student.name, file, "fp32", runtime, first_engine=True)],
        settings,
        lambda _: stop.raise_if_interrupted("measuring students"),
    )
    timed = next((measured for measured in comparison.measurements if measured.job.kind == "fp32"), None)
    if timed is None:
        reasons = [skipped.reason for skipped in comparison.results if isinstance(skipped, Skipped)]
        return replace(student, reason=f"{student.name}: {'; '.join(reasons)}")
    p50_ms = summarize([piece.samples_ms for piece in timed.rounds], settings.batch).p50_ms
    return replace(student, latency_ms=p50_ms, warnings=comparison.warnings)


def build_settled(name: str, shape: Shape, classes: int) -> nn.Module:
    """Build a student whose BatchNorm statistics are those of noise.

    With the initial ones the activations of a deep network shrink from layer to layer, down to denormal numbers,
    which a CPU multiplies slowly.
    """
    network = registry.build(name, input_shape=shape, classes=classes, seed=0)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # the average over all batches seen: of this one
    with torch.no_grad(), rng.seeded_global_rng(0, "students"):
        network.train()(torch.randn(4, *shape))
    return network.eval()
