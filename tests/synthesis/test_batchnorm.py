"""The distance to BatchNorm statistics: values and gradients against autograd, also in bfloat16 and where it is 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekd.synthesis.batchnorm import moments, statistics_distance

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def batch(device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    source = torch.Generator().manual_seed(1)
    spread = torch.tensor([0.1, 1.0, 3.0])[None, :, None, None]
    x = torch.randn(16, 3, 6, 5, generator=source) * spread + torch.tensor([9.0, 0.0, -2.0])[None, :, None, None]
    return x.to(device, dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def reference(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    flat = x.double().transpose(0, 1).flatten(1)
    of_mean = flat.mean(1) - mean
    of_variance = (flat - flat.mean(1, keepdim=True)).square().mean(1) - variance
    return of_mean.square().sum().sqrt() + of_variance.square().sum().sqrt()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_value_and_gradient_are_those_of_autograd_in_double_precision(
    device: torch.device, dtype: torch.dtype, tolerance: float
) -> None:
    x = batch(device, dtype)
    mean, variance = (torch.tensor(values, device=device) for values in ([8.0, 0.5, -2.0], [0.5, 1.0, 7.0]))
    got, wanted = statistics_distance(x, mean, variance), reference(x, mean.double(), variance.double())
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), wanted, rtol=1e-5)
    mine, theirs = (torch.autograd.grad(3 * value, x)[0] for value in (got, wanted))
    assert mine.dtype == dtype
    assert mine.is_contiguous(memory_format=torch.channels_last)
    assert float((mine - theirs).double().norm() / theirs.double().norm()) < tolerance


@pytest.mark.parametrize("device", DEVICES)
def test_at_the_statistics_themselves_the_distance_is_0_and_pulls_nowhere(device: torch.device) -> None:
    x = batch(device)
    mean, variance = moments(x.detach())
    distance = statistics_distance(x, mean, variance)
    distance.backward()
    assert float(distance.detach()) == 0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_a_channel_that_is_everywhere_the_same_has_no_variance(device: torch.device) -> None:
    x = torch.full((4, 1, 2, 2), 3.0, device=device)
    mean, variance = moments(x)
    assert (float(mean), float(variance)) == (3.0, 0.0)


LAYOUTS = {
    "one pixel": lambda x: x[:, :, :1, :1].contiguous(),
    "contiguous": lambda x: x.contiguous(),
    "every other row": lambda x: x[:, :, ::2],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_has_the_value_and_gradient_of_autograd(name: str) -> None:
    x = LAYOUTS[name](batch(CPU).detach()).requires_grad_()
    mean, variance = torch.tensor([8.0, 0.5, -2.0]), torch.tensor([0.5, 1.0, 7.0])
    got, wanted = statistics_distance(x, mean, variance), reference(x, mean.double(), variance.double())
    assert torch.allclose(got.double(), wanted, rtol=1e-5)
    mine, theirs = (torch.autograd.grad(value, x)[0] for value in (got, wanted))
    assert float((mine - theirs).double().norm() / theirs.double().norm()) < 1e-5
