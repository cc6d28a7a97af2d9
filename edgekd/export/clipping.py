"""Measure what share of activation values the ranges of an INT8 file clip; where many are clipped, answers change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from onnx import ModelProto

from edgekd import console
from edgekd.errors import InputFileError
from edgekd.export.graph import clip_bounds, constants, producers, read_model
from edgekd.export.int8 import QuantizationPlan
from edgekd.export.quantize import FLAVORS, Flavor, activation_limits
from edgekd.export.ranges import CLIPPING_OPS, Batches, Ranges, clipped_values
from edgekd.export.samples import image_batches, read_graph_normalization
from edgekd.recipe import Recipe
from edgekd.run.cards.exported import AgreementCard, CalibrationCard, ClippedPart, ClippingPart
from edgekd.run.directory import RunDir
from edgekd.run.realdata import RealImages


def plan_clipping(plan: QuantizationPlan, batches: Batches) -> ClippingPart:
    """Measure the share of activation values that the file of a plan clips, on these batches."""
    return file_clipping(plan.source, plan.build(), plan.flavor, plan.widened_ranges, plan.range_method, batches)


def file_clipping(
    source: Path | ModelProto,
    quantized: Path | ModelProto,
    flavor: Flavor,
    ranges: Ranges,
    method: str,
    batches: Batches,
) -> ClippingPart:
    """Measure the share of values clipped in the activations of `source` that its INT8 form `quantized` quantises.

    A value outside its range by less than half a quantisation step does not count: clipping moves it no more than
    rounding would.
    """
    model = read_model(source)
    limits = activation_limits(flavor, ranges, method)
    names = quantized_activations(model, read_model(quantized), limits)
    half_step = {name: (limits[name][1] - limits[name][0]) / flavor.quantization_steps / 2 for name in names}
    tolerated = {name: (limits[name][0] - half_step[name], limits[name][1] + half_step[name]) for name in names}
    counts = clipped_values(model, tolerated, batches)
    all_clipped, all_values = sum(clipped for clipped, _ in counts.values()), sum(total for _, total in counts.values())
    tensors = {name: clipped / total for name, (clipped, total) in counts.items()}
    return ClippingPart(overall=all_clipped / max(all_values, 1), tensors=tensors)


def quantized_activations(source: ModelProto, quantized: ModelProto, names: Iterable[str]) -> list[str]:
    """List which of `names`, activations of `source`, the INT8 model `quantized` quantises; in graph order.

    Where the quantiser removed a Relu or Clip because the range does its work, its output counts as quantised.
    """
    tensors = [info.name for info in source.graph.input] + [name for node in source.graph.node for name in node.output]
    producer_of, names = producers(quantized), set(names)

    def name_in_source(tensor: str) -> str:
        while tensor not in tensors and tensor in producer_of and producer_of[tensor].op_type == "Cast":
            tensor = producer_of[tensor].input[0]  # the input of a float16 file
        return tensor

    quantizer_inputs = {node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    quantized_names = {name_in_source(tensor) for tensor in quantizer_inputs - set(constants(quantized))}
    for node in source.graph.node:
        if node.op_type in CLIPPING_OPS and node.input[0] in quantized_names and node.output[0] in names:
            quantized_names.add(node.output[0])
            quantized_names.discard(node.input[0])
    return [name for name in tensors if name in quantized_names & names]


PRINTED_TENSORS = 5


def measure_clipping(run_dir: RunDir, recipe: Recipe, images: RealImages) -> dict[str, ClippedPart]:
    """Measure, for each published INT8 file, the clipping of real images, beside that of held-out synthetic samples.

    A fine-tuned file has no float32 model on disk to measure with, so its `images` is None.
    """
    folder = run_dir.stage("export")
    int8_parts = run_dir.read(AgreementCard).int8
    names = [name for name in sorted(int8_parts) if (folder / name).is_file()]
    if not names:
        return {}
    calibration = run_dir.read(CalibrationCard)
    batches = image_batches(images, read_graph_normalization(run_dir, recipe.export))
    source = read_model(folder / "student.fp32.onnx")
    calibrated, bounds = Ranges.of(calibration.ranges), clip_bounds(source)
    by_file: dict[str, ClippedPart] = {}
    for name in names:
        part = int8_parts[name]
        if part.flavour not in FLAVORS or part.method is None or part.headroom is None or part.clipping is None:
            raise InputFileError(f"{folder / AgreementCard.file} does not say how {name} was made; export it again.")
        images_clipping = None
        if name not in calibration.fine_tuned:
            ranges = calibrated.widened(part.headroom, bounds)
            images_clipping = file_clipping(source, folder / name, FLAVORS[part.flavour], ranges, part.method, batches)
        by_file[name] = ClippedPart(method=part.method, held_out=part.clipping, images=images_clipping)
    return by_file


def print_clipping(by_file: Mapping[str, ClippedPart], images: int) -> None:
    """Print the overall shares of each file, and those of the tensors that clip real images most."""
    rows = []
    for name, part in by_file.items():
        held_out, real = part.held_out, part.images
        if real is None:
            rows.append((name, "all", f"{held_out.overall:.4%}", "n/a: fine-tuned, its float32 form is not kept"))
            continue
        rows.append((name, "all", f"{held_out.overall:.4%}", f"{real.overall:.4%}"))
        worst = sorted(real.tensors, key=lambda tensor: -real.tensors[tensor])[:PRINTED_TENSORS]
        rows += [("", tensor, f"{held_out.tensors[tensor]:.4%}", f"{real.tensors[tensor]:.4%}") for tensor in worst]
    console.print_table(("values clipped", "tensor", "synthetic held-out", f"{images} real images"), rows)
