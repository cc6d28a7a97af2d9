"""The residual networks of the CIFAR papers: He et al. 2016, section 4.2, and Zagoruyko and Komodakis 2016."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ZeroPadShortcut(nn.Module):
    """Option A: take every second pixel; new channels of zeros stand on both sides of the old ones, or behind them."""

    def __init__(self, channels_in: int, channels_out: int, pad: str) -> None:
        super().__init__()
        extra = channels_out - channels_in
        before = extra // 2 if pad == "middle" else 0
        self.pad = (before, extra - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.pad))


class _BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: str, pad: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 and shortcut == "A":
            self.shortcut = _ZeroPadShortcut(channels_in, channels_out, pad)
        elif stride != 1:
            kernel = 3 if shortcut == "3x3" else 1
            convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return torch.as_tensor(self.relu(self.bn2(self.conv2(out)) + self.shortcut(x)))


class CifarResNet(nn.Module):
    """The ResNet of 6n+2 layers for 32x32 images: a 3x3 stem and three stages of n basic blocks, or of other numbers.

    `base` is the number of channels of the first stage (16 as published); each later stage has twice as many.
    Shortcuts that change the shape are parameter-free (`A`), or 1x1 (`B`) or 3x3 convolutions with BatchNorm; the zeros
    of the first stand around the old channels (`pad` is `middle`) or behind them (`end`, as in fb.resnet.torch).
    """

    def __init__(
        self, blocks: Sequence[int], base: int, channels: int, classes: int, shortcut: str, pad: str = "middle"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, base, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(base, base, blocks[0], 1, shortcut, pad)
        self.layer2 = self._stage(base, 2 * base, blocks[1], 2, shortcut, pad)
        self.layer3 = self._stage(2 * base, 4 * base, blocks[2], 2, shortcut, pad)
        self.linear = nn.Linear(4 * base, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(channels_in: int, channels_out: int, blocks: int, stride: int, shortcut: str, pad: str) -> nn.Sequential:
        first = _BasicBlock(channels_in, channels_out, stride, shortcut, pad)
        rest = (_BasicBlock(channels_out, channels_out, 1, shortcut, pad) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W)."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return torch.as_tensor(self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


class _PreActivationBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if channels_in != channels_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return torch.as_tensor(out + (x if self.convShortcut is None else self.convShortcut(activated)))


class _WideStage(nn.Module):
    """A stage; its blocks sit under `layer` because published checkpoints name them so."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = _PreActivationBlock(channels_in, channels_out, stride)
        rest = (_PreActivationBlock(channels_out, channels_out, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x))


class WideResNet(nn.Module):
    """WRN-d-k: pre-activation blocks, three stages of (d - 4) / 6 blocks with 16k, 32k and 64k channels."""

    def __init__(self, depth: int, widen: int, channels: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = _WideStage(16, 16 * widen, blocks, 1)
        self.block2 = _WideStage(16 * widen, 32 * widen, blocks, 2)
        self.block3 = _WideStage(32 * widen, 64 * widen, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(64 * widen, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W)."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        x = F.adaptive_avg_pool2d(self.relu(self.bn1(x)), 1)
        return torch.as_tensor(self.fc(torch.flatten(x, 1)))
