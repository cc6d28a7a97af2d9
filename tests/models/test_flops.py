"""FLOPs: counted by hand for a layer, by the precision they run in."""

from __future__ import annotations

import torch
from torch import nn

from edgekd.models import flops


def test_a_linear_layer_costs_two_a_weight_forward_and_four_backward() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7, requires_grad=True)
    with flops.FlopsByDtype() as forward:
        out = layer(x)
    assert forward.flops == {torch.float32: 2 * 3 * 7 * 5}
    with flops.FlopsByDtype() as backward:
        out.sum().backward()
    assert backward.flops == {torch.float32: 4 * 3 * 7 * 5}, "one product for the input, one for the weights"


def test_a_convolution_costs_two_a_weight_and_place() -> None:
    layer, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 8, 8)
    with flops.FlopsByDtype() as forward:
        out = layer(x)
    macs = 2 * 6 * 8 * 8 * 4 * 9
    assert forward.flops == {torch.float32: 2 * macs}
    with flops.FlopsByDtype() as backward:
        out.sum().backward()
    assert backward.flops == {torch.float32: 2 * macs}, "the images take no gradient"


def test_precisions_are_counted_apart() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    with flops.FlopsByDtype() as counted:
        layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
    assert counted.flops == {torch.float32: 210, torch.bfloat16: 210}
