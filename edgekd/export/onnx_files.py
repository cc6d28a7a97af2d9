"""Make a student's ONNX files in a folder, each held by its gate, with the numbers that decided.

FP32 and FP16 must reproduce the student's logits (parity). INT8 must give the student's answers on held-out synthetic
samples; below the gate its remedies run in a fixed order, and a file that still fails is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgekd import console
from edgekd.agent.device.environment import this_machine
from edgekd.errors import GateError
from edgekd.export import fidelity, int8, onnx_export, ort_session, qdq_check, quantize
from edgekd.export.clipping import plan_clipping
from edgekd.export.fidelity import compare_answers
from edgekd.export.fine_tuning import FineTuning
from edgekd.export.fp16 import convert_to_fp16
from edgekd.export.graph import write_model
from edgekd.export.int8_chain import FineTune, Int8Result, quantize_keeping_answers
from edgekd.export.ranges import Batches, collect_ranges
from edgekd.export.samples import ExportSamples, cached_batches, logits_of_batches
from edgekd.models.stems import Shape
from edgekd.recipe import ExportTable
from edgekd.run.cards.exported import (
    AgreementCard,
    AgreementPart,
    CalibrationCard,
    Int8Part,
    IntegerNodesPart,
    ParityCard,
    ParityCheck,
    RangesPart,
)
from edgekd.stopping import Stop
from edgekd.synthesis.teacher import Teacher

_NEAR_THE_TEACHER = 0.9
"""A student that agrees less often on synthetic samples is said to need a longer training."""
FLAVORS_OF = {"cpu": ("cpu-x86", "cpu-arm"), "tensorrt": ("trt", "trt-fp16")}


@dataclass(frozen=True)
class ExportJob:
    """What is exported, held to which teacher, on which samples."""

    student: nn.Module
    teacher: Teacher
    input_shape: Shape
    table: ExportTable
    seed: int
    samples: ExportSamples
    metadata: Mapping[str, str]
    data_free: bool | None
    """Whether no real image had a part in the files; None where nobody vouches for the student."""
    threads: int
    stop: Stop
    real: Batches | None = None
    """Real images that take the place of calibration samples, in ranges and remedies."""

    @property
    def calibration(self) -> Batches:
        """The samples that set INT8 ranges and that remedies learn from."""
        synthetic = self.samples.stream("export/calibration", self.table.calibration_samples)
        return synthetic if self.real is None else self.real

    def fine_tuning(self) -> FineTune:
        """Return the last remedy."""
        networks = (self.student, self.teacher, self.input_shape)
        return FineTuning(*networks, self.table, self.samples, self.calibration, self.metadata, self.stop)


@dataclass
class ExportMetrics:
    """What agreement.json keeps, and the sentences of the gates that were missed."""

    synthetic_samples: int
    chain: dict[str, AgreementPart] = field(default_factory=dict)
    int8: dict[str, Int8Part] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def refuse_int8(self, file: str, reason: str) -> None:
        """Note a file that could not be made."""
        self.int8[file] = Int8Part(passed=False, reason=reason)
        self.failures.append(f"{file}: {reason}".rstrip("."))


def write_all(job: ExportJob, folder: Path) -> ExportMetrics:
    """Write the ONNX files that pass, parity.json, agreement.json and, with INT8, calibration.json."""
    held_out = cached_batches(job.samples.stream("export/held-out", job.table.holdout_samples))
    student_logits = logits_of_batches(job.student, job.samples.as_network_input(held_out()))
    if not np.isfinite(student_logits).all():
        raise GateError(
            "the student answers NaN or infinity on synthetic samples, so no file is made of it; look for a training "
            "that diverged, or a negative running_var in its weights."
        )
    numbers = ExportMetrics(len(student_logits))
    teacher_logits = logits_of_batches(job.teacher.network, job.samples.as_network_input(held_out()))
    numbers.chain["teacher -> student"] = _link(teacher_logits, student_logits, fidelity.TOLERANCE_FP32)
    fp32 = folder / "student.fp32.onnx"
    _write_floats(job, fp32, held_out, student_logits, numbers)
    if job.table.int8 and fp32.is_file():
        _write_int8(job, fp32, held_out, numbers)
    AgreementCard(
        data_free=job.data_free,
        int8_instructions=this_machine().int8_instructions,
        synthetic_samples=len(student_logits),
        chain=numbers.chain,
        int8=numbers.int8,
    ).write(folder)
    return numbers


def print_export(numbers: ExportMetrics) -> None:
    """Print what is wrong with the files."""
    first = numbers.chain["teacher -> student"]
    if first.share is None:
        console.warn(f"whether the student agrees with the teacher is unknown: {first.reason}")
    elif first.share < _NEAR_THE_TEACHER:
        console.warn(
            f"the student agrees with the teacher on {first.share:.1%} of the synthetic samples; train longer."
        )
    for failure in numbers.failures:
        console.warn(failure)


def _write_floats(
    job: ExportJob, fp32: Path, held_out: Batches, student_logits: NDArray[np.float32], numbers: ExportMetrics
) -> None:
    """Write FP32 and FP16 where they reproduce the student, and parity.json."""
    fp16 = fp32.with_name("student.fp16.onnx")
    console.say(f"export   {fp32.name}, {fp16.name}")
    onnx_export.export_fp32(
        job.student, job.input_shape, fp32, metadata=job.metadata, uint8_input=job.samples.graph_normalization
    )
    checks: dict[str, ParityCheck] = {}
    try:
        convert_to_fp16(fp32, fp16)
    except GateError as error:  # a weight that float16 cannot hold
        checks[fp16.name] = ParityCheck(passed=False, reason=str(error))
        numbers.chain[f"student -> {fp16.name}"] = _no_link(len(student_logits), fidelity.TOLERANCE_FP16, error)
        numbers.failures.append(f"{fp16.name}: {error}".rstrip("."))
    for file, tolerance in ((fp32, fidelity.TOLERANCE_FP32), (fp16, fidelity.TOLERANCE_FP16)):
        if not file.is_file():
            continue
        onnx_logits = ort_session.all_logits(file, held_out(), threads=job.threads)
        result = fidelity.compare_logits(student_logits, onnx_logits, tolerance)
        checks[file.name] = result.to_card()
        numbers.chain[f"student -> {file.name}"] = _link(student_logits, onnx_logits, tolerance)
        if result.problem is not None:
            numbers.failures.append(f"{file.name} {result.problem}")
            file.unlink()
    ParityCard.of(checks).write(fp32.parent)


def _link(reference_logits: NDArray[np.float32], logits: NDArray[np.float32], tolerance: float) -> AgreementPart:
    """A link of the chain; where no sample is clear it has no share, but a reason."""
    try:
        return compare_answers(reference_logits, logits, tolerance).to_card()
    except GateError as error:
        return _no_link(len(reference_logits), tolerance, error)


def _no_link(samples: int, tolerance: float, error: GateError) -> AgreementPart:
    return AgreementPart(samples=samples, clear=0, same=0, tolerance=tolerance, share=None, reason=str(error))


def _write_int8(job: ExportJob, fp32: Path, held_out: Batches, numbers: ExportMetrics) -> None:
    """Write the INT8 files that keep the student's answers, and calibration.json."""
    flavors = [quantize.FLAVORS[name] for name in _flavors(job.table.target)]
    try:
        ranges = collect_ranges(fp32, job.calibration, threads=job.threads)
    except GateError as error:  # an activation that is not finite
        for flavor in flavors:
            numbers.refuse_int8(flavor.file_name, str(error))
        return
    held_out_set = int8.HeldOutSet.of(fp32, held_out)
    fine_tune = job.fine_tuning() if job.table.qat else None
    own_ranges: dict[str, RangesPart] = {}
    for flavor in flavors:
        job.stop.raise_if_requested("export")
        console.say(f"export   {flavor.file_name}")
        try:
            result = quantize_keeping_answers(
                fp32,
                flavor,
                ranges,
                held_out_set,
                job.calibration,
                target=job.table.min_int8_agreement,
                headrooms=int8.HEADROOMS if job.real is None else (1.0,),
                fine_tune=fine_tune,
            )
        except GateError as error:  # no sample that could judge it, or a weight that float16 cannot hold
            numbers.refuse_int8(flavor.file_name, str(error))
            continue
        problem = _publish(result, fp32.with_name(flavor.file_name))
        numbers.chain[f"{fp32.name} -> {flavor.file_name}"] = result.quality.agreement.to_card()
        default_mode = _default_mode(result, held_out_set, published=problem is None)
        integers, clipped = _integer_nodes(result.plan), plan_clipping(result.plan, held_out)
        numbers.int8[flavor.file_name] = result.to_card(problem, integers, clipped, default_mode)
        numbers.failures += [problem] if problem else []
        if result.plan.ranges is not ranges:
            own_ranges[flavor.file_name] = result.plan.ranges.to_card()
    replay = ["generator"] + (["vae decoder"] if job.samples.sampler.decoder is not None else [])
    CalibrationCard(
        data_free=job.data_free,
        seed=job.seed,
        samples=ranges.samples,
        sources=replay if job.real is None else ["real images"],
        ranges=ranges.to_card(),
        fine_tuned=own_ranges,
    ).write(fp32.parent)


def _publish(result: Int8Result, path: Path) -> str | None:
    """Write one INT8 file if it passes its gates; return what is wrong otherwise."""
    model = result.plan.build()
    for version in result.plan.flavor.tensorrt_versions:
        for violation in qdq_check.check(model, version):
            rule = f"breaks TensorRT {version}'s rule {violation.rule} at {violation.node}: {violation.message}"
            return f"{path.name} {rule}"
    if not result.passed:
        agreed = result.quality.agreement
        return (
            f"{path.name} gives the student's answer on {agreed.share:.1%} of {agreed.clear} decided samples, "
            f"below export.min_int8_agreement = {result.target:.1%}"
        )
    write_model(model, path)
    return None


def _default_mode(result: Int8Result, held_out_set: int8.HeldOutSet, *, published: bool) -> AgreementPart | None:
    """How a file for x86 agrees in ONNX Runtime's default mode, where that saturates on this CPU; say so."""
    flavor, kept_answers = result.plan.flavor, result.quality.agreement.share
    if flavor.target != "int8-cpu-x86" or not ort_session.saturates():
        return None
    agreement = held_out_set.measure(result.plan.build(), flavor, default_kernels=True).agreement
    if published:
        console.say(ort_session.saturation_note(flavor.file_name, "kept answers", kept_answers, agreement.share))
    return agreement.to_card()


def _integer_nodes(plan: int8.QuantizationPlan) -> IntegerNodesPart | None:
    """How much of a file runs as integers, where ONNX Runtime is to run it."""
    if plan.flavor.for_tensorrt:
        return None
    nodes = ort_session.integer_node_share(plan.build(), arm_rules=plan.flavor.name == "cpu-arm")
    return IntegerNodesPart(integer=nodes.integer, total=nodes.total, share=nodes.share)


def _flavors(target: str) -> list[str]:
    return [name for kind, names in FLAVORS_OF.items() if target in (kind, "all") for name in names]
