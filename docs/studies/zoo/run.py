"""Run the `$ edgekd students` commands of docs/students.md and keep all they print: run.py OUT.txt.

Each is followed by the seconds it took. The machine should do nothing else meanwhile; what speaks against a measurement
is in the output itself.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from edgekd.agent.device.environment import this_machine

PAGE = Path(__file__).parents[2] / "students.md"


def printed(line: str) -> str:
    """Return what a command prints, its exit code if that is not 0, and the seconds it took."""
    command = [sys.executable, "-m", *shlex.split(line)]
    start = time.monotonic()
    done = subprocess.run(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{line} ended with {done.returncode}: {done.stdout}")
    rows = "\n".join(row.rstrip() for row in done.stdout.splitlines())  # tables pad their cells
    students = len(re.findall(r"^\S+ +[\d,]+ +[\d,]+ ", rows, flags=re.MULTILINE))
    return f"$ {line}\n{rows}\n({seconds:.0f} s for {students} students)\n"


def main(out: Path) -> None:
    """Write the transcript."""
    here = this_machine()
    kind = "with" if here.int8_instructions else "without"
    head = f"{here.cpu_model} {kind} VNNI, {here.cpus} cores; ONNX Runtime {version('onnxruntime')}"
    lines = re.findall(r"^\$ (edgekd students .*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    out.write_text("\n".join([f"Machine: {head}\n", *map(printed, lines)]), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
