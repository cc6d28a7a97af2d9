"""Measure what safety costs a run: overhead.py OUT.json TEACHER RUNS --steps N [--rounds R] FLAGS...

Three kinds of the same distillation:

    bare      checkpoints at step 0 and at the end alone
    safe      checkpoints as by default
    stopped   as by default, stopped by --max-seconds half-way and continued

Two run at a time, one thread on a core each, so that what the machine does meanwhile happens to both. A round is three
such pairs: bare beside safe, the same with the cores exchanged, stopped beside safe. FLAGS go to every distillation.
Of bare and safe the training alone is timed (`seconds` of events.jsonl; of them `saving_seconds`), and a round's ratio
is the geometric mean of its two pairs, in which a faster core cancels; what a stop costs is the time of both commands
less that of the one beside them. The machine should have two cores and do nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgekd.errors import StoppedEarly
from edgekd.rundir import RunDir


def pair(commands: list[list[list[str]]]) -> list[float]:
    """Run each list of commands on a core of its own, both at once; return the wall-clock seconds of each."""

    def timed(core: int) -> float:
        start = time.perf_counter()
        for number, command in enumerate(commands[core]):
            pinned = ["taskset", "-c", str(core), *command]
            done = subprocess.run(pinned, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
            is_last = number == len(commands[core]) - 1
            if done.returncode != (0 if is_last else StoppedEarly.exit_code):
                sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
        return time.perf_counter() - start

    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(timed, range(len(commands))))


def training_s(run: Path) -> tuple[float, float]:
    """Return the seconds of training that a run has logged, and those in which it saved."""
    last = RunDir(run).events("train")[-1]
    return float(last["seconds"]), float(last["saving_seconds"])


def main() -> None:
    """Run every pair and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options, flags = parser.parse_known_args()
    distil = [sys.executable, "-m", "edgekd", "distill", str(options.teacher), "--steps", str(options.steps)]
    distil += ["--threads", "1", *flags, "--run"]
    bare = [*distil, str(options.runs / "bare"), "--set", f"checkpoint_period={options.steps}"]
    safe = [*distil, str(options.runs / "safe")]
    stopped = [*distil, str(options.runs / "stopped")]

    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        row: dict[str, Any] = {"pairs": []}
        for kinds in ({"bare": [bare], "safe": [safe]}, {"safe": [safe], "bare": [bare]}):
            shutil.rmtree(options.runs, ignore_errors=True)
            commands_s = dict(zip(kinds, pair(list(kinds.values())), strict=True))
            clocks = {kind: training_s(options.runs / kind) for kind in kinds}
            row["pairs"].append(
                {
                    **{f"{kind}_command_s": commands_s[kind] for kind in kinds},
                    **{f"{kind}_training_s": clocks[kind][0] for kind in kinds},
                    **{f"{kind}_saving_s": clocks[kind][1] for kind in kinds},
                }
            )
        half = str(round(commands_s["safe"] / 2))
        shutil.rmtree(options.runs, ignore_errors=True)
        both = pair([[[*stopped, "--max-seconds", half], stopped], [safe]])
        row |= {"stopped_commands_s": both[0], "safe_command_beside_s": both[1]}
        row["safe_over_bare"] = statistics.geometric_mean(
            one["safe_training_s"] / one["bare_training_s"] for one in row["pairs"]
        )
        rounds.append(row)
    pairs = [one for row in rounds for one in row["pairs"]]
    result = {
        "steps": options.steps,
        "flags": flags,
        "rounds": rounds,
        "saving_share": statistics.median(one["safe_saving_s"] / one["safe_training_s"] for one in pairs),
        "safe_over_bare": statistics.median(row["safe_over_bare"] for row in rounds),
        "stop_and_resume_s": statistics.median(
            row["stopped_commands_s"] - row["safe_command_beside_s"] for row in rounds
        ),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
