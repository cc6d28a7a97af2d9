"""How well a network's own BatchNorm statistics speak for the way in which it is wired.

Its running means and variances are those of the images that it was trained on. Wired rightly a network comes near to
them after a few gradient steps on images made up for it, wired wrongly it does not. No data is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.models import probe
from edgekd.models.stems import Shape

ENOUGH = 0.03
"""A distance below this needs no comparison with rare kinds of wiring: right wiring of published ResNets came to it."""
FAR = 0.25
"""A distance above this speaks against a network, whatever else it is compared with."""
_STEPS, _LEAST_STEPS = 20, 15
_BETAS = (0.9, 0.999)
_RATE = 0.1
_IMAGES = 8
_SCREENING = (2, 6, 5)
"""Images, steps and least steps where many networks are compared."""
_MOST_MACS = 2e11
"""Multiply-accumulates of one comparison, forward and backward: 10 to 20 seconds of one core. It is no time, so that a
file is read alike on every machine."""
_SMALLEST = 1e-3
"""Running variances below this share of their layer's mean count as that share: channels that are dead."""


@dataclass(frozen=True)
class StatisticsJudge:
    """Measures how near networks come to their own BatchNorm statistics."""

    images: Callable[[int, Shape], Tensor]
    """Draws so many images of a shape to start from, with the spectrum of photographs: noise tells far less."""

    def distances(self, networks: Sequence[tuple[nn.Module, Shape]], *, screening: bool = False) -> list[float] | None:
        """Return the distance of each network in eval mode; None where statistics say nothing, or it would take long.

        All are given the same number of steps; `screening` is a tenth of the work, to leave out the farthest.
        """
        if not networks or not all(keeps_statistics(network) for network, _ in networks):
            return None
        count, most, least = _SCREENING if screening else (_IMAGES, _STEPS, _LEAST_STEPS)
        a_step = sum(3 * count * probe.complexity(network, shape).macs for network, shape in networks)
        steps = min(most, int(_MOST_MACS / a_step))
        if steps < least:
            return None
        starts = {shape: self.images(count, shape) for _, shape in networks}
        return [nearest_distance(network, starts[shape], steps=steps) for network, shape in networks]


def keeps_statistics(network: nn.Module) -> bool:
    """Return whether a network has BatchNorm layers whose statistics come from training."""
    return any(bool(layer.get_buffer("running_mean").any()) for layer in _layers(network))


def distance(network: nn.Module, images: Tensor) -> Tensor:
    """Return how far the statistics of a batch are from the running ones, the mean over all BatchNorm layers.

    For a channel it is the squared difference of the means, in running standard deviations, and that of the logarithms
    of the variances. The network is in eval mode; gradients reach the images.
    """
    found: list[Tensor] = []

    def compare(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        running_mean, running_var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        dims = [dim for dim in range(inputs[0].ndim) if dim != 1]
        variance, mean = torch.var_mean(inputs[0], dim=dims, correction=0)
        least = _SMALLEST * running_var.mean() + torch.finfo(torch.float32).tiny
        running = running_var.clamp_min(least)
        means = (mean - running_mean).square() / running
        found.append((means + (variance.clamp_min(least).log() - running.log()).square()).mean())

    handles = [layer.register_forward_pre_hook(compare) for layer in _layers(network)]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found).mean() if found else torch.zeros(())


def _layers(network: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that keep running statistics."""
    return [network.get_submodule(name) for name in probe.batchnorm_names(network)]


def nearest_distance(network: nn.Module, start: Tensor, *, steps: int) -> float:
    """Return the smallest distance on the way of some Adam steps on images.

    They are written out, since torch.optim imports PyTorch's compiler: four CPU seconds for these few steps.
    """
    images, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    best = math.inf
    for step in range(1, steps + 2):
        images = images.detach().requires_grad_()
        reached = distance(network, images)
        value = reached.item()
        if not math.isfinite(value):
            break
        best = min(best, value)
        (gradient,) = torch.autograd.grad(reached, images)
        first, second = first.lerp(gradient, 1 - _BETAS[0]), second.lerp(gradient.square(), 1 - _BETAS[1])
        spread = (second / (1 - _BETAS[1] ** step)).sqrt()
        images = images - _RATE * first / (1 - _BETAS[0] ** step) / (spread + 1e-8)
    return best
