"""Measure what safety costs a run: run.py OUT.json TEACHER RUNS --steps N --max-seconds S [--rounds R] FLAGS...

In each round two distillations run at once, one thread on a core each: one as it is, and one that --max-seconds stops
half-way and the same command continues. FLAGS go to both.

    stop_and_resume_s   by how much longer the two commands of the latter were busy with other things than training
    checkpoint_s        what the steps from a checkpoint to the second log line after it took, less what as many steps
                        took in the lines around: also what saving leaves behind counts; mean and standard error
    saving_share        `saving_seconds` of `seconds`, the time inside of saving alone

Whole runs with and without checkpoints are not compared: side by side they differ by several per cent on a machine
whose speed wanders, which is more than what is asked. The machine should have two cores and do nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from docs.studies.common.provenance import method_of, provenance
from edgekd.errors import StoppedEarly
from edgekd.run.cards.events import TrainEvent
from edgekd.run.directory import RunDir

NEAR = 5  # log lines on either side that tell what a step takes


def timed(commands: list[list[str]], core: int) -> float:
    """Run commands, all but the last of which stop early, on one core; return their wall-clock seconds."""
    start = time.perf_counter()
    for number, command in enumerate(commands):
        pinned = ["taskset", "-c", str(core), *command]
        done = subprocess.run(pinned, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
        if done.returncode != (0 if number == len(commands) - 1 else StoppedEarly.exit_code):
            sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
    return time.perf_counter() - start


def side_by_side(*commands: list[list[str]]) -> list[float]:
    """Run each list of commands on a core of its own, all at once; return the seconds of each."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(timed, commands, range(len(commands))))


def checkpoint_costs_s(lines: list[TrainEvent]) -> list[float]:
    """Return the seconds that each checkpoint of a run cost, by the lines that it logged of its training."""
    pieces = [(b.step - a.step, b.seconds - a.seconds, b.saving_seconds > a.saving_seconds) for a, b in pairwise(lines)]
    saves = [index for index, (_, _, saved) in enumerate(pieces) if saved]
    touched = {index + later for index in saves for later in (0, 1)}
    costs = []
    for index in saves:
        around = range(max(0, index - NEAR), min(len(pieces), index + NEAR + 2))
        step_s = [pieces[i][1] / pieces[i][0] for i in around if i not in touched]
        if len(step_s) >= NEAR:
            usual = statistics.median(step_s)
            costs.append(sum(seconds - usual * steps for steps, seconds, _ in pieces[index : index + 2]))
    return costs


def idle_s(clock: dict[str, float]) -> float:
    """Return the seconds of commands that were not training."""
    return clock["commands_s"] - clock["training_s"]


def main() -> None:
    """Run every round and write what it showed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-seconds", type=float, required=True, help="about half of what a command takes")
    options, flags = parser.parse_known_args()
    distil = [sys.executable, "-m", "edgekd", "distill", str(options.teacher), "--steps", str(options.steps)]
    distil += ["--threads", "1", *flags, "--run"]
    whole, stopped = options.runs / "whole", options.runs / "stopped"

    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        shutil.rmtree(options.runs, ignore_errors=True)
        first = [*distil, str(stopped), "--max-seconds", str(options.max_seconds)]
        whole_s, stopped_s = side_by_side([[*distil, str(whole)]], [first, [*distil, str(stopped)]])
        lines, others = (list(RunDir(run).logged(TrainEvent)) for run in (whole, stopped))
        rounds.append(
            {
                "whole": {"commands_s": whole_s, "training_s": lines[-1].seconds},
                "stopped": {"commands_s": stopped_s, "training_s": others[-1].seconds},
                "saving_s": lines[-1].saving_seconds,
                "checkpoint_s": checkpoint_costs_s(lines),
            }
        )
    costs = [cost for row in rounds for cost in row["checkpoint_s"]]
    if len(costs) < 2:
        sys.exit(f"{len(costs)} checkpoints were written apart from others: give more --steps or --rounds")
    result = {
        **provenance({"whole": method_of(RunDir(whole))}),
        "steps": options.steps,
        "flags": flags,
        "stop_and_resume_s": statistics.median(idle_s(row["stopped"]) - idle_s(row["whole"]) for row in rounds),
        "checkpoint_s": {
            "mean": statistics.fmean(costs),
            "standard_error": statistics.stdev(costs) / math.sqrt(len(costs)),
            "checkpoints": len(costs),
        },
        "saving_share": statistics.median(row["saving_s"] / row["whole"]["training_s"] for row in rounds),
        "rounds": rounds,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
