"""The rooms import one way, in the order of docs/architecture.md, which this test reads; its figure is up to date."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from docs import architecture
from docs.architecture import PACKAGE, imports, modules, room_of

PAGE = (architecture.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FLOORS = architecture.floors(PAGE)
LEVEL = {room: height for height, rooms in enumerate(reversed(FLOORS)) for room in rooms}
MODULES = modules()
NO_STAGE = {"base", "catalog"}
"""Modules of stages/ that are no stage: stages may share them."""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    here = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
    for parts in imports(path):
        target = room_of(parts)
        assert target == here or LEVEL[target] < LEVEL[here], f"{path.name} of {here} imports {'.'.join(parts)}"


def test_the_page_names_every_room_and_every_file_of_the_ground() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(LEVEL) - {architecture.GROUND}
    ground = {path.stem for path in MODULES if path.parent == PACKAGE}
    assert len(ground) <= 10
    assert [name for name in sorted(ground) if f"`{name}`" not in PAGE] == []


def test_the_figure_shows_the_imports_of_today() -> None:
    drawn = (architecture.ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == architecture.drawing(FLOORS), "draw it again: python -m docs.architecture"


def test_no_room_is_over_a_fifth_of_the_house() -> None:
    lines: dict[str, int] = {}
    for path in MODULES:
        room = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    assert {room: n for room, n in lines.items() if n > sum(lines.values()) / 5} == {}


def test_every_path_that_the_page_names_exists() -> None:
    import re

    names = re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE)
    assert len(names) > 20
    assert [name for name in names if not (PACKAGE / name).is_file() and not (architecture.ROOT / name).is_file()] == []


def test_stages_do_not_import_one_another() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        if path.stem in {*NO_STAGE, "__init__"}:
            continue
        for parts in imports(path):
            if parts[0] == "stages":
                assert parts[1] in NO_STAGE, f"stage {path.stem} imports {'.'.join(parts)}"


def test_the_science_touches_no_file_even_through_others() -> None:
    """Follow imports from synthesis/ at the top of files: none leads to the run directory."""
    waiting = list((PACKAGE / "synthesis").rglob("*.py"))
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for parts in imports(path):
            places = [PACKAGE.joinpath(*parts[:n]) for n in (len(parts), len(parts) - 1)]
            found = [p for place in places for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()]
            waiting += found[:1]
    assert [str(path) for path in seen if path.is_relative_to(PACKAGE / "run")] == []


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        *[("torch.load", "foreign.py"), ("os.replace", "files.py"), ("pickle.load", None), ("print", None)],
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


def test_what_has_grown_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edgekd"
    package.mkdir()
    for index in range(17):
        (package / f"m{index}.py").write_text("\n" * (401 if index == 3 else 400))
    monkeypatch.setattr(architecture, "PACKAGE", package)
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    assert architecture.too_large() == ["edgekd/m3.py has 401 lines, over 400", "edgekd has 17 files, over 16"]
