"""Quantisation-aware fine-tuning: the student learns, on replayed samples, to answer through 8-bit arithmetic.

Fake quantisation with straight-through gradients as in "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (arXiv 1712.05877, section 3), on the float network itself: weights per output
channel, activations at the inputs of convolutions and linear layers. BatchNorm stays in eval mode, where it scales
each output channel of the convolution before it by a constant. The scale of a weight's channel is its own largest
magnitude, so quantising before that scaling or, as the exported file does, after it gives the same weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgekd.errors import GateError
from edgekd.synthesis.losses import logit_distance

TEMPERATURE = 4.0
_PROBED_ROWS = 8
_SMALLEST_SCALE = 1e-12

Limits = Mapping[str, tuple[float, float]]
"""What is kept of each layer's input, [low, high] with 0 inside, by the layer's name."""


@dataclass(frozen=True)
class QatResult:
    """The float network after fine-tuning, and the loss of each step."""

    network: nn.Module
    losses: tuple[float, ...]


class _Weight(nn.Module):
    """Rounds a weight to symmetric int8, a scale for each output channel (axis 0)."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = (weight.detach().abs().flatten(1).amax(1) / 127).clamp_min(_SMALLEST_SCALE)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def fake_quantized(x: Tensor, low: float, high: float) -> Tensor:
    """Round activations to 8 bits within [low, high]; the gradient is 1 inside and 0 where they are clipped.

    A symmetric interval becomes int8 with zero point 0, any other uint8.
    """
    if low == -high:
        return torch.fake_quantize_per_tensor_affine(x, max(high / 127, _SMALLEST_SCALE), 0, -127, 127)
    scale = max((high - low) / 255, _SMALLEST_SCALE)
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


def quantized_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def layer_inputs(
    network: nn.Module, batches: Iterable[Tensor]
) -> Iterator[tuple[int, list[tuple[str, NDArray[np.float32]]]]]:
    """Yield the number of samples and what each convolution and linear layer reads, a few samples at a time."""
    seen: list[tuple[str, NDArray[np.float32]]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _layer, inputs: seen.append((name, inputs[0].numpy()))

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in quantized_layers(network).items()]
    try:
        for batch in batches:
            for part in batch.split(_PROBED_ROWS):
                seen.clear()
                with torch.no_grad():
                    network(part)
                yield len(part), seen
    finally:
        for handle in handles:
            handle.remove()


def fine_tune(
    student: nn.Module,
    limits: Limits,
    batches: Iterable[Tensor],
    teacher: Callable[[Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    on_step: Callable[[int, float], None],
) -> QatResult:
    """Return a copy of the student, in float, that was trained with its layers fake-quantised.

    Args:
        student: the network in eval mode; it is not changed.
        limits: by layer; a layer without limits stays in float.
        batches: a batch of normalised samples, N×C×H×W, for each step.
        teacher: gives logits without a graph.
        steps: number of updates; the learning rate rises during the first tenth and falls to 0 along a cosine.
        lr: Adam's learning rate.
        on_step: is called with the number of steps done and the loss.

    Raises:
        GateError: the loss is not finite.
    """
    network = copy.deepcopy(student).eval().requires_grad_(True)
    layers = {name: layer for name, layer in quantized_layers(network).items() if name in limits}
    overflow: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(_rounding(*limits[name], overflow)) for name, layer in layers.items()]
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", _Weight())
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    losses: list[float] = []
    for step, x in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate_share(step, steps)
        with torch.no_grad():
            own = student(x)
        overflow.clear()
        loss = target_loss(network(x), own, teacher(x)) + torch.stack([*overflow, x.new_zeros(())]).sum()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise GateError(f"fine-tuning diverged at step {step}: its loss is not finite; lower export.qat_lr.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(step + 1, losses[-1])
    for handle in handles:
        handle.remove()
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return QatResult(network.requires_grad_(False), tuple(losses))


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: Adam's first updates, all of one size, are held back."""
    return min(1.0, (step + 1) / max(1.0, steps / 10)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def target_loss(quantized: Tensor, own: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance to the student's own float answers and, where it gives the same one, to the teacher's.

    The file is held to the student's answers: where the teacher differs, it would pull towards missing the gate.
    """
    loss = logit_distance(quantized, own, "kl", TEMPERATURE)
    same = own.argmax(1) == teacher.argmax(1)
    if same.any():
        loss = loss + same.float().mean() * logit_distance(quantized[same], teacher[same], "kl", TEMPERATURE)
    return loss


def _rounding(
    low: float, high: float, overflow: list[Tensor]
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that rounds a layer's input, and adds what lies outside its range, squared, to `overflow`.

    Ranges are collected anew after training: without a price the network would hide behind the clipping.
    """

    def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        outside = (x - x.clamp(low, high)) / max(high - low, _SMALLEST_SCALE)
        overflow.append(outside.square().mean())
        return (fake_quantized(x, low, high), *inputs[1:])

    return hook
