"""What a verb imports is what it needs: a refused teacher costs no library that builds or exports networks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgekd.models import registry

HEAVY = ("torchvision", "timm", "onnx", "onnxruntime", "torch._dynamo", "sympy")
"""What takes seconds to import; the last two are PyTorch's compiler, which its own innocent calls bring along."""
PROGRAM = f"""
import json, sys
from edgekd.cli import program
sys.argv = ["edgekd", *sys.argv[1:]]
try:
    program.main()
except SystemExit as end:
    print(json.dumps([end.code or 0, [name for name in {HEAVY} if name in sys.modules]]), file=sys.stderr)
"""


def imported(cwd: Path, *arguments: object) -> tuple[int, list[str], str]:
    """Return exit code, heavy imports and messages of a command in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    *said, last = ran.stderr.splitlines()
    code, heavy = json.loads(last)
    return code, heavy, "\n".join(said)


def weights(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"part{i}.weight": torch.randn(shape) for i, shape in enumerate(shapes)}


def of_branches() -> dict[str, Tensor]:
    """Ten tensors that are no chain: two branches that end in one layer."""
    return weights((8, 3, 3, 3), (8, 3, 5, 5), (16, 8, 3, 3), (16, 8, 1, 1), (8,), (8,), (16,), (16,), (7, 99), (7,))


def as_many_as_alexnet() -> dict[str, Tensor]:
    """As many tensors as AlexNet has, but other layers."""
    return weights(*[(8, 8, 3, 3)] * 9, (8, 5, 3, 3), *[(8, 9)] * 6)


def residual() -> dict[str, Tensor]:
    """A ResNet of nobody's, with names that most have."""
    network = registry.build("resnet14", input_shape=(3, 32, 32), classes=10, seed=0).state_dict()
    network = {name: tensor for name, tensor in network.items() if not name.endswith("num_batches_tracked")}
    return {**network, "layer3.1.extra.weight": torch.ones(64, 64, 7, 7)}


def embedding() -> dict[str, Tensor]:
    """A vision transformer of nobody's."""
    return {"cls_token": torch.ones(1, 1, 8), "pos_embedding": torch.ones(1, 17, 8), **weights(*[(8, 8)] * 24)}


REFUSED = (of_branches, as_many_as_alexnet, residual, embedding)


@pytest.mark.parametrize("make", [REFUSED[0], *(pytest.param(make, marks=pytest.mark.slow) for make in REFUSED[1:])])
def test_a_refused_checkpoint_imports_torch_alone(make: Callable[[], dict[str, Tensor]], tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "teacher.pt")
    code, heavy, said = imported(tmp_path, "ingest", "teacher.pt")
    assert (code, heavy) == (4, []), said


def test_a_teacher_that_edgekd_builds_itself_needs_no_torchvision(tmp_path: Path) -> None:
    network = registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0)
    torch.save(network.state_dict(), tmp_path / "teacher.pt")
    code, heavy, said = imported(tmp_path, "ingest", "teacher.pt")
    assert (code, heavy) == (0, []), said
