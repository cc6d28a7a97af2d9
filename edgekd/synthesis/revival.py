"""Dead ReLU channels of a student, and a pull that brings them back.

A channel that answers 0 to every image gets no gradient and stays so. While images keep moving, small students
without BatchNorm lose many of their channels that way (in reinforcement learning: Sokar et al. 2023, arXiv 2302.12902).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.synthesis.hooks import HookRecorder


class ReluInputMaxima(HookRecorder[Tensor]):
    """Records the highest input of each ReLU channel over a batch: one vector a ReLU, channel by channel."""

    def __init__(self, network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.inplace = False  # the backward pass needs the inputs
                module.register_forward_pre_hook(self._hook)

    def _hook(self, _relu: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.recorded is not None:
            self.recorded.append(highest_inputs(inputs[0]).float())


def highest_inputs(x: Tensor) -> Tensor:
    """Return the highest value of each channel of (N, C, ...) over the batch and all places.

    Places of one image that share it do not share its gradient on a CPU: the first one takes it.
    """
    if x.ndim == 4 and not x.is_cuda:  # amax of channels-last maps and its gradient are slow
        x = F.adaptive_max_pool2d(x, 1)
    return x.amax(dim=[0, *range(2, x.ndim)])


def pull(maxima: list[Tensor]) -> Tensor:
    """Return how far below 0 the highest inputs of dead channels lie, averaged over all channels."""
    return torch.relu(-torch.cat(maxima)).mean()


def dead_share(maxima: list[Tensor]) -> Tensor:
    """Return the share of channels that answer 0 to the whole batch."""
    return (torch.cat(maxima).detach() <= 0).float().mean()
