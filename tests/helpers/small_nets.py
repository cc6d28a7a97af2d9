"""Small classifiers with live BatchNorm statistics, and what is made of them, for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ShuffleNetV2

from edgekd import rng
from edgekd.export.graph import WEIGHTED_OPS, read_model
from edgekd.export.int8 import HeldOutSet
from edgekd.export.onnx_export import export_fp32
from edgekd.export.ranges import Batches, Ranges, collect_ranges

SHAPE = (3, 16, 16)


class Tiny(nn.Module):
    """Conv, BatchNorm, ReLU6; a residual block with projection; pooling; Linear."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.main = nn.Sequential(
            *(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)),
        )
        self.project = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.main(x) + self.project(x))
        logits: Tensor = self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return logits


def small_mobilenet() -> nn.Module:
    net: nn.Module = MobileNetV2(num_classes=5, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]], dropout=0)
    return net


def small_shufflenet() -> nn.Module:
    net: nn.Module = ShuffleNetV2([2, 1, 1], [8, 16, 32, 64, 64], num_classes=5)
    return net


def live(make: Callable[[], nn.Module], shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """Return a net whose BatchNorm statistics fit its activations and whose logits differ between samples."""
    with rng.seeded_global_rng(0, "tests", "net"):
        net = make().train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                module.momentum = 0.5
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.3)
                nn.init.normal_(module.bias, std=0.3)
        with torch.no_grad():
            for _ in range(4):
                net(torch.randn(16, *shape))
    return net.eval()


def samples(count: int, shape: tuple[int, int, int] = SHAPE, key: str = "samples") -> NDArray[np.float32]:
    """Return smooth random images, N×C×H×W, which differ between each other as images do."""
    draw = rng.generator(0, "tests", key)
    coarse = torch.randn(count, shape[0], 4, 4, generator=draw) * 2
    fine = torch.randn(count, *shape, generator=draw) * 0.5
    return (nn.functional.interpolate(coarse, shape[1:], mode="bilinear") + fine).numpy()


def batches(data: NDArray[np.float32], size: int = 16) -> Batches:
    return lambda: (data[start : start + size] for start in range(0, len(data), size))


def torch_logits(net: nn.Module, data: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: Tensor = net(torch.from_numpy(data))
    return logits.numpy()


def op_types(path: Path) -> list[str]:
    return [node.op_type for node in read_model(path).graph.node]


def compute_ops(path: Path) -> list[str]:
    return [op for op in op_types(path) if op in WEIGHTED_OPS]


@dataclass(frozen=True)
class Student:
    """A network with everything the INT8 chain starts from."""

    net: nn.Module
    path: Path
    calibration: Batches
    ranges: Ranges
    held_out: HeldOutSet
    fresh: NDArray[np.float32]

    @classmethod
    def exported(cls, folder: Path) -> Student:
        net, path = live(Tiny), folder / "student.fp32.onnx"
        export_fp32(net, SHAPE, path, metadata={"run": "test"})
        calibration = batches(samples(128, key="calibration"))
        held_out = HeldOutSet.of(path, batches(samples(128, key="held-out")))
        return cls(net, path, calibration, collect_ranges(path, calibration), held_out, samples(256, key="fresh"))
