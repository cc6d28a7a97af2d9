"""Imports of the user's own code: which files importing a name would run, found without running any, and the import."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
    all_suffixes,
)
from pathlib import Path
from types import CodeType, ModuleType

from edgekd.agent.device.files import read_bytes

Files = dict[str, Path]
"""Source files by their path below the folder that they are imported from, so that equal code has equal names."""

_LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)
"""What Python takes for a module, in its order."""


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


_approved: set[str] = set()
"""Real paths of the files of all approved code, as long as the process lives."""
_packages: set[str] = set()
"""Real paths of the folders of packages that such files lie in; Python looks there for nothing but such files."""
_refused: dict[str, str] = {}
"""What was looked for in such a folder, or in the working directory, and lies there unapproved: file by name."""
_here: str | None = None
"""The working directory, while imports see it."""


class _Uncached(SourceFileLoader):
    """Loads the source itself, never a compiled copy, which may be of other code than the source says."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _ApprovedFiles(FileFinder):
    """Finds approved files of one folder; for all else the search goes on as if the folder did not have it."""

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = super().find_spec(fullname, target)
        if spec is None:
            return None
        if spec.origin is None:  # a folder without `__init__.py`
            place, approved = next(iter(spec.submodule_search_locations or ())), _packages
        else:
            place, approved = spec.origin, _approved
        if os.path.realpath(place) in approved:
            return spec
        _refused[fullname] = place
        return None


def _hook(folder: str) -> _ApprovedFiles:
    real = os.path.realpath(folder)
    if real not in _packages and real != _here:
        raise ImportError(f"{folder} is not guarded")  # which tells Python to ask the next hook
    return _ApprovedFiles(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_Uncached, SOURCE_SUFFIXES))


class _Here(MetaPathFinder):
    """Searches the working directory before sys.path, which lacks it: libraries seek plug-ins along it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [self._folder, *sys.path], target) if path is None else None


@contextmanager
def from_here(files: Files) -> Iterator[None]:
    """Let imports see these files in the working directory, and nothing else that lies there.

    Whatever is imported meanwhile, an installed package too, cannot reach a file that nobody approved of. Compiled
    copies that lie beside the sources are not taken; Python keeps its own in edgekd's state folder.
    """
    global _here
    here, state, before, prefix = os.path.realpath(Path.cwd()), state_folder(), _here, sys.pycache_prefix
    for name, path in files.items():
        root = path.parents[name.count("/")]
        if os.path.realpath(root) == here or not _installed(root):
            _approved.add(os.path.realpath(path))
            _packages.update(os.path.realpath(folder) for folder in path.parents[: name.count("/")])
    if _hook not in sys.path_hooks:
        sys.path_hooks.insert(0, _hook)
    finder, _here = _Here(here), here
    sys.meta_path.insert(sys.meta_path.index(PathFinder), finder)
    sys.path_importer_cache.clear()
    sys.pycache_prefix = os.devnull if state is None else str(state / "bytecode")
    try:
        yield
    finally:
        _here, sys.pycache_prefix = before, prefix
        with suppress(ValueError):  # the code that was imported may have removed it
            sys.meta_path.remove(finder)
        sys.path_importer_cache.clear()


def unapproved(error: BaseException) -> str:
    """Return a sentence about the file that an import failed to reach because nobody approved of it, or nothing."""
    if not isinstance(error, ImportError):
        return ""
    names = (error.name, f"{error.name}.{getattr(error, 'name_from', None)}")
    places = [_refused[name] for name in names if name in _refused]
    return "".join(
        f" {place} is not part of the approved code, so nothing of it was run: the code must import it by its name in "
        "the source, and it must not lie in __pycache__."
        for place in places[:1]
    )


def sourceless(files: Files) -> Path | None:
    """Return the first compiled module without its source, of which nobody can say what it imports."""
    for name, path in files.items():
        compiled = path.suffix in BYTECODE_SUFFIXES and not path.with_suffix(".py").is_file()
        if compiled and not _installed(path.parents[name.count("/")]):
            return path
    return None


def files_of(module: str) -> Files:
    """Return the files that `import module` may run, empty where there is no such module; nothing is imported.

    These are all files of its package, or its one file, and what they import from the same folder, unless it is one
    of installed packages. What they load in other ways stays unknown, and `from_here` does not find it in the working
    directory.
    """
    first, *rest = module.split(".")
    loaded = first in sys.modules or first in sys.builtin_module_names
    try:
        spec = None if loaded else _find(first, [str(Path.cwd()), *sys.path])
        spec = spec or importlib.util.find_spec(first)  # of a first name alone; for `a.b` it would import a
    except (ImportError, ValueError):
        return {}
    files = _files(_below(spec, rest))
    for root in {path.parents[name.count("/")] for name, path in files.items()}:
        if not _installed(root):
            files |= imported_from(root, [name for key, path in files.items() for name in _imports(key, path)])
    return files


def imported_from(root: Path, names: Iterable[str]) -> Files:
    """Return the files of those modules that lie below `root`, with all that they import from there in turn."""
    files: Files = {}
    waiting, seen = sorted(set(names)), {"edgekd"}  # which is imported already
    while waiting:
        first, *rest = waiting.pop().split(".")
        spec = _below(_find(first, [str(root)]), rest)
        if spec is None or spec.name in seen:
            continue
        seen.add(spec.name)
        fresh = _files(spec)
        files |= fresh
        waiting += {name for key, path in fresh.items() for name in _imports(key, path)}
    return files


def _find(name: str, folders: Iterable[str]) -> ModuleSpec | None:
    """Where Python would find a module in these folders, though its parents are not imported."""
    portions: list[str] = []
    for folder in folders:
        spec = FileFinder(folder or ".", *_LOADERS).find_spec(name)
        if spec is not None and spec.loader is not None:
            return spec
        portions += (spec.submodule_search_locations or ()) if spec is not None else ()
    if not portions:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def _below(spec: ModuleSpec | None, rest: list[str]) -> ModuleSpec | None:
    """The first module or package with code on the way from a folder without `__init__.py` to `rest`."""
    for part in rest:
        if spec is None or spec.origin is not None:
            break
        spec = _find(f"{spec.name}.{part}", list(spec.submodule_search_locations or ()))
    return spec


def _files(spec: ModuleSpec | None) -> Files:
    """The files of a module or package, compiled ones and extensions too."""
    if spec is None or spec.origin is None:
        return {}
    origin, above = Path(spec.origin), spec.name.split(".")[:-1]
    if spec.submodule_search_locations is None:
        return {"/".join([*above, origin.name]): origin} if origin.is_file() else {}
    suffixes, files = tuple(all_suffixes()), {}
    for location in map(Path, spec.submodule_search_locations):
        visited: set[str] = set()
        for folder, folders, names in os.walk(location, followlinks=True):
            real = os.path.realpath(folder)
            visited_already = real in visited  # a link that leads back
            visited.add(real)
            folders[:] = (
                []
                if visited_already
                else [folder for folder in folders if folder != "__pycache__" and not folder.startswith(".")]
            )
            for name in names if not visited_already else ():
                if name.endswith(suffixes):
                    path = Path(folder, name)
                    files["/".join([*above, *path.relative_to(location.parent).parts])] = path
    return files


def _installed(root: Path) -> bool:
    """Whether a folder holds Python's own library or installed packages, whose imports lead everywhere."""
    return bool({"site-packages", "dist-packages"} & set(root.parts)) or root == Path(sysconfig.get_path("stdlib"))


def _imports(key: str, file: Path) -> set[str]:
    """The dotted names that a source file imports; empty for what is no source."""
    if file.suffix != ".py":
        return set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the user's code, which Python tells when it runs
            tree = ast.parse(read_bytes(file))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # Python could not import it either
    package = key.split("/")[:-1]
    names: set[str] = set()
    importers = {"import_module", "__import__"} | {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("importlib", "builtins")
        for alias in node.names
        if alias.asname and alias.name in ("import_module", "__import__")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and _called(node.func) in importers:
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            for literal in given:
                if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                    names.add(_absolute(literal.value, package))
    return names - {""}


def _absolute(name: str, package: list[str]) -> str:
    """A name as `import_module` takes it, resolved where it begins with dots."""
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    return ".".join([*(package[: len(package) + 1 - level] if level else ()), bare])


def _called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))
