"""Say how far the ranges of an INT8 file clip activations: too tight for what comes, and answers change."""

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
from edgekd.export.samples import of_images, uint8_input
from edgekd.recipe import Recipe
from edgekd.run.cards.exported import AgreementCard, CalibrationCard, ClippedPart, ClippingPart
from edgekd.run.directory import RunDir
from edgekd.run.realdata import RealImages


def clipping(plan: QuantizationPlan, batches: Batches) -> ClippingPart:
    """Measure how far the file of a plan clips its float32 model's activations on these batches.

    What is outside by less than half a step moves no more than rounding moves what is inside.
    """
    return clipping_of(plan.source, plan.build(), plan.flavor, plan.used_ranges, plan.method, batches)


def clipping_of(
    source: Path | ModelProto,
    quantized: Path | ModelProto,
    flavor: Flavor,
    ranges: Ranges,
    method: str,
    batches: Batches,
) -> ClippingPart:
    """Measure how far ranges clip the activations of `source` that the file `quantised` made of it quantises."""
    model = read_model(source)
    limits = activation_limits(flavor, ranges, method)
    names = quantized_activations(model, read_model(quantized), limits)
    half = {name: (limits[name][1] - limits[name][0]) / flavor.steps / 2 for name in names}
    reach = {name: (limits[name][0] - half[name], limits[name][1] + half[name]) for name in names}
    counts = clipped_values(model, reach, batches)
    outside, total = sum(clipped for clipped, _ in counts.values()), sum(of for _, of in counts.values())
    tensors = {name: clipped / of for name, (clipped, of) in counts.items()}
    return ClippingPart(overall=outside / max(total, 1), tensors=tensors)


def quantized_activations(source: ModelProto, quantized: ModelProto, names: Iterable[str]) -> list[str]:
    """Return the activations of `source` with a known range that `quantised` rounds, in graph order.

    Where the quantiser dropped a Relu or Clip because the range does its work, the activation is what came out of it.
    """
    tensors = [info.name for info in source.graph.input] + [name for node in source.graph.node for name in node.output]
    makers, names = producers(quantized), set(names)

    def own_name(tensor: str) -> str:
        while tensor not in tensors and tensor in makers and makers[tensor].op_type == "Cast":
            tensor = makers[tensor].input[0]  # the input of a float16 file
        return tensor

    read = {node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    rounded = {own_name(tensor) for tensor in read - set(constants(quantized))}
    for node in source.graph.node:
        if node.op_type in CLIPPING_OPS and node.input[0] in rounded and node.output[0] in names:
            rounded.add(node.output[0])
            rounded.discard(node.input[0])
    return [name for name in tensors if name in rounded & names]


SHOWN = 5


def measure_clipping(run_dir: RunDir, recipe: Recipe, images: RealImages) -> dict[str, ClippedPart]:
    """Return by INT8 file how far held-out synthetic samples and real images are clipped, overall and by tensor.

    A fine-tuned file has no float32 form on disk, so nothing can be measured of it: `images` is None there.
    """
    folder = run_dir.stage("export")
    decided = run_dir.read(AgreementCard).int8
    names = [name for name in sorted(decided) if (folder / name).is_file()]
    if not names:
        return {}
    calibration = run_dir.read(CalibrationCard)
    batches = of_images(images, uint8_input(run_dir, recipe.export))
    source = read_model(folder / "student.fp32.onnx")
    seen, bounds = Ranges.of(calibration.ranges), clip_bounds(source)
    by_file: dict[str, ClippedPart] = {}
    for name in names:
        made = decided[name]
        if made.flavour not in FLAVORS or made.method is None or made.headroom is None or made.clipping is None:
            raise InputFileError(f"{folder / AgreementCard.file} does not say how {name} was made; export it again.")
        measured = None
        if name not in calibration.fine_tuned:
            ranges = seen.widened(made.headroom, bounds)
            measured = clipping_of(source, folder / name, FLAVORS[made.flavour], ranges, made.method, batches)
        by_file[name] = ClippedPart(method=made.method, held_out=made.clipping, images=measured)
    return by_file


def print_clipping(by_file: Mapping[str, ClippedPart], images: int) -> None:
    """Print the overall rates of each file, and its tensors that real images are clipped in most."""
    rows = []
    for name, rates in by_file.items():
        held_out, real = rates.held_out, rates.images
        if real is None:
            rows.append((name, "all", f"{held_out.overall:.4%}", "n/a: fine-tuned, its float32 form is not kept"))
            continue
        rows.append((name, "all", f"{held_out.overall:.4%}", f"{real.overall:.4%}"))
        worst = sorted(real.tensors, key=lambda tensor: -real.tensors[tensor])[:SHOWN]
        rows += [("", t, f"{held_out.tensors[t]:.4%}", f"{real.tensors[t]:.4%}") for t in worst]
    console.print_table(("values clipped", "tensor", "synthetic held-out", f"{images} real images"), rows)
