"""The rooms import one way: cli -> commands -> pipeline -> stages -> rooms -> base -> console, errors and text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgekd

PACKAGE = Path(edgekd.__file__).parent
LOWEST = {"errors", "console", "text", "locking", "cpus"}
BASE = {
    "failpoints",
    "rng",
    "state_dict",
    "flops",
    "machine",
    "method",
    "recipe",
    "ownership",
    "recipe_reference",
    "rundir",
    "checkpoint",
    "foreign",
    "pickles",
    "imports",
    "realdata",
    "ledger",
    "stopping",
    "trust",
}
ROOMS = {"models", "synthesis", "deploy"}
LEVELS = [LOWEST, BASE, ROOMS, {"stages"}, {"pipeline"}, {"commands"}, {"cli", "cli_shipping", "options"}]
NO_STAGE = {
    *(
        "artefacts",
        "base",
        "catalog",
        "clipping",
        "comparing",
        "curve",
        "device",
        "doctor",
        "fine_tuning",
        "images",
        "logbook",
    ),
    *("left_out", "onnx_files", "plan", "plots", "samples", "students"),
}
"""Modules of stages/ that are no stage: stages may share them."""
STAGES = {"ingest", "init", "distill", "select", "export", "bench", "eval", "report"}


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def imports(path: Path) -> set[tuple[str, ...]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "edgekd":
            parts = tuple(node.module.split(".")[1:])
            found |= {(*parts, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "edgekd"}
    return {parts for parts in found if parts and parts[0] not in ("__version__",)}


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for parts in imports(path):
        target = parts[0]
        if target == here[0]:
            continue  # within a room, or within one module
        assert level(target) <= level(here[0]), f"{'.'.join(here)} imports {'.'.join(parts)} upwards"
        if here[0] in ROOMS:
            assert target not in ROOMS, f"{'.'.join(here)} imports its sibling room {target}"


def test_every_module_has_a_place_in_the_order() -> None:
    tops = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    assert tops == set().union(*LEVELS)


def test_every_module_of_stages_is_a_stage_or_known_to_be_none() -> None:
    assert {path.stem for path in MODULES if path.parent.name == "stages"} == STAGES | NO_STAGE


def test_stages_do_not_import_one_another() -> None:
    for name in STAGES:
        for parts in imports(PACKAGE / "stages" / f"{name}.py"):
            if parts[0] == "stages":
                assert parts[1] in NO_STAGE, f"stage {name} imports {'.'.join(parts)}"


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        *[("torch.load", "foreign.py"), ("os.replace", "rundir.py"), ("pickle.load", None), ("print", None)],
        *[("RealImages", "images.py"), ("read_image", "realdata.py"), ("Image.open", "realdata.py")],
    ],
)
def test_dangerous_calls_stay_where_they_belong(call: str, allowed: str | None) -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == call:
                assert path.name == allowed, f"{path.name}:{node.lineno} calls {call}"


def test_temporary_folders_are_made_where_what_a_kill_leaves_is_removed() -> None:
    makers = {path.name for path in MODULES if "tempfile" in path.read_text(encoding="utf-8")}
    assert makers == {"scratch.py"}


def test_modules_are_short_enough_to_read_in_one_sitting() -> None:
    long = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert {name: n for name, n in long.items() if n > 400} == {}
