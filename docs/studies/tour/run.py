"""Run every `$ edgekd` line of the README in order and keep what it prints: run.py README.md OUT.txt.

Works in a temporary folder with a copy of recipes/ and the digits; the output goes, command by command, to OUT.txt.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(readme: Path, out: Path) -> None:
    """Write the transcript; stop at the first command that fails."""
    root = readme.resolve().parent
    blocks = re.findall(r"```console\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ edgekd")]
    transcript = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(root / "recipes", Path(folder) / "recipes")
        digits = [sys.executable, "recipes/quickstart/digits.py", "runs/digits"]
        subprocess.run(digits, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        for line in lines:
            command = [sys.executable, "-m", *shlex.split(line)]
            done = subprocess.run(  # noqa: S603
                command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            printed = "\n".join(row.rstrip() for row in done.stdout.splitlines())  # tables pad their cells
            transcript.append(f"$ {line}\n{printed}\n")
            out.write_text("\n".join(transcript), encoding="utf-8")
            if done.returncode:
                sys.exit(f"{line} ended with {done.returncode}; see {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
