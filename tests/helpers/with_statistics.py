"""Networks whose BatchNorm layers hold other statistics than a fresh network's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd import rng
from edgekd.models import registry
from edgekd.models.stems import Shape
from edgekd.synthesis.images import procedural


def with_drawn_statistics(name: str, classes: int = 10) -> nn.Module:
    """Return a network for 32x32 images in eval mode, its statistics drawn."""
    net = registry.build(name, input_shape=(3, 32, 32), classes=classes, seed=0)
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return net.eval()


def pictures(count: int, shape: Shape, seed: int = 0) -> Tensor:
    """Return procedural images."""
    return procedural.render(rng.generator(seed, "pictures"), count, shape)


def show_pictures(network: nn.Module, shape: Shape) -> None:
    """Leave the statistics of pictures in a network: of all batches, none of which has seed 0."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    with torch.no_grad():
        for seed in range(3):
            network.train()(pictures(32, shape, seed=1 + seed))


def trained_on_pictures(arch: str, shape: Shape) -> nn.Module:
    """Return a network in eval mode with the statistics of pictures."""
    network = registry.build(arch, input_shape=shape, classes=10, seed=0)
    show_pictures(network, shape)
    return network.eval().requires_grad_(False)
