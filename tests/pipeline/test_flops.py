"""FLOPs: counted by hand for a layer, by the precision they run in; the peak of a mixture."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch
from torch import nn

from edgekd.pipeline import flops

CPU = torch.device("cpu")


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


def test_the_peak_of_a_mixture_is_that_of_doing_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {torch.float32: 100.0, torch.bfloat16: 400.0}
    monkeypatch.setattr(flops, "matmul_peak", lambda _device, dtype: peaks[dtype])
    mixed = Counter({torch.float32: 1000, torch.bfloat16: 1000})
    assert flops.effective_peak(mixed, CPU) == pytest.approx(2000 / (10 + 2.5))
    assert flops.effective_peak(Counter({torch.bfloat16: 7}), CPU) == pytest.approx(400)


def test_the_measured_peak_is_no_more_than_a_product_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "PEAK_SIDE", {"cpu": 64})
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert flops.matmul_peak(CPU, torch.float32, seconds=5) == 2 * 64**3, "a product that takes one second"
