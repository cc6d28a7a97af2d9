"""What only looks at files answers without torch, torchvision and ONNX Runtime, which take seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import toy

VERBS = ("distill", "ingest", "run", "select", "export", "bench", "bundle", "eval", "status", "report", "prune")
VERBS += ("doctor", "students", "recipes")
CHEAP: list[list[str]] = [
    ["--help"],
    ["--version"],
    *([verb, "--help"] for verb in VERBS),
    ["status"],
    ["status", "toy", "--json"],
    ["status", "nosuch"],
    ["prune", "nosuch"],
    ["recipes"],
    ["recipes", "--check", "nosuch.toml"],
    ["recipes", "--copy", "nosuch"],
    ["statsu"],
]
PROGRAM = """if True:
    import contextlib, io, json, sys
    from edgekd.cli import program
    heavy = {}
    for command in json.loads(sys.argv[1]):
        with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stdout(io.StringIO()):
            program.app(command, standalone_mode=False)
        heavy[" ".join(command)] = sorted({"torch", "torchvision", "onnxruntime", "matplotlib"} & sys.modules.keys())
    sys.stdout.write(json.dumps(heavy))
"""


def test_cheap_verbs_import_nothing_heavy(teacher_file: Path, tmp_path: Path) -> None:
    toy.advance(tmp_path / "runs" / "toy", toy.toy_recipe(teacher_file), ("ingest",))
    argv = [sys.executable, "-c", PROGRAM, json.dumps(CHEAP)]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    heavy = json.loads(ran.stdout)
    assert len(heavy) == len(CHEAP)
    assert {command: modules for command, modules in heavy.items() if modules} == {}
    assert "1 of 5 stages done" in ran.stderr
