"""A toy run that every stage really goes through in a second or two: a small untrained teacher on 8x8 images."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from edgekd import pipeline, recipe
from edgekd.errors import StoppedEarly
from edgekd.models import artefacts, registry
from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.run.directory import RunDir
from edgekd.stages import catalog
from edgekd.stopping import Stop, graceful
from edgekd.synthesis.teacher import Teacher

SHAPE, CLASSES, ARCH, STUDENT = (1, 8, 8), 4, "resnet8@0.5", "resnet8@0.25"
PLAIN: dict[str, Any] = {
    "preset": "edgekd",
    "generator": {"batch_size": 0, "every_step_until": 0.0, "batchnorm": 1.0},
    "procedural": {"share": [0.0, 0.0]},
    "student": {
        "reuse": 1,
        "schedule": "constant",
        "loss": "l1",
        "flip": False,
        "shift": 0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "inherit": True,
        "inherit_slices": False,
        "hint": 5.0,
        "hint_schedule": "constant",
        "hint_adapters": False,
    },
    "replay": {"source": "vae"},
}
"""What toy runs keep to, whatever the default preset becomes with the next measurement: every part is at work."""
CHAIN = ("ingest", "distill", "select", "export")
STAGES = {stage.name: stage for stage in catalog.STAGES}


class StopAt(Stop):
    """A stop that is requested from the `count`-th time the loop asks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0

    def raise_if_requested(self, what: str = "the run") -> None:
        if self.left < 0:
            raise StoppedEarly(what)


def write_teacher(path: Path, shape: tuple[int, int, int] = SHAPE) -> Path:
    """Save a teacher whose BatchNorm statistics were seen on noise, so that its answers differ."""
    network = registry.build(ARCH, input_shape=shape, classes=CLASSES, seed=3).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(32, *shape, generator=torch.Generator().manual_seed(5)))
        for name, weight in network.named_parameters():
            if weight.ndim == 2:
                weight.mul_(4.0)
            assert name
    torch.save(network.state_dict(), path)
    return path


def toy_recipe(teacher_file: Path, **changes: Any) -> Recipe:
    """Return a recipe of a dozen steps with replay, rehearsal and one scheduled re-initialisation."""
    method = {  # also what the preset may change with the next measurement
        "steps": 12,
        "generator": {
            "latent": 8,
            "width": 8,
            "period": 3,
            "reinit_period": 2,
            "reinit_until": 0.5,
            "warmup": 1,
            "lr": 2e-3,
            "adversary": 0.3,
            "adversary_ramp": [0.0, 0.03],
        },
        "student": {"batch_size": 16, "lr": 2e-3},
        "replay": {"batch_size": 8, "start": 0.0},
        "vae": {"latent": 6, "width": 8, "novel": 8, "rehearsed": 4, "gate": 0.0},
        "consolidation": {"start": 1.0},
    }
    data = {
        "teacher": {"file": str(teacher_file), "input": "1x8x8"},
        "student": {"name": STUDENT},
        "checkpoint_period": 4,
        "machine": {"threads": 1, "device": "cpu"},
        "method": method,
        "select": {"samples": 64, "reestimate_batches": 2},
        "export": {"target": "cpu", "calibration_samples": 32, "holdout_samples": 64, "min_int8_agreement": 0.0},
        "bench": {"min_runs": 20, "min_seconds": 0.05, "rounds": 2},
    }
    if changes.get("method", {}).get("preset", "auto") == "auto":
        data = recipe.merge(data, {"method": PLAIN})
    return recipe.parse(recipe.merge(data, changes), origin="toy")


def advance(folder: Path, wanted: Recipe, names: tuple[str, ...] = CHAIN, **extras: Any) -> RunDir:
    """Run stages of a toy run under its lock."""
    run = RunDir(folder)
    with run.lock(), graceful() as stop:
        if not run.ledger_file.is_file():
            run.note_command(["edgekd", "toy"])
        pipeline.advance(run, pipeline.adopt(run, wanted), *map(STAGES.__getitem__, names), stop=stop, **extras)
    return run


def teacher_of(run: RunDir, precision: str = "fp32") -> tuple[Teacher, Description]:
    """Return the teacher of a run as the algorithm sees it, on the CPU, and its description."""
    description = artefacts.description_of(run)
    network = artefacts.teacher_network(run, description)
    return Teacher.of(network, description, precision, torch.device("cpu")), description


_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["toy", "edgekd.stages.distill", "edgekd.stages.export"])


def killed(folder: Path, wanted: Recipe, names: tuple[str, ...], failpoint: str) -> bool:
    """Run stages in a process that dies at the failpoint; return whether SIGKILL ended it.

    The fork server has imported everything and started no thread, which this process cannot promise.
    """
    child = _FORKSERVER.Process(target=_advance_until, args=(folder, recipe.to_toml(wanted), names, failpoint))
    child.start()
    child.join()
    return child.exitcode == -signal.SIGKILL


def _advance_until(folder: Path, toml: str, names: tuple[str, ...], failpoint: str) -> None:
    os.environ["EDGEKD_FAILPOINT"] = failpoint
    torch.set_num_threads(1)
    advance(folder, Recipe.model_validate(tomllib.loads(toml)), names)


def killed_at_image(folder: Path, arguments: tuple[object, ...], number: int) -> bool:
    """Give a command in a folder and kill its process when it has opened so many real images; return whether it was."""
    words = [str(argument) for argument in arguments]
    child = _FORKSERVER.Process(target=_command_until_image, args=(folder, words, number))
    child.start()
    child.join()
    return child.exitcode == -signal.SIGKILL


def _command_until_image(folder: Path, words: list[str], number: int) -> None:
    from command import Result

    from edgekd.run import realdata

    decode, opened = realdata.read_image, 0

    def counted(path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
        nonlocal opened
        opened += 1
        found = decode(path, shape)
        if opened == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    realdata.read_image = counted
    torch.set_num_threads(1)
    os.chdir(folder)
    Result(*words)


def fingerprint(run: RunDir) -> dict[str, str]:
    """Return the hashes of what must be bit-identical: weights, JSON, ONNX files, the curve without its clock."""
    hashes = {}
    for stage in ("teacher", "select", "export"):
        for path in sorted(run.stage(stage).glob("*")):
            if path.name != "record.json":
                hashes[f"{stage}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(run.stage("distill").glob("checkpoints/step-*/state.*")):
        hashes[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    events = [{k: v for k, v in event.items() if k not in ("seconds", "saving_seconds")} for event in run.events()]
    hashes["events"] = hashlib.sha256(json.dumps(events).encode()).hexdigest()
    return hashes


def cli(*arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300) -> Any:
    """Run `python -m edgekd` as a user would, in another process."""
    return subprocess.run(
        [sys.executable, "-m", "edgekd", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "EDGEKD_DEBUG": "", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def images(folder: Path, per_class: int = 3) -> Path:
    """Write a few shades of grey per class, in one folder each; return the folder of all."""
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for index in range(per_class):
            shade = 40 * label + 10 * index
            Image.new("L", (8, 8), shade).save(folder / str(label) / f"{index}.png")
    return folder
