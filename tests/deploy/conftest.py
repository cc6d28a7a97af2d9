"""One small network, its float32 file and its activation ranges, made once for this room's tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_nets import SHAPE, Tiny, batches, live, samples
from torch import nn

from edgekd.deploy.int8 import HeldOut
from edgekd.deploy.onnx_export import export_fp32
from edgekd.deploy.ranges import Batches, Ranges, collect_ranges


@dataclass(frozen=True)
class Student:
    """A network with everything the INT8 chain starts from."""

    net: nn.Module
    path: Path
    calibration: Batches
    ranges: Ranges
    held_out: HeldOut
    fresh: NDArray[np.float32]


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    net = live(Tiny)
    path = tmp_path_factory.mktemp("student") / "student.fp32.onnx"
    export_fp32(net, SHAPE, path, metadata={"run": "test"})
    calibration = batches(samples(128, key="calibration"))
    held_out = HeldOut.of(path, batches(samples(128, key="held-out")))
    return Student(net, path, calibration, collect_ranges(path, calibration), held_out, samples(256, key="fresh"))
