"""Time a step of the released method, here and in its authors' code: run.py OUT.json LENET5.pt CHECKOUT [ROUNDS].

LeNet-5 -> LeNet-5-half at 1x32x32, latent 1000, 128 novel and 16 replayed images, on an idle machine. Every round plans
the run with edgekd and times the authors' code (authors.py, CHECKOUT), one after the other on the same cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from functools import reduce
from pathlib import Path

import torch

from docs.studies.common.provenance import provenance
from edgekd import machine
from edgekd import recipe as recipes

PRESET = "pre-dfkd-released"
SETS = ("student.batch_size=128", "replay.batch_size=16", "vae.novel=64", "vae.rehearsed=16")


def output(command: list[str]) -> str:
    """Return what a command prints."""
    return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)  # noqa: S603


def main(out: Path, teacher: Path, checkout: Path, rounds: int) -> None:
    """Time both several times and write every time and the medians."""
    command = [sys.executable, "-m", "edgekd", "distill", str(teacher), "--input", "1x32x32", "--student"]
    command += ["lenet5-half", "--method", PRESET, *(f"--set=method.{item}" for item in SETS)]
    authors = [sys.executable, "-m", "docs.studies.step_time.authors", str(checkout)]
    plans, authors_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        command += ["--run", f"{folder}/plan", "--dry-run", "--json"]
        for _ in range(rounds):
            plans.append(json.loads(output(command)))
            authors_s.append(float(output(authors)))
    median = {
        name: statistics.median(plan[name] for plan in plans)
        for name in ("seconds_per_step", "utilisation", "machine_peak_flops", "flops_per_step")
    }
    ratios = [theirs / plan["seconds_per_step"] for theirs, plan in zip(authors_s, plans, strict=True)]
    sets = [recipes.assignment(f"method.{item}") for item in SETS]
    method = reduce(recipes.merge, sets, {"method": {"preset": PRESET}})
    content = {
        **provenance({PRESET: recipes.parse(method, origin="the command").method}),
        "median": median,
        "authors_seconds_per_step": statistics.median(authors_s),
        "authors_over_ours": statistics.median(ratios),
        "rounds": [{"authors_seconds_per_step": theirs, **plan} for theirs, plan in zip(authors_s, plans, strict=True)],
        "environment": machine.environment(torch.device("cpu"), machine.use_threads(0)),
    }
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    out, teacher, checkout = map(Path, sys.argv[1:4])
    main(out, teacher, checkout, int(sys.argv[4]) if len(sys.argv) > 4 else 5)
