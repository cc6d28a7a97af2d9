"""Nothing is sent, and nothing is written outside the run, by edgekd or by a library beneath it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgekd
import toy
from edgekd.bench import pack

ROOT = Path(edgekd.__file__).parents[1]
VARIABLES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
WRITES = re.compile(r'(?:openat|open|mkdir|mkdirat|creat|rename|renameat2?)\((?:AT_FDCWD, )?"([^"]*)"(.*)')


def user_environment(home: Path) -> dict[str, str]:
    """Return what a login has, and none of the variables by which ONNX Runtime knows CI, where it stays silent."""
    for name in ("home", "tmp"):
        (home / name).mkdir(exist_ok=True)
    return {
        "HOME": str(home / "home"),
        "TMPDIR": str(home / "tmp"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def strace() -> str:
    program = shutil.which("strace")
    if program is None:
        reason = "no strace on this machine (Debian: apt-get install strace)"
        if os.environ.get("EDGEKD_REQUIRE_STRACE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


def traced(cwd: Path, home: Path, *command: str, accept: tuple[int, ...] = (0,)) -> list[str]:
    """Run a command under strace; return the lines of every process it started."""
    log = home / "strace.txt"
    calls = "trace=%network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2"
    argv = [strace(), "-f", "-qq", "-o", str(log), "-e", calls, *command]
    ran = subprocess.run(argv, cwd=cwd, env=user_environment(home), capture_output=True, text=True, timeout=600)
    assert ran.returncode in accept, ran.stderr
    return log.read_text(errors="replace").splitlines()


def reaching_out(lines: list[str]) -> list[str]:
    """Return the calls that open, connect or use a socket of the internet."""
    return [line for line in lines if re.search(r"AF_INET|sin6?_addr", line)]


def writing_outside(lines: list[str], *places: Path) -> list[str]:
    """Return the calls that make a file or folder anywhere but in these places (and in the devices of /dev)."""
    outside = []
    for line in lines:
        call = WRITES.search(line)
        if call is None or "= -1 " in line or (" open" in f" {call[0]}" and "O_CREAT" not in call[2]):
            continue
        path = Path(call[1])
        if path.is_absolute() and not any(path.is_relative_to(place) for place in (*places, Path("/dev"))):
            outside.append(line)
    return outside


@pytest.mark.slow
def test_no_verb_connects_to_anything_or_writes_outside_its_run(teacher_file: Path, tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "user"
    work.mkdir()
    home.mkdir()
    toy.advance(work / "runs" / "toy", toy.toy_recipe(teacher_file), ("ingest", "distill", "select"))
    python = (sys.executable, "-m", "edgekd")
    verbs = (
        (*python, "export", "--int8"),
        (*python, "bench"),
        (*python, "report"),
        (*python, "doctor"),
        (*python, "bundle", "--output", "student.pyz"),
        (sys.executable, "student.pyz", "check", "--runtime", "ort-cpu"),
        (*python, "distill", str(teacher_file), "--input", "1x8x8", "--run", "toy", "--max-seconds", "1"),
    )
    for verb in verbs:
        lines = traced(work, home, *verb, accept=(0, 3, 8))
        assert reaching_out(lines) == [], verb
        assert writing_outside(lines, work, home / "tmp") == [], verb
    assert [*(home / "home").rglob("*")] == []
    left = [path.name for path in (home / "tmp").rglob("*")]
    assert all(name.startswith("torchinductor_") for name in left)  # torch makes this empty folder when it is imported


@pytest.mark.slow
def test_the_trace_sees_a_connection_and_a_file(tmp_path: Path) -> None:
    code = (
        "import pathlib, socket; pathlib.Path.home().joinpath('x').touch(); socket.socket().connect(('127.0.0.1', 9))"
    )
    lines = traced(tmp_path, tmp_path, sys.executable, "-c", code, accept=(1,))
    assert reaching_out(lines)
    assert writing_outside(lines, tmp_path / "elsewhere")


def test_the_agent_that_travels_silences_the_runtime_before_it_is_imported(tmp_path: Path) -> None:
    archive = tmp_path / "agent.pyz"
    archive.write_bytes(pack.agent_zip())
    code = (
        "import json, os, sys; sys.path.insert(0, 'agent.pyz')\n"
        "import edgekd.agent.runners.ort\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "print(json.dumps(dict(os.environ)))"
    )
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert {json.loads(ran.stdout).get(name) for name in VARIABLES} == {"1"}


def test_this_process_and_its_children_are_silent() -> None:
    assert {os.environ.get(name) for name in VARIABLES} == {"1"}


def test_no_script_imports_the_runtime_before_the_package_that_silences_it() -> None:
    for path in [*ROOT.glob("docs/**/*.py"), *ROOT.glob("recipes/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            assert not any((name or "").split(".")[0] == "onnxruntime" for name in names), path
