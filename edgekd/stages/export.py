"""Write the student as ONNX files. Each is held by a gate before it is published; INT8 is calibrated on replay.

FP32 and FP16 must reproduce the student's logits (parity). INT8 must give the student's answers on held-out synthetic
samples; below the gate its remedies run in a fixed order, and a file that still fails is not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd import console, machine
from edgekd.deploy import int8, onnx_export, ort_session, parity, qdq_check, quantize
from edgekd.deploy.agreement import agreement
from edgekd.deploy.fp16 import convert_to_fp16
from edgekd.deploy.graph import write_model
from edgekd.deploy.int8_chain import Int8Result, quantize_keeping_answers
from edgekd.deploy.ranges import Batches, Ranges, collect_ranges
from edgekd.errors import GateError, UsageError
from edgekd.recipe import ExportTable, Recipe
from edgekd.rundir import Record, RunDir, canonical_json, write_json
from edgekd.stages import artefacts
from edgekd.stopping import Stop

FLAVOURS_OF = {"cpu": ("cpu-x86", "cpu-arm"), "tensorrt": ("trt", "trt-fp16")}
Array = NDArray[Any]


class Samples:
    """Synthetic samples as the exported model takes them: float32, or uint8 pixels when it normalises itself."""

    def __init__(self, source: artefacts.ReplaySource, pixels: onnx_export.Normalization | None) -> None:
        self.source, self.pixels = source, pixels

    def __call__(self, purpose: str, count: int) -> list[Array]:
        """Return the batches of a purpose; the same purpose gives the same samples."""
        floats = (batch.numpy() for batch in self.source.batches(purpose, count))
        return [self.pixels.to_uint8(x) if self.pixels else x for x in floats]

    def as_floats(self, batches: list[Array]) -> list[NDArray[np.float32]]:
        """Return what the student itself sees of such batches."""
        if self.pixels is None:
            return batches
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.pixels.mean, self.pixels.std))
        return [np.asarray((x / np.float32(255) - mean) / std, np.float32) for x in batches]


def run(run_dir: RunDir, recipe: Recipe, *, key: str, inputs: dict[str, str], stop: Stop) -> None:
    """Publish export/: ONNX files, parity.json, calibration.json, agreement.json."""
    table = recipe.export
    threads = machine.use_threads(recipe.machine.threads)
    description = artefacts.describe(run_dir)
    samples = Samples(artefacts.ReplaySource(run_dir), _uint8_input(run_dir, table))
    held_out = samples("export/held-out", table.holdout_samples)
    student = artefacts.student_network(run_dir)
    answers = _logits(student, samples.as_floats(held_out))
    teacher = _logits(artefacts.teacher_network(run_dir, description), samples.as_floats(held_out))
    failures: list[str] = []

    with run_dir.publish("export") as (folder, record):
        fp32, fp16 = folder / "student.fp32.onnx", folder / "student.fp16.onnx"
        console.say("export   student.fp32.onnx, student.fp16.onnx")
        metadata = _metadata(run_dir, inputs, description)
        onnx_export.export_fp32(student, description.input_shape, fp32, metadata=metadata, uint8_input=samples.pixels)
        try:
            convert_to_fp16(fp32, fp16)
        except GateError as error:  # a weight that float16 cannot hold
            failures.append(str(error))
        chain: dict[str, Any] = {"teacher -> student": _link(teacher, answers, parity.TOLERANCE_FP32)}
        checks = {}
        for file, tolerance in ((fp32, parity.TOLERANCE_FP32), (fp16, parity.TOLERANCE_FP16)):
            if not file.is_file():
                continue
            found = ort_session.all_logits(file, held_out, threads=threads)
            result = parity.compare_logits(answers, found, tolerance)
            checks[file.name] = result.to_json()
            chain[f"student -> {file.name}"] = _link(answers, found, tolerance)
            if result.problem is not None:
                failures.append(f"{file.name} {result.problem}")
                file.unlink()
        write_json(folder / "parity.json", checks)
        tried: dict[str, Any] = {}
        if table.int8 and fp32.is_file():

            def calibration() -> Iterator[Array]:
                return iter(samples("export/calibration", table.calibration_samples))

            ranges = collect_ranges(fp32, calibration, threads=threads)
            write_json(folder / "calibration.json", _provenance(recipe, table, samples, ranges))
            judge = int8.HeldOut.of(fp32, lambda: iter(held_out))
            for name in _flavours(table.target):
                stop.raise_if_requested("export")
                flavour = quantize.FLAVOURS[name]
                try:
                    found_int8, problem = _int8(folder, flavour, ranges, judge, calibration, table.min_int8_agreement)
                except GateError as error:  # no sample that could judge it, or a weight that float16 cannot hold
                    tried[flavour.file_name] = {"passed": False, "reason": str(error)}
                    failures.append(f"{flavour.file_name}: {error}".rstrip("."))
                    continue
                chain[f"{fp32.name} -> {flavour.file_name}"] = found_int8.quality.agreement.to_json()
                tried[flavour.file_name] = found_int8.to_json()
                failures += [problem] if problem else []
        write_json(folder / "agreement.json", {"synthetic_samples": len(answers), "chain": chain, "int8": tried})
        record |= {"stage": "export", "version": 1, "key": key, "inputs": inputs}
        record["recipe_slice"] = table.model_dump(mode="json")
        record["notes"] = {"failures": failures}
    first = chain["teacher -> student"]["share"]
    if first is None:
        console.warn(f"whether the student agrees with the teacher is unknown: {chain['teacher -> student']['reason']}")
    elif first < 0.9:
        console.warn(f"the student agrees with the teacher on {first:.1%} of the synthetic samples; train longer.")
    for failure in failures:
        console.warn(failure)


def _link(reference: Array, found: Array, tolerance: float) -> dict[str, Any]:
    """Return a link of the chain; where the reference is near a tie on every sample it has no share, but a reason."""
    try:
        return agreement(reference, found, tolerance).to_json()
    except GateError as error:
        numbers = {"samples": len(reference), "clear": 0, "same": 0, "tolerance": tolerance}
        return {**numbers, "share": None, "reason": str(error)}


def _int8(
    folder: Path,
    flavour: quantize.Flavour,
    ranges: Ranges,
    judge: int8.HeldOut,
    calibration: Batches,
    target: float,
) -> tuple[Int8Result, str | None]:
    """Write one INT8 file if it passes its gate; return what was tried, and what is wrong otherwise."""
    console.say(f"export   {flavour.file_name}")
    result = quantize_keeping_answers(folder / "student.fp32.onnx", flavour, ranges, judge, calibration, target=target)
    model = result.plan.build()
    for version in flavour.tensorrt_versions:
        for found in qdq_check.check(model, version):
            rule = f"breaks TensorRT {version}'s rule {found.rule} at {found.node}: {found.message}"
            return result, f"{flavour.file_name} {rule}"
    if not result.passed:
        agreed = result.quality.agreement
        return result, (
            f"{flavour.file_name} gives the student's answer on {agreed.share:.1%} of {agreed.clear} decided samples, "
            f"below export.min_int8_agreement = {target:.1%}"
        )
    write_model(model, folder / flavour.file_name)
    return result, None


def refuse_failures(run_dir: RunDir) -> None:
    """Raise `GateError` when a file of the published export missed its gate."""
    record = Record.read(run_dir.stage("export"))
    failures = [] if record is None else record.notes["failures"]
    if failures:
        raise GateError(
            f"{'; '.join(failures)}. That file is not published, everything that passed is; export/agreement.json "
            "keeps the numbers. Lower the key with --set if this is good enough for you."
        )


def _logits(network: torch.nn.Module, batches: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.concatenate([network(torch.from_numpy(x)).numpy() for x in batches])


def _uint8_input(run_dir: RunDir, table: ExportTable) -> onnx_export.Normalization | None:
    if not table.uint8_input:
        return None
    pixels = artefacts.read_pixels(run_dir)
    if pixels.mean is None or pixels.std is None:
        raise UsageError(
            "--uint8-input puts the normalisation into the graph, but it is unknown: set it with "
            f"`edgekd ingest --run {run_dir.name} --normalize NAME` or --mean and --std."
        )
    return onnx_export.Normalization(pixels.mean, pixels.std)


def _flavours(target: str) -> list[str]:
    return [name for kind, names in FLAVOURS_OF.items() if target in (kind, "all") for name in names]


def _metadata(run_dir: RunDir, inputs: dict[str, str], description: artefacts.Description) -> dict[str, str]:
    """Return the ONNX metadata: what a user of the file needs and where it comes from, no path of this machine."""
    pixels = artefacts.read_pixels(run_dir)
    facts: dict[str, Any] = {
        "input_shape": list(description.input_shape),
        "mean": pixels.mean,
        "std": pixels.std,
        "class_names": pixels.class_names,
        "student_sha256": inputs["select/student.safetensors"],
        "teacher_sha256": inputs["ingest/teacher.safetensors"],
    }
    text = {f"edgekd.{name}": canonical_json(value) for name, value in facts.items() if value is not None}
    return {"edgekd.run": run_dir.name, "edgekd.data_free": "true", **text}


def _provenance(recipe: Recipe, table: ExportTable, samples: Samples, ranges: Ranges) -> dict[str, Any]:
    """Return calibration.json: where the samples come from and every candidate range."""
    return {
        "data_free": True,
        "seed": recipe.seed,
        "samples": table.calibration_samples,
        "sources": ["generator"] + (["vae decoder"] if samples.source.decoder is not None else []),
        "ranges": ranges.to_json(),
    }
