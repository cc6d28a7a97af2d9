"""The whole way to one INT8 file: ranges by output loss, float layers while answers are lost, bias correction."""

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
    HeldOut,
    Quality,
    QuantizationPlan,
    Remedy,
    choose_ranges,
    layer_sensitivity,
    leave_worst_in_float,
)
from edgekd.export.ort_session import open_session
from edgekd.export.quantize import Flavor
from edgekd.export.ranges import Batches, Ranges
from edgekd.run.cards.exported import AgreementPart, ClippingPart, Int8Part, IntegerNodesPart, RemedyDetailsPart

FINE_TUNING = "quantisation-aware fine-tuning"


@dataclass(frozen=True)
class FineTunedModel:
    """A float32 model that was trained to bear quantisation, and its own activation ranges."""

    source: ModelProto
    ranges: Ranges
    details: RemedyDetailsPart


FineTune = Callable[[QuantizationPlan], FineTunedModel]
"""Trains the student for a plan that still misses the target; raises GateError where that fails."""


@dataclass(frozen=True)
class Int8Result:
    """The plan that was reached, its quality, and every step that was tried on the way."""

    plan: QuantizationPlan
    quality: Quality
    target: float
    steps: tuple[Remedy, ...]

    @property
    def passed(self) -> bool:
        """Whether the file keeps enough of the answers."""
        return self.quality.agreement.share >= self.target

    def to_card(
        self,
        reason: str | None,
        integer_nodes: IntegerNodesPart | None,
        clipping: ClippingPart,
        default_mode: AgreementPart | None,
    ) -> Int8Part:
        """Return all of it as it is written, and the reason for which the file is not published, if there is one."""
        return Int8Part(
            passed=reason is None,
            reason=reason,
            flavour=self.plan.flavor.name,
            method=self.plan.method,
            headroom=self.plan.headroom,
            left_in_float=list(self.plan.float_nodes),
            quality=self.quality.to_card(),
            target=self.target,
            steps=[step.to_card() for step in self.steps],
            integer_nodes=integer_nodes,
            clipping=clipping,
            default_mode=default_mode,
        )


def quantize_keeping_answers(
    source: Path | ModelProto,
    flavor: Flavor,
    ranges: Ranges,
    held_out: HeldOut,
    calibration: Batches,
    *,
    target: float = 0.97,
    headrooms: Sequence[float] = (1.0,),
    fine_tune: FineTune | None = None,
) -> Int8Result:
    """Find an INT8 plan whose file agrees with float32 on at least `target` of the clear held-out samples.

    Args:
        source: the float32 model.
        flavor: one of `quantize.FLAVOURS`.
        ranges: of its activations over `calibration`.
        held_out: samples that decide, disjoint from `calibration`.
        calibration: the samples that `ranges` are of, for bias correction.
        target: share of agreement.
        headrooms: what the ranges may be widened by, the best first.
        fine_tune: the last remedy, none if not given.
    """

    def untrained(source: Path | ModelProto, ranges: Ranges) -> list[Remedy]:
        chosen = choose_ranges(source, flavor, ranges, held_out, headrooms=headrooms, target=target)
        return _with_remedies(chosen, held_out, calibration, target)

    steps = untrained(source, ranges)
    if _missed(steps, target) and fine_tune is not None:
        steps.append(_fine_tuned(steps[-1], fine_tune, untrained))
    return Int8Result(steps[-1].plan, steps[-1].kept, target, tuple(steps))


def _missed(steps: list[Remedy], target: float) -> bool:
    return steps[-1].kept.agreement.share < target


def _with_remedies(ranges: Remedy, held_out: HeldOut, calibration: Batches, target: float) -> list[Remedy]:
    """The choice of ranges, layers left in float as far as they are needed, and the correction of biases."""
    steps = [ranges]
    if _missed(steps, target):
        plan = steps[-1].plan
        sensitivity = layer_sensitivity(plan, held_out)
        steps.append(leave_worst_in_float(plan, held_out, sensitivity, target=target))
    # Not only where answers are missing: it costs neither time nor bytes on the device, and the loss says if it pays.
    steps.append(correct_bias(steps[-1].plan, held_out, calibration))
    return steps


def _fine_tuned(last: Remedy, fine_tune: FineTune, untrained: Callable[[ModelProto, Ranges], list[Remedy]]) -> Remedy:
    """Fine-tune, then go the whole way again with the new network; the answers to keep are still the old one's."""
    plan, before = last.plan, last.kept
    try:
        tuned = fine_tune(plan)
        steps = untrained(tuned.source, tuned.ranges)
    except GateError as error:
        return Remedy(FINE_TUNING, plan, before, before, False, RemedyDetailsPart(failed=str(error)))
    after = steps[-1].kept
    better = (after.agreement.share, -after.loss) > (before.agreement.share, -before.loss)
    details = tuned.details.model_copy(update={"steps": [step.to_card() for step in steps]})
    return Remedy(FINE_TUNING, steps[-1].plan if better else plan, before, after, better, details)


_CORRECTED_OPS = ("Conv", "Gemm")
_ROWS = 32


def correct_bias(plan: QuantizationPlan, held_out: HeldOut, batches: Batches) -> Remedy:
    """Return the plan with corrected biases, measured on `batches` of calibration samples."""
    quantized = plan.build()
    errors = mean_output_errors(plan.source, quantized, batches)
    corrected = replace(plan, bias_shifts=errors)
    before = held_out.measure(quantized, plan.flavor)
    after = held_out.measure(corrected.build(), plan.flavor)
    largest = {name: float(np.abs(error).max()) for name, error in errors.items()}
    improved = after.loss < before.loss and after.agreement.share >= before.agreement.share
    better = corrected if improved else plan
    return Remedy("bias correction", better, before, after, improved, RemedyDetailsPart(largest_shift=largest))


def mean_output_errors(
    source: Path | ModelProto, quantized: Path | ModelProto, batches: Batches
) -> dict[str, NDArray[np.float64]]:
    """Return, for each quantised Conv and Gemm, float minus INT8 output: its mean per output channel.

    Both see the activations of the float32 model `source`; `quantised` has the same node names.
    """
    model = read_model(source)
    names = _add_quantized_twins(model, read_model(quantized))
    session = open_session(model, as_written=True)
    outputs = [f"{name}_mean_error" for name in names]
    sums: dict[str, NDArray[np.float64]] = {}
    samples = 0
    for batch in batches():
        for start in range(0, len(batch), _ROWS):
            part = batch[start : start + _ROWS]
            samples += len(part)
            means = session.run(outputs, {session.get_inputs()[0].name: part})
            for name, mean in zip(names, means, strict=True):
                sums[name] = sums.get(name, 0.0) + np.asarray(mean, dtype=np.float64) * len(part)
    return {name: total / samples for name, total in sums.items()}


def _add_quantized_twins(model: ModelProto, quantized: ModelProto) -> list[str]:
    """Put a quantised twin beside each quantised node and give out the mean difference; return the names."""
    originals = {node.name: node for node in model.graph.node}
    makers, values = producers(quantized), constants(quantized)
    names = []
    for node in quantized.graph.node:
        if node.op_type not in _CORRECTED_OPS or node.name not in originals:
            continue
        sources = [makers.get(name) for name in node.input[:2]]
        pair = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
        if len(pair) == 2 and pair[1].input[0] in values:
            _add_twin(model, originals[node.name], pair[0], _dequantized_weight(node, pair[1], values), values)
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
    name = node.name
    scale, zero_point = (values[part] for part in dequantizer.input[1:3])
    parts = {"scale": scale.astype(np.float32), "zero_point": zero_point, "weight": weight}
    for part, value in parts.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}_twin_{part}"))
    affine = [f"{name}_twin_scale", f"{name}_twin_zero_point"]
    twin = make_node(node.op_type, [f"{name}_twin_x", f"{name}_twin_weight", *node.input[2:]], [f"{name}_twin"])
    twin.attribute.extend(node.attribute)
    axes = [0, 2, 3] if node.op_type == "Conv" else [0]
    model.graph.node.extend(
        (
            make_node("QuantizeLinear", [node.input[0], *affine], [f"{name}_twin_q"]),
            make_node("DequantizeLinear", [f"{name}_twin_q", *affine], [f"{name}_twin_x"]),
            twin,
            make_node("Sub", [node.output[0], f"{name}_twin"], [f"{name}_error"]),
            make_node("ReduceMean", [f"{name}_error"], [f"{name}_mean_error"], axes=axes, keepdims=0),
        )
    )
    model.graph.output.append(make_empty_tensor_value_info(f"{name}_mean_error"))
