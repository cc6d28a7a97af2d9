"""Measure how near students come to their teachers at a given budget, without data and with it.

    python -m docs.studies.recovery.run TEACHERS DATA RUNS [ROW...]

TEACHERS holds cifar10-resnet20.th of akamaster/pytorch_resnet_cifar10; DATA holds cifar10/train, cifar10/test,
mnist/test, photos and the digits of recipes/quickstart/digits.py as class folders; RUNS is a folder for runs, in which
mnist-lenet5.pt is made by docs/studies/mnist/run.sh. ROW is a pattern such as 'resnet8-*' or '*-seed1'; without one
every row is run, without arguments the rows are listed.

A row is one distillation on one thread, whose steps are as many as its budget of multiply-accumulates holds: of all
networks, forward and backward, as the plan counts them. MNIST's rows have minutes instead. Its file in rows/ is written
at its end, and a row that has one is left alone, so the study may be cut off, go on elsewhere, and be shared by two
processes. Nothing but the curves and the last evaluation reads test images, and nothing is chosen by them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from docs.studies.common.collect import facts
from docs.studies.common.provenance import method_of, provenance
from edgekd.run.cards.events import TrainEvent
from edgekd.run.directory import RunDir

HERE = Path(__file__).parent
CURVE_IMAGES = 200
"""Test images of each class that the curve is measured on."""


@dataclass(frozen=True)
class Pair:
    """A teacher's file, flags that say how its images are normalised, a student, and its images."""

    teacher: str
    flags: tuple[str, ...]
    student: str
    data: str
    """Folder in DATA with its class folders: train, and `test`."""
    called: str
    """The teacher's architecture."""
    images: str
    input_shape: tuple[int, int, int]
    alike: bool = False
    """Whether the student is of the teacher's kind, and begins with its layers."""
    test: str = "test"


_CIFAR10 = ("CIFAR-10", (3, 32, 32))
PAIRS = {
    "digits": Pair(
        "recipes/quickstart/teacher.pt",
        ("--input", "1x16x16", "--mean", "0.3", "--std", "0.35"),
        "mobilenetv2@0.35",
        "digits",
        "resnet14",
        "the quickstart's digits",
        (1, 16, 16),
        test="heldout",
    ),
    "resnet8": Pair(
        "TEACHERS/cifar10-resnet20.th",
        ("--normalize", "imagenet"),
        "resnet8",
        "cifar10",
        "resnet20",
        *_CIFAR10,
        alike=True,
    ),
    "mobilenetv2": Pair(
        "TEACHERS/cifar10-resnet20.th", ("--normalize", "imagenet"), "mobilenetv2@0.5", "cifar10", "resnet20", *_CIFAR10
    ),
    "wrn": Pair(
        "recipes/cifar10-wrn/teacher.pt",
        ("--normalize", "cifar10"),
        "wrn-16-1",
        "cifar10",
        "wrn-40-2",
        *_CIFAR10,
        alike=True,
    ),
    "mnist": Pair(
        "RUNS/mnist-lenet5.pt",
        ("--input", "1x32x32", "--mean", "0.1307", "--std", "0.3081"),
        "lenet5-half",
        "mnist",
        "lenet5",
        "MNIST",
        (1, 32, 32),
    ),
}
RANDOM_START = ("--set", "method.student.inherit=false")


@dataclass(frozen=True)
class Row:
    """One run: a pair, what it learns from, how long, and from which seed."""

    pair: str
    source: str
    """`free` of data, the `real` training images, or `photos` of other things."""
    budget: str
    """Tera-multiply-accumulates (`13T`) or minutes (`8min`)."""
    seed: int
    start: str = ""
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of its run and of its file."""
        return "-".join(filter(None, (self.pair, self.start, self.source, self.budget, f"seed{self.seed}")))


def rows() -> list[Row]:
    """Return all rows; the larger budgets have their oracle from one seed alone."""
    resnet8, mobile = Row("resnet8", "free", "13T", 1), Row("mobilenetv2", "free", "15T", 1)
    random = replace(resnet8, budget="52T", start="random", flags=RANDOM_START)
    digits = Row("digits", "free", "1T", 1)
    thrice = [resnet8, replace(resnet8, source="real"), replace(resnet8, budget="52T"), random]
    thrice += [mobile, replace(mobile, source="real"), replace(mobile, source="photos")]
    thrice += [digits, replace(digits, source="real"), replace(digits, budget="4T")]
    thrice += [Row("mnist", "free", "8min", 1), Row("mnist", "free", "30min", 1)]
    once = [replace(resnet8, source="real", budget="52T"), replace(random, source="real")]
    once += [replace(mobile, budget="60T"), replace(mobile, source="real", budget="60T")]
    once += [replace(digits, source="real", budget="4T")]
    once += [Row("wrn", "free", "65T", 1), Row("wrn", "real", "65T", 1)]
    return [*(replace(row, seed=seed) for row in thrice for seed in (1, 2, 3)), *once]


def edgekd(*words: str | Path) -> str:
    """Run a command of edgekd; return what it wrote on stdout."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgekd", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout  # noqa: S603


def steps_within(tera_macs: float, teacher: Path, words: list[str | Path], scratch: Path) -> int:
    """Return how many steps a budget of multiply-accumulates holds."""
    plan = json.loads(edgekd("distill", teacher, "--steps", "1000", "--run", scratch, "--dry-run", "--json", *words))
    a_step = plan["flops_per_step"] / 2
    return int((tera_macs * 1e12 - (plan["macs"] - plan["steps"] * a_step)) / a_step)


def few(source: Path, target: Path, which: slice = slice(CURVE_IMAGES)) -> Path:
    """Copy the first images of each class, or those that `which` takes of their order.

    What lies at `target` is whole, also if this was cut off or done twice.
    """
    if not target.exists():
        part = Path(tempfile.mkdtemp(dir=target.parent))
        for folder in sorted(source.iterdir()):
            (part / folder.name).mkdir()
            for file in sorted(folder.iterdir())[which]:
                shutil.copy(file, part / folder.name)
        try:
            part.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return target


def finished(row: Row, pair: Pair, teachers: Path, data: Path, runs: Path) -> RunDir:
    """Make the run of a row, or go on with it, and evaluate its student."""
    run = runs / row.name
    teacher = Path(pair.teacher.replace("TEACHERS", str(teachers)).replace("RUNS", str(runs)))
    train, test = data / pair.data / "train", data / pair.data / pair.test
    words: list[str | Path] = [*pair.flags, "--student", pair.student, "--threads", "1", "--seed", str(row.seed)]
    words += row.flags
    if row.source != "free":
        words += ["--images", data / "photos" if row.source == "photos" else train]
    if row.budget.endswith("min"):
        length = ["--minutes", row.budget.removesuffix("min")]
    else:
        budget = float(row.budget.removesuffix("T"))
        length = ["--steps", str(steps_within(budget, teacher, words, runs / f"{row.name}-plan"))]
    if not (run / "distill" / "record.json").exists():
        curve = few(test, runs / f"{pair.data}-{Path(pair.test).name}-curve")
        edgekd("distill", teacher, "--run", run, "--data", curve, *length, *words)
    edgekd("eval", run, "--data", test)
    return RunDir(run)


def measure(row: Row, pair: Pair, out: Path, folders: tuple[Path, Path, Path]) -> None:
    """Write the file of a row, unless it is there; `folders` are TEACHERS, DATA and RUNS."""
    if out.exists():
        return
    run = finished(row, pair, *folders)
    found = facts(run)
    found["points"] = {name: found["points"][name] for name in ("step", found["shipped"])}
    *_, last = run.logged(TrainEvent)
    content = {**provenance({row.name: method_of(run)}), "row": row.name, "source": row.source, **found}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**content, "macs": last.macs}, indent=1) + "\n", encoding="utf-8")


def main(teachers: Path, data: Path, runs: Path, *patterns: str) -> None:
    """Run every row that is asked for and has no file yet."""
    for row in rows():
        if any(fnmatch(row.name, pattern) for pattern in patterns or ("*",)):
            measure(row, PAIRS[row.pair], HERE / "rows" / f"{row.name}.json", (teachers, data, runs))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(f"{__doc__}\nRows: {' '.join(row.name for row in rows())}")
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
