"""The distance of a batch to the statistics that a BatchNorm layer keeps of its training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_TINY = 1e-30
_TINY_VARIANCE = 1e-12


def statistics_distance(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Return ||mean - running mean|| + ||var - running var|| over channels of `x` (N, C, H, W), float32.

    DeepInversion, arXiv 1912.08795, eq. 4. Differentiable once, with respect to `x`.
    """
    distance: Tensor = _Distance.apply(x, running_mean, running_var)
    return distance


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel of `x` (N, C, H, W), float32 also of a bfloat16 feature map."""
    if x.is_cuda:
        mean, inverse_std = torch.batch_norm_stats(x, _TINY_VARIANCE)  # which says 1 / 0 = 0 without it
    else:  # faster than `var_mean`, although it also writes the normalized map
        ones = torch.ones(x.shape[1], device=x.device)
        _, mean, inverse_std = torch.native_batch_norm(x, ones, ones, None, None, True, 0.0, _TINY_VARIANCE)
    return mean, (inverse_std.pow(-2) - _TINY_VARIANCE).clamp_min(0)


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale * x + shift per channel of `x` (N, C, H, W), in the type and layout of `x`."""
    if not x.is_cuda:  # the same numbers as below, faster for bfloat16
        return F.batch_norm(x, torch.zeros_like(shift), torch.ones_like(scale), scale, shift, eps=0.0)
    per_channel = (1, -1, 1, 1)
    result = torch.empty_like(x)
    torch.addcmul(shift.view(per_channel), x, scale.view(per_channel), out=result)
    return result


class _Distance(torch.autograd.Function):
    """Reads a feature map as seldom as can be; what autograd makes of `var_mean` moves it eight times, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        mean, variance = moments(x)
        of_mean, of_variance = mean - running_mean, variance - running_var
        far_mean, far_variance = of_mean.norm(), of_variance.norm()
        # The gradient of a norm is the unit vector, and at 0 nothing.
        towards_mean, towards_variance = (
            of_mean / far_mean.clamp_min(_TINY),
            of_variance / far_variance.clamp_min(_TINY),
        )
        ctx.save_for_backward(x, mean, towards_mean, towards_variance)
        distance: Tensor = far_mean + far_variance
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, mean, towards_mean, towards_variance = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        scale = 2 * gradient / count * towards_variance
        shift = gradient / count * towards_mean - scale * mean
        return affine(x, scale, shift), None, None
