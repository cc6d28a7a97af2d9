"""Time a step of the authors' code's method as edgekd computes it: step.py OUT.json LENET5.pt [ROUNDS].

LeNet-5 -> LeNet-5-half at 1x32x32, latent 1000, 128 novel and 16 replayed images, on an idle machine. The authors' code
took 1.87 s for such a step on two cores of the machine that docs/results/ was made on, and a lean rewrite of it 0.39 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

AUTHORS_S = 1.87
SETS = ("student.batch_size=128", "replay.batch_size=16", "vae.novel=64", "vae.rehearsed=16")


def main(out: Path, teacher: Path, rounds: int) -> None:
    """Plan the run several times and write every plan and the medians."""
    command = [sys.executable, "-m", "edgekd", "distill", str(teacher), "--input", "1x32x32", "--student"]
    command += ["lenet5-half", "--method", "pre-dfkd-released", *(f"--set=method.{item}" for item in SETS)]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--run", f"{folder}/plan", "--dry-run", "--json"]
        plans = [json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL)) for _ in range(rounds)]  # noqa: S603
    median = {
        name: statistics.median(plan[name] for plan in plans)
        for name in ("seconds_per_step", "utilisation", "machine_peak_flops", "flops_per_step")
    }
    content = {"median": median, "authors_over_ours": AUTHORS_S / median["seconds_per_step"], "plans": plans}
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5)
