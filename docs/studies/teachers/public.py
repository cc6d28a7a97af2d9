"""Try public checkpoints as a user would.

    python -m docs.studies.teachers.public CLONES DATA OUT.json

CLONES holds one git repository for each file of public_files.toml, as OWNER+NAME or OWNER+NAME/repo; nothing of them is
run, and each file is taken from its commit. DATA holds class folders: cifar10/train and mnist/train. `ingest FILE`
comes first; where it ends with exit code 4, the flags that its message must name follow. Written are the outcome, the
message, CPU seconds of each command (the median of five), and the teacher's accuracy on 100 training images of each
class of its task.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from docs.studies.common.provenance import provenance
from docs.studies.recovery.run import few

HERE = Path(__file__).parent
_TIMES = 5


@dataclass(frozen=True)
class PublicFile:
    """A checkpoint in a public repository, and what is known of it from the code beside it."""

    repository: str
    commit: str
    path: str
    before: str
    """What edgekd made of it before plain networks: `at once`, `after a flag`, `wrongly refused` and the like."""
    expected: str
    """What it is as edgekd writes it, as a pattern; empty where it is to be refused."""
    flags: str = ""
    """What a message has to name where the weights leave its wiring open."""
    task: str = ""
    """The folder of DATA that it was trained for."""
    pixels: str = ""


_LISTED = tomllib.loads(HERE.joinpath("public_files.toml").read_text(encoding="utf-8"))["files"]
FILES = tuple(PublicFile(**row) for row in _LISTED)


@dataclass(frozen=True)
class Outcome:
    """What became of a file."""

    outcome: str
    """`at once`, `after the flag it named`, `refused`, `other arch`, `flag not named`."""
    arch: str
    message: str
    cpu_seconds: tuple[float, ...]
    accuracy: float | None


def tried(file: PublicFile, checkpoint: Path, images: Path | None) -> Outcome:
    """Ingest a file as its user would."""
    run = checkpoint.parent / "run"
    code, said, spent = ingest(checkpoint, run, ())
    seconds, outcome, message = [spent], "at once", ""
    if code:
        message, outcome = said.partition("error: ")[2].strip(), "refused"
        if file.flags and " ".join(file.flags.split()) not in message:
            outcome = "flag not named"
        elif file.flags:
            code, said, spent = ingest(checkpoint, run, file.flags.split())
            seconds, outcome = [*seconds, spent], "refused after its flag" if code else "after the flag it named"
    arch = "" if code else json.loads(Path(run, "teacher", "teacher.json").read_text(encoding="utf-8"))["arch"]
    if arch and file.expected and not re.fullmatch(file.expected, arch):
        outcome = "other arch"
    accuracy = None if images is None or not arch else evaluated(file, checkpoint, run, images)
    return Outcome(outcome, arch, message[:2000], tuple(round(each, 1) for each in seconds), accuracy)


def ingest(checkpoint: Path, run: Path, flags: Sequence[str]) -> tuple[int, str, float]:
    """Run the verb into a fresh run, five times; return its exit code, what it said, and the median of CPU seconds."""
    spent: list[float] = []
    for _ in range(_TIMES):
        shutil.rmtree(run, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = _edgekd("ingest", checkpoint, "--run", run, *flags)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return done.returncode, done.stderr, median(spent)


def evaluated(file: PublicFile, checkpoint: Path, run: Path, images: Path) -> float | None:
    """Return the teacher's accuracy; None where it does not answer such classes."""
    flags = [*file.flags.split(), *file.pixels.split()]
    if flags:
        shutil.rmtree(run, ignore_errors=True)
        _edgekd("ingest", checkpoint, "--run", run, *flags)
    done = _edgekd("eval", run, "--data", images, "--json")
    accuracy: float | None = json.loads(done.stdout)["accuracy"]["teacher"] if done.returncode == 0 else None
    return accuracy


def _edgekd(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekd", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603


def content(clones: Path, file: PublicFile) -> bytes | None:
    """Return a file's bytes; None where the repository is not there."""
    name = file.repository.replace("/", "+")
    for folder in (clones / name / "repo", clones / name):
        for commit in (file.commit, "HEAD"):
            command = ["git", "-C", str(folder), "show", f"{commit}:{file.path}"]
            done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
            if done.returncode == 0:
                return done.stdout
    return None


def main(clones: Path, data: Path, out: Path) -> None:
    """Try all files that are there, but those that were tried as they are listed."""
    before = json.loads(out.read_text(encoding="utf-8"))["files"] if out.is_file() else []
    rows: list[dict[str, Any]] = []
    for file in FILES:
        row: dict[str, Any] = asdict(file)
        tried_before = next((one for one in before if one.items() >= row.items() and "arch" in one), None)
        if tried_before is not None:
            rows.append(tried_before)
            continue
        found = content(clones, file)
        if found is None:
            rows.append({**row, "outcome": "not there"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder, Path(file.path).name)
            checkpoint.write_bytes(found)
            images = few(data / file.task / "train", Path(folder, "images"), slice(100)) if file.task else None
            rows.append({**row, **asdict(tried(file, checkpoint, images))})
        sys.stderr.write(f"{file.repository} {file.path}: {rows[-1]['outcome']}\n")
    text = json.dumps({**provenance({}), "files": rows}, indent=1) + "\n"
    out.write_text(text, encoding="utf-8")


def table(written: Path) -> str:
    """Return what was written as a table in Markdown."""
    lines = ["| file | before | now | CPU seconds | accuracy, % |", "|---|---|---|---|---|"]
    for row in json.loads(written.read_text(encoding="utf-8"))["files"]:
        seconds = " + ".join(f"{each:.0f}" for each in row.get("cpu_seconds", ()))
        accuracy = "" if row.get("accuracy") is None else f"{100 * row['accuracy']:.1f}"
        name = f"{row['path']} ({row['repository']}@{row['commit']})"
        lines.append(f"| {name} | {row['before']} | {row['outcome']} | {seconds} | {accuracy} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(table(Path(sys.argv[1])))  # noqa: T201
        sys.exit()
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
