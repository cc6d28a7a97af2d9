"""Floating-point operations are those of the formulas, by the precision they run in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.models.flops import FlopsByDtype


def test_a_linear_layer_costs_two_a_weight_forward_and_four_backward() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7, requires_grad=True)
    with FlopsByDtype() as forward:
        out = layer(x)
    assert forward.flops == {torch.float32: 2 * 3 * 7 * 5}
    with FlopsByDtype() as backward:
        out.sum().backward()
    assert backward.flops == {torch.float32: 4 * 3 * 7 * 5}, "one product for the input, one for the weights"


def test_a_convolution_costs_two_a_weight_and_place() -> None:
    layer, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 8, 8)
    with FlopsByDtype() as forward:
        out = layer(x)
    macs = 2 * 6 * 8 * 8 * 4 * 9
    assert forward.flops == {torch.float32: 2 * macs}
    with FlopsByDtype() as backward:
        out.sum().backward()
    assert backward.flops == {torch.float32: 2 * macs}, "the images take no gradient"


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 2 * 8 * 6 * 6 * 9),
        (nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=2), 2 * 4 * 3 * 3 * 4 * 9),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), 2 * 8 * 6 * 6 * 4 * 4),
    ],
    ids=["depthwise", "grouped", "transposed"],
)
def test_gradients_of_grouped_and_transposed_convolutions_cost_what_their_forward_does(
    layer: nn.Module, macs: int
) -> None:
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with FlopsByDtype() as forward:
        out = layer(x)
    assert forward.flops == {torch.float32: 2 * macs}
    with FlopsByDtype() as backward:
        out.sum().backward()
    assert backward.flops == {torch.float32: 4 * macs}, "for the input and for the weights"


def test_precisions_are_counted_apart() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    with FlopsByDtype() as counted:
        layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
    assert counted.flops == {torch.float32: 210, torch.bfloat16: 210}
