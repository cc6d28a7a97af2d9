"""Run every `$ edgekd` line of docs/teachers.md in order and keep what it prints: run.py OUT.json TEACHERS DATA.

TEACHERS holds the public cifar10-resnet20.th and cifar10-resnet32.th of akamaster/pytorch_resnet_cifar10, DATA the
CIFAR-10 test images, a folder per class. Works in a temporary folder in which the other checkpoints of the page are
made from untrained networks; the output goes to OUT.json, command by command, with the accuracies.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from docs.studies.common.provenance import provenance
from edgekd.models import registry

MODULE = """from torch import nn


def net(classes):
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
"""


def weights(name: str) -> dict[str, Tensor]:
    """Return the weights of an untrained network for 3x32x32 images and ten classes."""
    state = registry.build(name, input_shape=(3, 32, 32), classes=10, seed=0).state_dict()
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def prepare(folder: Path) -> None:
    """Write the checkpoints that the page speaks of."""
    (folder / "our_code.py").write_text(MODULE)
    chance = torch.Generator().manual_seed(0)
    first, last = 0.2 * torch.randn(32, 3, 3, 3, generator=chance), 0.2 * torch.randn(10, 32, generator=chance)
    own = {"0.weight": first, "0.bias": torch.zeros(32), "4.weight": last, "4.bias": torch.zeros(10)}
    torch.save(own, folder / "own.pt")
    resnet18 = weights("resnet18")
    other = {f"module.{k.replace('downsample', 'shortcut').replace('fc.', 'linear.')}": v for k, v in resnet18.items()}
    torch.save({"net": other, "acc": 95.1, "epoch": 199}, folder / "other-names.pt")
    mean, std = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.25, 0.25])
    lightning: dict[str, Any] = {
        "epoch": 90,
        "hyper_parameters": {"lr": 0.1, "root": Path("data")},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}}],
        "state_dict": {
            **{(f"model.{k}" if k.startswith("fc.") else f"model.backbone.{k}"): v for k, v in resnet18.items()},
            **{(f"ema.{k}" if k.startswith("fc.") else f"ema.backbone.{k}"): v for k, v in resnet18.items()},
            "normalize.mean": mean,
            "normalize.std": std,
        },
    }
    torch.save(lightning, folder / "lightning.ckpt")
    torch.save(
        nn.Sequential(registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0)), folder / "whole.pt"
    )
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "scripted.pt")
    (folder / "cut.pt").write_bytes((folder / "other-names.pt").read_bytes()[:1000])


def run(line: str, folder: Path) -> dict[str, Any]:
    """Run one command in the folder."""
    command = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    printed = {"stdout": done.stdout, "stderr": done.stderr}
    own = {f"{folder}/": "", f"{Path.home()}/": "~/"}  # places of this machine
    rows: dict[str, list[str]] = {}
    for stream, text in printed.items():
        for place, written in own.items():
            text = text.replace(place, written)
        rows[stream] = [row.rstrip() for row in text.splitlines()]
    return {"command": line, "exit_code": done.returncode, **rows}


def main(out: Path, teachers: Path, data: Path) -> None:
    """Write the transcript and the accuracies."""
    page = (Path(__file__).parents[2] / "teachers.md").read_text(encoding="utf-8")
    lines = [line[2:] for line in page.splitlines() if line.startswith("$ edgekd")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for teacher in sorted(teachers.glob("*.th")):
            shutil.copy(teacher, folder)
        (folder / "cifar10").mkdir()
        (folder / "cifar10" / "test").symlink_to(data.resolve())
        commands = [run(line, folder) for line in lines]
        evals = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("runs/*/eval/*.json"))]
    kept = ("accuracy", "folder", "images", "images_sha256", "artefacts_sha256", "transform")
    accuracies = {record["run"]: {name: record[name] for name in kept} for record in evals}
    result = {**provenance(), "accuracy": accuracies, "commands": commands}
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
