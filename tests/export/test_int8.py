from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from small_nets import SHAPE, Student, batches, live, samples, small_mobilenet

from edgekd.export import int8
from edgekd.export.fidelity import Agreement
from edgekd.export.graph import read_model
from edgekd.export.int8 import (
    HeldOutSet,
    PlanChange,
    Quality,
    QuantizationPlan,
    layer_sensitivity,
    try_float_layers,
    try_ranges,
)
from edgekd.export.onnx_export import export_fp32
from edgekd.export.ort_session import all_logits
from edgekd.export.quantize import FLAVORS, compute_nodes
from edgekd.export.ranges import RANGE_METHODS, Range, Ranges, collect_ranges

X86 = FLAVORS["cpu-x86"]


def _with_range(ranges: Ranges, tensor: str, factor: float) -> Ranges:
    """Return the ranges with those of one tensor stretched, so that this tensor keeps few levels."""
    wide = {
        method: Range(found.low * factor, found.high * factor, found.magnitude * factor)
        for method, found in ranges.tensors[tensor].items()
    }
    return Ranges(ranges.samples, {**ranges.tensors, tensor: wide})


def test_loss_is_the_noise_to_signal_ratio_without_each_samples_shift(student: Student) -> None:
    reference = student.held_out.float_logits
    assert student.held_out.measure(student.path, X86).loss == pytest.approx(0, abs=1e-9)
    assert np.array_equal(reference, all_logits(student.path, student.held_out.batches()))
    noise = np.random.default_rng(0).standard_normal(reference.shape).astype(np.float32) * 0.1
    shifted = HeldOutSet(student.held_out.batches, reference + 3 + noise)
    centerd, signal = noise - noise.mean(1, keepdims=True), reference + noise
    expected = np.mean(centerd**2) / np.mean((signal - signal.mean(1, keepdims=True)) ** 2)
    assert shifted.measure(student.path, X86).loss == pytest.approx(float(expected), rel=1e-3)


def smallest(losses: dict[str, float | None]) -> float:
    """Return the smallest of losses that are all finite."""
    numbers = [loss for loss in losses.values() if loss is not None]
    assert len(numbers) == len(losses)
    return min(numbers)


def test_the_method_of_least_output_loss_is_chosen(student: Student) -> None:
    found = try_ranges(student.path, X86, student.ranges, student.held_out)
    losses = found.details.losses
    assert losses is not None
    assert set(losses) == set(RANGE_METHODS)
    assert losses[found.plan.range_method] == smallest(losses) == found.after.loss
    assert found.before.loss == losses["absmax"]
    assert student.held_out.measure(found.plan.build(), X86) == found.after
    # One method ruined: it must not be chosen.
    best = found.plan.range_method
    ruined = {
        name: {**methods, best: Range(methods[best].low * 40, methods[best].high * 40, methods[best].magnitude * 40)}
        for name, methods in student.ranges.tensors.items()
    }
    assert try_ranges(student.path, X86, Ranges(1, ruined), student.held_out).plan.range_method != best


def test_the_widest_ranges_that_keep_the_target_are_taken(student: Student) -> None:
    def chosen(target: float) -> PlanChange:
        headrooms = (60.0, 1.2, 1.0)
        return try_ranges(student.path, X86, student.ranges, student.held_out, headrooms=headrooms, target=target)

    assert chosen(0.0).plan.headroom == 60  # any answer is good enough
    found = chosen(0.95)
    assert (found.plan.headroom, found.details.headroom) == (1.2, 1.2)
    assert found.after.agreement.share >= 0.95
    assert student.held_out.measure(found.plan.build(), X86) == found.after
    assert found.before == chosen(0.0).before, "absmax as it was seen"
    lost = chosen(1.1)
    assert lost.plan.headroom == 1.0, "remedies start from the ranges that were seen"
    assert lost.details.losses is not None
    assert lost.after.loss == smallest(lost.details.losses)


def test_only_the_x86_file_keeps_a_depthwise_stem_in_float(tmp_path: Path) -> None:
    path = export_fp32(live(small_mobilenet), SHAPE, tmp_path / "fp32.onnx").path
    ranges, held_out = collect_ranges(path, batches(samples(32))), HeldOutSet.of(path, batches(samples(32, key="held")))
    for flavor in FLAVORS.values():
        plan = try_ranges(path, flavor, ranges, held_out).plan
        stem = compute_nodes(path)[: 2 if flavor is X86 else 0]
        assert list(plan.float_nodes) == stem
        model = plan.build()
        floats = {node.name for node in model.graph.node if node.name in compute_nodes(model)}
        assert floats == set(stem), flavor.name
        assert not set(stem) & set(layer_sensitivity(plan, held_out))


def test_among_methods_that_keep_the_target_the_least_loss_wins(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    qualities = {  # of a plan's method: loss and share of kept answers
        "absmax": (0.3, 0.99),
        "p99.999": (0.2, 0.98),
        "p99.99": (0.1, 0.90),
        "p99.9": (0.4, 0.97),
        "mse": (0.05, 0.96),
    }
    methods = iter([*RANGE_METHODS, "absmax"])

    def measured(*_: object, **__: object) -> Quality:
        loss, share = qualities[next(methods)]
        return Quality(loss, Agreement(100, 100, round(100 * share), 0.0))

    monkeypatch.setattr(HeldOutSet, "measure", measured)
    found = try_ranges(student.path, X86, student.ranges, student.held_out, headrooms=(1.3, 1.0), target=0.97)
    assert (found.plan.range_method, found.plan.headroom) == ("p99.999", 1.3)


@pytest.mark.parametrize("flavor", ["trt", "cpu-x86"])
def test_the_harmful_layer_is_found_and_left_in_float(flavor: str, student: Student) -> None:
    harmful = compute_nodes(student.path)[2]
    model = read_model(student.path)
    (tensor,) = [node.input[0] for node in model.graph.node if node.name == harmful]
    plan = QuantizationPlan(model, FLAVORS[flavor], _with_range(student.ranges, tensor, 150), "absmax")
    sensitivity = layer_sensitivity(plan, student.held_out)
    assert set(sensitivity) == set(compute_nodes(model))
    assert list(sensitivity.values()) == sorted(sensitivity.values(), reverse=True)
    # On a CPU the layer in front shares the blame: its output is the tensor that has too few levels.
    assert harmful in list(sensitivity)[: 1 if flavor == "trt" else 2]

    remedy = try_float_layers(plan, student.held_out, sensitivity, target=0.97, max_share=0.4)
    assert remedy.before.agreement.share < 0.97 <= remedy.after.agreement.share
    assert remedy.plan.float_nodes == tuple(list(sensitivity)[: len(remedy.plan.float_nodes)])
    left: Any = remedy.to_card().to_json()["left_in_float"]
    assert set(left) == set(remedy.plan.float_nodes)
    assert student.held_out.measure(remedy.plan.build(), plan.flavor) == remedy.after


def test_nothing_is_left_in_float_when_the_target_is_met(student: Student) -> None:
    plan = QuantizationPlan(read_model(student.path), X86, student.ranges, "absmax")
    remedy = try_float_layers(plan, student.held_out, {"unused": 1.0}, target=0.5)
    assert remedy.plan is plan
    assert remedy.before == remedy.after


def test_no_more_than_the_allowed_share_becomes_float(student: Student) -> None:
    ruined = _with_range(student.ranges, "input", 3000)
    plan = QuantizationPlan(read_model(student.path), FLAVORS["trt"], ruined, "absmax")
    sensitivity = dict.fromkeys(compute_nodes(student.path)[1:], 1.0)
    remedy = try_float_layers(plan, student.held_out, sensitivity, target=1.0, max_share=0.5)
    assert len(remedy.plan.float_nodes) <= 2
    assert remedy.after.agreement.share < 1


def test_weights_are_not_touched_by_measuring(student: Student) -> None:
    plan = QuantizationPlan(read_model(student.path), X86, student.ranges, "absmax")
    before = plan.source.SerializeToString(deterministic=True)
    layer_sensitivity(plan, student.held_out)
    assert plan.source.SerializeToString(deterministic=True) == before
    assert all(numpy_helper.to_array(tensor).dtype != np.int8 for tensor in plan.source.graph.initializer)


def test_logits_that_are_not_finite_lose_everything_and_are_written_as_such(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = student.held_out.float_logits.copy()
    broken[0, 0] = np.inf
    monkeypatch.setattr(int8, "all_logits", lambda *_, **__: broken)
    found = try_ranges(student.path, X86, student.ranges, student.held_out)
    assert found.after.loss == np.inf
    assert found.after.agreement.same < found.after.agreement.clear
    written = json.loads(json.dumps(found.to_card().to_json(), allow_nan=False))
    assert written["after"]["loss"] is None
    assert set(written["losses"].values()) == {None}
