"""LeNet-5 as the data-free distillation papers have it: three convolutions, two max-pools, two linear layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgekd.models.stems import Shape

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
_POOLS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "avg": lambda: nn.AvgPool2d(2),
}
_PADDED_SIDE = 32
"""Side to which smaller images are padded."""


def _after_convolutions(side: int) -> int:
    """The side of the last feature map: 5x5 convolution and pool twice, then a 5x5 convolution."""
    return ((max(side, _PADDED_SIDE) - 4) // 2 - 4) // 2 - 4


class LeNet5(nn.Module):
    """LeNet-5; images under 32 pixels are zero-padded to 32, as LeCun et al. 1998 did with 28x28 digits."""

    def __init__(self, input_shape: Shape, classes: int, width: float, activation: str, pool: str) -> None:
        super().__init__()
        c1, c2, c3, c4 = (max(1, round(c * width)) for c in (6, 16, 120, 84))
        channels, height, breadth = input_shape
        padding = (max(0, _PADDED_SIDE + 1 - height) // 2, max(0, _PADDED_SIDE + 1 - breadth) // 2)
        self.conv1 = nn.Conv2d(channels, c1, 5, padding=padding)
        self.conv2 = nn.Conv2d(c1, c2, 5)
        self.conv3 = nn.Conv2d(c2, c3, 5)
        self.fc1 = nn.Linear(c3 * _after_convolutions(height) * _after_convolutions(breadth), c4)
        self.fc2 = nn.Linear(c4, classes)
        self.pool = _POOLS[pool]()
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W)."""
        x = self.pool(self.activation(self.conv1(images)))
        x = self.pool(self.activation(self.conv2(x)))
        x = torch.flatten(self.activation(self.conv3(x)), 1)
        return torch.as_tensor(self.fc2(self.activation(self.fc1(x))))
