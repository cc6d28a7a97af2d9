"""Two builds of ONNX Runtime that are installed over each other are noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekd.agent.device.environment import this_machine
from edgekd.bench.conflict import runtime_conflict


def test_one_build_of_the_runtime_is_no_conflict() -> None:
    assert runtime_conflict(replace(this_machine(), runtime_packages={"onnxruntime": "1.0"})) is None
    assert runtime_conflict(replace(this_machine(), runtime_packages={})) is None


@pytest.mark.parametrize(("gpus", "kept"), [((), "onnxruntime==1.2.0"), (("NVIDIA X, 1.0",), "onnxruntime-gpu==1.3.0")])
def test_two_builds_over_each_other_are_a_conflict(gpus: tuple[str, ...], kept: str) -> None:
    packages = {"onnxruntime-gpu": "1.3.0", "onnxruntime": "1.2.0"}
    machine = replace(this_machine(), runtime_packages=packages, gpus=gpus, executable="/opt/python")
    conflict = runtime_conflict(machine)
    assert conflict is not None
    assert "onnxruntime 1.2.0 and onnxruntime-gpu 1.3.0 are installed over each other" in conflict.message
    assert conflict.commands == (
        "/opt/python -m pip uninstall -y onnxruntime onnxruntime-gpu",
        f"/opt/python -m pip install {kept}",
    )
