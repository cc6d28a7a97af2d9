"""Plan one INT8 file: try ranges, then float layers where answers are lost, bias correction, and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_empty_tensor_value_info, make_node

from edgekd.errors import GateError
from edgekd.export.graph import constants, producers, read_model, weight_axis
from edgekd.export.int8 import (
    HeldOutSet,
    PlanChange,
    Quality,
    QuantizationPlan,
    layer_sensitivity,
    try_float_layers,
    try_ranges,
)
from edgekd.export.ort_session import open_session
from edgekd.export.quantize import Flavor
from edgekd.export.ranges import Batches, Ranges
from edgekd.run.cards.exported import AgreementPart, ClippingPart, Int8Part, IntegerNodesPart, RemedyDetailsPart

FINE_TUNING = "quantisation-aware fine-tuning"


@dataclass(frozen=True)
class FineTunedModel:
    """A float32 model after quantisation-aware training, with ranges of its own activations."""

    source: ModelProto
    ranges: Ranges
    details: RemedyDetailsPart


FineTune = Callable[[QuantizationPlan], FineTunedModel]
"""Fine-tunes the student for a plan that still misses the target; raises GateError if that fails."""


@dataclass(frozen=True)
class Int8Result:
    """The final plan, its quality, and every change that was tried, in order."""

    plan: QuantizationPlan
    quality: Quality
    target: float
    changes: tuple[PlanChange, ...]

    @property
    def passed(self) -> bool:
        """Whether the agreement reaches the target."""
        return self.quality.agreement.share >= self.target

    def to_card(
        self,
        reason: str | None,
        integer_nodes: IntegerNodesPart | None,
        clipping: ClippingPart,
        default_mode: AgreementPart | None,
    ) -> Int8Part:
        """Convert to the form in agreement.json; `reason` says why the file is not published, None if it is."""
        return Int8Part(
            passed=reason is None,
            reason=reason,
            flavour=self.plan.flavor.name,
            method=self.plan.range_method,
            headroom=self.plan.headroom,
            left_in_float=list(self.plan.float_nodes),
            quality=self.quality.to_card(),
            target=self.target,
            steps=[change.to_card() for change in self.changes],
            integer_nodes=integer_nodes,
            clipping=clipping,
            default_mode=default_mode,
        )


def quantize_keeping_answers(
    source: Path | ModelProto,
    flavor: Flavor,
    ranges: Ranges,
    held_out: HeldOutSet,
    calibration: Batches,
    *,
    target: float = 0.97,
    headrooms: Sequence[float] = (1.0,),
    fine_tune: FineTune | None = None,
) -> Int8Result:
    """Find an INT8 plan whose file agrees with float32 on at least `target` of the clear held-out samples.

    Args:
        source: the float32 model.
        flavor: one of `quantize.FLAVORS`.
        ranges: candidate ranges of its activations, collected on `calibration`.
        held_out: the samples on which plans are compared, disjoint from `calibration`.
        calibration: the samples that `ranges` were collected on; bias correction runs on them too.
        target: share of agreement to reach.
        headrooms: factors by which ranges may be widened, tried in this order.
        fine_tune: the last remedy; without it there is no fine-tuning.
    """

    def post_training(source: Path | ModelProto, ranges: Ranges) -> list[PlanChange]:
        """Try every change that needs no training."""
        changes = [try_ranges(source, flavor, ranges, held_out, headrooms=headrooms, target=target)]
        if changes[-1].quality.agreement.share < target:
            plan = changes[-1].plan
            sensitivity = layer_sensitivity(plan, held_out)
            changes.append(try_float_layers(plan, held_out, sensitivity, target=target))
        # Also where the target is reached: it costs no time and no bytes on the device, and is kept only if it helps.
        changes.append(try_bias_correction(changes[-1].plan, held_out, calibration))
        return changes

    changes = post_training(source, ranges)
    if changes[-1].quality.agreement.share < target and fine_tune is not None:
        changes.append(_try_fine_tuning(changes[-1], fine_tune, post_training))
    return Int8Result(changes[-1].plan, changes[-1].quality, target, tuple(changes))


def _try_fine_tuning(
    last: PlanChange, fine_tune: FineTune, post_training: Callable[[ModelProto, Ranges], list[PlanChange]]
) -> PlanChange:
    """Fine-tune, then quantise the new network from the start; it is still compared with the original's logits."""
    plan, before = last.plan, last.quality
    try:
        tuned = fine_tune(plan)
        changes = post_training(tuned.source, tuned.ranges)
    except GateError as error:
        return PlanChange(FINE_TUNING, plan, before, before, False, RemedyDetailsPart(failed=str(error)))
    after = changes[-1].quality
    improved = (after.agreement.share, -after.loss) > (before.agreement.share, -before.loss)
    details = tuned.details.model_copy(update={"steps": [change.to_card() for change in changes]})
    return PlanChange(FINE_TUNING, changes[-1].plan if improved else plan, before, after, improved, details)


_CORRECTED_OPS = ("Conv", "Gemm")
_BATCH_SIZE = 32


def try_bias_correction(plan: QuantizationPlan, held_out: HeldOutSet, batches: Batches) -> PlanChange:
    """Add each layer's mean output error to its bias; the errors are measured on `batches` of calibration samples."""
    quantized = plan.build()
    errors = mean_output_errors(plan.source, quantized, batches)
    corrected = replace(plan, bias_shifts=errors)
    before = held_out.measure(quantized, plan.flavor)
    after = held_out.measure(corrected.build(), plan.flavor)
    largest = {name: float(np.abs(error).max()) for name, error in errors.items()}
    improved = after.loss < before.loss and after.agreement.share >= before.agreement.share
    kept_plan = corrected if improved else plan
    return PlanChange("bias correction", kept_plan, before, after, improved, RemedyDetailsPart(largest_shift=largest))


def mean_output_errors(
    source: Path | ModelProto, quantized: Path | ModelProto, batches: Batches
) -> dict[str, NDArray[np.float64]]:
    """Measure the mean of float minus INT8 output, per output channel, of each quantised Conv and Gemm by node name.

    Both layers read the activations of the float32 model `source`; `quantized` has the same node names.
    """
    model = read_model(source)
    names = _add_quantized_twins(model, read_model(quantized))
    session = open_session(model, as_written=True)
    outputs = [f"{name}_mean_error" for name in names]
    sums: dict[str, NDArray[np.float64]] = {}
    samples = 0
    for batch in batches():
        for start in range(0, len(batch), _BATCH_SIZE):
            chunk = batch[start : start + _BATCH_SIZE]
            samples += len(chunk)
            means = session.run(outputs, {session.get_inputs()[0].name: chunk})
            for name, mean in zip(names, means, strict=True):
                sums[name] = sums.get(name, 0.0) + np.asarray(mean, dtype=np.float64) * len(chunk)
    return {name: total / samples for name, total in sums.items()}


def _add_quantized_twins(model: ModelProto, quantized: ModelProto) -> list[str]:
    """Add to `model`, for each Conv and Gemm that `quantized` quantises, a fake-quantised twin and an output.

    The output is the mean difference per channel. Returns the names of these nodes.
    """
    originals = {node.name: node for node in model.graph.node}
    producer_of, values = producers(quantized), constants(quantized)
    names = []
    for node in quantized.graph.node:
        if node.op_type not in _CORRECTED_OPS or node.name not in originals:
            continue
        sources = [producer_of.get(name) for name in node.input[:2]]
        dequantizers = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
        if len(dequantizers) == 2 and dequantizers[1].input[0] in values:
            weight = _dequantized_weight(node, dequantizers[1], values)
            _add_twin(model, originals[node.name], dequantizers[0], weight, values)
            names.append(node.name)
    return names


def _dequantized_weight(
    node: NodeProto, dequantizer: NodeProto, values: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    integers, scale = (values[name] for name in dequantizer.input[:2])
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[weight_axis(node, integers.ndim)] = scale.size
    return integers.astype(np.float32) * scale.astype(np.float32).reshape(shape)


def _add_twin(
    model: ModelProto,
    node: NodeProto,
    dequantizer: NodeProto,
    weight: NDArray[np.float32],
    values: dict[str, NDArray[Any]],
) -> None:
    """Add the twin of `node`: its input through Q/DQ as `dequantizer` has it, its weight as given."""
    name = node.name
    scale, zero_point = (values[tensor] for tensor in dequantizer.input[1:3])
    initializers = {"scale": scale.astype(np.float32), "zero_point": zero_point, "weight": weight}
    for suffix, value in initializers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}_twin_{suffix}"))
    scale_and_zero_point = [f"{name}_twin_scale", f"{name}_twin_zero_point"]
    twin = make_node(node.op_type, [f"{name}_twin_x", f"{name}_twin_weight", *node.input[2:]], [f"{name}_twin"])
    twin.attribute.extend(node.attribute)
    axes = [0, 2, 3] if node.op_type == "Conv" else [0]
    model.graph.node.extend(
        (
            make_node("QuantizeLinear", [node.input[0], *scale_and_zero_point], [f"{name}_twin_q"]),
            make_node("DequantizeLinear", [f"{name}_twin_q", *scale_and_zero_point], [f"{name}_twin_x"]),
            twin,
            make_node("Sub", [node.output[0], f"{name}_twin"], [f"{name}_error"]),
            make_node("ReduceMean", [f"{name}_error"], [f"{name}_mean_error"], axes=axes, keepdims=0),
        )
    )
    model.graph.output.append(make_empty_tensor_value_info(f"{name}_mean_error"))
