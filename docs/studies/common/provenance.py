"""Where a result comes from: the command, the machine, the commit and the methods that a study writes beside it.

`python -m docs.studies.common.provenance IN.json OUT.json [RUN]` copies a JSON object that edgekd wrote and adds them;
the method is that of RUN. A shell script names itself in STUDY_COMMAND.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgekd.agent.device.environment import this_machine
from edgekd.recipe import load_resolved
from edgekd.recipe.method import MethodTable
from edgekd.run.directory import RunDir
from edgekd.run.files import digest, read_json, write_json
from edgekd.schema import to_json

ROOT = Path(__file__).parents[3]
"""The checkout."""
NO_METHOD = {"steps", "minutes", "source"}
"""Keys of `[method]` that say how long it runs and where it was published, not what it does."""


def provenance(methods: Mapping[str, MethodTable] | None = None) -> dict[str, Any]:
    """Return `command`, `machine`, `commit` and `preset_digest`, which has a digest for each of `methods`."""
    return {
        "command": command(),
        "machine": machine(),
        "commit": commit(),
        "preset_digest": {name: method_digest(method) for name, method in (methods or {}).items()},
    }


def command() -> str:
    """Return the command that was typed: that of the shell script around this process, if it has named itself.

    A path outside the checkout is cut to its last part, so that nothing says how a machine's folders are called.
    """
    words = shlex.split(os.environ.get("STUDY_COMMAND", "")) or ["python", *sys.orig_argv[1:]]
    return shlex.join("=".join(map(_without_folders, word.split("="))) for word in words)


def _without_folders(text: str) -> str:
    path = Path(text)
    if not path.is_absolute():
        return path.name if ".." in path.parts else text
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def machine() -> dict[str, Any]:
    """Return what a number may depend on, of this machine and its libraries."""
    here = to_json(this_machine())
    names = ("cpu_model", "architecture", "cpu_flags", "cpus", "usable_cpus", "memory_bytes", "gpus", "system")
    libraries = {name: version(name) for name in ("torch", "numpy")} | here["runtime_packages"]
    return {**{name: here[name] for name in names}, "python": here["python"], "libraries": libraries}


def commit() -> str | None:
    """Return the commit of the checkout, with `-dirty` where a tracked file differs; None where git knows none."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def method_digest(method: MethodTable) -> str:
    """Return the SHA-256 of a resolved method, whatever its length: equal for a preset and for its unchanged runs."""
    return digest(method.model_dump(mode="json", exclude=NO_METHOD))


def method_of(run: RunDir) -> MethodTable:
    """Return the resolved method of a run."""
    return load_resolved(run.recipe_file).method


def main(source: Path, out: Path, run: Path | None) -> None:
    """Write a copy of a JSON object with its provenance."""
    methods = {run.name: method_of(RunDir(run))} if run else {}
    write_json(out, provenance(methods) | read_json(source))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) == 4 else None)
