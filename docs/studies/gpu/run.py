"""Measure on a GPU what a CPU cannot: run.py DATA RUNS OUT [--max-seconds S] [--jobs N] [--steps N] [--toy] ...

DATA holds cifar10/train and cifar10/test as class folders; RUNS is a folder for teachers and runs; OUT gets a file
for each pair. Teachers are trained on the spot by recipes/train_teacher.py, the rows distilled, `--jobs` of them at
once, and at last steps are timed with the GPU to themselves: seconds a step are those of the plans, not of the runs.
Every part that is there already is kept, so the same command goes on where its time ran out. No choice depends on the
test images: 200 of each class draw the curves, all are read at the end. `--toy` runs each part at toy length, on any
machine, to see that it works; its numbers mean nothing and say so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from docs.studies.common import collect, overlay
from docs.studies.common.provenance import method_of, provenance
from edgekd import cpus
from edgekd.errors import StoppedEarly
from edgekd.run.directory import RunDir
from edgekd.run.files import read_json, write_json

PIXELS = ("--input", "3x32x32", "--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616")
MOVED = ("method.student.flip=true", "method.student.shift=4")
"""Mirrored and shifted images for every row, as the teachers were trained."""
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {"edgekd-replay": ("edgekd-replay", ()), "pre-dfkd": ("pre-dfkd", ())}
"""Preset of each row and the values it changes."""
FAMILY_ROWS = ROWS | {
    "edgekd-replay-random-start": ("edgekd-replay", ("method.student.inherit=false", "method.student.hint=0")),
    "pre-dfkd-head-start": ("pre-dfkd", ("method.student.inherit=true", "method.student.hint=5")),
}
"""The rows of a student of its teacher's family: what start and hints are worth by themselves."""
SIZES = Path(__file__).with_name("sizes.toml")
"""Generator and VAE of both presets."""
PLANNED_BATCHES = (256, 1024)
BATCHES = {"student.batch_size": 256, "replay.batch_size": 128, "vae.novel": 128, "vae.rehearsed": 64}
EPOCHS = {"wrn-40-2": 25, "resnet34": 18}
TRAINING = {"batch": 512, "lr": 0.4, "hold-out": 5000}
EDGEKD, SELECTION = ("-m", "edgekd"), ("-m", "docs.studies.selection.run")
GRACE_S = 30
"""What a distillation gets beyond its time to write its checkpoint, before it is killed."""
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
    family: bool = False

    @property
    def name(self) -> str:
        """Return the pair as file names spell it."""
        return f"{self.teacher}-{self.student}"

    @property
    def rows(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return preset and values of each row of the pair's table."""
        return FAMILY_ROWS if self.family else ROWS


PAIRS = (
    Pair("wrn-40-2", "wrn-16-1", 2500),
    Pair("wrn-40-2", "wrn-16-2", 1000, family=True),
    Pair("resnet34", "resnet18", 500, family=True),
)


class OutOfTimeError(Exception):
    """The time that was allowed is used up; what is done is kept."""


class Bench:
    """Runs the parts in order, each in a process of its own, within the time allowed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data: Path = options.data / "cifar10"
        self.runs: Path = options.runs
        self.out: Path = options.out
        self.toy: bool = options.toy
        self.jobs: int = options.jobs
        self.steps: int = options.steps
        self.pairs = [pair for pair in PAIRS if options.only in (None, pair.name)]
        self.curve = self.runs / "curve"
        self.end_s = time.monotonic() + options.max_seconds
        self.runs.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)

    def left_s(self) -> float:
        """Return the seconds left, of which there must be some."""
        left: float = self.end_s - time.monotonic()
        if left < 5:
            raise OutOfTimeError
        return left

    def python(self, *arguments: object, grace_s: float = 0) -> str:
        """Run a script or module, `grace_s` beyond the time allowed at most; return what it printed."""
        command = [sys.executable, *map(str, arguments)]
        limit_s = self.left_s() + grace_s
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=limit_s)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise OutOfTimeError from None
        if done.returncode == StoppedEarly.exit_code:
            raise OutOfTimeError
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
        return done.stdout

    def teacher_file(self, name: str) -> Path:
        """Return where a teacher's state dict is kept; in half precision, so that it travels."""
        return self.runs / f"{name}.pt"

    def train(self, name: str) -> None:
        """Train a teacher if it is not there."""
        file = self.teacher_file(name)
        if file.is_file():
            return
        unfinished = file.with_suffix(".partial")
        command = [sys.executable, "recipes/train_teacher.py", str(self.data / "train"), str(unfinished)]
        command += ["--arch", name, *PIXELS, "--shift", "4", "--flip", "--half"]
        length = TOY_TRAINING if self.toy else {**TRAINING, "epochs": EPOCHS[name]}
        command += [word for flag, value in length.items() for word in (f"--{flag}", str(value))]
        try:
            subprocess.run(command, check=True, timeout=self.left_s())  # noqa: S603
        except subprocess.TimeoutExpired:
            raise OutOfTimeError from None
        unfinished.rename(file)

    def plan(self, pair: Pair, row: str, batch: int) -> None:
        """Measure the cost of a step at a batch size, utilisation and memory included."""
        file = self.runs / f"{pair.name}-{row}-plan-{batch}.json"
        if not file.is_file():
            flags = self.flags(pair, row, {**BATCHES, "student.batch_size": batch})
            folder = file.with_suffix("")
            printed = self.python(
                *EDGEKD, *("distill", self.teacher_file(pair.teacher), *flags, "--dry-run", "--json", "--run", folder)
            )
            write_json(file, {"row": row, "batch_size": batch, **json.loads(printed)})

    def flags(self, pair: Pair, row: str, batches: dict[str, int]) -> list[str]:
        """Return the flags of a distillation."""
        preset, values = pair.rows[row]
        sizes = dict.fromkeys(batches, 8) if self.toy else batches
        networks = TOY_SIZES if self.toy else overlay.assignments(SIZES)
        sets = [*networks, *(f"method.{name}={size}" for name, size in sizes.items())]
        steps = 4 if self.toy else self.steps or pair.steps
        flags = [*PIXELS, "--student", pair.student, "--method", preset, "--steps", str(steps)]
        return [*flags, *(word for value in [*sets, *MOVED, *values] for word in ("--set", value))]

    def run_dir(self, pair: Pair, row: str) -> RunDir:
        """Return the run of a row."""
        return RunDir(self.runs / f"{pair.name}-{row}")

    def distil(self, pair: Pair, row: str) -> None:
        """Distil, going on where an earlier call stopped; count right answers, also of the students not chosen."""
        run, teacher = self.run_dir(pair, row), self.teacher_file(pair.teacher)
        # Nobody needs many cores to launch kernels, and all of them for each of several runs are in each other's way.
        limit = ("--max-seconds", int(self.left_s()), "--threads", max(1, cpus.usable_threads() // self.jobs))
        flags = self.flags(pair, row, BATCHES)
        flags += ["--data", str(self.curve), "--run", str(run.path)]
        self.python(*EDGEKD, "distill", teacher, *flags, *limit, grace_s=GRACE_S)
        if not (run.path / "eval" / "test.json").is_file():
            self.python(*EDGEKD, "eval", run.path, "--data", self.data / "test")
        if not self.selection_file(pair, row).is_file():
            self.python(*SELECTION, self.selection_file(pair, row), f"{row}={run.path}={self.data / 'test'}")

    def selection_file(self, pair: Pair, row: str) -> Path:
        """Return where a row keeps what the choice of its student was worth."""
        return self.runs / f"{pair.name}-{row}-selection.json"

    def link_curve(self) -> None:
        """Link 200 test images of each class, on which the curves are drawn."""
        few = 'source docs/studies/common/shell.sh; few "$1" "$2"'
        subprocess.run(["bash", "-c", few, "few", str(self.data / "test"), str(self.curve)], check=True)  # noqa: S603, S607

    def side_by_side(self, work: Sequence[Callable[[], None]]) -> None:
        """Do pieces of work, `jobs` at once; an error is raised only after the others have ended."""
        with ThreadPoolExecutor(self.jobs) as pool:
            for future in [pool.submit(piece) for piece in work]:
                future.result()

    def write(self, pair: Pair) -> None:
        """Write a pair's file if all its rows have been distilled, with the evaluations and plans that there are."""
        runs = {row: self.run_dir(pair, row) for row in pair.rows}
        if all((run.stage("distill") / "record.json").is_file() for run in runs.values()):
            plans = [read_json(file) for file in sorted(self.runs.glob(f"{pair.name}-*-plan-*.json"))]
            out = self.out / f"{pair.name}.json"
            found = {row: collect.facts(run) for row, run in runs.items()}
            files = [file for row in pair.rows if (file := self.selection_file(pair, row)).is_file()]
            selection = {row: judged for file in files for row, judged in read_json(file)["runs"].items()}
            methods = {row: method_of(run) for row, run in runs.items()}
            how = {**provenance(methods), "toy": self.toy, "jobs": self.jobs}
            write_json(out, {**how, "plans": plans, "selection": selection, "runs": found})
            print(f"wrote {out}")  # noqa: T201

    def run(self) -> None:
        """Do what is missing."""
        self.link_curve()
        self.side_by_side([partial(self.train, name) for name in dict.fromkeys(pair.teacher for pair in self.pairs)])
        try:
            self.side_by_side([partial(self.distil, pair, row) for pair in self.pairs for row in pair.rows])
            for pair in self.pairs:
                for row in ROWS:
                    for batch in PLANNED_BATCHES:
                        self.plan(pair, row, batch)
        finally:
            for pair in self.pairs:
                self.write(pair)


def main() -> None:
    """Read the command line and run within the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-seconds", type=float, default=540)
    parser.add_argument("--jobs", type=int, default=1, help="distillations at once, sharing the GPU")
    parser.add_argument("--steps", type=int, default=0, help="student steps of every row instead of a pair's own")
    parser.add_argument("--only", choices=[pair.name for pair in PAIRS], help="this pair alone")
    parser.add_argument("--toy", action="store_true")
    try:
        Bench(parser.parse_args()).run()
    except OutOfTimeError:
        print("time is up; the same command goes on from here")  # noqa: T201


if __name__ == "__main__":
    main()
