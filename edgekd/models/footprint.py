"""What a network costs before anyone trains it: parameters, multiply-accumulates, and about how large its files get."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.errors import InputFileError, UsageError
from edgekd.models import probe, registry
from edgekd.models.stems import Shape
from edgekd.text import first_line, sizes

# Fitted to files that `edgekd export` wrote. A layer has nodes, names and shapes, in INT8 also its quantisers; an
# output channel has a bias, in INT8 also scales and zero points.
_FP32_LAYER_BYTES, _FP32_CHANNEL_BYTES = 450, 4
_INT8_LAYER_BYTES, _INT8_CHANNEL_BYTES = 2200, 13


@dataclass(frozen=True)
class Footprint:
    """The size of a network; the two file sizes are estimates."""

    parameters: int
    macs: int
    fp32_bytes: int
    int8_bytes: int


def footprint_of(net: nn.Module, input_shape: Shape) -> Footprint:
    """Count a network's parameters and its work for one image, and estimate its ONNX files.

    BatchNorm costs nothing in a file: export folds it into the convolution beside it.
    """
    size = probe.complexity(net, input_shape)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    folded = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    weights = sum(layer.weight.numel() for layer in layers)
    channels = sum(layer.weight.shape[0] for layer in layers)
    counted = sum(p.numel() for module in (*layers, *folded) for p in module.parameters(recurse=False))
    rest = 4 * (size.parameters - counted)
    return Footprint(
        parameters=size.parameters,
        macs=size.macs,
        fp32_bytes=rest + 4 * weights + _FP32_CHANNEL_BYTES * channels + _FP32_LAYER_BYTES * len(layers),
        int8_bytes=rest + weights + _INT8_CHANNEL_BYTES * channels + _INT8_LAYER_BYTES * len(layers),
    )


def build_with_footprint(name: str, *, input_shape: Shape, classes: int, seed: int) -> tuple[nn.Module, Footprint]:
    """Build an architecture and measure it.

    Raises UsageError where it does not exist, cannot be built for this input, does not take it, or is no classifier
    of so many classes.
    """
    net = registry.build(name, input_shape=input_shape, classes=classes, seed=seed)
    try:
        size = footprint_of(net, input_shape)
    except Exception as error:  # foreign networks may raise anything
        reason = f"{first_line(error)}{probe.of_other_precision(error)}"
        raise UsageError(f"{name} does not take {sizes(input_shape)} images: {reason}") from error
    try:
        probe.network_logits(net, torch.zeros(2, *input_shape), classes)
        probe.require_learning(net, input_shape, classes)
    except InputFileError as error:
        raise UsageError(f"{name} is no student here: {error}") from error
    return net, size
