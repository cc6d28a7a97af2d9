"""Measure what safety costs a run: overhead.py OUT.json TEACHER RUNS --steps N [--rounds R] FLAGS...

Three kinds of the same distillation, in turn, in every round:

    bare      checkpoints at step 0 and at the end alone
    safe      checkpoints as by default
    stopped   as by default, stopped by --max-seconds half-way and continued

FLAGS go to every `edgekd distill`. Of `bare` and `safe` the training alone is timed (`seconds` of events.jsonl; of them
`saving_seconds`), their ratio taken within a round; what a stop costs is the time of both commands less that of one
`safe` command.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from edgekd.errors import StoppedEarly
from edgekd.rundir import RunDir


def timed(command: list[str], expected: int = 0) -> float:
    """Run a command; return its wall-clock seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
    if done.returncode != expected:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}, not {expected}")
    return time.perf_counter() - start


def clocks_s(run: Path) -> tuple[float, float]:
    """Return the seconds of training that a run has logged, and those in which it saved."""
    last = RunDir(run).events("train")[-1]
    return float(last["seconds"]), float(last["saving_seconds"])


def main() -> None:
    """Run every kind and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options, flags = parser.parse_known_args()
    distil = [sys.executable, "-m", "edgekd", "distill", str(options.teacher), "--steps", str(options.steps), *flags]
    kinds = {"bare": ["--set", f"checkpoint_period={options.steps}"], "safe": []}
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        shutil.rmtree(options.runs, ignore_errors=True)
        row: dict[str, float] = {}
        for kind in sorted(kinds, reverse=number % 2 == 1):  # in turn the first, for what a machine does with time
            row[f"{kind}_command_s"] = timed([*distil, "--run", str(options.runs / kind), *kinds[kind]])
            row[f"{kind}_training_s"], row[f"{kind}_saving_s"] = clocks_s(options.runs / kind)
        half = str(round(row["safe_command_s"] / 2))
        stopped = [*distil, "--run", str(options.runs / "stopped")]
        row["stopped_commands_s"] = timed([*stopped, "--max-seconds", half], StoppedEarly.exit_code) + timed(stopped)
        rounds.append(row)
    result = {
        "steps": options.steps,
        "flags": flags,
        "rounds": rounds,
        "saving_share": statistics.median(row["safe_saving_s"] / row["safe_training_s"] for row in rounds),
        "safe_over_bare": statistics.median(row["safe_training_s"] / row["bare_training_s"] for row in rounds),
        "stop_and_resume_s": statistics.median(row["stopped_commands_s"] - row["safe_command_s"] for row in rounds),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
