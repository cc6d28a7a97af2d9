"""Imports of the user's own code: which files importing a name would run, found without running any, and the import."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from pathlib import Path

Files = dict[str, Path]
"""Source files by their path below the folder that they are imported from, so that equal code has equal names."""


def state_folder() -> Path | None:
    """Return where edgekd keeps what it remembers of this user: $XDG_STATE_HOME/edgekd; None where there is no home.

    A relative path counts for nothing: it would lie wherever the command is given, in a stranger's folder too.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # no HOME, and no such user either
        return None
    return folder / "edgekd" if folder.is_absolute() else None


@contextmanager
def from_here() -> Iterator[None]:
    """Let imports see the working directory, as `python -m` does and an installed command does not.

    Compiled copies that lie beside the sources are not taken, for they may be of other code than the sources say;
    Python keeps its own in edgekd's state folder.
    """
    here, state, prefix = str(Path.cwd()), state_folder(), sys.pycache_prefix
    sys.path.insert(0, here)
    sys.pycache_prefix = os.devnull if state is None else str(state / "bytecode")
    try:
        yield
    finally:
        sys.pycache_prefix = prefix
        with suppress(ValueError):  # the code that was imported may have removed it
            sys.path.remove(here)


def files_of(module: str) -> Files:
    """Return the files that `import module` may run, empty where there is no such module; nothing is imported.

    These are all files of its package, or its one file, and what they import from the same folder, unless it is one
    of installed packages. What they load in other ways (a path, a name made up at run time) stays unknown.
    """
    first, *rest = module.split(".")
    with from_here():
        importlib.invalidate_caches()
        try:
            spec = importlib.util.find_spec(first)  # of a first name alone; for `a.b` it would import a
        except (ImportError, ValueError):
            return {}
        found = _files(_below(spec, rest))
    for root in {path.parents[name.count("/")] for name, path in found.items()}:
        if not _installed(root):
            found |= imported_from(root, [name for key, path in found.items() for name in _imports(key, path)])
    return found


def imported_from(root: Path, names: Iterable[str]) -> Files:
    """Return the files of those modules that lie below `root`, with all that they import from there in turn."""
    found: Files = {}
    waiting, seen = sorted(set(names)), {"edgekd"}  # which is imported already
    while waiting:
        first, *rest = waiting.pop().split(".")
        spec = _below(PathFinder.find_spec(first, [str(root)]), rest)
        if spec is None or spec.name in seen:
            continue
        seen.add(spec.name)
        fresh = _files(spec)
        found |= fresh
        waiting += {name for key, path in fresh.items() for name in _imports(key, path)}
    return found


def _below(spec: ModuleSpec | None, rest: list[str]) -> ModuleSpec | None:
    """Return the first module or package with code on the way from a folder without `__init__.py` to `rest`."""
    for part in rest:
        if spec is None or spec.origin is not None:
            break
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations or ()))
    return spec


def _files(spec: ModuleSpec | None) -> Files:
    """Return the files of a module or package, compiled ones and extensions too."""
    if spec is None or spec.origin is None:
        return {}
    origin, above = Path(spec.origin), spec.name.split(".")[:-1]
    if spec.submodule_search_locations is None:
        return {"/".join([*above, origin.name]): origin} if origin.is_file() else {}
    suffixes, found = tuple(all_suffixes()), {}
    for location in map(Path, spec.submodule_search_locations):
        visited: set[str] = set()
        for folder, folders, names in os.walk(location, followlinks=True):
            real = os.path.realpath(folder)
            known = real in visited  # a link that leads back
            visited.add(real)
            folders[:] = [] if known else [one for one in folders if one != "__pycache__" and not one.startswith(".")]
            for name in names if not known else ():
                if name.endswith(suffixes):
                    path = Path(folder, name)
                    found["/".join([*above, *path.relative_to(location.parent).parts])] = path
    return found


def _installed(root: Path) -> bool:
    """Return whether a folder holds Python's own library or installed packages, whose imports lead everywhere."""
    return bool({"site-packages", "dist-packages"} & set(root.parts)) or root == Path(sysconfig.get_path("stdlib"))


def _imports(key: str, file: Path) -> set[str]:
    """Return the dotted names that a source file imports; empty for what is no source."""
    if file.suffix != ".py":
        return set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the user's code, which Python tells when it runs
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # Python could not import it either
    package = key.split("/")[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and _called(node.func) in ("import_module", "__import__"):
            literal = node.args[0]
            if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                names.add(literal.value)
    return {name for name in names if not name.startswith(".")}


def _called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))
