"""What travels to a device: standard library only, Python 3.8, and one hash for one content."""

from __future__ import annotations

import ast
import io
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekd.bench import pack

IN_FUNCTIONS = {"numpy", "onnxruntime", "torch", "tensorrt"}
"""Imported when a model is loaded in that runtime, never before."""
SOURCES = {name: text for name, text in pack.travellers().items() if text}


def names_of(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_what_travels_is_python_3_8_and_standard_library(name: str) -> None:
    tree = ast.parse(SOURCES[name], feature_version=(3, 8))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = set().union(*map(names_of, functions)) if functions else set()
    modules = {path.removesuffix(".py").replace("/", ".") for path in pack.travellers()}
    packages = {".".join(path.split("/")[:-1]) for path in pack.travellers()}
    for imported in names_of(tree):
        top = imported.split(".")[0]
        if top == "edgekd":
            parent = imported.rpartition(".")[0]
            assert imported in modules or parent in modules, f"{imported} does not travel"
            assert parent in modules | packages
        elif imported in inside and top in IN_FUNCTIONS:
            continue
        else:
            assert top in sys.stdlib_module_names, imported


def newer_than_3_8(tree: ast.AST) -> list[str]:
    """Return what parses under 3.8 and fails when it runs: methods, arguments and subscripts of later versions."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix", "pairwise", "file_digest"):
            found.append(node.attr)
        if isinstance(node, ast.keyword) and node.arg in ("strict", "slots", "kw_only"):
            found.append(str(node.arg))
    for node in tree.body if isinstance(tree, ast.Module) else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Subscript, ast.BinOp)):
            text = ast.unparse(node.value)
            if isinstance(node.value, ast.Subscript) and text.split("[")[0] not in ("Literal", "Optional", "Union"):
                found.append(text)
    return found


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_newer_than_3_8_is_called(name: str) -> None:
    assert newer_than_3_8(ast.parse(SOURCES[name])) == []


def test_the_same_content_has_the_same_hash_and_runs(tmp_path: Path) -> None:
    first, second = pack.agent_zip(), pack.agent_zip()
    assert first == second
    assert len(first) < 100_000
    names = zipfile.ZipFile(io.BytesIO(first)).namelist()
    assert set(names) == set(pack.travellers())
    (tmp_path / "agent.pyz").write_bytes(first)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "agent.pyz")], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (ran.returncode, "usage: worker | serve" in ran.stderr) == (2, True)


def test_damage_in_any_member_of_a_bundle_is_found_before_its_code_runs(tmp_path: Path) -> None:
    """A real file with a manifest, and a bit fallen over in one member after the other."""
    entry = tmp_path / "student.pyz"
    whole = pack.bundle_zip({"format": 0}, {"a.onnx": bytes(range(256)) * 20})  # type: ignore[arg-type]  # none is read
    members = zipfile.ZipFile(io.BytesIO(whole)).infolist()
    wanted = ("edgekd/agent/kernels.py", "edgekd/errors.py", "manifest.json", "files/a.onnx")
    for member in (one for one in members if one.filename in wanted):
        lengths = struct.unpack_from("<HH", whole, member.header_offset + 26)
        data = bytearray(whole)
        data[member.header_offset + 30 + sum(lengths) + member.compress_size // 2] ^= 4
        entry.write_bytes(data)
        command = [sys.executable, str(entry), "check"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert ran.returncode == 4
        assert f"error: {entry} is damaged (" in ran.stderr
        assert ran.stderr.count("\n") == 1
    entry.write_bytes(whole)
    ran = subprocess.run([sys.executable, str(entry), "check"], capture_output=True, text=True, cwd=tmp_path)
    assert "the manifest has format 0" in ran.stderr, "its code runs"


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8"])
def test_an_old_python_imports_it_or_says_what_it_needs(version: str, tmp_path: Path) -> None:
    homes = Path.home() / ".pyenv" / "versions"
    candidates = [shutil.which(f"python{version}"), *map(str, sorted(homes.glob(f"{version}.*/bin/python{version}")))]
    works = (p for p in candidates if p and subprocess.run([p, "-c", ""], capture_output=True).returncode == 0)
    python = next(works, None)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    entry = tmp_path / "agent.pyz"
    entry.write_bytes(pack.agent_zip())
    if version != "3.8":
        ran = subprocess.run([python, str(entry)], capture_output=True, text=True, check=False)
        assert "Python 3.8 or newer is needed; this is 3." in ran.stderr
        return
    modules = [name[:-3].replace("/", ".") for name in SOURCES if name.startswith("edgekd/") and "__init__" not in name]
    code = f"import sys; sys.path.insert(0, {str(entry)!r})\n" + "".join(f"import {name}\n" for name in modules)
    ran = subprocess.run([python, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("place", ["/dev/full", "/dev/zero"])
def test_a_device_is_no_bundle_and_is_not_read_without_end(place: str) -> None:
    assert not pack.is_bundle(Path(place))
