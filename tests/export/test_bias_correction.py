from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from small_nets import Student

from edgekd.export.graph import read_model, with_moved_biases
from edgekd.export.int8 import QuantizationPlan
from edgekd.export.int8_chain import mean_output_errors, try_bias_correction
from edgekd.export.ort_session import all_logits
from edgekd.export.quantize import FLAVORS, compute_nodes
from edgekd.export.ranges import Range, Ranges


def _coarse(ranges: Ranges) -> Ranges:
    """Return ranges that clip everything positive at 40 %, which moves every mean."""
    return Ranges(
        ranges.samples,
        {
            name: {method: Range(r.low, r.high * 0.4, r.magnitude * 0.4) for method, r in methods.items()}
            for name, methods in ranges.tensors.items()
        },
    )


@pytest.mark.parametrize("flavor", FLAVORS)
def test_correction_lowers_the_loss_of_a_biased_quantization(flavor: str, student: Student) -> None:
    plan = QuantizationPlan(read_model(student.path), FLAVORS[flavor], _coarse(student.ranges), "absmax")
    remedy = try_bias_correction(plan, student.held_out, student.calibration)
    assert remedy.after.loss < 0.7 * remedy.before.loss
    assert set(remedy.plan.bias_shifts) == set(compute_nodes(student.path))
    assert student.held_out.measure(remedy.plan.build(), plan.flavor) == remedy.after
    assert remedy.details.largest_shift is not None
    assert set(remedy.details.largest_shift) == set(compute_nodes(student.path))


def test_a_correction_that_does_not_help_is_not_applied(student: Student) -> None:
    plan = QuantizationPlan(read_model(student.path), FLAVORS["trt"], student.ranges, "absmax")
    opposite = [-batch for batch in student.calibration()]
    for coarse in (plan, QuantizationPlan(plan.source, plan.flavor, _coarse(student.ranges), "absmax")):
        remedy = try_bias_correction(coarse, student.held_out, lambda: opposite)
        assert remedy.applied == (remedy.after.loss < remedy.before.loss)
        assert (remedy.plan is coarse) == (not remedy.applied)


def test_the_error_of_a_layer_is_that_of_its_own_weights_and_input(student: Student) -> None:
    plan = QuantizationPlan(read_model(student.path), FLAVORS["trt"], student.ranges, "absmax")
    errors = mean_output_errors(plan.source, plan.build(), student.calibration)
    # The first layer, by hand: float minus fake-quantised convolution, averaged over samples and pixels.
    first = compute_nodes(student.path)[0]
    data = np.concatenate(list(student.calibration()))
    scale = student.ranges.tensors["input"]["absmax"].magnitude / 127
    weight, bias = _stem(student)
    weight_scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    float_out = _conv(data, weight)
    quantized_out = _conv(np.rint(data / scale) * scale, np.rint(weight / weight_scale) * weight_scale)
    np.testing.assert_allclose(errors[first], (float_out - quantized_out).mean((0, 2, 3)), atol=1e-6)
    assert bias.shape == errors[first].shape


def _stem(student: Student) -> tuple[np.ndarray, np.ndarray]:
    model = read_model(student.path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = model.graph.node[0]
    assert node.op_type == "Conv"
    return values[node.input[1]], values[node.input[2]]


def _conv(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        images, kernel = (torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in (data, weight))
        return torch.nn.functional.conv2d(images, kernel, stride=2, padding=1).numpy()


def test_moved_biases_move_the_logits_also_where_there_was_no_bias(student: Student) -> None:
    head = compute_nodes(student.path)[-1]
    shift = np.arange(5, dtype=np.float64)
    data = [student.fresh[:8]]
    expected = all_logits(student.path, data) + shift
    np.testing.assert_allclose(all_logits(with_moved_biases(student.path, {head: shift}), data), expected, rtol=1e-5)

    bare = read_model(student.path)
    node = next(node for node in bare.graph.node if node.name == head)
    del node.input[2]
    expected = all_logits(bare, data) + shift
    np.testing.assert_allclose(all_logits(with_moved_biases(bare, {head: shift}), data), expected, rtol=1e-5)
