"""Floating-point operations, counted as they run."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from edgekd.models.watching import Watching


class FlopsByDtype(Watching):
    """Count the FLOPs of matrix products and convolutions, forward and backward, by the precision they run in.

    A multiply-accumulate counts as two. The formulas are those of `torch.utils.flop_counter`, but for the gradients of
    convolutions, for which these forget groups: a depthwise layer would count as many times as it has channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and add its FLOPs."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            dtype = next(a.dtype for a in args if isinstance(a, torch.Tensor))
            if func.overloadpacket is torch.ops.aten.convolution_backward:
                self.flops[dtype] += _convolution_backward_flops(*args)
            else:
                self.flops[dtype] += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _convolution_backward_flops(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *options: Any) -> int:
    """Return the FLOPs of a convolution's gradients: for input and weight as many each as forward."""
    *_, transposed, _, _, wanted = options
    places = math.prod((x if transposed else gradient).shape[2:])
    gradients: int = sum(wanted[:2])
    return 2 * len(x) * places * weight.numel() * gradients
