"""The memory layout that a network runs in: channels-last, in which convolutions are faster, or contiguous.

Code such as `x.view(len(x), -1)` fails on channels-last feature maps, and code that reads strides answers otherwise. A
network that does is kept contiguous wherever it runs: its weights, and by a hook that stays with its copies its images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekd import machine, rng
from edgekd.models.stems import Shape


def settled(network: nn.Module, input_shape: Shape) -> nn.Module:
    """Try a network of other code in both layouts, forward and backward; return it, kept contiguous where needed.

    What fails in both is left to the probe, which says so.
    """
    with rng.seeded_global_rng(0, "layout"):
        images = torch.randn(2, *input_shape)
        contiguous = _answers(network, images)
        if contiguous is None:
            return network
        try:
            other = _answers(network.to(memory_format=torch.channels_last), machine.channels_last(images))
        finally:
            network.to(memory_format=torch.contiguous_format)
    if other is None or not _alike(contiguous, other):
        network.register_forward_pre_hook(_contiguous)
    return network


def laid_out(network: nn.Module) -> nn.Module:
    """Return a network with its weights channels-last, or as they are where `settled` keeps it contiguous."""
    hooks = network._forward_pre_hooks.values()
    return network if _contiguous in hooks else network.to(memory_format=torch.channels_last)


def _contiguous(_network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def _answers(network: nn.Module, images: Tensor) -> Tensor | None:
    """What a network answers in eval mode; None where it fails, there or in what training does with it."""
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    try:
        for training in (True, False) if weights else (False,):
            x = images.detach().requires_grad_()
            answers: Tensor = network.train(training)(x)
            if answers.requires_grad:
                torch.autograd.grad(answers.float().square().sum(), [x, *weights], allow_unused=True)
        return answers.detach()
    except Exception:  # noqa: BLE001 - foreign networks may raise anything
        return None
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])


def _alike(answers: Tensor, others: Tensor) -> bool:
    tolerance = 1e-3 * float(answers.abs().max())
    return answers.shape == others.shape and torch.allclose(answers, others, rtol=0, atol=tolerance, equal_nan=True)
