"""Measure on a GPU what a CPU cannot: gpu.py DATA RUNS OUT [--max-seconds S] [--toy].

DATA holds cifar10/train and cifar10/test as class folders; RUNS is a folder for teachers and runs; OUT gets a file
for each pair. Teachers are trained on the spot by recipes/train_teacher.py. Every part that is there
already is kept, so the same command goes on where its time ran out. `--toy` runs each part at toy length, on any
machine, to see that it works; its numbers mean nothing and say so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import collect

from edgekd.errors import StoppedEarly
from edgekd.rundir import RunDir, write_json

PIXELS = ("--input", "3x32x32", "--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616")
PRESETS = ("edgekd", "pre-dfkd")
SIZES = (
    *("method.generator.latent=256", "method.generator.width=64", "method.generator.norm_eps=1e-5"),
    *("method.vae.latent=128", "method.vae.width=64", "method.vae.norm_eps=1e-5", "method.vae.released_encoder=false"),
)
"""Generator and VAE of both presets: a table compares methods at equal sizes; spectral norm is each one's own."""
BATCHES = {"student.batch_size": 256, "replay.batch_size": 128, "vae.novel": 128, "vae.rehearsed": 64}
TRAINING = {"batch": 512, "lr": 0.4, "epochs": 80, "hold-out": 5000}
TOY_TRAINING = {"batch": 8, "lr": 0.01, "epochs": 1, "hold-out": 0}
TOY_SIZES = (
    *("method.generator.latent=8", "method.generator.width=8", "method.vae.latent=8", "method.vae.width=8"),
    *("method.vae.released_encoder=false", "select.samples=64", "select.reestimate_batches=1"),
)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, and the steps that both presets get."""

    teacher: str
    student: str
    steps: int

    @property
    def name(self) -> str:
        """Return the pair as file names spell it."""
        return f"{self.teacher}-{self.student}"


PAIRS = (Pair("wrn-40-2", "wrn-16-1", 8000), Pair("wrn-40-2", "wrn-16-2", 8000), Pair("resnet34", "resnet18", 8000))


class OutOfTimeError(Exception):
    """The time that was allowed is used up; what is done is kept."""


class Bench:
    """Runs the parts in order, each in a process of its own, within the time allowed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data: Path = options.data / "cifar10"
        self.runs: Path = options.runs
        self.out: Path = options.out
        self.toy: bool = options.toy
        self.end_s = time.monotonic() + options.max_seconds
        self.runs.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)

    def left_s(self) -> float:
        """Return the seconds left, of which there must be some."""
        left: float = self.end_s - time.monotonic()
        if left < 5:
            raise OutOfTimeError
        return left

    def edgekd(self, *arguments: object) -> str:
        """Run the command line; return what it printed."""
        command = [sys.executable, "-m", "edgekd", *map(str, arguments)]
        self.left_s()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if done.returncode == StoppedEarly.exit_code:
            raise OutOfTimeError
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
        return done.stdout

    def teacher(self, name: str) -> Path:
        """Return the teacher's file, trained if it is not there; in half precision, so that it travels."""
        file = self.runs / f"{name}.pt"
        if not file.is_file():
            partial = file.with_suffix(".partial")
            command = [sys.executable, "recipes/train_teacher.py", str(self.data / "train"), str(partial)]
            command += ["--arch", name, *PIXELS, "--shift", "4", "--flip", "--half"]
            length = TOY_TRAINING if self.toy else TRAINING
            command += [word for flag, value in length.items() for word in (f"--{flag}", str(value))]
            try:
                subprocess.run(command, check=True, timeout=self.left_s())  # noqa: S603
            except subprocess.TimeoutExpired:
                raise OutOfTimeError from None
            partial.rename(file)
        return file

    def plan(self, pair: Pair, batch: int) -> dict[str, Any]:
        """Return the measured cost of a step at a batch size, utilisation and memory included."""
        flags = self.flags(pair, "edgekd", {**BATCHES, "student.batch_size": batch})
        folder = self.runs / f"{pair.name}-plan-{batch}"
        printed = self.edgekd("distill", self.teacher(pair.teacher), *flags, "--dry-run", "--json", "--run", folder)
        plan: dict[str, Any] = json.loads(printed)
        return {"batch_size": batch, **plan}

    def flags(self, pair: Pair, preset: str, batches: dict[str, int]) -> list[str]:
        """Return the flags of a distillation."""
        sizes = dict.fromkeys(batches, 8) if self.toy else batches
        sets = [*(TOY_SIZES if self.toy else SIZES), *(f"method.{name}={size}" for name, size in sizes.items())]
        steps = 4 if self.toy else pair.steps
        flags = [*PIXELS, "--student", pair.student, "--method", preset, "--steps", str(steps)]
        return [*flags, *(word for value in sets for word in ("--set", value))]

    def distil(self, pair: Pair, preset: str) -> RunDir:
        """Distil, going on where an earlier call stopped, and count right answers on the test images."""
        run = RunDir(self.runs / f"{pair.name}-{preset}")
        teacher, test = self.teacher(pair.teacher), self.data / "test"
        limit = ("--max-seconds", int(self.left_s()))
        self.edgekd("distill", teacher, *self.flags(pair, preset, BATCHES), "--data", test, "--run", run.path, *limit)
        if not list((run.path / "eval").glob("*.json")):
            self.edgekd("eval", run.path, "--data", test)
        return run

    def run(self) -> None:
        """Do what is missing."""
        for pair in PAIRS:
            out = self.out / f"{pair.name}.json"
            if not out.is_file():
                runs = {preset: collect.facts(self.distil(pair, preset)) for preset in PRESETS}
                plans = [self.plan(pair, batch) for batch in (256, 1024)]
                write_json(out, {"toy": self.toy, "plans": plans, "runs": runs})
                print(f"wrote {out}")  # noqa: T201


def main() -> None:
    """Read the command line and run within the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-seconds", type=float, default=540)
    parser.add_argument("--toy", action="store_true")
    try:
        Bench(parser.parse_args()).run()
    except OutOfTimeError:
        print("time is up; the same command goes on from here")  # noqa: T201


if __name__ == "__main__":
    main()
